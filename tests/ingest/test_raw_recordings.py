"""What real engines sent, request by request as it arrived, becomes what happened; backwards and stored first, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import pytest
from tests.ingest.hurried_intake import WAYS, Hurried
from tests.ingest.intake import Intake
from tests.ingest.proven import RAW
from tests.ingest.recorded import in_order, in_pieces, recorded_requests
from tests.ingest.test_recordings import intake, lasting, problems_of
from tests.ingest.truth import read_truth

from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.rules import Role
from tachograph_exporter.ingest.spans import SpanRecord

__all__ = ["intake"]


BACKWARDS: Final = {*list(RAW)[::3], *{name.partition("_")[0]: name for name in RAW}.values()}
"""A third of them, and one of each engine; `make slow` has all, in more orders."""


def taken(service: Intake, requests: list[list[SpanRecord]]) -> None:
    for request in requests:
        service.take(request)
    service.settle()


@pytest.mark.parametrize("name", RAW)
def test_a_recording_becomes_what_happened(name: str, intake: Callable[[], Hurried]) -> None:
    requests, truth = recorded_requests(name), read_truth(name)
    tolerance: float = truth["tolerance_seconds"]
    assert sum(len(request) for request in requests) == truth["spans"]
    service = intake()
    taken(service, requests)
    problems = dict.fromkeys(problems_of(name, service, tolerance=tolerance), "as it arrived")
    before = lasting(service), service.counted()
    taken(service, requests)
    assert (lasting(service), service.counted()) == before, "arriving twice changes it"
    service.close()
    if name in BACKWARDS:
        backwards = intake()
        way = WAYS[list(RAW).index(name) % len(WAYS)]
        way(backwards, [[span] for request in requests[::-1] for span in request[::-1]])
        backwards.settle()
        for problem in problems_of(name, backwards, tolerance=tolerance):
            problems.setdefault(problem, f"a span at a time, the last first, stored first ({way.__name__})")
    report = "\n".join(f"{problem} ({delivery})" for problem, delivery in problems.items())
    assert not problems, report


@pytest.mark.slow
@pytest.mark.parametrize("name", RAW)
def test_a_recording_becomes_what_happened_in_further_orders(name: str, intake: Callable[[], Hurried]) -> None:
    spans = [span for request in recorded_requests(name) for span in request]
    problems: dict[str, str] = {}
    for order, size in (("by end", 3), ("shuffled", 1), ("reversed", 1)):
        service = intake()
        taken(service, [list(piece) for piece in in_pieces(in_order(spans, order), size)])
        for problem in problems_of(name, service, tolerance=read_truth(name)["tolerance_seconds"]):
            problems.setdefault(problem, f"{order}, {size} to a request")
        service.close()
    report = "\n".join(f"{problem} ({delivery})" for problem, delivery in problems.items())
    assert not problems, report


def test_a_node_of_dbt_has_its_name_before_its_attributes_are_set() -> None:
    for request in recorded_requests("dbt112_nightly"):
        for span in request:
            rule = BUILT_IN.find(span)
            assert rule is not None
            if rule.role is Role.STEP:
                begun = msgspec.structs.replace(span, attributes={}, end_ns=0)
                assert BUILT_IN.find(begun) is rule
                assert rule.name(begun) == rule.name(span) == span.attributes["name"]
    names = {
        "model.shop.orders.v2": ("orders", "v2"),
        "unit_test.shop.orders.adds_up": ("adds_up", None),
        "test.shop.unique_orders_id.1360ecc70e": ("unique_orders_id", None),
    }
    for unique_id, expected in names.items():
        begun = msgspec.structs.replace(begun, name=unique_id)
        rule = BUILT_IN.find(begun)
        assert rule is not None
        assert rule.index is not None
        assert (rule.name(begun), rule.index(begun)) == expected
