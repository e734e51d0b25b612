"""Tables in a document, each after a mark of its own: `<!-- name -->`."""

from __future__ import annotations

import re


def replace_table(text: str, name: str, lines: str) -> str:
    """Return the text with the table after a mark replaced by these lines.

    Raises:
        ValueError: The text has no such mark.
    """
    mark = f"<!-- {name} -->\n"
    head, found, rest = text.partition(mark)
    if not found:
        raise ValueError(f"the file has no {mark.strip()}")
    after = re.sub(r"(?:[|].*\n)*", "", rest, count=1)
    return f"{head}{mark}{lines}\n{after}"
