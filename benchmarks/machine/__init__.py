"""The machine that a run uses: its cores, its processes, and what /proc says of them.

These modules know nothing of HTTP and nothing of what is measured.
"""
