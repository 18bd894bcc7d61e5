"""The types of the client's answers are those of the service's OpenAPI document."""

from __future__ import annotations

import msgspec
from tools.client_answers import ROOTS, TARGET, source

from tachograph.client import answers
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.api.openapi import document
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


def test_the_documented_answers_are_read_whole() -> None:
    read: set[str] = set()
    for path, operations in document(ROUTES)["paths"].items():
        for operation in operations.values():
            for response in operation["responses"].values():
                for media in response.get("content", {}).values():
                    schema = media.get("schema", {})
                    # Of an answer in several forms the first is the usual one.
                    name = schema.get("anyOf", [schema])[0].get("$ref", "").rpartition("/")[2]
                    if (kind := getattr(answers, name, None)) is None:
                        continue
                    given = [media["example"]] if "example" in media else []
                    given += [example["value"] for example in media.get("examples", {}).values()]
                    for example in given:
                        read.add(name)
                        assert example.keys() <= msgspec.to_builtins(msgspec.convert(example, kind)).keys(), path
    assert read >= set(ROOTS)
