"""Commands that ask the running proxy: `imdsproxy status`, `purge` and `events`.

`client` finds the proxy and asks it. `status_text` and `event_lines` are pure: they turn its answers into text.
"""
