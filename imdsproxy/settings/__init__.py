"""The settings: their model, their sources, and their report. Reading them returns one frozen `config.Config`.

Only `cli` and `app` import from here, and only when they need it, because pydantic takes memory that a running proxy
does not need. This room knows nothing of the proxy.
"""
