"""Ids, references to executions and steps, and the W3C trace context."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import time
import uuid
from enum import StrEnum
from typing import Final

import msgspec

from tachograph.names import clean_name

DEFAULT_WORKSPACE: Final = "default"
"""The slug of the workspace of those who name none."""
_NAMESPACE: Final = uuid.UUID("6f1d4f0e-2c59-5c0e-9f0a-7a63686f6772")


# A generator of our own, seeded from the operating system: `random.seed` in the user's program must neither repeat our
# ids nor find its own numbers shifted.
_generator: Final = random.Random()  # noqa: S311
_bits: Final = _generator.getrandbits
random01: Final = _generator.random
"""A random number in [0, 1), for jitter; independent of the program's own `random`."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_generator.seed)


class Origin(StrEnum):
    """Who recorded an execution. A listener may decline events by it; see `Recorder.add`."""

    RECORDED = "recorded"
    """This library did, as the execution ran: an executor, decorators or scopes."""
    REPORTED = "reported"
    """An engine's hooks reported it."""
    INGESTED = "ingested"
    """It was assembled from spans that another tracer exported."""


def new_trace_id() -> str:
    """A random W3C trace id: 32 lower-case hex digits, never all zero."""
    return f"{_bits(128) or 1:032x}"


def new_span_id() -> str:
    """A random W3C span id: 16 lower-case hex digits, never all zero."""
    return f"{_bits(64) or 1:016x}"


def new_id(now_ns: int | None = None) -> str:
    """A time-ordered unique id: UUID version 7, RFC 9562 section 5.7 (48 bits of unix milliseconds, then random)."""
    millis = (time.time_ns() if now_ns is None else now_ns) // 1_000_000
    value = (millis & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | _bits(12) << 64
    value |= 0b10 << 62 | _bits(62)
    return str(uuid.UUID(int=value))


@functools.lru_cache(maxsize=1024)
def workspace_id(slug: str) -> str:
    """The id of the workspace with this slug, the same in every process."""
    return str(uuid.uuid5(_NAMESPACE, clean_name(slug)))


@functools.lru_cache(maxsize=4096)
def workflow_id(workspace: str, name: str) -> str:
    """The id of an unregistered workflow, derived from its workspace and name; the same in every process."""
    return str(uuid.uuid5(_NAMESPACE, f"{clean_name(workspace)}/{clean_name(name)}"))


@functools.lru_cache(maxsize=16_384)
def step_id(workflow: str, name: str, index: int = 0) -> str:
    """The id of a step: derived from its workflow's id and its name. ``index`` counts repetitions in an execution.

    UUID version 5, RFC 9562 section 5.5, as `uuid.uuid5` gives it; written out because each repetition needs a new one.
    """
    name = clean_name(name)
    text = f"{name}#{index}" if index else name
    digest = bytearray(hashlib.sha1(_uuid_bytes(workflow) + text.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    digits = digest.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def instance_id(step_id_: str, index: str) -> str:
    """The id of an instance of a mapped step that is reported, from the id of that step and what the engine calls it.

    What depends on the mapped step names its id, and means all instances.
    """
    try:
        return step_id(step_id_, f"[{index}]")
    except ValueError:
        return ""  # The id of a step that somebody else made up.


@functools.lru_cache(maxsize=1024)
def _uuid_bytes(text: str) -> bytes:
    return uuid.UUID(text).bytes


@functools.lru_cache(maxsize=4096)
def reported_execution_id(workspace: str, workflow: str, run_id: str) -> str:
    """The id of the execution that an engine calls ``run_id``; the same in every process that reports it."""
    return str(uuid.uuid5(_NAMESPACE, f"{clean_name(workspace)}/reported/{clean_name(workflow)}/{run_id}"))


def derived_trace_id(execution_id: str) -> str:
    """The trace id of a reported execution that no tracer gave one; the same in every process."""
    return hashlib.blake2b(f"trace/{execution_id}".encode(), digest_size=16).hexdigest()


def derived_span_id(execution_id: str, step: str = "") -> str:
    """The span id of a reported execution, or of its step with this id; the same in every process."""
    return hashlib.blake2b(f"span/{execution_id}/{step}".encode(), digest_size=8).hexdigest()


class ExecutionRef(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which execution an event is about; created once per run and shared by all its events.

    ``trace_id`` (32 hex digits) and ``span_id`` (16, the root span) are fixed here, before anything runs, so that a
    running execution can be looked up in a trace viewer and a crashed one closed under its real parent.
    Encoded references without ``origin`` were recorded here. ``parent_execution_id`` and ``parent_step_id`` name the
    execution and its step that this execution ran inside.
    """

    workspace: str
    workflow: str
    workflow_id: str
    execution_id: str
    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    version: str = "1"
    project: str = "default"
    origin: Origin = Origin.RECORDED
    parent_execution_id: str | None = None
    parent_step_id: str | None = None


class StepRef(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which step of which execution an event is about.

    ``parent_span_id`` is the parent of the step's span: the execution's root, or for a nested step the span of the
    enclosing step, which ``parent_step_id`` names. ``depends_on`` are step ids, ``links`` the span ids of those
    steps, in the same order. ``index`` counts repetitions of the same step within one execution.
    ``child_execution_id`` names the execution that the step ran. ``dependency_count`` is how many steps it waited for
    where ``depends_on`` names only some of them (see `tachograph.inferred_dependencies`), else 0. ``folded_as`` is set
    for a repetition that is recorded together with others, which share a ``step_id`` (see `tachograph.folding`): the
    name under which they are. ``map_index`` is what its engine calls an instance of a mapped step: a number or a key.
    """

    execution: ExecutionRef
    step_id: str
    name: str
    span_id: str
    parent_span_id: str
    step_type: str = "task"
    step_order: int = 0
    index: int = 0
    depends_on: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    parent_step_id: str | None = None
    child_execution_id: str | None = None
    dependency_count: int = 0
    folded_as: str | None = None
    map_index: str | None = None

    @property
    def counted_as(self) -> str:
        """The name under which metrics count the step, as its row has it: its own, or that of its fold."""
        return self.folded_as or self.name


def new_execution_ref(
    *,
    workspace: str,
    workflow: str,
    workflow_id: str,
    execution_id: str | None = None,
    parent: tuple[str, str] | None = None,
    version: str = "1",
    project: str = "default",
    origin: Origin = Origin.RECORDED,
    parent_execution_id: str | None = None,
    parent_step_id: str | None = None,
) -> ExecutionRef:
    """A reference to a new execution; it continues the trace of ``parent``, the caller's (trace id, span id).

    Names are cleaned here (see `clean_name`), so every event that carries the reference has clean ones.
    """
    return ExecutionRef(
        workspace=clean_name(workspace),
        workflow=clean_name(workflow),
        workflow_id=workflow_id,
        execution_id=execution_id or new_id(),
        trace_id=parent[0] if parent else new_trace_id(),
        span_id=new_span_id(),
        parent_span_id=parent[1] if parent else None,
        version=clean_name(version),
        project=clean_name(project),
        origin=origin,
        parent_execution_id=parent_execution_id,
        parent_step_id=parent_step_id,
    )


def traceparent(trace_id: str, span_id: str, *, sampled: bool = True) -> str:
    """The W3C Trace Context header value, version 00 (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"
