"""What is sent to a server: single requests by one client, and sustained load by wrk or by the bundled generator.

The load comes from another core than the servers use.
"""
