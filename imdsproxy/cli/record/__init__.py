"""`imdsproxy record`: ask IMDS for all that describes this VM, and write it to a file that the emulator plays back.

`conversation` decides what to ask, `asking` sends it within the budget, `command` writes what is not personal.
"""
