"""The public Python API as Markdown, from ``tachograph.__all__`` and its docstrings."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, get_overloads

import msgspec

import tachograph

GROUPS: dict[str, tuple[str, ...]] = {
    "Record your own functions": (
        "configure", "workflow", "step", "measure", "cost", "log", "current_execution", "LogHandler",
        "get_recorder", "caller", "propagation",
    ),
    "Report runs that somebody else executes": ("report",),
    "Define and run workflows": (
        "WorkflowBuilder", "Workflow", "Step", "Variable", "Backoff", "validate_document", "Fault", "Executor",
        "ExecutionResult", "handler", "HandlerRegistry", "StepContext",
    ),
    "Listen to events": (
        "Recorder", "BatchListener", "Subscription", "events", "ExecutionRef", "StepRef",
    ),
    "Spans and metrics": ("SpanListener", "MetricsListener", "METRICS", "choose_format", "render_metrics"),
    "Errors": (
        "TachographError", "WorkflowError", "InvalidWorkflow", "InvalidInputs", "ConditionError", "StepFailed",
        "DoNotRetry", "ExecutorClosed", "SetupError", "StoreUnavailable", "StoreError",
    ),
    "Version": ("__version__",),
}  # fmt: skip
"""Every public name, by what a reader wants to do."""

_CONSTANTS = {
    "METRICS": "Every workflow metric: name, kind, help and labels. [metrics.md](metrics.md) has them as a table.",
    "__version__": "The installed version, a string.",
}
_FOR_ALL = ("step", "nested", "step_id", "execution_id", "is_ended", "id", "depend_on", "logs")
"""Methods and properties of `tachograph.report` that are for users, besides those that report something."""
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns):$")
_ENTRY = re.compile(r"^    (\w+): (.*)$")


def python_api() -> str:
    """All groups. Raises `LookupError` when a public name is in no group, or a group has a name that is not public."""
    grouped = [name for names in GROUPS.values() for name in names]
    if sorted(grouped) != sorted(tachograph.__all__):
        raise LookupError(f"tools/python_api.py: GROUPS and __all__ differ in {set(grouped) ^ set(tachograph.__all__)}")
    return "\n".join(
        line for title, names in GROUPS.items() for line in (f"## {title}\n", *map(_entry, names))
    ).rstrip()


def _entry(name: str) -> str:
    value = getattr(tachograph, name)
    if name in _CONSTANTS:
        return f"### `{name}`\n\n{_CONSTANTS[name]}\n"
    parts = [f"### `{name}`\n"]
    if inspect.ismodule(value) and hasattr(value, "__all__"):
        return "\n".join([*parts, markdown(inspect.getdoc(value) or "") + "\n", *_exports(name, value)])
    if inspect.ismodule(value):
        return "\n".join([*parts, markdown(inspect.getdoc(value) or "") + "\n", *_classes(value)])
    if isinstance(value, type) and issubclass(value, BaseException):
        parent = next(base.__name__ for base in value.__mro__[1:] if not base.__name__.startswith("_"))
        parts.append(f"{markdown(inspect.getdoc(value) or '')} Subclass of `{parent}`.\n")
        return "\n".join(parts)
    parts.append(f"```python\n{_signatures(name, value)}\n```\n")
    parts.append(markdown(inspect.getdoc(value) or "") + "\n")
    if isinstance(value, type):
        parts += _methods(value)
    return "\n".join(parts)


def _exports(name: str, module: ModuleType) -> Iterator[str]:
    """What a module exports: its functions, then its classes with those methods that are for everybody."""
    exported = {export: getattr(module, export) for export in module.__all__}
    for export, value in sorted(exported.items(), key=lambda pair: isinstance(pair[1], type)):
        if isinstance(value, type):
            yield f"#### `{name}.{export}`\n\n{markdown(inspect.getdoc(value) or '')}\n"
            yield from _methods(
                value, only=lambda name, member: hasattr(member, "reports_something") or name in _FOR_ALL
            )
        else:
            signature = inspect.signature(value)
            yield f"```python\n{_call(f'{name}.{export}', signature)}\n```\n\n{markdown(inspect.getdoc(value) or '')}\n"


def _classes(module: ModuleType) -> Iterator[str]:
    """The public classes of a module and what each is."""
    yield "**Members**\n"
    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_"):
            yield f"- `{name}`: {' '.join(markdown(inspect.getdoc(value) or '').split())}"
    yield ""


def _signatures(name: str, value: Any) -> str:
    if getattr(value, "_is_protocol", False):
        return f"class {name}(Protocol)"
    if isinstance(value, type):
        return f"class {_call(name, inspect.signature(value), returns=False)}"
    return "\n".join(_call(name, inspect.signature(function)) for function in get_overloads(value) or [value])


def _call(name: str, signature: inspect.Signature, *, returns: bool = True) -> str:
    parameters: list[str] = []
    kind = None
    for parameter in signature.parameters.values():
        if kind is parameter.POSITIONAL_ONLY and parameter.kind is not parameter.POSITIONAL_ONLY:
            parameters.append("/")
        if parameter.kind is parameter.KEYWORD_ONLY and kind not in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL):
            parameters.append("*")
        kind = parameter.kind
        parameters.append(_parameter(parameter))
    if kind is inspect.Parameter.POSITIONAL_ONLY:
        parameters.append("/")
    result = f" -> {_annotation(signature.return_annotation)}" if returns and signature.return_annotation else ""
    line = f"{name}({', '.join(parameters)}){result}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){result}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = (
        "*" if parameter.kind is parameter.VAR_POSITIONAL else "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    )
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        equals = "=" if parameter.annotation is parameter.empty else " = "
        text += equals + _default(parameter.default)
    return text


def _annotation(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else str(inspect.formatannotation(annotation))
    return re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", text).replace("NoneType", "None")


def _default(value: Any) -> str:
    """A default, without what differs between runs and Python versions (addresses, factories)."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return "…" if "<" in text or len(text) > 60 else text


def _methods(owner: type, only: Callable[[str, Any], bool] = lambda _name, _member: True) -> Iterator[str]:
    """Public methods and properties of a class, those of our own base classes included."""
    members: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        if base.__module__.startswith("tachograph"):
            members.update(vars(base))
    fields = set(owner.__struct_fields__) if issubclass(owner, msgspec.Struct) else set()
    lines = []
    for name, member in members.items():
        function = _function(member)
        if (name.startswith("_") and name != "__call__") or name in fields or function is None:
            continue
        if not only(name, member):
            continue
        text = " ".join(markdown(inspect.getdoc(function) or "").split("\n\n", 1)[0].split())
        title = name if isinstance(member, property) else _call(name, _without_self(member, function), returns=False)
        lines.append(
            f"- `{' '.join(title.split())}`{f': {text}' if text else ''}".replace("( ", "(").replace(", )", ")")
        )
    if lines:
        yield "**Members**\n\n" + "\n".join(lines) + "\n"


def _function(member: Any) -> Callable[..., Any] | None:
    if isinstance(member, property):
        return member.fget
    if isinstance(member, (classmethod, staticmethod)):
        member = member.__func__
    return member if inspect.isfunction(member) else None


def _without_self(member: Any, function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    skip = 0 if isinstance(member, staticmethod) else 1
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return signature.replace(parameters=parameters[skip:])


def markdown(docstring: str) -> str:
    """A docstring as Markdown: code in single backticks, sections as lists, doctests as code blocks."""
    lines: list[str] = []
    code: list[str] = []
    in_section = False

    def close_code() -> None:
        if code:
            lines.extend(["```python", *code, "```"])
            code.clear()

    for line in docstring.splitlines():
        if line.startswith((">>> ", "... ")) or (code and line and not line.startswith(" ") and lines):
            if not code and lines and lines[-1]:
                lines.append("")
            code.append(line)
            continue
        close_code()
        if section := _SECTION.match(line):
            in_section = True
            lines += [f"**{section[1].replace('Args', 'Arguments')}**", ""]
        elif in_section and (entry := _ENTRY.match(line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif in_section and line.startswith("    "):
            lines.append("  " + line.strip())
        else:
            in_section = in_section and not line
            lines.append(line)
    close_code()
    return re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", "\n".join(lines).strip())
