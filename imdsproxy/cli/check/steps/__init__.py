"""The steps: each is a pure function of the facts, and returns one finding.

A module covers one subject. `order` has all steps in the order in which they are reported.
"""
