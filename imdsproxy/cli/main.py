"""Parse the command line, run the command, return the exit status.

| status | means |
|---|---|
| 0 | success |
| 1 | an error of imdsproxy itself; unwritable output; a warning of `check`; a refusal by `access explain` |
| 2 | a command line, setting or machine that does not allow the command; for `check`, a failure |
| 3 | no running proxy answers, for `status`, `purge` and `events` |
| 130 | interrupted by Ctrl-C |

A command's imports happen when it runs, so that `--help` and a mistyped command are answered at once.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from imdsproxy import __version__
from imdsproxy.cli.command_line import COMMANDS, HELP, UsageError, make_parser, not_among, parse, split
from imdsproxy.cli.standard_streams import complain, open_missing, show
from imdsproxy.errors import ImdsproxyError, NotRunningError

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNREAD_STATUS = 1
_BUG_STATUS = 1
_USAGE_STATUS = 2
_NOT_RUNNING_STATUS = 3
_INTERRUPTED_STATUS = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, or that of the process if `argv` is None, and return the exit status."""
    open_missing()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except NotRunningError as error:
        _complain(error)
        return _NOT_RUNNING_STATUS
    except ImdsproxyError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return _INTERRUPTED_STATUS


def _run(arguments: list[str]) -> int:
    match arguments:
        case ["-h" | "--help", *_]:
            return _print(HELP)
        case ["--version", *_]:
            return _print(f"imdsproxy {__version__}\n")
        case ["emulator", *rest]:
            from imdsproxy.emulator.cli import main as emulator  # noqa: PLC0415 - late, see above

            return emulator(rest)
        case ["access" | "address" as command, *rest]:
            return _access(rest) if command == "access" else _address(rest)
        case [command, *rest] if command in COMMANDS:
            return _run_with_settings(command, rest)
        case [unknown, *_] if not unknown.startswith("-"):
            raise UsageError(not_among(COMMANDS, unknown, "command", "imdsproxy"))
        case _:
            return _run_with_settings("serve", arguments)


def _run_with_settings(command: str, arguments: list[str]) -> int:
    if {"-h", "--help"}.intersection(arguments):
        return _print(make_parser(command).format_help())
    if command == "serve":
        return _serve(arguments)
    flags = parse(make_parser(command), arguments)
    if command == "config":
        return _config(flags)
    options = split(command, flags)
    if command == "check":
        from imdsproxy.cli.check.command import check  # noqa: PLC0415 - late, see above

        return check(flags, options)
    if command in _BY_SETTINGS:
        return _BY_SETTINGS[command](flags, options)
    return _ask_running(command, flags, options)


def _serve(arguments: list[str]) -> int:
    # As early as possible: the kernel does not deliver SIGTERM to a container's first process without a handler.
    signal.signal(signal.SIGTERM, _end_early)
    from imdsproxy.settings.forked_loader import read_config  # noqa: PLC0415 - late, see above

    try:
        read = read_config(lambda: _flags("serve", arguments), meanwhile=_import_server)
    except ImdsproxyError as error:
        from imdsproxy.ops.start_errors import report  # noqa: PLC0415 - late, see above
        from imdsproxy.settings.log_format import log_format_of  # noqa: PLC0415 - late, see above

        report(error, log_format_of(arguments))
        return _USAGE_STATUS
    from imdsproxy.cli.private_memory import keep_memory_private  # noqa: PLC0415 - late, see above
    from imdsproxy.cli.serve import serve  # noqa: PLC0415 - late, see above
    from imdsproxy.ops import logs  # noqa: PLC0415 - late, see above

    keep_memory_private()
    logs.configure(read.config.log_level, read.config.log_format)
    try:
        return serve(read)
    except ImdsproxyError:
        raise
    except Exception as error:  # noqa: BLE001 - the interpreter's traceback would not have the form of the log
        from imdsproxy.ops.start_errors import report_bug  # noqa: PLC0415 - late, see above

        report_bug(error)
        return _BUG_STATUS


def _flags(command: str, arguments: list[str]) -> dict[str, str]:
    """Return the flags of a command line. Without arguments no parser is made, because that takes 15 ms."""
    return parse(make_parser(command), arguments) if arguments else {}


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


def _access(arguments: list[str]) -> int:
    from imdsproxy.cli.access import explained  # noqa: PLC0415 - late, see above
    from imdsproxy.settings.load import load  # noqa: PLC0415 - late, see above

    if {"-h", "--help"}.intersection(arguments):
        return _print(make_parser("access").format_help())
    if arguments[:1] != ["explain"]:
        raise UsageError(
            '"imdsproxy access" needs a word behind it: "imdsproxy access explain --user NAME --path PATH"'
        )
    flags = parse(make_parser("access"), arguments[1:])
    options = split("access", flags)
    config = load(flags).settings.config()
    explanation = explained(config.access_file, config.access_mode, options)
    for note in explanation.notes:
        complain(f"imdsproxy: note: {note}")
    return explanation.status if show(explanation.text) else _UNREAD_STATUS


def _address(arguments: list[str]) -> int:
    from imdsproxy.cli.address import address  # noqa: PLC0415 - late, see above

    if {"-h", "--help"}.intersection(arguments):
        return _print(make_parser("address").format_help())
    return address(split("address", parse(make_parser("address"), arguments)))


def _demo(flags: dict[str, str], options: dict[str, str]) -> int:
    from imdsproxy.cli.demo import demo  # noqa: PLC0415 - late, see above

    return demo(flags, options)


def _record(flags: dict[str, str], options: dict[str, str]) -> int:
    from imdsproxy.cli.record.command import record  # noqa: PLC0415 - late, see above
    from imdsproxy.settings.load import load  # noqa: PLC0415 - late, see above

    return record(load(flags).settings.config(), options)


def _redirect(flags: dict[str, str], options: dict[str, str]) -> int:
    from imdsproxy.cli.redirect import end_of_redirect, load_ruleset, redirect  # noqa: PLC0415 - late, see above
    from imdsproxy.settings.load import load  # noqa: PLC0415 - late, see above

    notes: list[str] = []
    if "remove" in options:
        ruleset = end_of_redirect()
    else:
        from imdsproxy.cli.node_limits import within_limits  # noqa: PLC0415 - late, see above

        config = load(flags).settings.config()
        options, notes = within_limits(options)
        ruleset = redirect(config, options)
    if "load" in options:
        load_ruleset(ruleset.text)
        complain(f"imdsproxy: {ruleset.in_force}")
    for note in (*notes, *ruleset.notes):
        complain(f"imdsproxy: note: {note}")
    return 0 if "load" in options else _print(ruleset.text)


def _ask_running(command: str, flags: dict[str, str], options: dict[str, str]) -> int:
    from imdsproxy.cli.running import commands  # noqa: PLC0415 - late, see above
    from imdsproxy.settings.load import load  # noqa: PLC0415 - late, see above

    config = load(flags).settings.config()
    if command == "purge":
        return commands.purge(config, options.get("path"))
    return commands.events(config, options) if command == "events" else commands.status(config, options)


_BY_SETTINGS = {"demo": _demo, "record": _record, "redirect": _redirect}


def _print(text: str) -> int:
    return 0 if show(text) else _UNREAD_STATUS


def _complain(error: ImdsproxyError) -> int:
    complain(error.for_terminal())
    return _USAGE_STATUS
