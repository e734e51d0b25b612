from __future__ import annotations

import base64
import hashlib
import re

import pytest

from imdsproxy.web_page.document import Document, document

PAGES = (document("imdsproxy.ops", "status"), document("imdsproxy.emulator", "emulator", "connect-src 'self'"))
# What needs another place of the document than text, or a file of its own. SVG's namespace is a name, which no browser
# opens.
NEVER = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "eval(",
    "style=",
    " src=",
    "url(",
    "@import",
)
NAMESPACE = "http://www.w3.org/2000/svg"


def policy(page: Document) -> dict[str, str]:
    text = dict(page.headers)["content-security-policy"]
    return dict(part.split(" ", 1) for part in text.split("; "))


@pytest.mark.parametrize("page", PAGES)
def test_policy_allows_its_own_script_and_style_only(page: Document) -> None:
    found = policy(page)
    for element in ("script", "style"):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert found.pop(f"{element}-src") == f"'sha256-{digest}'"
    assert found.pop("connect-src", "'self'") == "'self'"
    assert found == {
        **dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'"),
        "img-src": "data:",
        "require-trusted-types-for": "'script'",
    }


def test_page_may_send_requests_only_where_a_directive_says_so() -> None:
    assert ["connect-src" in policy(page) for page in PAGES] == [False, True]


@pytest.mark.parametrize("page", PAGES)
def test_page_loads_nothing_and_writes_text_only(page: Document) -> None:
    text = page.text.replace(NAMESPACE, "").replace("xmlns='http://www.w3.org/2000/svg'", "")
    assert [part for part in NEVER if part in text] == []
    assert re.findall(r"https?://|(?:src|href)=\"(?!data:|#)", text) == []


@pytest.mark.parametrize("page", PAGES)
def test_each_page_has_the_shared_rules_after_its_own_and_the_functions_before(page: Document) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert style.index(":root {") < style.index("box-sizing")
    assert script.startswith('"use strict";\n')
    assert script.index("const draw = ") < script.index("(() => {")


def test_answer_is_not_stored_and_not_framed() -> None:
    (headers, other) = (dict(page.headers) for page in PAGES)
    assert (headers["cache-control"], headers["x-frame-options"]) == ("no-store", "DENY")
    assert {name for name in headers if headers[name] != other[name]} == {"content-security-policy"}
