from __future__ import annotations

from pathlib import Path

import pytest

from imdsproxy.settings.log_format import log_format_of

JSON = {"IMDSPROXY_LOG_FORMAT": "json"}


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ([], {}, "text"),
        ([], JSON, "json"),
        ([], {"IMDSPROXY_LOG_FORMAT": " JSON "}, "json"),
        ([], {"IMDSPROXY_LOG_FORMAT": "yaml"}, "text"),
        (["--port", "x", "--log-format", "json"], {}, "json"),
        (["--log-format=json"], {}, "json"),
        (["--log-format=json", "--log-format", "text"], {}, "text"),
        (["--log-format=text"], JSON, "text"),
        (["--log-format"], JSON, "json"),
    ],
)
def test_flag_comes_before_the_environment(arguments: list[str], environ: dict[str, str], expected: str) -> None:
    assert log_format_of(arguments, environ) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('log_format = "json"', "json"),
        ("port = 1", "text"),
        ("log_format = [", "text"),
        ("log_format = ['json']", "text"),
    ],
)
def test_file_is_read_last_and_may_be_broken(content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(content, encoding="utf-8")
    assert log_format_of([f"--config-file={file}"], {}) == expected
    assert log_format_of([], {"IMDSPROXY_CONFIG_FILE": str(file)}) == expected
    assert log_format_of(["--log-format=text"], {"IMDSPROXY_CONFIG_FILE": str(file)}) == "text"


def test_missing_file_and_the_process_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert log_format_of(["--config-file", str(tmp_path / "none")], {}) == "text"
    monkeypatch.setenv("IMDSPROXY_LOG_FORMAT", "json")
    assert log_format_of() == "json"
