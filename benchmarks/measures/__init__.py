"""The parts of a run: each takes a bench and an effort, and returns figures or curves.

One module measures one subject, for all servers in turn.
"""
