"""``${path}`` references to inputs and step outputs in a step's config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tachograph.errors import ConditionError

REFERENCE: Final = re.compile(r"\$\{\s*+((?:[^{}\s]++|\s++(?=[^{}\s]))*+)\s*+\}")
"""``${path}``, the path without the blanks around it. Takes time linear in the text: nothing is tried twice."""
MAX_TEXT: Final = 10_000_000
"""Characters that a string may have once its references are replaced."""


def lookup(path: str, scope: Mapping[str, Any]) -> Any:
    """The value at a path such as ``a.b["c"][0]`` in ``scope``. Raises `KeyError` if there is no such value."""
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
    """``config`` with every ``${path}`` in its strings replaced by its value in ``scope``.

    A string that is a single reference becomes the value itself, of whatever type. Inside a longer string the value is
    inserted as text. Raises `ConditionError` naming a reference without a value.
    """
    if isinstance(config, str):
        if "${" not in config:
            return config
        if whole := REFERENCE.fullmatch(config):
            return _value(whole[1], scope)
        return _text(config, scope)
    if isinstance(config, Mapping):
        return {key: resolve(value, scope) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [resolve(value, scope) for value in config]
    return config


def _text(config: str, scope: Mapping[str, Any]) -> str:
    """A string with its references replaced. A few references to a long value could fill all memory."""
    texts: dict[str, str] = {}
    parts: list[str] = []
    size = at = 0
    for match in REFERENCE.finditer(config):
        if match[1] not in texts:
            texts[match[1]] = str(_value(match[1], scope))
        parts += (config[at : match.start()], texts[match[1]])
        size += len(parts[-1]) + len(parts[-2])
        if size > MAX_TEXT:
            raise ConditionError(f"the values of its references make a text longer than {MAX_TEXT} characters")
        at = match.end()
    return "".join(parts) + config[at:]


def has_reference(config: Any) -> bool:
    """Whether any string in ``config`` contains a ``${path}``."""
    if isinstance(config, str):
        return "${" in config
    if isinstance(config, Mapping):
        return any(map(has_reference, config.values()))
    return isinstance(config, list | tuple) and any(map(has_reference, config))


def _value(path: str, scope: Mapping[str, Any]) -> Any:
    try:
        return lookup(path, scope)
    except KeyError:
        raise ConditionError(f'"${{{path}}}" has no value: no such variable or step output') from None
