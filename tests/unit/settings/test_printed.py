"""What `imdsproxy config` prints: TOML, the table, Markdown. The sample file equals it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from imdsproxy.settings import report as settings_report
from imdsproxy.settings.load import Settings, load
from imdsproxy.settings.model import environment_name, flag_name, form
from tests.unit.settings.kit import DEFAULTS, write

SAMPLE_FILE = Path(__file__).parents[3] / "config" / "imdsproxy.toml"


def test_sample_file_equals_the_printed_defaults() -> None:
    assert SAMPLE_FILE.read_text(encoding="utf-8") == settings_report.toml(Settings())


def test_sample_file_sets_exactly_the_defaults() -> None:
    loaded = load({"config_file": str(SAMPLE_FILE)}, {})
    assert loaded.settings.model_dump() == {**DEFAULTS, "config_file": str(SAMPLE_FILE)}
    unset = {name for name, source in loaded.sources.items() if source == "default"}
    assert unset == {
        "uds",
        "admin_host",
        "admin_port",
        "identity_budget_requests",
        "budget_file",
        "access_file",
        "pods_of_node",
        "handover_file",
    }


def test_toml_file_round_trips(tmp_path: Path) -> None:
    settings = Settings(
        host="::1",
        port=0,
        upstream="http://imds.example:81",
        max_wait=0.25,
        identity_budget_requests=20,
        retry_statuses=(),
        ttl={"/metadata/a=b": 1, "/metadata": 0.5},
        stale_if_error={"/metadata/x": 0},
        allow=("/metadata/instance", "/metadata/versions"),
        warmup=('/metadata/a?b="c"', "/metadata/versions"),
        log_format="json",
        access_log=True,
    )
    path = write(tmp_path, settings_report.toml(settings))
    again = load({"config_file": path}, {}).settings
    assert again.model_dump() == {**settings.model_dump(), "config_file": path}
    # The file in force is not written into the next one, which could not be read then.
    assert settings_report.toml(again) == settings_report.toml(settings)


def test_every_commented_example_would_do(tmp_path: Path) -> None:
    lines = settings_report.toml(Settings()).splitlines()
    active = "\n".join(re.sub(r'^# (identity_\w+ = |"/)', r"\1", line) for line in lines)
    loaded = load({"config_file": write(tmp_path, active)}, {})
    assert loaded.settings.identity_budget_requests == 20
    assert loaded.settings.ttl
    assert loaded.settings.stale_if_error


def test_strings_are_quoted_for_toml() -> None:
    text = 'a "b" \\ \x7f \x00 é'
    assert tomllib.loads(f"x = {settings_report._toml_value(text)}") == {"x": text}


@pytest.mark.parametrize("width", [0, 72, 80, 160])
def test_table_shows_every_setting_and_keeps_its_width(width: int) -> None:
    loaded = load(
        {"port": "9"},
        {"IMDSPROXY_TTL": "/metadata/instance=30", "IMDSPROXY_WARMUP": "/metadata/" + "x" * 300},
    )
    text = settings_report.table(loaded, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= max(width, 72)
    starts = [line.split()[0] for line in lines if line.startswith("IMDSPROXY_")]
    assert starts == [environment_name(name) for name in Settings.model_fields]
    assert re.search(r"^IMDSPROXY_PORT +9 +flag --port$", text, re.MULTILINE)
    assert re.search(r"^IMDSPROXY_TTL +/metadata/inst", text, re.MULTILINE)
    assert re.search(r"^IMDSPROXY_TTL .* environment$", text, re.MULTILINE)
    assert re.search(r"^IMDSPROXY_CONFIG_FILE +unset +default$", text, re.MULTILINE)
    assert re.search(r"^IMDSPROXY_DENY +empty +default$", text, re.MULTILINE)


def test_markdown_table_has_a_row_for_every_setting() -> None:
    rows = settings_report.markdown().splitlines()[2:]
    assert len(rows) == len(Settings.model_fields)
    assert all(len(re.split(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert "| `IMDSPROXY_PORT` | `8254` | TCP port " in rows[1]
    assert "| `IMDSPROXY_DENY` | empty | " in "".join(rows)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_explained(name: str) -> None:
    description = Settings.model_fields[name].description or ""
    assert len(description) > 20
    assert description.endswith(".")
    # It is printed to consoles of any encoding.
    assert description.isascii()
    assert form(name).placeholder
    assert flag_name(name) == "--" + name.replace("_", "-")
