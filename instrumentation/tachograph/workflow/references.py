"""``${path}`` references to inputs and step outputs in a step's config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tachograph.errors import ConditionError

REFERENCE: Final = re.compile(r"\$\{\s*([^{}]*?)\s*\}")


def lookup(path: str, scope: Mapping[str, Any]) -> Any:
    """The value at ``a.b["c"][0]`` in ``scope``. Raises `KeyError` when nothing is there."""
    value: Any = scope
    for key, quoted, index in re.findall(r"([A-Za-z_]\w*)|\[\"([^\"]*)\"\]|\[(\d+)\]", path):
        if isinstance(value, Mapping):
            value = value[key or quoted or index]
        elif index and isinstance(value, list | tuple) and int(index) < len(value):
            value = value[int(index)]
        else:
            raise KeyError(path)
    return value


def resolve(config: Any, scope: Mapping[str, Any]) -> Any:
    """``config`` with every ``${path}`` in its strings replaced from ``scope``.

    A string that is one reference and nothing else takes the value itself, whatever its type; inside a longer string
    the value is written as text. Raises `ConditionError` naming a reference that leads nowhere.
    """
    if isinstance(config, str):
        if "${" not in config:
            return config
        if whole := REFERENCE.fullmatch(config):
            return _found(whole[1], scope)
        return REFERENCE.sub(lambda match: str(_found(match[1], scope)), config)
    if isinstance(config, Mapping):
        return {key: resolve(value, scope) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [resolve(value, scope) for value in config]
    return config


def has_reference(config: Any) -> bool:
    """Whether any string in ``config`` holds a ``${path}``."""
    if isinstance(config, str):
        return "${" in config
    if isinstance(config, Mapping):
        return any(map(has_reference, config.values()))
    return isinstance(config, list | tuple) and any(map(has_reference, config))


def _found(path: str, scope: Mapping[str, Any]) -> Any:
    try:
        return lookup(path, scope)
    except KeyError:
        raise ConditionError(f'"${{{path}}}" leads nowhere: no such variable or step output') from None
