"""Read the TOML file that CONFIG_FILE names."""

from __future__ import annotations

import codecs
from pathlib import Path

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_file(path: str) -> dict[str, object]:
    """Return the top level of the file. Scalars become text, as in the environment; lists and tables stay.

    Raises:
        ValueError: The file cannot be read; the message is the reason, for a person.
    """
    # Imported here, because it takes memory that is needed only with a file.
    import tomllib  # noqa: PLC0415

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if content.startswith(_UTF_16) or b"\0" in content[:2]:
        raise ValueError(
            "it is encoded in UTF-16, the default of Windows PowerShell's > and Out-File; save it as UTF-8 "
            "(Out-File -Encoding utf8)"
        )
    try:
        # Editors on Windows may begin a file with a byte order mark.
        table = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return {name: _as_text(value) for name, value in table.items()}


def _as_text(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, list | dict) else str(value)
