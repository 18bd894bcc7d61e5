"""How an execution ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tachograph.events import ExecutionStatus, Failure, StepStatus
from tachograph.identity import ExecutionRef


class ExecutionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How an execution ended: by step name, ``steps`` are statuses and ``outputs`` what completed steps returned."""

    execution: ExecutionRef
    status: ExecutionStatus
    started_ns: int
    finished_ns: int
    steps: Mapping[str, StepStatus]
    outputs: Mapping[str, Any]
    failure: Failure | None = None
