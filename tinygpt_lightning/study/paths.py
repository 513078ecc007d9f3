"""Settings by their path, as in ``model.config.n_embd`` or ``stages[1:].weights``."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinygpt_lightning.commands.errors import UsageError

Settings = dict[str, Any]  # plain nested values, as in a YAML file
Patch = Mapping[str, Any]  # path of a setting to its value


def change(settings: Settings, patch: Patch) -> list[str]:
    """Set values at their paths, in place, as the command line of `fit` does; returns the paths that lead nowhere.

    A path may lead to several places, or to none: ``stages[1:]`` is every stage but the first. Settings are merged
    into a group of settings: ``model.config`` with a width keeps the other sizes. A class of another name takes its
    own defaults.

    Raises:
        UsageError: If a path is malformed, or leads through a value that has no parts.

    >>> settings = {"stages": [{"epochs": 3}, {"epochs": 3}], "renumber": False}
    >>> change(settings, {"stages[1:].epochs": 5, "renumber": True}), settings
    ([], {'stages': [{'epochs': 3}, {'epochs': 5}], 'renumber': True})
    >>> change(settings, {"stages[2:].epochs": 5})
    ['stages[2:].epochs']
    """
    return [path for path, value in patch.items() if not _put(settings, path, _steps(path), value)]


def _put(node: Any, path: str, steps: Sequence[str | slice], value: Any) -> int:
    """Set ``value`` behind ``steps``; returns the number of places."""
    step, *rest = steps
    keys: Sequence[int | str]
    if isinstance(step, slice):
        if not isinstance(node, list):
            raise UsageError(f"{path}: expected a list before the brackets, got {node!r}")
        keys = range(len(node))[step]
    else:
        if not isinstance(node, dict):
            raise UsageError(f"{path}: expected settings with a name before {step!r}, got {node!r}")
        if "class_path" in node and step not in ("class_path", "init_args"):
            node = node.setdefault("init_args", {})  # as on the command line of `fit`
        elif step == "class_path" and _class_name(node) != _class_name({step: value}):
            node.pop("init_args", None)
        keys = [step]
        if rest and node.get(step) is None:
            node[step] = {}  # null, where nested settings may be
    if not rest:
        for key in keys:
            node[key] = _merged(node[key] if isinstance(step, slice) else node.get(step), value)
        return len(keys)
    return sum(_put(node[key], path, rest, value) for key in keys)


def _merged(before: Any, value: Any) -> Any:
    is_same_class = isinstance(value, dict) and isinstance(before, dict) and _class_name(before) == _class_name(value)
    if not is_same_class:
        return copy.deepcopy(value)
    return {**before, **{name: _merged(before.get(name), part) for name, part in value.items()}}


def _class_name(settings: Settings) -> str | None:
    path = settings.get("class_path")
    return str(path).rpartition(".")[2] if path else None


# A library was no simplification: of those with slices (jsonpath-ng), none knows `init_args` or tells a missing place.
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(-?\d+|-?\d*:-?\d*)\]")


def _steps(path: str) -> list[str | slice]:
    if not path or path.startswith(".") or _STEP.sub("", path):
        raise UsageError(
            f"expected the path of a setting, such as model.config.n_embd or stages[1:].weights, got {path!r}"
        )
    return [name or _slice(brackets) for name, brackets in _STEP.findall(path)]


def _slice(brackets: str) -> slice:
    if ":" in brackets:
        return slice(*(int(number) if number else None for number in brackets.split(":")))
    return slice(int(brackets), int(brackets) + 1 or None)
