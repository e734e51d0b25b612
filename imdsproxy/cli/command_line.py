"""The command line: the commands, the flags of each, and reading them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from imdsproxy.errors import SettingsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping


class Flag(NamedTuple):
    """A flag of one command, beside the settings, which are flags of every command."""

    meaning: str
    placeholder: str = ""
    """How its value is written; empty for a flag without a value."""
    optional: bool = False
    """Whether the value may be left out."""


_ALIKE = 0.7
"""Similarity (difflib, 0 to 1) from which a word counts as misspelt."""

COMMANDS = {
    "serve": "run the proxy; this is the default command",
    "demo": "run an emulated IMDS and the proxy in front of it, and show what it does, and commands to try",
    "emulator": "run only the emulated IMDS",
    "config": "show every setting: its value, the source of the value, and its meaning",
    "check": "check whether this machine reaches IMDS through this configuration, and what to fix",
    "status": "show what the running proxy does: IMDS, the budget, the cache, tokens",
    "purge": "drop cached entries of the running proxy, all or those of a path and below",
    "events": "print scheduled events as they change, one JSON object a line, through the running proxy",
    "access": 'explain what the access rules say about a request: "imdsproxy access explain --user NAME --path PATH"',
    "address": "give this machine a link-local address for its proxy, for as long as the command runs",
    "record": "write what this VM's IMDS answers to a file, less what is personal, for the emulator to play back",
    "redirect": "print or load the nftables ruleset that redirects 169.254.169.254 to the proxy",
}

CONFIG_FORMS = {
    "toml": "print a TOML file",
    "env": "print an environment file for systemd and docker",
    "markdown": "print a Markdown table",
}

FLAGS: Mapping[str, Mapping[str, Flag]] = {
    "address": {
        "address": Flag("the address, from 169.254.0.0/16 (default: 169.254.20.10)", "ADDRESS"),
        "interface": Flag("the interface to make for it (default: imdsproxy0)", "NAME"),
        "remove": Flag("remove the interface that an earlier run left, and end"),
        "print": Flag("print the commands of ip(8) that do the same, and end"),
    },
    "redirect": {
        "uid": Flag(
            "the proxy's own user, by name or number; it is not redirected (default: the user of imdsproxy.service)",
            "USER",
        ),
        "node": Flag("redirect the requests of this machine's pods too"),
        "root": Flag("with --node, redirect this machine's programs of root too, such as the kubelet"),
        "respect-restriction": Flag("leave pods out of --node if rules keep them from IMDS (AKS's IMDS restriction)"),
        "node-label": Flag("labels of this node; --load --node refuses nodes with eBPF host routing", "KEY=VALUE,..."),
        "force": Flag("load the ruleset even where it is known to have no effect"),
        "exclusive": Flag("allow only that user and root to answer at the proxy's port; always on without --uid"),
        "remove": Flag("print or load the ruleset that removes the redirect"),
        "load": Flag("load the ruleset with nft instead of printing it; needs root or CAP_NET_ADMIN"),
    },
    "demo": {
        "emulator-port": Flag("port of the emulated IMDS, 0 for a free one (default: 8255)", "PORT"),
        "no-tour": Flag("skip the tour, and show only the commands to try"),
    },
    "check": {
        "json": Flag("print the findings as JSON"),
        "identity": Flag(
            "ask for an access token as well, of this identity or of the VM's own; the token is not shown",
            "CLIENT-ID",
            optional=True,
        ),
    },
    "status": {
        "json": Flag("print the document of /-/status.json, with what is known of the redirect, on one line"),
        "watch": Flag("print the figures again every two seconds, until Ctrl-C"),
    },
    "access": {
        "path": Flag("the target that is asked for, with its query", "TARGET"),
        "method": Flag("the method (default: GET)", "METHOD"),
        "user": Flag("the client's user, by name or number", "USER"),
        "unix-user": Flag("the same, for a client of the Unix socket", "USER"),
        "group": Flag("groups of the user that this machine does not know, separated by commas", "GROUP,..."),
        "executable": Flag("the absolute path of the client's program", "FILE"),
        "address": Flag("the client's address", "ADDRESS"),
        "namespace": Flag("the Kubernetes namespace of the client's pod", "NAME"),
        "service-account": Flag("the service account of the client's pod", "NAMESPACE/NAME"),
    },
    "record": {
        "out": Flag("the file to write, .toml; it must not exist", "FILE"),
        "url": Flag("what to ask (default: the running proxy, or IMDS itself if none runs)", "URL"),
        "keep": Flag("fields whose values stay, separated by commas, as compute.name,compute.tagsList", "FIELD,..."),
        "scheduled-events": Flag("ask for scheduled events too, which enables them: restarts then wait for approvals"),
    },
    "events": {
        "watch": Flag("print events as they change, until Ctrl-C; this is the default"),
        "once": Flag("print the pending events, and end"),
    },
}
WITHOUT_SETTINGS = frozenset({"address"})
"""The commands that no setting concerns."""
_POSITIONAL = {"purge": "[PATH] ", "access": "explain "}
_PRECEDENCE = " A flag takes precedence over its environment variable."
_PATH = "the path, such as /metadata/instance; without one, everything is dropped"

HELP = f"""\
usage: imdsproxy [command] [flags]

A transparent local caching proxy for the Azure Instance Metadata Service.

commands:
{chr(10).join(f"  {name:<12}{meaning}" for name, meaning in COMMANDS.items())}

flags:
  -h, --help  show this help, or the flags of a command (imdsproxy serve --help)
  --version   show the version

Every setting is a flag (--port) and an environment variable (IMDSPROXY_PORT): "imdsproxy serve --help".
"""


class UsageError(SettingsError):
    """A command line with a mistake; the text is one line."""


def make_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    import argparse  # noqa: PLC0415 - late, see `main`

    from imdsproxy.settings.model import Settings, environment_name, flag_name, form  # noqa: PLC0415 - late
    from imdsproxy.settings.report import plain  # noqa: PLC0415 - late

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(message)

    summary = COMMANDS[command]
    parser = Parser(
        prog=f"imdsproxy {command}",
        usage=f"imdsproxy {command} {_POSITIONAL.get(command, '')}[flags]",
        description=f"{summary[:1].upper()}{summary[1:]}." + ("" if command in WITHOUT_SETTINGS else _PRECEDENCE),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    _add_own(parser, command)
    for field, info in () if command in WITHOUT_SETTINGS else Settings.model_fields.items():
        meaning = f"{info.description} [{environment_name(field)}, default: {plain(info.default)}]"
        # argparse reads a percent sign as a placeholder.
        meaning = meaning.replace("%", "%%")
        name, placeholder = flag_name(field), form(field).placeholder
        if info.annotation is bool:
            parser.add_argument(name, nargs="?", const="true", metavar=placeholder, help=meaning)
        else:
            parser.add_argument(name, metavar=placeholder, help=meaning)
    return parser


def _add_own(parser: argparse.ArgumentParser, command: str) -> None:
    """Add what only this command has."""
    if command == "purge":
        parser.add_argument("path", nargs="?", metavar="PATH", help=_PATH)
    if command == "config":
        output = parser.add_mutually_exclusive_group()
        for name, meaning in CONFIG_FORMS.items():
            output.add_argument(f"--{name}", dest="output", action="store_const", const=name, help=meaning)
    for name, flag in FLAGS.get(command, {}).items():
        if flag.optional:
            parser.add_argument(f"--{name}", nargs="?", const="", metavar=flag.placeholder, help=flag.meaning)
        elif flag.placeholder:
            parser.add_argument(f"--{name}", metavar=flag.placeholder, help=flag.meaning)
        else:
            parser.add_argument(f"--{name}", action="store_const", const="true", help=flag.meaning)


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> dict[str, str]:
    """Return the flags that were given, by name. Raise UsageError for an unknown one."""
    from imdsproxy.settings.model import Settings, flag_name  # noqa: PLC0415 - late, see `main`

    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = parser.prog.rpartition(" ")[2]
        own = (*FLAGS.get(command, ()), *(CONFIG_FORMS if command == "config" else ()))
        settings = () if command in WITHOUT_SETTINGS else map(flag_name, Settings.model_fields)
        flags = [*(f"--{name}" for name in own), *settings]
        raise UsageError(not_among(flags, unknown[0].partition("=")[0], "flag", parser.prog))
    return dict(vars(namespace))


def split(command: str, flags: dict[str, str]) -> dict[str, str]:
    """Remove the command's own flags from `flags`, which leaves the settings, and return them."""
    own = ("path", *FLAGS.get(command, {}))
    return {name: flags.pop(key) for name in own if (key := name.replace("-", "_")) in flags}


def not_among(known: Iterable[str], given: str, kind: str, program: str) -> str:
    """Return the message about a word that is not known, with the known word that it resembles most."""
    import difflib  # noqa: PLC0415 - late, see `main`

    # All flags share their dashes, which would make short ones similar.
    by_core = {name.lstrip("-"): name for name in known}
    near = difflib.get_close_matches(given.lstrip("-"), by_core, 1, _ALIKE)
    remedy = f"did you mean {by_core[near[0]]}?" if near else f'"{program} --help" lists them'
    return f"{ascii(given)[:80]} is not a {kind} of {program}; {remedy}"
