"""How much work a condition can be, found before it is evaluated.

A few nested macros over a list, or a chain of ``.map(x, x + x)``, ask a short condition for hours of work or for all
memory, and CEL keeps the interpreter meanwhile. So a condition is read once into a tree, and the tree is walked with
the sizes of the values it will read: the result is an upper bound, in units of about a tenth of a microsecond. Grammar:
https://github.com/google/cel-spec/blob/master/doc/langdef.md#syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

UNKNOWN: Final = 10**30
"""The cost of what this module cannot judge."""
MAX_DEPTH: Final = 100
"""How deep a value may be nested. CEL reads values recursively, and its stack is not Python's."""
MAX_NODES: Final = 1_000_000
"""Values, and pieces of text, that a condition may read."""
_TEXT_PIECE: Final = 64
_PER_ROUND: Final = 5
_REGEX: Final = 20_000
_REPEATING_REGEX: Final = 1_000_000

_TOKEN: Final = re.compile(
    r"(?:\s+|//[^\n]*)*(?:"
    r"(?P<text>[bB]?[rR][bB]?(?:\"\"\"[\s\S]*?\"\"\"|'''[\s\S]*?'''|\"[^\"\n]*\"|'[^'\n]*')"
    r"|[bB]?(?:\"\"\"(?:[^\\]|\\[\s\S])*?\"\"\"|'''(?:[^\\]|\\[\s\S])*?'''"
    r"|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'))"
    r"|(?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d+|\.?\d+)(?:[eE][+-]?\d+)?[uU]?)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])"
    r"|(?P<end>$))"
)
_CHAINS: Final = (("||",), ("&&",), ("<=", "<", ">=", ">", "==", "!=", "in"), ("+", "-"), ("*", "/", "%"))
_MACROS: Final = frozenset({"all", "exists", "exists_one", "existsOne", "map", "filter"})
_FUNCTIONS: Final = frozenset({
    "size", "contains", "startsWith", "endsWith", "string", "bytes", "int", "uint", "double", "bool", "type", "has",
    "duration", "timestamp", "max", "min", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear",
    "getHours", "getMilliseconds", "getMinutes", "getMonth", "getSeconds",
})  # fmt: skip


class TooLarge(ValueError):
    """A value is too large or too deep to be read by a condition."""


class Size(NamedTuple):
    """Upper bounds of a value: its elements, the nodes in all of it, and the nodes in its largest element."""

    elements: int
    nodes: int
    largest: int


class _Known(NamedTuple):
    """A value that the condition finds in its scope."""

    value: Any


_SCALAR: Final = Size(0, 1, 1)
_Value = Size | _Known
_Walk = Callable[["_Sizes", Mapping[str, _Value]], tuple[int, _Value]]


class Unreadable(ValueError):
    """The condition is not written as this module knows CEL."""


class Cost:
    """The cost of a condition's text. What it cannot read has the cost `UNKNOWN`."""

    __slots__ = ("_walk",)

    def __init__(self, text: str) -> None:
        self._walk: _Walk | None
        try:
            self._walk = _Parser(text).parse()
        except (Unreadable, RecursionError):
            self._walk = None

    def of(self, scope: Mapping[str, Any], names: frozenset[str]) -> int:
        """The cost of an evaluation that reads ``names`` in ``scope``, the copy that CEL makes of them included.

        Raises `TooLarge`.
        """
        sizes = _Sizes()
        # A copy costs about three units a node.
        copied = sum(3 * sizes.of(_Known(scope[name])).nodes for name in names if name in scope)
        if self._walk is None:
            return UNKNOWN
        try:
            return copied + self._walk(sizes, {name: _Known(scope[name]) for name in names if name in scope})[0]
        except RecursionError:
            return UNKNOWN


class _Sizes:
    """Sizes of values, each measured once."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, Size] = {}

    def of(self, value: _Value) -> Size:
        if isinstance(value, Size):
            return value
        size = self._known.get(id(value.value))
        if size is None:
            size = self._known[id(value.value)] = _measure(value.value)
        return size


def _measure(value: Any) -> Size:
    parts = list(_parts(value))
    largest = nodes = 0
    if _own(value) > MAX_NODES:
        raise TooLarge("it is a text of that many characters")
    for part in parts:
        part_nodes = _count(part)
        largest = max(largest, part_nodes)
        nodes += part_nodes
        if nodes > MAX_NODES:
            raise TooLarge(f"it has more than {MAX_NODES} values")
    own = _own(value)
    return Size(len(parts), own + nodes, largest or own)


def _own(value: Any) -> int:
    return 1 + len(value) // _TEXT_PIECE if isinstance(value, str | bytes) else 1


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield part
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value


def _count(value: Any) -> int:
    """The nodes of a value."""
    total = 0
    pending = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        total += _own(item)
        if total > MAX_NODES:
            raise TooLarge(f"it has more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            raise TooLarge(f"it is nested more than {MAX_DEPTH} deep")
        pending += [(part, depth + 1) for part in _parts(item)]
    return total


class _Parser:
    """Reads a condition into functions that bound its cost."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise Unreadable
            if match.lastgroup == "end":
                break
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self._at = 0
        self._depth = 0

    def parse(self) -> _Walk:
        walk = self._expression()
        if self._at != len(self._tokens):
            raise Unreadable
        return walk

    def _peek(self) -> str:
        if self._at >= len(self._tokens):
            return ""
        kind, text = self._tokens[self._at]
        return text if kind == "sign" or text == "in" else ""

    def _take(self, sign: str) -> bool:
        if self._peek() != sign:
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise Unreadable

    def _name(self) -> str:
        kind, text = self._tokens[self._at] if self._at < len(self._tokens) else ("", "")
        if kind != "name":
            raise Unreadable
        self._at += 1
        return text

    def _expression(self) -> _Walk:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable
        condition = self._chain(0)
        if self._take("?"):
            yes = self._chain(0)
            self._expect(":")
            condition = _choice(condition, yes, self._expression())
        self._depth -= 1
        return condition

    def _chain(self, level: int) -> _Walk:
        if level == len(_CHAINS):
            return self._unary()
        operands = [self._chain(level + 1)]
        while (sign := self._peek()) and sign in _CHAINS[level]:
            self._at += 1
            operands.append(self._chain(level + 1))
        if len(operands) == 1:
            return operands[0]
        return _sum(operands) if level == 3 else _all_of(operands)

    def _unary(self) -> _Walk:
        while self._peek() in ("!", "-"):
            self._at += 1
        return self._member()

    def _member(self) -> _Walk:
        walk = self._primary()
        while True:
            if self._take("."):
                self._take("?")
                name = self._name()
                walk = self._call(name, walk) if self._take("(") else _field(walk, name)
            elif self._take("["):
                self._take("?")
                index = self._expression()
                self._expect("]")
                walk = _element(walk, index)
            elif self._peek() == "{":
                raise Unreadable  # A message: there are no types to construct.
            else:
                return walk

    def _primary(self) -> _Walk:
        if self._take("("):
            walk = self._expression()
            self._expect(")")
            return walk
        if self._take("["):
            return _collection(self._items("]"))
        if self._take("{"):
            return _collection(self._items("}"))
        self._take(".")
        if self._at >= len(self._tokens):
            raise Unreadable
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind in ("text", "number"):
            return _literal(text)
        if kind != "name":
            raise Unreadable
        return self._call(text, None) if self._take("(") else _variable(text)

    def _items(self, end: str) -> list[_Walk]:
        items = []
        while not self._take(end):
            self._take("?")
            items.append(self._expression())
            if end == "}" and len(items) % 2:
                self._expect(":")
            elif not self._take(",") and self._peek() != end:
                raise Unreadable
        return items

    def _call(self, name: str, target: _Walk | None) -> _Walk:
        start = self._at
        bound: list[str] = []
        # What a macro binds are plain names before a comma.
        while (
            target is not None
            and name in _MACROS
            and len(bound) < 2
            and self._at + 1 < len(self._tokens)
            and self._tokens[self._at][0] == "name"
            and self._tokens[self._at + 1][1] == ","
        ):
            bound.append(self._tokens[self._at][1])
            self._at += 2
        arguments = self._items(")")
        if bound and target is not None:
            return _macro(name, target, bound, arguments)
        if name == "matches":
            pattern = self._tokens[start : self._at - 1]
            is_plain = bool(pattern) and pattern[-1][0] == "text" and "{" not in pattern[-1][1]
            return _function([*([target] if target else []), *arguments], _REGEX if is_plain else _REPEATING_REGEX)
        return _function([*([target] if target else []), *arguments], 1 if name in _FUNCTIONS else UNKNOWN)


def _literal(text: str) -> _Walk:
    size = Size(0, _own(text), 1)
    return lambda _sizes, _names: (1, size)


def _variable(name: str) -> _Walk:
    return lambda _sizes, names: (1, names.get(name, _SCALAR))


def _field(walk: _Walk, name: str) -> _Walk:
    def bound(sizes: _Sizes, names: Mapping[str, _Value]) -> tuple[int, _Value]:
        cost, value = walk(sizes, names)
        if isinstance(value, _Known):
            known = value.value
            return cost + 1, _Known(known[name] if isinstance(known, Mapping) and name in known else None)
        return cost + 1, _part(value)

    return bound


def _element(walk: _Walk, index: _Walk) -> _Walk:
    def bound(sizes: _Sizes, names: Mapping[str, _Value]) -> tuple[int, _Value]:
        cost, value = walk(sizes, names)
        more, _ = index(sizes, names)
        return cost + more + 1, _part(sizes.of(value))

    return bound


def _part(size: Size) -> Size:
    return Size(size.largest, size.largest, size.largest)


def _choice(condition: _Walk, yes: _Walk, no: _Walk) -> _Walk:
    def bound(sizes: _Sizes, names: Mapping[str, _Value]) -> tuple[int, _Value]:
        costs = [walk(sizes, names) for walk in (condition, yes, no)]
        one, other = sizes.of(costs[1][1]), sizes.of(costs[2][1])
        return sum(cost for cost, _ in costs) + 1, Size(*map(max, one, other))

    return bound


def _all_of(operands: list[_Walk]) -> _Walk:
    """Operands that are compared or computed with: the result is a number or a truth value."""

    def bound(sizes: _Sizes, names: Mapping[str, _Value]) -> tuple[int, _Value]:
        cost = 0
        for operand in operands:
            more, value = operand(sizes, names)
            cost += more + sizes.of(value).nodes + 1
        return cost, _SCALAR

    return bound


def _sum(operands: list[_Walk]) -> _Walk:
    """Lists and texts that are added: each ``+`` copies what came before."""

    def bound(sizes: _Sizes, names: Mapping[str, _Value]) -> tuple[int, _Value]:
        cost = elements = nodes = largest = 0
        for operand in operands:
            more, value = operand(sizes, names)
            size = sizes.of(value)
            elements, nodes, largest = elements + size.elements, nodes + size.nodes, max(largest, size.largest)
            cost += more + nodes
        return cost, Size(elements, nodes, largest)

    return bound


def _collection(items: list[_Walk]) -> _Walk:
    def bound(sizes: _Sizes, names: Mapping[str, _Value]) -> tuple[int, _Value]:
        cost, nodes, largest = 1, 1, 1
        for item in items:
            more, value = item(sizes, names)
            item_nodes = sizes.of(value).nodes
            cost, nodes, largest = cost + more + item_nodes, nodes + item_nodes, max(largest, item_nodes)
        return cost, Size(len(items), nodes, largest)

    return bound


def _function(arguments: list[_Walk], own: int) -> _Walk:
    def bound(sizes: _Sizes, names: Mapping[str, _Value]) -> tuple[int, _Value]:
        cost, elements, nodes, largest = own, 0, 1, 1
        for argument in arguments:
            more, value = argument(sizes, names)
            size = sizes.of(value)
            cost += more + size.nodes
            elements, nodes, largest = elements + size.elements, nodes + size.nodes, max(largest, size.largest)
        return cost, Size(elements, nodes, largest)

    return bound


def _macro(name: str, target: _Walk, bound_names: list[str], arguments: list[_Walk]) -> _Walk:
    def bound(sizes: _Sizes, names: Mapping[str, _Value]) -> tuple[int, _Value]:
        cost, value = target(sizes, names)
        size = sizes.of(value)
        inner = {**names, **dict.fromkeys(bound_names, _part(size))}
        each, result = _PER_ROUND, _SCALAR
        for argument in arguments:
            more, of_argument = argument(sizes, inner)
            each, result = each + more, sizes.of(of_argument)
        rounds = max(size.elements, 1)
        # The library appends to a copy of what a round before it collected.
        copies = rounds * (rounds + 1) // 2
        if name == "map":
            collected = Size(rounds, 1 + rounds * result.nodes, result.nodes)
            return cost + rounds * each + copies * result.nodes, collected
        if name == "filter":
            return cost + rounds * each + copies * size.largest, size
        return cost + rounds * each, _SCALAR

    return bound
