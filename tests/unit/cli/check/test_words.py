from __future__ import annotations

import json

import pytest

from imdsproxy.cli.check.documents import words


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("Identity not found", "Identity not found"),
        ("eyJ0eXAi.eyJhdWQi.c2ln is not accepted", "[removed] is not accepted"),
        (None, ""),
    ],
)
def test_words_of_others_show_no_token(told: str | None, shown: str) -> None:
    assert words(json.dumps({"error_description": told}), "error_description") == shown
