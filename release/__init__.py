"""The parts of a release, each made from one commit. `make release` runs it; docs/release.md has the steps.

`source` checks the tree and exports the commit, `archives` makes sdist and wheel, `bill` the bill of materials, `chart`
and `image` what their names say. It is no part of the package, and needs the packages of `requirements/dev.txt`.
"""
