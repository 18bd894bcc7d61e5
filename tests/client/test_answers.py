"""The types of the client's answers are those of the service's OpenAPI document."""

from __future__ import annotations

import msgspec
from tools.client_answers import TARGET, source

from tachograph.client import answers
from tachograph_exporter.views.schemas.why import WhyAnswer


def test_the_types_are_up_to_date() -> None:
    assert TARGET.read_text() == source(), "run: python tools/client_answers.py"


def test_a_client_reads_answers_of_newer_and_older_services() -> None:
    # Every field of the service's own type, in a version that knows another verdict and one more field.
    assert {field.name for field in msgspec.structs.fields(answers.WhyAnswer)} == set(WhyAnswer.__struct_fields__)
    newer = {
        "execution_id": "1", "workflow_id": "2", "workflow_name": "etl", "status": "completed", "verdict": "haunted",
        "sentence": "…", "claims": [], "causes": [], "differences": [], "mood": "fine",
        "sample": {"start": None, "end": None, "run_count": 0, "odd_count": 0, "usual_count": 0, "tested": 0,
                   "max_false_discovery_rate": 0.01},
    }  # fmt: skip
    assert msgspec.convert(newer, answers.WhyAnswer).verdict == "haunted"
    del newer["sample"]["start"]  # type: ignore[attr-defined]
    assert msgspec.convert(newer, answers.WhyAnswer).sample.start is None
