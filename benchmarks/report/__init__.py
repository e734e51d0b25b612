"""What becomes of the findings: the comparison with the goals, tables, a picture, and the result files.

Nothing here measures anything.
"""
