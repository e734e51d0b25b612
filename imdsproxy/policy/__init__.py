"""What may be requested of IMDS, and how long its answers may be used.

`endpoints` has the table, `decisions` what can be decided, `policy` decides. This room knows no cache and no upstream.
"""
