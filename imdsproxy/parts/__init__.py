"""The parts of an application, built from one `Config`.

`parts` builds them all, without starting or connecting anything; `app` joins them into an application. This room knows
no server and no command.
"""
