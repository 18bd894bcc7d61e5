"""Writes the types of `tachograph.client`'s answers from the OpenAPI document: ``python tools/client_answers.py``.

The library cannot import the service's own types, and a client reads answers of other versions. So the types are read
from the document that every service serves, and are more tolerant than its own: what may be null may be missing, and a
choice of words may get more of them. A test checks that the file is up to date.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.api.openapi import document

ROOT: Final = Path(__file__).resolve().parent.parent
TARGET: Final = ROOT / "instrumentation" / "tachograph" / "client" / "answers.py"
ROOTS: Final = (
    "ExecutionComparison", "ExecutionPage", "FailurePage", "LogPage", "ProblemDetails", "WhyAnswer",
    "WorkflowExecutionTimeline", "WorkflowMetricsSummary",
)  # fmt: skip
"""What the client reads."""
_WIDTH: Final = 120
_SCALARS: Final = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_HEAD: Final = '''"""The service's answers, as its OpenAPI document describes them.

Written by tools/client_answers.py; do not edit. Times are RFC 3339 in UTC, durations are seconds. Fields that a newer
service adds are left out, and what an older one does not send is None.
"""

from __future__ import annotations

from typing import Any

import msgspec
'''


def source() -> str:
    """The text of the module."""
    schemas: dict[str, Any] = document(ROUTES)["components"]["schemas"]
    waiting, names = list(ROOTS), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += _references(schemas[name])
    return _HEAD + "".join(f"\n\n{_structure(name, schemas[name])}" for name in sorted(names))


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference.rpartition("/")[2]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _structure(name: str, schema: Mapping[str, Any]) -> str:
    lines = [f"class {name}(msgspec.Struct, kw_only=True):", *_docstring(str(schema.get("description", name))), ""]
    required = set(schema.get("required", ()))
    for field, kind in schema["properties"].items():
        written = _type(kind)
        if written == "Any" or written.endswith("| None"):
            lines.append(f"    {field}: {written} = None")
        elif field in required:
            lines.append(f"    {field}: {written}")
        else:
            lines.append(f"    {field}: {written} = {kind['default']!r}".replace("'", '"'))
    return "\n".join(lines) + "\n"


def _docstring(text: str) -> list[str]:
    # Links lead from one page of the docs to another.
    text = text.replace("](", "](docs/").replace("](docs/http", "](http")
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    summary, rest = paragraphs[0], paragraphs[1:]
    lines = textwrap.wrap(f'"""{summary}', _WIDTH - 4 - 3, break_long_words=False)
    for paragraph in rest:
        lines += ["", *textwrap.wrap(paragraph, _WIDTH - 4, break_long_words=False)]
    lines = [*lines[:-1], f'{lines[-1]}"""'] if len(lines) == 1 else [*lines, '"""']
    return [f"    {line}" if line else "" for line in lines]


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        kinds = list(dict.fromkeys(_type(option) for option in schema["anyOf"]))
        return " | ".join([*(kind for kind in kinds if kind != "None"), *(["None"] if "None" in kinds else [])])
    if "enum" in schema:
        return "str"
    kind = schema.get("type")
    if kind == "array":
        return f"list[{_type(schema.get('items', {}))}]"
    if kind == "object":
        return f"dict[str, {_type(schema.get('additionalProperties', {}))}]"
    return _SCALARS.get(str(kind), "Any")


if __name__ == "__main__":
    TARGET.write_text(source())
    sys.stdout.write(f"{TARGET.relative_to(ROOT)}\n")
