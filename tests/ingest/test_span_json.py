"""Spans in OTLP's JSON are what protobuf's own mapping makes of them, but for ids and enums."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tachograph_exporter.ingest.span_json import span_json

TEXTS = st.text(max_size=5)
COUNTS = st.sampled_from([0, 1, (1 << 32) - 1])
TIMES = st.sampled_from([0, 1, (1 << 64) - 1])
IDS = st.sampled_from([b"", b"s" * 8, b"t" * 16, b"\0" * 8])
VALUES: st.SearchStrategy[AnyValue] = st.recursive(
    st.one_of(
        st.builds(AnyValue), st.builds(AnyValue, string_value=TEXTS), st.builds(AnyValue, bool_value=st.booleans()),
        st.builds(AnyValue, int_value=st.integers(-(1 << 63), (1 << 63) - 1)),
        st.builds(AnyValue, double_value=st.floats()), st.builds(AnyValue, bytes_value=st.binary(max_size=5)),
        st.builds(AnyValue, string_value_strindex=st.integers(0, 9)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda values: AnyValue(array_value=ArrayValue(values=values))),
        st.lists(st.builds(KeyValue, key=TEXTS, value=inner), max_size=3).map(
            lambda values: AnyValue(kvlist_value=KeyValueList(values=values))
        ),
    ),
    max_leaves=6,
)  # fmt: skip
ATTRIBUTES = st.lists(
    st.one_of(
        st.builds(KeyValue, key=TEXTS, value=VALUES), st.builds(KeyValue, key=TEXTS, key_strindex=st.integers(0, 9))
    ),
    max_size=3,
)
MORE: Any = {"attributes": ATTRIBUTES, "dropped_attributes_count": COUNTS}
SPANS = st.builds(
    Span, trace_id=IDS, span_id=IDS, trace_state=TEXTS, parent_span_id=IDS, flags=COUNTS, name=TEXTS,
    kind=st.integers(0, 9), start_time_unix_nano=TIMES, end_time_unix_nano=TIMES, **MORE,
    events=st.lists(st.builds(Span.Event, time_unix_nano=TIMES, name=TEXTS, **MORE), max_size=2),
    dropped_events_count=COUNTS,
    links=st.lists(
        st.builds(Span.Link, trace_id=IDS, span_id=IDS, trace_state=TEXTS, flags=COUNTS, **MORE), max_size=2
    ),
    dropped_links_count=COUNTS,
    status=st.one_of(st.none(), st.fixed_dictionaries({"message": TEXTS, "code": st.integers(0, 5)})),
)  # fmt: skip


def reference(value: Any, key: str = "") -> Any:
    if isinstance(value, list):
        return [reference(item) for item in value]
    if isinstance(value, dict):
        return {name: reference(item, name) for name, item in value.items()}
    if key in ("traceId", "spanId", "parentSpanId"):
        return base64.b64decode(value).hex()
    if key in ("kind", "code") and isinstance(value, str):
        names: dict[str, int] = dict(Span.SpanKind.items())
        names |= {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}
        return names[value]
    return value


@given(SPANS)
def test_a_span_is_mapped_as_protobuf_does(span: Span) -> None:
    assert span_json(span) == reference(MessageToDict(span))
    assert msgspec.json.decode(msgspec.json.encode(span_json(span))) == reference(MessageToDict(span))
