"""A web page in one answer, which loads nothing: its style and its script are in it, and its policy allows no others.

`ops` and `emulator` make their pages of it. This room knows no other room, and nothing of what a page shows.
"""
