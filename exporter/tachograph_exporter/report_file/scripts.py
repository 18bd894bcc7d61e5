"""The page's scripts as one, so that a file needs no other: pages opened from a disk may not load modules.

Each module becomes a function that returns what it exports. Only the forms that the page uses are understood; another
one is an error, and a test builds the script.
"""

from __future__ import annotations

import functools
import graphlib
import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

WEB: Final = Path(__file__).resolve().parent.parent / "web"
ENTRY: Final = "report/main.js"
STYLES: Final = ("page.css", "report/report.css")
REPLACED: Final[Mapping[str, str]] = MappingProxyType({
    "api.js": "report/answers.js",
    "now.js": "report/still.js",
    "stream.js": "report/quiet_stream.js",
    "views/run_actions.js": "report/no_actions.js",
})  # fmt: skip
"""Modules of the page that need the service, and what takes their place."""
_IMPORT: Final = re.compile(r'^import \{([^}]*)\} from "(\.{1,2}/[^"]+)";$', re.MULTILINE)
_EXPORT: Final = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
_OTHER: Final = re.compile(r"^(?:import|export)\b.*$|\bimport\s*\(|\bimport\.meta\b", re.MULTILINE)


class NotBundled(Exception):
    """A module is written in a form that is not understood here."""


@functools.cache
def script() -> str:
    """The script of every report."""
    return bundle(ENTRY, lambda name: (WEB / name).read_text(encoding="utf-8"), REPLACED)


@functools.cache
def style() -> str:
    """The style sheet of every report."""
    return "\n".join((WEB / name).read_text(encoding="utf-8") for name in STYLES)


def bundle(entry: str, read: Callable[[str], str], replaced: Mapping[str, str]) -> str:
    """A module and all that it imports as one script. ``read`` has the text of a module by its path.

    Raises `NotBundled`, and `graphlib.CycleError` when modules import one another.
    """
    texts: dict[str, str] = {}
    imported: dict[str, list[str]] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in texts:
            continue
        texts[name] = read(name)
        imported[name] = [_target(name, match[2], replaced) for match in _IMPORT.finditer(texts[name])]
        waiting += imported[name]
    order = list(graphlib.TopologicalSorter(imported).static_order())
    numbers = {name: number for number, name in enumerate(order)}
    parts = [_part(name, texts[name], numbers, replaced) for name in order]
    text = "\n".join(parts)
    if re.search(r"</script|<!--", text, re.IGNORECASE):
        raise NotBundled("a script must not hold what ends it in a document")
    return text


def _target(importer: str, path: str, replaced: Mapping[str, str]) -> str:
    name = posixpath.normpath(posixpath.join(posixpath.dirname(importer), path))
    return replaced.get(name, name)


def _part(name: str, text: str, numbers: Mapping[str, int], replaced: Mapping[str, str]) -> str:
    def constant(match: re.Match[str]) -> str:
        names = ", ".join(part.strip().replace(" as ", ": ") for part in match[1].split(",") if part.strip())
        return f"const {{ {names} }} = $m{numbers[_target(name, match[2], replaced)]};"

    exported = _EXPORT.findall(text)
    body = _EXPORT.sub("", _IMPORT.sub(constant, text))
    if other := _OTHER.search(body):
        raise NotBundled(f"{name}: {other[0]!r} is not understood")
    return f"// {name}\nconst $m{numbers[name]} = (() => {{\n{body}return {{ {', '.join(exported)} }};\n}})();"
