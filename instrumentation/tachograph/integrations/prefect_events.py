"""What Prefect's events say: changes of state of flow runs and task runs, and heartbeats of flow runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

PREFIXES: Final = ("prefect.flow-run.", "prefect.task-run.")
TERMINAL: Final = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
_HASH: Final = re.compile(r"-(?:[0-9a-f]{8,}|unknown-source-file)$")
_NUMBERED: Final = re.compile(r"(?s)(.+)-(?:[0-9a-f]{3}|\d+)")
_EXCEPTION: Final = re.compile(r"(?s).*?\bexception:? (?=[A-Za-z_][\w.]*(?::|\Z))")


class Resource(msgspec.Struct, rename={"id": "prefect.resource.id", "role": "prefect.resource.role"}):
    """What an event is about, or what belongs to that."""

    id: str
    role: str = ""
    name: str = msgspec.field(default="", name="prefect.resource.name")
    state_type: str = msgspec.field(default="", name="prefect.state-type")
    state_name: str = msgspec.field(default="", name="prefect.state-name")
    state_message: str = msgspec.field(default="", name="prefect.state-message")
    run_count: str = msgspec.field(default="0", name="prefect.run-count")

    @property
    def run_id(self) -> str:
        """Its id without what it is: ``prefect.flow-run.0dab…`` → ``0dab…``."""
        return self.id.rpartition(".")[2]


class Input(msgspec.Struct):
    """Where a value comes from that a task run was given."""

    input_type: str = ""
    id: str = ""


class TaskRun(msgspec.Struct):
    """A task run, as its events and Prefect's API have it."""

    name: str = ""
    task_key: str = ""
    dynamic_key: str = ""
    task_inputs: dict[str, list[Input]] = {}
    run_count: int = 0
    flow_run_run_count: int = 0
    flow_run_id: str | None = None
    start_time: datetime | None = None

    @property
    def task(self) -> str:
        """The name of its task. A run is called ``NAME-xxx``, unless the task says otherwise."""
        for suffix in (self.dynamic_key[:3], self.dynamic_key):
            if suffix and self.name.endswith(f"-{suffix}") and len(self.name) > len(suffix) + 1:
                return self.name[: -len(suffix) - 1]
        function = _HASH.sub("", self.task_key).rpartition(".")[2]
        return function or base_name(self.name)

    def inputs(self) -> list[str]:
        """The task runs whose results it was given, or that it waits for."""
        values = [value for name, values in self.task_inputs.items() if name != "__parents__" for value in values]
        return list(dict.fromkeys(value.id for value in values if value.input_type == "task_run"))

    @property
    def outer(self) -> str | None:
        """The task run that it was called in."""
        return next((value.id for value in self.task_inputs.get("__parents__", ()) if value.id), None)


class _StateDetails(msgspec.Struct):
    scheduled_time: datetime | None = None


class _State(msgspec.Struct):
    state_details: _StateDetails | None = None


class _Change(msgspec.Struct, rename={"before": "from"}):
    before: str | None = None


class Payload(msgspec.Struct):
    """What an event says of a change of state."""

    intended: _Change | None = None
    validated_state: _State | None = None
    task_run: TaskRun | None = None


class PrefectEvent(msgspec.Struct):
    """An event as Prefect's API has it."""

    id: str
    event: str
    occurred: datetime
    resource: Resource
    related: list[Resource] = []
    payload: Payload = msgspec.field(default_factory=Payload)

    @property
    def is_of_flow_run(self) -> bool:
        return self.event.startswith(PREFIXES[0])

    @property
    def is_heartbeat(self) -> bool:
        return self.event == "prefect.flow-run.heartbeat"

    @property
    def run_count(self) -> int:
        """How often it was started."""
        return int(self.resource.run_count) if self.resource.run_count.isdecimal() else 0

    @property
    def begins_again(self) -> bool:
        """Whether a run that had ended is to run once more."""
        intended = self.payload.intended
        return intended is not None and intended.before in TERMINAL and self.resource.state_type not in TERMINAL

    @property
    def due(self) -> datetime | None:
        """When the next attempt is due."""
        state = self.payload.validated_state
        return state.state_details.scheduled_time if state is not None and state.state_details is not None else None

    def beside(self, role: str) -> Resource | None:
        """The resource with a role."""
        return next((resource for resource in self.related if resource.role == role), None)


def event_of(value: Any) -> PrefectEvent:
    """An event from its JSON. Raises `msgspec.ValidationError` if it is none."""
    return msgspec.convert(value, PrefectEvent, strict=False)


def task_run_of(value: Mapping[str, Any]) -> TaskRun:
    """A task run from what the API says of it. Raises `msgspec.ValidationError` if it is none."""
    return msgspec.convert(value, TaskRun, strict=False)


def base_name(name: str) -> str:
    """``child-0`` → ``child``."""
    match = _NUMBERED.fullmatch(name)
    return match[1] if match is not None else name


def error_of(state_name: str, message: str) -> str:
    """What a state says went wrong, with the type of the error first, where Prefect says one."""
    text = _EXCEPTION.sub("", message, count=1).strip()
    if text != message.strip():
        return text if ": " in text else f"{text}: no message"
    return f"{state_name or 'Failed'}: {text or 'Prefect says no reason'}"
