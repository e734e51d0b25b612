"""The project's own errors. Each line of a message states what is wrong, with which value, and what to do.

ImdsproxyError
├── SettingsError      a setting, flag or file that cannot be used
│   ├── LoadError      nft refused the ruleset (cli/redirect)
│   └── RefusedError   the running proxy has no answer to what was asked (cli/running)
├── StartError         the settings are sound, but this machine does not allow the start
├── NotRunningError    no running proxy answers
├── BudgetFileError    a file of a shared budget that cannot be used
└── NoPlaceError       a server's workers have no place to share a budget (budget/workers)
"""

import re

# What looks like a token: a JWT (RFC 7519: its first part is an object in base64url), or a longer run than a GUID.
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_+/=.-]{8,}|[A-Za-z0-9_+=-]{40,}")


def without_tokens(text: str) -> str:
    """Return the words of others with what looks like an access token replaced by `[removed]`."""
    return _TOKEN.sub("[removed]", text)


def printable(text: str) -> str:
    """Return a text with everything escaped that a terminal would obey, line breaks included."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


class ImdsproxyError(Exception):
    """Base of every error that the project raises for a person to read."""

    def for_terminal(self) -> str:
        """Return the text as it is written to standard error: each line begins with the program's name."""
        return "\n".join(f"imdsproxy: {line}" for line in str(self).splitlines())


class SettingsError(ImdsproxyError):
    """Settings that cannot be used. Each line names one setting and the values that it accepts."""


class StartError(ImdsproxyError):
    """The proxy cannot start on this machine."""


class NotRunningError(ImdsproxyError):
    """No running proxy answers where the settings say that one listens."""


class BudgetFileError(ImdsproxyError):
    """The file of a shared budget cannot be used; the text is one line."""
