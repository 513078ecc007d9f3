"""Settings by their path, as in ``model.config.n_embd`` or ``stages[1:].weights``."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinygpt_lightning.commands.errors import UsageError

Settings = dict[str, Any]
Patch = Mapping[str, Any]  # path of a setting to its value
Step = str | slice

_STEP = re.compile(r"\.?(?P<name>[^.\[\]]+)|\[(?P<start>-?\d*)(?P<colon>:?)(?P<stop>-?\d*)\]")


def change(settings: Settings, patch: Patch) -> bool:
    """Put values where their paths lead, in place.

    A path may lead to several places, or to none: ``stages[1:]`` is every stage but the first.

    Args:
        settings: Plain values, nested.
        patch: Path to value.

    Returns:
        Whether there was such a place.

    Raises:
        UsageError: If a path is none, or leads through a value that has no parts.

    >>> settings = {"stages": [{"epochs": 3}, {"epochs": 3}], "renumber": False}
    >>> change(settings, {"stages[1:].epochs": 5, "renumber": True}), settings
    (True, {'stages': [{'epochs': 3}, {'epochs': 5}], 'renumber': True})
    >>> change(settings, {"stages[2:].epochs": 5})
    False
    """
    places = [place for path, value in patch.items() for place in _put(settings, path, _steps(path), value)]
    return bool(places)


def _put(node: Any, path: str, steps: Sequence[Step], value: Any) -> Iterator[None]:
    step, rest = steps[0], steps[1:]
    if isinstance(step, slice):
        if not isinstance(node, list):
            raise UsageError(f"{path}: expected a list before the brackets, got {node!r}")
        numbers: Sequence[int | str] = range(len(node))[step]
    else:
        if not isinstance(node, dict):
            raise UsageError(f"{path}: expected settings with a name before {step!r}, got {node!r}")
        if "class_path" in node and step not in ("class_path", "init_args"):
            node = node.setdefault("init_args", {})  # as on the command line of `fit`
        numbers = [step]
    for number in numbers:
        if not rest:
            node[number] = copy.deepcopy(value)
            yield
        else:
            if not isinstance(step, slice) and node.get(number) is None:
                node[number] = {}  # null, where settings may be
            yield from _put(node[number], path, rest, value)


def _steps(path: str) -> list[Step]:
    steps: list[Step] = []
    end = 0
    for match in _STEP.finditer(path):
        if match.start() != end:
            break
        if match["name"]:
            steps.append(match["name"])
        elif match["colon"]:
            start, stop = (int(number) if number else None for number in match.group("start", "stop"))
            steps.append(slice(start, stop))
        elif match["start"]:
            start = int(match["start"])
            steps.append(slice(start, start + 1 or None))
        else:
            break
        end = match.end()
    if end != len(path) or not steps or path.startswith("."):
        raise UsageError(
            f"expected the path of a setting, such as model.config.n_embd or stages[1:].weights, got {path!r}"
        )
    return steps


def first_difference(settings: Any, others: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first setting in which two differ: its path, and both values; what only one has is null in the other.

    >>> first_difference({"model": {"n_embd": 8}, "renumber": True}, {"model": {"n_embd": 4}})
    ('model.n_embd', 8, 4)
    """
    if isinstance(settings, dict) and isinstance(others, dict):
        for name in sorted({*settings, *others}):
            found = first_difference(settings.get(name), others.get(name), f"{path}.{name}" if path else name)
            if found:
                return found
        return None
    return None if settings == others else (path, settings, others)
