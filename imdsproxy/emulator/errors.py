"""The errors that several modules of the emulator share."""

from __future__ import annotations


class KeysError(ValueError):
    """The keys cannot be used; the text is one line with the path and the remedy."""


class LendError(Exception):
    """No token of the developer can be lent; `status` is that of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
