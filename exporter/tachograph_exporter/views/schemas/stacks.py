"""Stacks of running steps: response types."""

from __future__ import annotations

from typing import Literal

import msgspec

Answer = Literal["answered", "no_answer", "not_asked"]


class SeenStack(msgspec.Struct, kw_only=True):
    """A stack and how often it was seen.

    ``frames`` are ``module.function (file:line)``, the outermost first; ``name (native)`` is a function written in C.
    The stack of another thread or task that works for the step begins with ``[thread NAME]`` or ``[task NAME]``.
    """

    frames: list[str]
    count: int


class TopFrame(msgspec.Struct, kw_only=True):
    """An innermost function, and its share (0 to 1) of what was seen."""

    function: str
    share: float


class StacksNow(msgspec.Struct, kw_only=True):
    """What an attempt was doing at a moment at which somebody asked. ``is_new``: this request asked."""

    taken_at: str
    is_new: bool
    stacks: list[SeenStack]


class StacksProfile(msgspec.Struct, kw_only=True):
    """What an attempt was seen doing between two moments, by sampling.

    A count stands for ``interval_seconds``; ``seconds`` is that of all counts. ``sample_count`` is how often was
    looked. ``dropped_count``: counts of stacks that are left out, because there were too many different ones.
    ``cut_count``: stacks whose outer frames are left out, because they were too deep. ``top``: the innermost functions.
    """

    since: str
    until: str
    interval_seconds: float
    seconds: float
    sample_count: int
    dropped_count: int
    cut_count: int
    top: list[TopFrame]
    stacks: list[SeenStack]


class StepStacks(msgspec.Struct, kw_only=True):
    """The stacks of one attempt of a step."""

    step_id: str
    step_name: str
    status: str
    attempt: int
    now: StacksNow | None
    profile: StacksProfile | None


class ExecutionStacks(msgspec.Struct, kw_only=True):
    """What the steps of an execution do now, and what the sampled ones did.

    ``answer`` says whether its processes were asked and answered, ``message`` what there is to know about that.
    ``last_seen_at`` is the last sign of life of its process.
    """

    execution_id: str
    workflow_name: str
    status: str
    answer: Answer
    message: str | None
    last_seen_at: str | None
    items: list[StepStacks]


class SpeedscopeFrame(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A frame."""

    name: str
    file: str | None = None
    line: int | None = None


class SpeedscopeShared(msgspec.Struct, kw_only=True):
    """What the profiles have in common."""

    frames: list[SpeedscopeFrame]


class SpeedscopeProfile(msgspec.Struct, kw_only=True):
    """The stacks of one attempt: indices of frames, and their weights."""

    type: Literal["sampled"] = "sampled"
    name: str
    unit: Literal["milliseconds", "none"]
    startValue: float = 0  # noqa: N815 - the format's own name
    endValue: float  # noqa: N815
    samples: list[list[int]]
    weights: list[float]


class SpeedscopeFile(msgspec.Struct, kw_only=True):
    """A file of speedscope's own format (https://www.speedscope.app/file-format-schema.json)."""

    schema: Literal["https://www.speedscope.app/file-format-schema.json"] = msgspec.field(
        name="$schema", default="https://www.speedscope.app/file-format-schema.json"
    )
    shared: SpeedscopeShared
    profiles: list[SpeedscopeProfile]
    name: str
    exporter: str
