"""Parse the command line, run the command, return the exit status.

| status | means |
|---|---|
| 0 | success |
| 1 | the output could not be written; for `check`, a warning |
| 2 | a command line, setting or machine that does not allow the command; for `check`, a failure |
| 130 | interrupted by Ctrl-C |

A command's imports happen when it runs, so that `--help` and a mistyped command are answered at once.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from imdsproxy import __version__
from imdsproxy.cli.standard_streams import complain, open_missing, show
from imdsproxy.errors import ImdsproxyError, SettingsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

_UNREAD_STATUS = 1
_USAGE_STATUS = 2
_INTERRUPTED_STATUS = 130

_ALIKE = 0.7
"""Similarity (difflib, 0 to 1) from which a word counts as misspelt."""

_COMMANDS = {
    "serve": "run the proxy; this is the default command",
    "demo": "run an emulated IMDS and the proxy in front of it, and show commands to try",
    "emulator": "run only the emulated IMDS",
    "config": "show every setting: its value, the source of the value, and its meaning",
    "check": "check whether this machine reaches IMDS through this configuration, and what to fix",
    "redirect": "print or load the nftables ruleset that redirects 169.254.169.254 to the proxy",
}

_CONFIG_FORMS = {
    "toml": "print a TOML file",
    "env": "print an environment file for systemd and docker",
    "markdown": "print a Markdown table",
}

_REDIRECT_FLAGS = {
    "uid": (
        "USER",
        "the proxy's own user, by name or number; it is not redirected (default: the user of imdsproxy.service)",
    ),
    "node": ("", "redirect the requests of this machine's pods too"),
    "exclusive": (
        "",
        "allow only that user and root to answer at the proxy's port; always on without --uid",
    ),
    "remove": ("", "print or load the ruleset that removes the redirect"),
    "load": ("", "load the ruleset with nft instead of printing it; needs root or CAP_NET_ADMIN"),
}

_CHECK_FLAGS = {
    "json": ("", "print the findings as JSON"),
    "identity": (
        "CLIENT-ID",
        "ask for an access token as well, of this identity or of the VM's own; the token is not shown",
    ),
}

_HELP = f"""\
usage: imdsproxy [command] [flags]

A transparent local caching proxy for the Azure Instance Metadata Service.

commands:
{chr(10).join(f"  {name:<12}{meaning}" for name, meaning in _COMMANDS.items())}

flags:
  -h, --help  show this help, or the flags of a command (imdsproxy serve --help)
  --version   show the version

Every setting is a flag (--port) and an environment variable (IMDSPROXY_PORT): "imdsproxy serve --help".
"""


class _UsageError(SettingsError):
    """A command line with a mistake; the text is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, or that of the process if `argv` is None, and return the exit status."""
    open_missing()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except ImdsproxyError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return _INTERRUPTED_STATUS


def _run(arguments: list[str]) -> int:
    match arguments:
        case ["-h" | "--help", *_]:
            return _print(_HELP)
        case ["--version", *_]:
            return _print(f"imdsproxy {__version__}\n")
        case ["emulator", *rest]:
            from imdsproxy.emulator.cli import main as emulator  # noqa: PLC0415 - late, see above

            return emulator(rest)
        case ["serve" | "demo" | "config" | "redirect" | "check" as command, *rest]:
            return _run_with_settings(command, rest)
        case [unknown, *_] if not unknown.startswith("-"):
            raise _UsageError(_not_among(_COMMANDS, unknown, "command", "imdsproxy"))
        case _:
            return _run_with_settings("serve", arguments)


def _run_with_settings(command: str, arguments: list[str]) -> int:
    if {"-h", "--help"}.intersection(arguments):
        return _print(_parser(command).format_help())
    if command == "serve":
        return _serve(arguments)
    flags = _parse(_parser(command), arguments)
    if command == "config":
        return _config(flags)
    if command == "redirect":
        return _redirect(flags)
    if command == "check":
        return _check(flags)
    from imdsproxy.cli.demo import demo  # noqa: PLC0415 - late, see above

    return demo(flags)


def _serve(arguments: list[str]) -> int:
    # As early as possible: the kernel does not deliver SIGTERM to a container's first process without a handler.
    signal.signal(signal.SIGTERM, _end_early)
    from imdsproxy.settings.forked_loader import read_config  # noqa: PLC0415 - late, see above

    read = read_config(lambda: _parse(_parser("serve"), arguments), meanwhile=_import_server)
    from imdsproxy.cli.serve import serve  # noqa: PLC0415 - late, see above
    from imdsproxy.ops import logs  # noqa: PLC0415 - late, see above

    logs.configure(read.config.log_level, read.config.log_format)
    return serve(read)


def _end_early(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def _import_server() -> None:
    import imdsproxy.cli.serve  # noqa: F401, PLC0415 - this takes about as long as reading the settings


def _config(flags: dict[str, str]) -> int:
    import shutil  # noqa: PLC0415 - late, see above

    from imdsproxy.settings import report as settings_report  # noqa: PLC0415 - late, see above
    from imdsproxy.settings.load import load  # noqa: PLC0415 - late, see above

    output = flags.pop("output", "table")
    if output == "markdown":
        return _print(settings_report.markdown())
    loaded = load(flags)
    for warning in loaded.warnings:
        complain(f"imdsproxy: warning: {warning}")
    if output == "toml":
        return _print(settings_report.toml(loaded.settings))
    if output == "env":
        return _print(settings_report.env(loaded.settings))
    return _print(settings_report.table(loaded, shutil.get_terminal_size().columns))


def _redirect(flags: dict[str, str]) -> int:
    from imdsproxy.cli.redirect import end_of_redirect, load_ruleset, redirect  # noqa: PLC0415 - late, see above
    from imdsproxy.settings.load import load  # noqa: PLC0415 - late, see above

    options = {name: flags.pop(name) for name in _REDIRECT_FLAGS if name in flags}
    ruleset = end_of_redirect() if "remove" in options else redirect(load(flags).settings.config(), options)
    if "load" in options:
        load_ruleset(ruleset.text)
        complain(f"imdsproxy: {ruleset.in_force}")
    for note in ruleset.notes:
        complain(f"imdsproxy: note: {note}")
    return 0 if "load" in options else _print(ruleset.text)


def _check(flags: dict[str, str]) -> int:
    from imdsproxy.cli.check.command import check  # noqa: PLC0415 - late, see above

    options = {name: flags.pop(name) for name in _CHECK_FLAGS if name in flags}
    return check(flags, options)


def _parser(command: str) -> argparse.ArgumentParser:
    import argparse  # noqa: PLC0415 - late, see above

    from imdsproxy.settings.model import Settings, environment_name, flag_name, form  # noqa: PLC0415 - late
    from imdsproxy.settings.report import plain  # noqa: PLC0415 - late, see above

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise _UsageError(message)

    summary = _COMMANDS[command]
    parser = Parser(
        prog=f"imdsproxy {command}",
        usage=f"imdsproxy {command} [flags]",
        description=f"{summary[:1].upper()}{summary[1:]}. A flag takes precedence over its environment variable.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    if command == "config":
        output = parser.add_mutually_exclusive_group()
        for name, meaning in _CONFIG_FORMS.items():
            output.add_argument(f"--{name}", dest="output", action="store_const", const=name, help=meaning)
    if command == "redirect":
        for name, (placeholder, meaning) in _REDIRECT_FLAGS.items():
            if placeholder:
                parser.add_argument(f"--{name}", metavar=placeholder, help=meaning)
            else:
                parser.add_argument(f"--{name}", action="store_const", const="true", help=meaning)
    if command == "check":
        parser.add_argument("--json", action="store_const", const="true", help=_CHECK_FLAGS["json"][1])
        placeholder, meaning = _CHECK_FLAGS["identity"]
        parser.add_argument("--identity", nargs="?", const="", metavar=placeholder, help=meaning)
    for field, info in Settings.model_fields.items():
        meaning = f"{info.description} [{environment_name(field)}, default: {plain(info.default)}]"
        # argparse reads a percent sign as a placeholder.
        meaning = meaning.replace("%", "%%")
        name, placeholder = flag_name(field), form(field).placeholder
        if info.annotation is bool:
            parser.add_argument(name, nargs="?", const="true", metavar=placeholder, help=meaning)
        else:
            parser.add_argument(name, metavar=placeholder, help=meaning)
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> dict[str, str]:
    from imdsproxy.settings.model import Settings, flag_name  # noqa: PLC0415 - late, see above

    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = map(flag_name, Settings.model_fields)
        raise _UsageError(_not_among(flags, unknown[0].partition("=")[0], "flag", parser.prog))
    return dict(vars(namespace))


def _not_among(known: Iterable[str], given: str, kind: str, program: str) -> str:
    import difflib  # noqa: PLC0415 - late, see above

    # All flags share their dashes, which would make short ones similar.
    by_core = {name.lstrip("-"): name for name in known}
    near = difflib.get_close_matches(given.lstrip("-"), by_core, 1, _ALIKE)
    remedy = f"did you mean {by_core[near[0]]}?" if near else f'"{program} --help" lists them'
    return f"{ascii(given)[:80]} is not a {kind} of {program}; {remedy}"


def _print(text: str) -> int:
    return 0 if show(text) else _UNREAD_STATUS


def _complain(error: ImdsproxyError) -> int:
    complain(error.for_terminal())
    return _USAGE_STATUS
