"""The project's own errors. Each text is one line for a person: what is wrong, with which value, and what to do.

ImdsproxyError
├── SettingsError      a setting, flag or file that cannot be used
│   └── LoadError      nft refused the ruleset (cli/redirect)
├── StartError         the settings are sound, but this machine does not allow the start
└── BudgetFileError    a shared budget file that cannot be used (budget/shared_file)
"""


class ImdsproxyError(Exception):
    """Base of every error that the project raises for a person to read."""


class SettingsError(ImdsproxyError):
    """A setting that cannot be used. The text names it and says which values can."""


class StartError(ImdsproxyError):
    """Why the proxy cannot start on this machine."""
