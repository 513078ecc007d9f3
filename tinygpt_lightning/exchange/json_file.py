"""JSON files that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from tinygpt_lightning.gpt.checkpoint import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: If the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes().decode(), parse_constant=_no_number)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"expected a JSON object, got none ({error!s:.60})") from None
    if not isinstance(content, dict):
        raise CheckpointError(path, f"expected a JSON object, got {type(content).__name__}")
    return content


def expect(path: Path, found: dict[str, Any], name: str, default: object, *expected: object) -> None:
    """Refuse a file in which an entry is anything but what is expected; ``default`` is what its absence means.

    Raises:
        CheckpointError: It names the file, the entry and both values.
    """
    value = found.get(name, default)
    if not any(type(value) is type(each) and value == each for each in expected):
        wanted = " or ".join(f"{json.dumps(each):.100}" for each in expected)
        raise CheckpointError(path, f"cannot be expressed: expected {wanted} as {name}, got {json.dumps(value):.100}")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
