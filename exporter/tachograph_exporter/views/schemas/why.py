"""Why a run was slow or failed: response types."""

from __future__ import annotations

from typing import Literal

import msgspec

Scalar = str | int | float | bool | None
Certainty = Literal["certain", "likely", "not known"]
"""``certain`` was measured or recorded, ``likely`` is what statistics say."""


class Evidence(msgspec.Struct, kw_only=True):
    """What a claim rests on: the figures, and the path of the API that has them."""

    url: str
    values: dict[str, str | int | float | bool]


class Claim(msgspec.Struct, kw_only=True):
    """One sentence about a run.

    ``kind`` says what it is about, and ``subject`` names it: a step, a workflow, an input, a span's name; see
    docs/why.md.
    """

    kind: str
    subject: str | None
    text: str
    certainty: Certainty
    evidence: Evidence


class WhatDiffers(msgspec.Struct, kw_only=True):
    """A value of the run that splits the odd runs (slow, or failed) from the usual ones of its workflow.

    Of texts and booleans, ``odd_with`` of ``with_count`` runs that have the value are odd, and ``odd_without`` of
    ``without_count`` others; these are null for numbers, which have the medians of both groups instead. ``effect`` goes
    from 0 (tells nothing) to 1 (tells the groups apart without exception). ``false_discovery_rate`` is the rate at
    which the difference is announced. Of two values that matter only together (``kind`` is ``pair``), ``key`` and
    ``value`` have both, with an ampersand between them.
    """

    key: str
    kind: str
    value: str | float | bool
    effect: float
    false_discovery_rate: float
    odd_with: int | None
    with_count: int | None
    odd_without: int | None
    without_count: int | None
    odd_median: float | None
    usual_median: float | None
    is_outcome: bool
    text: str


class SampleOfRuns(msgspec.Struct, kw_only=True):
    """The runs that were compared. ``tested`` is how many values were."""

    start: str | None
    end: str | None
    run_count: int
    odd_count: int
    usual_count: int
    tested: int
    max_false_discovery_rate: float


class WhyAnswer(msgspec.Struct, kw_only=True):
    """Why a run was slow or failed.

    ``verdict`` is usual, slow, failed, running, pending, cancelled, lost, or unknown (nothing to compare it with).
    ``claims`` say what happened, in the order of the sentence, ``causes`` why, the likeliest first. ``differences`` is
    all that differs, whether it is named as a cause or not.
    """

    execution_id: str
    workflow_id: str
    workflow_name: str
    status: str
    verdict: Literal["usual", "slow", "failed", "running", "pending", "cancelled", "lost", "unknown"]
    sentence: str
    claims: list[Claim]
    causes: list[Claim]
    differences: list[WhatDiffers]
    sample: SampleOfRuns


class WorkflowDifferences(msgspec.Struct, kw_only=True):
    """What sets some runs of a workflow apart from the others."""

    workflow_id: str
    workflow_name: str
    differences: list[WhatDiffers]
    sample: SampleOfRuns
