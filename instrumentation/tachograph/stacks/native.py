"""What a frame calls in C.

A thread's innermost Python frame that stands at a call is executing something that has no Python frame of its own: a
function written in C. Its name is read from the bytecode before the call, as far as that says it without doubt. Nothing
is looked up but modules' globals, and no code of the program runs.
"""

from __future__ import annotations

import builtins
import dis
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, Final

_MAX_CACHED: Final = 4_096
_CALLS: Final = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX", "PRECALL"})
_NAMES: Final = frozenset({"LOAD_NAME", "LOAD_GLOBAL"})
_ATTRIBUTES: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_LOCALS: Final = frozenset(
    {"LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_FROM_DICT_OR_DEREF"}
)
_STRAIGHT: Final = frozenset({"NOP", "CACHE", "EXTENDED_ARG", "PRECALL", "KW_NAMES", "RESUME"})
_UNKNOWN: Final = "[a call into C]"
_CONTEXT: Final = "__enter__"

_mro: Final[Callable[[type], tuple[type, ...]]] = type.__dict__["__mro__"].__get__
_namespace: Final[Callable[[type], Mapping[str, Any]]] = type.__dict__["__dict__"].__get__
_qualname: Final[Callable[[type], str]] = type.__dict__["__qualname__"].__get__

_Path = tuple[str, ...]
"""Names that lead to what is called; the first one is "" unless it is global."""
_paths: dict[tuple[CodeType, int], _Path | None] = {}


def native_call(frame: FrameType) -> str | None:
    """The name of the C function that a frame is executing, such as ``time.sleep``.

    None: it executes none, as far as is known. Of a method, only its own name is known, such as ``acquire``.
    """
    code, at = frame.f_code, frame.f_lasti
    key = (code, at)
    if key in _paths:
        path = _paths[key]
    else:
        if len(_paths) > _MAX_CACHED:
            _paths.clear()
        path = _paths[key] = _path_at(code, at)
    if path is None:
        return None
    if not path:
        return _UNKNOWN
    return _resolved(path, frame)


def forget() -> None:
    """Forget the code that was read."""
    _paths.clear()


def _path_at(code: CodeType, at: int) -> _Path | None:
    """What the instruction at an offset calls; (): something not known; None: it calls nothing."""
    instructions = [each for each in dis.get_instructions(code) if each.opname != "CACHE"]
    index = next((i for i, each in enumerate(instructions) if each.offset == at), None)
    if index is None:
        return None
    instruction = instructions[index]
    if instruction.opname == "BEFORE_WITH":
        return ("", _CONTEXT)
    if instruction.opname not in _CALLS:
        return None
    try:
        return _callee(instructions, index)
    except (ValueError, IndexError):
        return ()


def _callee(instructions: list[dis.Instruction], index: int) -> _Path:
    """The names of the value that lies below the arguments of a call.

    Walks back over instructions without jumps, counting what each leaves on the stack. Raises `ValueError` when they do
    not tell.
    """
    call = instructions[index]
    if call.opname == "CALL_FUNCTION_EX":
        # The arguments and perhaps keyword arguments (always, from Python 3.14 on), above the function and a NULL.
        below = -1 - dis.stack_effect(call.opcode, call.arg)
    else:
        below = call.arg or 0
        if call.opname == "CALL_KW":
            below += 1
    i = index - 1
    need = below
    # Go back until the instruction that produced the lowest argument.
    while need > 0:
        instruction = instructions[i]
        if instruction.opname not in _STRAIGHT:
            if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs or instruction.is_jump_target:
                raise ValueError
            need -= dis.stack_effect(instruction.opcode, instruction.arg)
        i -= 1
    if need < 0:
        raise ValueError
    names: list[str] = []
    while True:
        instruction = instructions[i]
        name = instruction.opname
        if name in _STRAIGHT or name == "PUSH_NULL":
            i -= 1
        elif name in _ATTRIBUTES:
            names.append(str(instruction.argval))
            i -= 1
        elif name in _NAMES:
            return (str(instruction.argval), *reversed(names))
        elif names:
            return ("", *reversed(names))
        elif name == "LOAD_SPECIAL":
            # A `with` block from Python 3.14 on: `__enter__`.
            return ("", instruction.argrepr or _CONTEXT)
        elif name in _LOCALS:
            return ("", str(instruction.argval))
        else:
            raise ValueError


def _resolved(path: _Path, frame: FrameType) -> str | None:
    """The name of what names lead to; None if that is a Python function, which would have a frame of its own."""
    if not path[0]:
        return path[-1]
    value: Any = frame.f_globals.get(path[0], _MISSING)
    if value is _MISSING:
        value = frame.f_builtins.get(path[0], _MISSING)
    for name in path[1:]:
        if type(value) is not ModuleType:
            return ".".join(path) if value is _MISSING else _method(value, path[-1])
        value = vars(value).get(name, _MISSING)
    if isinstance(value, FunctionType | MethodType):
        return None
    return native_name(value) or ".".join(path)


def native_name(value: object) -> str | None:
    """The name of a function written in C, such as ``time.sleep``; None of anything else."""
    if type(value) is not BuiltinFunctionType:
        return None
    module, own = value.__module__, value.__qualname__
    return f"{module}.{own}" if type(module) is str and module != builtins.__name__ else own


def _method(value: object, name: str) -> str | None:
    """A method of a value, with its class; only the class is asked, because that runs no code of the program."""
    for kind in _mro(type(value)):
        own = _namespace(kind).get(name, _MISSING)
        if own is not _MISSING:
            return None if isinstance(own, FunctionType) else f"{_qualname(kind)}.{name}"
    return name


class _Missing:
    pass


_MISSING: Final = _Missing()
