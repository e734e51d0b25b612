"""`imdsproxy check`: whether this machine reaches IMDS through this configuration, and what to fix.

`probes` gather `facts` from the machine, `steps` judge them, and `report` writes the findings. `steps`, `facts`,
`finding` and `report` are pure: every step is a function of the facts alone.
"""
