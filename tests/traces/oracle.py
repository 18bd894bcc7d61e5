"""TraceQL evaluated in plain Python, and queries made up together with what they mean.

Nothing of the product is used. A made-up query is a text beside a function, so no parser is needed here.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

S = 1_000_000_000
T0 = 1_790_000_000 * S
MINUTE = 60 * S


@dataclass(eq=False)
class Span:
    """A span of a made-up trace."""

    trace: Trace
    id: str
    parent: str
    name: str
    service: str
    start: int
    end: int
    status: str
    kind: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    links: list[tuple[str, str]]

    @property
    def duration(self) -> int | None:
        return self.end - self.start if self.end else None


@dataclass(eq=False)
class Trace:
    """A made-up trace."""

    id: str
    spans: list[Span] = field(default_factory=list)

    def by_id(self) -> dict[str, Span]:
        return {span.id: span for span in self.spans}

    def root(self) -> Span:
        ordered = sorted(self.spans, key=lambda span: (span.start, span.id))
        parentless = [span for span in ordered if not span.parent]
        orphans = [span for span in ordered if span.parent not in self.by_id()]
        return (parentless or orphans)[0]

    def duration(self) -> int:
        return max(span.end or span.start for span in self.spans) - min(span.start for span in self.spans)


def made_up_traces(seed: int, count: int) -> list[Trace]:
    """Traces with several services, roots, orphans, events, links, open spans and attributes of every type."""
    rng = random.Random(seed)
    traces = []
    for number in range(count):
        trace = Trace(f"{rng.getrandbits(120) + 1:032x}")
        begin = T0 + number * MINUTE + rng.randrange(30 * S)
        rootless = rng.random() < 0.2
        for index in range(rng.randrange(1, 9)):
            earlier = trace.spans
            parent = rng.choice(earlier).id if earlier and rng.random() < 0.9 else ""
            if (not parent and rootless) or rng.random() < 0.05:
                parent = f"{rng.getrandbits(60) + 1:016x}"
            start = begin + index * rng.randrange(1, S)
            service = rng.choice(("shop", "bank", "mail"))
            attributes = {
                "n": rng.randrange(-3, 6), "f": rng.choice((0.5, 1.0, 2.5)), "s": rng.choice(("a", "b", "ab")),
                "b": rng.random() < 0.5, "l": rng.choice((["x"], ["x", "y"], ["z"])),
                "mixed": rng.choice((1, "1", 2.0)),
            }  # fmt: skip
            span = Span(
                trace, f"{rng.getrandbits(60) + 1:016x}", parent, rng.choice(("checkout", "charge", "send", "pack")),
                service, start, 0 if rng.random() < 0.05 else start + rng.choice((0, 1, 10**6, S, 3 * S, 3 * S + 7)),
                rng.choice(("unset", "unset", "ok", "error")), rng.choice(("internal", "server", "client", "consumer")),
                {key: value for key, value in attributes.items() if rng.random() < 0.7},
                {"service.name": service, "region": {"shop": "eu", "bank": "us", "mail": "eu"}[service],
                 **({"n": 9} if service == "bank" else {})},
                [(rng.choice(("retry", "exception")), start + rng.randrange(S), {"code": rng.randrange(3)})
                 for _ in range(rng.choice((0, 0, 1, 2)))],
                [(f"{rng.getrandbits(100) + 1:032x}", "00000000000000aa")] if rng.random() < 0.2 else [],
            )  # fmt: skip
            trace.spans.append(span)
        traces.append(trace)
    return traces


# Values: (type, value), so that what differs in type is never equal. "any" holds several, of which one is enough.

Value = tuple[str, Any]
Get = Callable[[Span], Value | None]


def of(value: Any) -> Value | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, int | float):
        return ("number", value)
    return ("all", value) if isinstance(value, list) else ("text", value)


def nested_set(trace: Trace) -> dict[str, tuple[int, int, int]]:
    spans = sorted(trace.spans, key=lambda span: (span.start, span.id))
    known = trace.by_id()
    numbers: dict[str, tuple[int, int, int]] = {}
    count = 0

    def visit(span: Span, parent: int) -> None:
        nonlocal count
        count += 1
        left = count
        for child in spans:
            if child.parent == span.id:
                visit(child, left)
        count += 1
        numbers[span.id] = (left, count, parent)

    parentless = [span for span in spans if not span.parent]
    for span in parentless:
        visit(span, -1)
    for span in spans:
        if span.parent and span.parent not in known:
            visit(span, 0 if parentless else -1)
    return numbers


FIELDS: dict[str, tuple[str, Get]] = {
    "name": ("text", lambda s: of(s.name)),
    "span:name": ("text", lambda s: of(s.name)),
    "status": ("status", lambda s: ("status", s.status)),
    "kind": ("kind", lambda s: ("kind", s.kind)),
    "duration": ("number", lambda s: of(s.duration)),
    "traceDuration": ("number", lambda s: of(s.trace.duration())),
    "rootName": ("text", lambda s: of(s.trace.root().name)),
    "trace:rootService": ("text", lambda s: of(s.trace.root().service)),
    "nestedSetParent": ("number", lambda s: of(nested_set(s.trace)[s.id][2])),
    "nestedSetLeft": ("number", lambda s: of(nested_set(s.trace)[s.id][0])),
    "span:childCount": ("number", lambda s: of(sum(other.parent == s.id for other in s.trace.spans))),
    "span:parentID": ("text", lambda s: of(s.parent)),
    "resource.service.name": ("text", lambda s: of(s.service)),
    "resource.region": ("text", lambda s: of(s.resource.get("region"))),
    "span.n": ("number", lambda s: of(s.attributes.get("n"))),
    ".n": ("number", lambda s: of(s.attributes.get("n", s.resource.get("n")))),
    "span.f": ("number", lambda s: of(s.attributes.get("f"))),
    "span.s": ("text", lambda s: of(s.attributes.get("s"))),
    "span.b": ("boolean", lambda s: of(s.attributes.get("b"))),
    "span.l": ("text", lambda s: of(s.attributes.get("l"))),
    "span.mixed": ("number", lambda s: of(s.attributes.get("mixed"))),
    ".missing": ("number", lambda s: None),
    "event:name": ("text", lambda s: ("any", [name for name, _, _ in s.events]) if s.events else None),
    "event.code": ("number", lambda s: ("any", [of_["code"] for *_, of_ in s.events]) if s.events else None),
    "event:timeSinceStart": (
        "number",
        lambda s: ("any", [at - s.start for _, at, _ in s.events]) if s.events else None,
    ),
    "link:traceID": ("text", lambda s: ("any", [trace for trace, _ in s.links]) if s.links else None),
}
WORDS = {"status": ("error", "ok", "unset"), "kind": ("server", "client", "internal", "consumer")}
TEXTS = ("checkout", "charge", "send", "shop", "bank", "eu", "a", "b", "x", "exception", "")
PATTERNS = ("ch.*", "a|b", ".*o.*", "[a-c]+", "(shop|bank)", "x?", "SEND")
NUMBERS = ("0", "1", "2", "-1", "2.5", "1s", "3s", "1ms", "1h30m", "0.5")
NANOSECONDS = {"1s": S, "3s": 3 * S, "1ms": 10**6, "1h30m": 5400 * S}
COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def number(text: str) -> float:
    return NANOSECONDS[text] if text in NANOSECONDS else float(text) if "." in text else int(text)


def compared(op: str, left: Value | None, right: Value | None) -> bool:
    if left is None or right is None:
        return False
    if left[0] in ("all", "any"):
        every = all if left[0] == "all" and op == "!=" else any
        return len(left[1]) > 0 and every(compared(op, of(item), right) for item in left[1])
    return left[0] == right[0] and bool(COMPARE[op](left[1], right[1]))


def matched(pattern: str, value: Value | None, *, expected: bool) -> bool:
    if value is None:
        return False
    if value[0] in ("all", "any"):
        texts = [item for item in value[1] if isinstance(item, str)]
        every = all if value[0] == "all" and not expected else any
        return len(texts) > 0 and every((re.fullmatch(pattern, text) is not None) is expected for text in texts)
    return value[0] == "text" and (re.fullmatch(pattern, value[1]) is not None) is expected


Test = Callable[[Span], bool]


class Maker:
    """Makes up queries, each with its meaning."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def condition(self, depth: int = 0) -> tuple[str, Test]:
        """What is between braces."""
        choice = self.rng.random()
        if depth < 2 and choice < 0.3:
            (a, left), (b, right) = self.condition(depth + 1), self.condition(depth + 1)
            if self.rng.random() < 0.6:
                return f"({a}) && ({b})", lambda s: left(s) and right(s)
            return f"({a}) || ({b})", lambda s: left(s) or right(s)
        if choice < 0.36:
            inner_text, inner = self.condition(2)
            return f"!({inner_text})", lambda s: not inner(s)
        if choice < 0.4:
            name = self.rng.choice(("span.n", "span.s", ".missing", "event:name", "span.l", "resource.region"))
            get = FIELDS[name][1]
            if self.rng.random() < 0.5 or ":" in name:
                return f"{name} != nil", lambda s: get(s) is not None
            return f"{name} = nil", lambda s: get(s) is None
        if choice < 0.46:
            return self._arithmetic()
        return self._comparison()

    def _comparison(self) -> tuple[str, Test]:
        name = self.rng.choice(list(FIELDS))
        kind, get = FIELDS[name]
        if kind == "boolean":
            op = self.rng.choice(("=", "!="))
            return f"{name} {op} true", lambda s: compared(op, get(s), ("boolean", True))
        if kind in WORDS:
            op, word = self.rng.choice(("=", "!=")), self.rng.choice(WORDS[kind])
            return f"{name} {op} {word}", lambda s: compared(op, get(s), (kind, word))
        if kind == "text" and self.rng.random() < 0.3:
            op, pattern = self.rng.choice(("=~", "!~")), self.rng.choice(PATTERNS)
            return f'{name} {op} "{pattern}"', lambda s: matched(pattern, get(s), expected=op == "=~")
        op = self.rng.choice(list(COMPARE))
        if kind == "text":
            text = self.rng.choice(TEXTS)
            return f"{name} {op} `{text}`", lambda s: compared(op, get(s), ("text", text))
        literal = self.rng.choice(NUMBERS)
        return f"{name}{op} {literal}", lambda s: compared(op, get(s), ("number", number(literal)))

    def _arithmetic(self) -> tuple[str, Test]:
        (a, left), (b, right) = ((name, FIELDS[name][1]) for name in self.rng.choices(("span.n", "span.f", ".n"), k=2))
        sign, op = self.rng.choice(("+", "-", "*")), self.rng.choice(list(COMPARE))
        literal = self.rng.choice(("0", "1", "2.5"))
        apply = {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign]

        def test(span: Span) -> bool:
            first, second = left(span), right(span)
            if first is None or second is None:
                return False
            return bool(COMPARE[op](apply(first[1], second[1]), number(literal)))

        return f"{a} {sign} {b} {op} {literal}", test

    def stage(self, depth: int = 0) -> tuple[str, Callable[[Trace, list[Span]], list[Span]]]:
        """A spanset, or spansets combined."""
        if depth < 2 and self.rng.random() < 0.5:
            op = self.rng.choice(list(RELATIONS))
            (a, left), (b, right) = self.stage(depth + 1), self.stage(depth + 1)
            relate = RELATIONS[op]
            return f"({a}) {op} ({b})", lambda t, spans: once(relate(t, left(t, spans), right(t, spans)))
        text, test = self.condition(1) if self.rng.random() < 0.9 else ("", lambda _: True)
        return f"{{ {text} }}", lambda _, spans: [span for span in spans if test(span)]

    def search(self) -> tuple[str, Callable[[Trace], list[frozenset[str]]]]:
        """A search, and the ids of its spansets in a trace."""
        text, choose = self.stage()
        end = self.rng.random()
        if end < 0.5:
            return text, lambda t: [ids(spans)] if (spans := choose(t, t.spans)) else []
        if end < 0.65:
            again_text, again = self.condition(1)
            text = f"{text} | {{ {again_text} }} | select(name, span.n)"
            return text, lambda t: [ids(s)] if (s := [x for x in choose(t, t.spans) if again(x)]) else []
        aggregate_text, aggregate = self._aggregate()
        if end < 0.8:
            return f"{text} | {aggregate_text}", lambda t: [
                ids(s) for s in [choose(t, t.spans)] if s and aggregate(s)
            ]  # fmt: skip
        name = self.rng.choice(("name", "resource.service.name", "span.mixed", "span.b", ".missing"))
        get = FIELDS[name][1]

        def grouped(trace: Trace) -> list[frozenset[str]]:
            groups: dict[Any, list[Span]] = {}
            for span in choose(trace, trace.spans):
                value = get(span)
                groups.setdefault((type(value[1]), value) if value is not None else None, []).append(span)
            kept = [group for group in groups.values() if aggregate(group)]
            if coalesces and kept:
                kept = [[span for group in kept for span in group]]
            return [ids(group) for group in kept]

        coalesces = self.rng.random() < 0.4
        return f"{text} | by({name}) | {aggregate_text}{' | coalesce()' if coalesces else ''}", grouped

    def _aggregate(self) -> tuple[str, Callable[[Sequence[Span]], bool]]:
        op = self.rng.choice(list(COMPARE))
        if self.rng.random() < 0.4:
            count = self.rng.randrange(4)
            return f"count() {op} {count}", lambda spans: bool(COMPARE[op](len(spans), count))
        function, name = (
            self.rng.choice(("min", "max", "sum", "avg")),
            self.rng.choice(("duration", "span.n", "span.f")),
        )
        get, literal = FIELDS[name][1], self.rng.choice(("1", "2.5", "1s", "3s"))

        def test(spans: Sequence[Span]) -> bool:
            values = [value[1] for span in spans if (value := get(span)) is not None]
            if not values:
                return False
            if function == "avg":
                result = sum(values) // len(values) if name == "duration" else sum(values) / len(values)
            else:
                result = min(values) if function == "min" else max(values) if function == "max" else sum(values)
            return bool(COMPARE[op](result, number(literal)))

        return f"{function}({name}) {op} {literal}", test

    def metrics(self) -> tuple[str, Callable[[Sequence[Trace], Steps], Table]]:
        """A metrics query, and its values by labels and time."""
        stage_text, choose = self.stage() if self.rng.random() < 0.3 else self._filter()
        function = self.rng.choice(
            ("rate", "count_over_time", "min_over_time", "max_over_time", "sum_over_time", "avg_over_time",
             "quantile_over_time", "histogram_over_time")
        )  # fmt: skip
        counts = function in ("rate", "count_over_time")
        name = self.rng.choice(("duration", "span.n", "span.f"))
        by = self.rng.sample(("name", "status", "resource.service.name", "span.s", "rootName"), self.rng.randrange(3))
        argument = "" if counts else f"{name}, 0.5, 1" if function == "quantile_over_time" else name
        text = f"{stage_text} | {function}({argument})" + (f" by ({', '.join(by)})" if by else "")

        return text, lambda traces, steps: table_of(traces, steps, choose, function, name, by)

    def _filter(self) -> tuple[str, Callable[[Trace, list[Span]], list[Span]]]:
        text, test = self.condition(1)
        if self.rng.random() < 0.4:
            return f"{{nestedSetParent<0 && ({text})}}", lambda _, spans: [
                span for span in spans if nested_set(span.trace)[span.id][2] < 0 and test(span)
            ]
        return f"{{{text}}}", lambda _, spans: [span for span in spans if test(span)]


@dataclass(frozen=True)
class Steps:
    """Times at which steps end, a step apart."""

    ends: tuple[int, ...]
    length: int

    def of(self, time: int) -> int | None:
        return next((end for end in self.ends if end - self.length < time <= end), None)


Table = dict[tuple[Any, ...], dict[int, float | tuple[float, ...]]]


def table_of(
    traces: Sequence[Trace],
    steps: Steps,
    choose: Callable[[Trace, list[Span]], list[Span]],
    function: str,
    name: str,
    by: Sequence[str],
) -> Table:
    """What ``{…} | function(name) by (…)`` gives; ``choose`` is what is before it."""
    counts = function in ("rate", "count_over_time")
    get = in_seconds("" if counts else name)
    cells: dict[tuple[Any, ...], dict[int, list[float]]] = {}
    for span in (span for trace in traces for span in choose(trace, trace.spans)):
        step, value = steps.of(span.start), get(span)
        if step is None or value is None:
            continue
        labels = [(label, shown(FIELDS[label][1](span))) for label in by]
        labels = [label for label in labels if label[1] is not None]
        if function == "histogram_over_time":
            edge = bucket(value, is_duration=name == "duration")
            if edge is None:
                continue
            labels.append(("__bucket", edge))
        elif not labels and function != "quantile_over_time":
            labels = [(by[0], "nil")] if by else [("__name__", function)]
        cells.setdefault(tuple(labels), {}).setdefault(step, []).append(value)
    return finished(function, cells, steps, is_alone=not by and counts)


def in_seconds(name: str) -> Callable[[Span], float | None]:
    def get(span: Span) -> float | None:
        value = FIELDS[name][1](span) if name else ("number", 0)
        return None if value is None else value[1] / S if name == "duration" else float(value[1])

    return get


def shown(value: Value | None) -> Any:
    return None if value is None else value[1]


def bucket(value: float, *, is_duration: bool) -> float | None:
    """The power of two at or above; of durations, in nanoseconds."""
    scaled = round(value * S) if is_duration else value
    if scaled <= 0:
        return None
    edge = 2.0**-10
    while edge < scaled:
        edge *= 2
    return edge / S if is_duration else edge


def finished(
    function: str, cells: dict[tuple[Any, ...], dict[int, list[float]]], steps: Steps, *, is_alone: bool
) -> Table:
    table: Table = {}
    if is_alone and not cells:
        cells = {(("__name__", function),): {}}
    for labels, by_step in cells.items():
        if function == "quantile_over_time":
            for quantile in (0.5, 1.0):
                # Any value around the rank is right: the product's are those of histograms.
                table[(*labels, ("p", quantile))] = {
                    end: around(by_step[end], quantile) if end in by_step else 0.0 for end in steps.ends
                }
            continue
        table[labels] = {
            end: reduced(function, by_step.get(end, []), steps.length)
            for end in steps.ends
            if end in by_step or function in ("rate", "count_over_time", "histogram_over_time")
        }
    return table


def reduced(function: str, values: list[float], length: int) -> float:
    match function:
        case "rate":
            return len(values) / (length / S)
        case "min_over_time":
            return min(values)
        case "max_over_time":
            return max(values)
        case "sum_over_time":
            return sum(values)
        case "avg_over_time":
            return sum(values) / len(values)
    return float(len(values))


def around(values: list[float], quantile: float) -> tuple[float, ...]:
    """The values next to a quantile's rank: the least and the greatest that it may be."""
    ordered = sorted(values)
    rank = quantile * (len(ordered) - 1)
    low, high = max(0, int(rank) - 1), min(len(ordered) - 1, int(rank) + 1)
    return ordered[low], ordered[high]


def once(spans: Sequence[Span]) -> list[Span]:
    return list({id(span): span for span in spans}.values())


def ids(spans: Sequence[Span]) -> frozenset[str]:
    return frozenset(span.id for span in spans)


# Relations: the span of the right side that is related to one of the left.


def ancestors(span: Span) -> list[str]:
    known, above = span.trace.by_id(), []
    while span.parent in known:
        above.append(span.parent)
        span = known[span.parent]
    return above


RELATED: dict[str, Callable[[Span, Span], bool]] = {
    ">": lambda a, b: b.parent == a.id,
    "<": lambda a, b: a.parent == b.id,
    ">>": lambda a, b: a.id in ancestors(b),
    "<<": lambda a, b: b.id in ancestors(a),
    "~": lambda a, b: a is not b and a.parent == b.parent,
}
Relate = Callable[[Trace, list[Span], list[Span]], list[Span]]


def _plain(related: Callable[[Span, Span], bool], *, expected: bool) -> Relate:
    return lambda _, left, right: [b for b in right if any(related(a, b) for a in left) is expected]


def _union(related: Callable[[Span, Span], bool]) -> Relate:
    def relate(_: Trace, left: list[Span], right: list[Span]) -> list[Span]:
        return [a for a in left if any(related(a, b) for b in right)] + [
            b for b in right if any(related(a, b) for a in left)
        ]

    return relate


RELATIONS: dict[str, Relate] = {
    "&&": lambda _, left, right: left + right if left and right else [],
    "||": lambda _, left, right: left + right,
    **{name: _plain(related, expected=True) for name, related in RELATED.items()},
    **{f"!{name}": _plain(related, expected=False) for name, related in RELATED.items()},
    **{f"&{name}": _union(related) for name, related in RELATED.items()},
}
