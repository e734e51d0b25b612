"""Access rules: which client may ask for what.

The pure core has the rules as values, the decision, and reading a file's text. `loading` reads the file and the
machine's users; `guard` keeps the rules in force.
"""
