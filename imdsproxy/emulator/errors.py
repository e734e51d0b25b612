"""The errors that several modules of the emulator share."""

from __future__ import annotations


class KeysError(ValueError):
    """The keys cannot be used; the text is one line with the path and the remedy."""
