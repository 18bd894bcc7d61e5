"""What cannot be read costs its span and no other: the rest of a request is kept, and the answer counts what is not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.api.test_otlp import PLAIN, T0, export, send
from tests.conftest import Api

from tachograph.clock import NS
from tachograph_exporter.ingest.envelope import BadRequest, scopes_of
from tachograph_exporter.ingest.otlp_json import scopes_of_json
from tachograph_exporter.ingest.spans import SpanRecord, records_of

TRACE, ROOT, CHILD = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", "eee19b7ec3c1b175"


def a_span(span_id: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"traceId": TRACE, "spanId": span_id, "name": name, "kind": 1,
            "startTimeUnixNano": str(T0), "endTimeUnixNano": str(T0 + NS), **fields}  # fmt: skip


def a_request(*spans: Any, **group: Any) -> dict[str, Any]:
    return {
        "resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": "x"}, "spans": list(spans)}], **group}]
    }


def read(body: bytes, *, is_json: bool = True) -> tuple[list[SpanRecord], list[str]]:
    """The spans that are kept, and the reasons for those that are not."""
    spans = list(records_of(scopes_of_json(body) if is_json else scopes_of(body)))
    return [s for s in spans if isinstance(s, SpanRecord)], [s for s in spans if isinstance(s, str)]


def names(body: bytes, *, is_json: bool = True) -> tuple[list[str], list[str]]:
    """The names of the spans that are kept, and the reasons for those that are not."""
    kept, reasons = read(body, is_json=is_json)
    return [span.name for span in kept], reasons


GOOD = a_span(ROOT, "good")
KEPT = {
    "null parent": {"parentSpanId": None},
    "empty parent": {"parentSpanId": ""},
    "zero parent": {"parentSpanId": "0" * 16},
    "nulls": {"attributes": None, "status": None, "links": None, "events": None, "traceState": None, "kind": None},
    "unknown field with an id": {"extra": {"traceId": 5, "spanId": ["?"]}, "other": {"parentSpanId": "not hex"}},
    "an attribute called like an id": {"attributes": [{"key": "traceId", "value": {"stringValue": "not hex"}}]},
    "upper case": {"parentSpanId": ROOT.upper()},
    "base64, as protobuf's own JSON has it": {
        "traceId": base64.b64encode(bytes.fromhex(TRACE)).decode(),
        "spanId": base64.b64encode(bytes(7) + b"7").decode(),
    },
    "number as time": {"startTimeUnixNano": T0},
    "half an emoji": {"name": "odd \ud83d", "attributes": [{"key": "k", "value": {"stringValue": "\udc00"}}]},
    "unknown kind": {"kind": "SPAN_KIND_NOPE"},
    "kind by name": {"kind": "SPAN_KIND_SERVER", "status": {"code": "STATUS_CODE_ERROR"}},
}
REJECTED = {
    "no hex": {"spanId": "not hex"},
    "short id": {"spanId": "eee19b"},
    "id of zeros": {"spanId": "0" * 16},
    "id is a number": {"traceId": 5},
    "bad parent": {"parentSpanId": "xyz"},
    "negative time": {"startTimeUnixNano": "-5"},
    "time is a word": {"endTimeUnixNano": "now"},
    "time is an object": {"startTimeUnixNano": {}},
    "integer beyond 64 bits": {"attributes": [{"key": "k", "value": {"intValue": str(1 << 70)}}]},
    "attribute is null": {"attributes": [None]},
    "attributes are a number": {"attributes": 7},
    "two kinds of value": {"attributes": [{"key": "k", "value": {"stringValue": "a", "intValue": "1"}}]},
    "name is a list": {"name": ["a"]},
    "bytes that are no base64": {"attributes": [{"key": "k", "value": {"bytesValue": "a"}}]},
    "link without hex": {"links": [{"traceId": "?", "spanId": ROOT}]},
}


@pytest.mark.parametrize("fields", KEPT.values(), ids=KEPT)
def test_what_is_only_unusual_is_kept(fields: dict[str, Any]) -> None:
    body = json.dumps(a_request(GOOD, a_span(CHILD, **{"name": "odd", **fields}))).encode()
    kept, reasons = names(body)
    assert (kept[0], len(kept), reasons) == ("good", 2, [])
    kept[1].encode()  # Whole characters only.


@pytest.mark.parametrize("fields", REJECTED.values(), ids=REJECTED)
def test_one_bad_span_costs_no_other(fields: dict[str, Any]) -> None:
    body = json.dumps(a_request(GOOD, a_span(CHILD, **{"name": "odd", **fields}))).encode()
    kept, reasons = names(body)
    assert (kept, len(reasons)) == (["good"], 1)
    assert "odd" in reasons[0] or fields.get("name")


@pytest.mark.parametrize("span", [None, 5, "span", []])
def test_what_is_no_span_is_counted(span: Any) -> None:
    assert names(json.dumps(a_request(GOOD, span)).encode())[0] == ["good"]
    assert len(names(json.dumps(a_request(GOOD, span)).encode())[1]) == 1


@pytest.mark.parametrize("group", [{"resource": 5}, {"resource": {"attributes": [{"key": 5}]}}, {"schemaUrl": {}}])
def test_a_bad_resource_costs_its_own_spans(group: dict[str, Any]) -> None:
    request = a_request(GOOD)
    request["resourceSpans"] += a_request(a_span(CHILD, "a"), a_span(CHILD, "b"), **group)["resourceSpans"]
    kept, reasons = names(json.dumps(request).encode())
    assert (kept, len(reasons)) == (["good"], 2)


@pytest.mark.parametrize(
    "document",
    [[], 5, None, {"resourceSpans": 5}, {"resourceSpans": {"a": 1}}, {"resourceSpans": [5]},
     {"resourceSpans": [{"scopeSpans": 5}]}, {"resourceSpans": [{"scopeSpans": [5]}]},
     {"resourceSpans": [{"scopeSpans": [{"spans": 5}]}]}],
)  # fmt: skip
def test_what_has_no_spans_to_count_is_refused_with_the_place(document: Any) -> None:
    with pytest.raises(BadRequest, match=r"not a JSON ExportTraceServiceRequest: (the body|resourceSpans)"):
        read(json.dumps(document).encode())


def test_empty_and_null_lists_are_no_spans() -> None:
    for document in ({}, {"resourceSpans": None}, {"resourceSpans": [{"scopeSpans": None}]},
                     {"resourceSpans": [{"scopeSpans": [{"spans": None}]}]}):  # fmt: skip
        assert read(json.dumps(document).encode()) == ([], [])


def test_names_of_fields_as_in_the_proto_file_are_read() -> None:
    span = {"trace_id": TRACE, "span_id": ROOT, "parent_span_id": None, "name": "snake",
            "start_time_unix_nano": str(T0), "end_time_unix_nano": str(T0 + NS)}  # fmt: skip
    body = json.dumps({"resource_spans": [{"scope_spans": [{"spans": [span]}]}]}).encode()
    assert names(body) == (["snake"], [])


def test_bytes_that_are_no_text_cost_nothing_in_json() -> None:
    body = json.dumps(a_request(GOOD, a_span(CHILD, "cut XX"))).encode().replace(b"XX", b"\xf0\x9f")
    assert names(body) == (["good", "cut \ufffd"], [])


def test_bytes_that_are_no_text_cost_their_span_in_protobuf() -> None:
    message = export(PLAIN)
    spans = message.resource_spans[0].scope_spans[0].spans
    count = len(PLAIN)
    spans[0].name = "cutXX"
    body = message.SerializeToString().replace(b"cutXX", b"cut\xf0\x9f")
    kept, reasons = names(body, is_json=False)
    assert (len(kept), len(reasons)) == (count - 1, 1)
    with pytest.raises(BadRequest, match="protobuf"):
        read(body[:-3], is_json=False)


async def test_the_answer_counts_what_was_not_kept(api: Api) -> None:
    body = json.dumps(a_request(GOOD, a_span(CHILD, "odd", spanId="no hex"), None)).encode()
    status, answer = await send(api, body, "application/json")
    assert status == 200
    partial = json.loads(answer)["partialSuccess"]
    assert partial["rejectedSpans"] == "2"
    assert "odd" in partial["errorMessage"]
    assert (await api.get("/api/workflows/executions"))["total"] == 1
