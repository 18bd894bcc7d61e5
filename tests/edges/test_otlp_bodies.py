"""Bodies of OTLP requests: compressed, broken, huge when read, announced and never sent."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
import zstandard
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api import encodings
from tachograph_exporter.api.encodings import NoRoom, TooLarge, Unreadable, decoded
from tachograph_exporter.config import Config
from tachograph_exporter.ingest.envelope import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_MESSAGES,
    PIECE_BYTES,
    BadRequest,
    field,
    scopes_of,
)
from tachograph_exporter.ingest.otlp_json import scopes_of_json
from tachograph_exporter.ingest.receiver import MAX_BYTES
from tachograph_exporter.ingest.spans import SpanRecord, parse, records, records_of
from tachograph_exporter.service import Service
from tests.conftest import Api, serve

PROTOBUF = "application/x-protobuf"


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1), handlers):
        yield api


@pytest.fixture
async def any_api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    """For what is stored."""
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:9]) + gzip.compress(data[9:])


def export(name: str = "a") -> bytes:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name=name)
    span.start_time_unix_nano = span.end_time_unix_nano = 1_790_000_000_000_000_000
    span.attributes.add(key="k" + name).value.string_value = "v" + name
    return request.SerializeToString()


async def send(api: Api, body: Any, kind: str = PROTOBUF, path: str = "/v1/traces", **headers: str) -> tuple[int, Any]:
    headers = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with api.session.post(api.address + path, data=body, headers=headers) as response:
        return response.status, response


@pytest.mark.parametrize(("encoding", "compress"), [
    ("gzip", gzip.compress), ("GZIP", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress),
    ("deflate", raw_deflate), ("gzip", two_members), ("zstd", zstandard.compress),
])  # fmt: skip
def test_what_is_read(encoding: str, compress: Any) -> None:
    name = "gzip" if "gz" in encoding.lower() else encoding
    assert decoded(compress(export()), name, 10_000, lambda _size: True) == export()


@given(st.binary(max_size=300), st.integers(0, 40), st.sampled_from(["gzip", "deflate", "raw", "zstd"]))
def test_compressed_data_is_whole_or_refused(data: bytes, cut: int, kind: str) -> None:
    compress: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress, "deflate": zlib.compress, "raw": raw_deflate, "zstd": zstandard.compress,
    }  # fmt: skip
    compressed = compress[kind](data)
    encoding = "deflate" if kind == "raw" else kind
    assert decoded(compressed, encoding, 300, lambda _size: True) == data
    if 0 < cut < len(compressed) and kind != "raw":
        with pytest.raises(Unreadable):
            decoded(compressed[:-cut], encoding, 300, lambda _size: True)
        with pytest.raises(Unreadable):
            decoded(compressed + b"x" * cut, encoding, 300, lambda _size: True)


async def test_encodings_over_http(api: Api) -> None:
    body = export()
    cases: list[tuple[str, bytes, int]] = [
        ("gzip", gzip.compress(body), 200), ("deflate", zlib.compress(body), 200), ("deflate", raw_deflate(body), 200),
        ("Gzip", gzip.compress(body), 200), ("identity", body, 200), ("foo", body, 415), ("br", body, 415),
        ("zstd", zstandard.compress(body), 200), ("ZSTD", zstandard.compress(body) * 2, 200), ("zstd", body, 400),
        ("zstd", zstandard.compress(body)[:-1], 400), ("zstd", zstandard.compress(body) + b"tail", 400),
        ("zstd", zstandard.compress(b"\0" * 30_000_000), 413),
        ("gzip, gzip", gzip.compress(gzip.compress(body)), 415), ("gzip", body, 400),
        ("deflate", body, 400), ("gzip", gzip.compress(body)[:-5], 400), ("gzip", gzip.compress(body)[:-1], 400),
        ("gzip", gzip.compress(body) + b"tail", 400), ("deflate", zlib.compress(body)[:-3], 400),
        ("compress", body, 415), ("gzip", gzip.compress(b"\0" * 30_000_000), 413),
        ("deflate", zlib.compress(b"\0" * 30_000_000), 413),
    ]  # fmt: skip
    for encoding, content, expected in cases:
        status, response = await send(api, content, Content_Encoding=encoding)
        assert status == expected, (encoding, len(content))
        assert response.content_type == PROTOBUF
        if status in (413, 415):
            assert response.headers["Connection"] == "close"


async def test_other_routes_read_the_same_encodings(api: Api) -> None:
    body = msgspec.json.encode({"name": "w", "steps": [{"name": "s"}]})
    for encoding, content, expected in (
        ("gzip", gzip.compress(body), 200), ("deflate", zlib.compress(body), 200), ("br", body, 415),
        ("gzip", body, 400), ("gzip", gzip.compress(body)[:-2], 400), ("gzip", gzip.compress(b" " * 30_000_000), 413),
    ):  # fmt: skip
        status, response = await send(
            api, content, "application/json", "/api/workflows/validate", Content_Encoding=encoding
        )
        assert status == expected, encoding
        assert response.headers.get("Connection", "keep-alive") == ("close" if status != 200 else "keep-alive")


def test_what_is_decoded_is_bounded_while_it_grows() -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * 300_000_000))
    once = decoded(bomb, "gzip", 1_000_000, lambda _size: True)
    sizes: list[int] = []

    def reserve(size: int) -> bool:
        sizes.append(size)
        return True

    with pytest.raises(TooLarge):
        decoded(once, "gzip", 1_000_000, reserve)
    assert sum(sizes) <= 1_000_000
    with pytest.raises(NoRoom):
        decoded(once, "gzip", 1_000_000, lambda _size: False)


def test_many_small_parts_are_not_worked_through() -> None:
    """Each part costs a decoder, and a copy of what follows it."""
    empty = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    blocks = bytes.fromhex("28b52ffd0058") + b"\0\0\0" * 3_000_000
    started = time.process_time()
    for encoding, body in (("gzip", gzip.compress(b"") * 400_000), ("zstd", blocks)):
        with pytest.raises(Unreadable):
            decoded(body, encoding, 10_000_000, lambda _size: True)
    assert time.process_time() - started < 1
    assert decoded(gzip.compress(b"a") * 900, "gzip", 1000, lambda _size: True) == b"a" * 900
    assert decoded(empty.flush(), "zstd", 1000, lambda _size: True) == b""


def test_a_zstd_frame_takes_no_more_memory_than_any_decoder_has() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = compressor.compress(b"x" * 1000) + compressor.flush()
    with pytest.raises(Unreadable, match="memory"):
        decoded(body, "zstd", 10_000, lambda _size: True)


def test_without_the_extra_zstd_is_refused_and_the_way_out_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "SUPPORTED", ("identity", "gzip", "deflate"))
    with pytest.raises(encodings.UnsupportedEncoding, match=r"tachograph\[zstd\]"):
        encodings.encoding_of(make_mocked_request("POST", "/", {"Content-Encoding": "zstd"}))


async def test_an_application_in_another_runner_reads_the_same(database_url: str, handlers: HandlerRegistry) -> None:
    """Whoever embeds the application need not know that it decodes bodies itself."""
    service = Service(Config(database=database_url, grace_seconds=0.1), handlers)
    runner = web.AppRunner(service.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession() as session:
        for encoding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstandard.compress)):
            headers = {"Content-Type": PROTOBUF, "Content-Encoding": encoding}
            url = f"http://{host}:{port}/v1/traces"
            async with session.post(url, data=compress(export()), headers=headers) as response:
                assert response.status == 200, encoding
            async with session.post(url, data=compress(b"\0" * 30_000_000), headers=headers) as response:
                assert response.status == 413, encoding
    await runner.cleanup()


def varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


MANY = MAX_MESSAGES + 1
SWARMS = {
    "spans": (field(1, field(2, b"\x12\x00" * MANY)), PROTOBUF),
    "scopes": (field(1, b"\x12\x00" * MANY), PROTOBUF),
    "resources": (b"\x0a\x00" * MANY, PROTOBUF),
    "spread": (field(1, field(2, b"\x12\x00" * 10)) * (MANY // 12 + 1), PROTOBUF),
    "in JSON": (b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 600_000 + b"{}]}]}]}", "application/json"),
    "lists in JSON": (b'{"resourceSpans":[' + b"[]," * 600_000 + b"[]]}", "application/json"),
}


@pytest.mark.parametrize("name", SWARMS)
async def test_a_swarm_of_tiny_spans_is_refused_before_it_is_read(api: Api, name: str) -> None:
    body, kind = SWARMS[name]
    with pytest.raises(BadRequest, match="too many"):
        (scopes_of if kind == PROTOBUF else scopes_of_json)(body)
    slowest = 0.0
    sending = [asyncio.create_task(send(api, gzip.compress(body), kind, Content_Encoding="gzip")) for _ in range(4)]
    while not all(task.done() for task in sending):
        # The event loop's own processor time: a busy machine does not count.
        started = time.thread_time()
        assert (await api.call("GET", "/-/healthy"))[0] == 200
        slowest = max(slowest, time.thread_time() - started)
    assert {(await task)[0] for task in sending} == {400}
    assert slowest < 1


@given(st.binary(max_size=200))
def test_counting_ends_whatever_it_reads(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        list(records_of(scopes_of(body)))


def test_an_ordinary_request_is_not_too_much() -> None:
    request = ExportTraceServiceRequest.FromString(export())
    spans = request.resource_spans[0].scope_spans[0].spans
    spans.extend([spans[0]] * 99_999)
    (scope,) = scopes_of(request.SerializeToString())
    assert len(scope.spans) == 2 * 100_000


def spans_read(body: bytes) -> list[SpanRecord | str]:
    return list(records_of(scopes_of(body)))


@given(st.data())
def test_a_request_in_pieces_says_what_it_says_as_a_whole(data: st.DataObject) -> None:
    request = ExportTraceServiceRequest()
    for _ in range(data.draw(st.integers(0, 3))):
        group = request.resource_spans.add(schema_url=data.draw(st.sampled_from(["", "u"])))
        group.resource.attributes.add(key="service.name").value.string_value = data.draw(st.text(max_size=3))
        for _ in range(data.draw(st.integers(0, 3))):
            scope = group.scope_spans.add()
            scope.scope.name = data.draw(st.text(max_size=3))
            for i in range(data.draw(st.integers(0, 4))):
                name = data.draw(st.text(max_size=3))
                span = scope.spans.add(trace_id=b"t" * 16, span_id=bytes([i + 1]) * 8, name=name)
                span.start_time_unix_nano = span.end_time_unix_nano = 1_790_000_000_000_000_000
                span.attributes.add(key="k").value.array_value.values.add().int_value = i
    body = request.SerializeToString()
    if body and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(body) - 1))
        body = body[:at] + data.draw(st.binary(max_size=2)) + body[at + 1 :]
    try:
        whole = list(records(parse(body).resource_spans))
    except BadRequest:
        # What no span belongs to is not read, and may be anything.
        with contextlib.suppress(BadRequest):
            spans_read(body)
    else:
        assert spans_read(body) == whole


def test_fields_in_any_order_and_twice() -> None:
    request = ExportTraceServiceRequest.FromString(export())
    (group,) = request.resource_spans
    (scope,) = group.scope_spans
    named = ScopeSpans()
    named.scope.name = "s"
    parts = [field(2, scope.spans[0].SerializeToString()), named.SerializeToString()]
    resources = []
    for key in "ab":
        resource = ResourceSpans()
        resource.resource.attributes.add(key=key).value.string_value = key
        resources.append(resource.SerializeToString())
    for scopes in (parts, parts[::-1]):
        body = field(1, resources[0] + field(2, b"".join(scopes)) + resources[1]) + field(2, b"unknown")
        assert spans_read(body) == list(records(parse(body).resource_spans))
        (span,) = spans_read(body)
        assert isinstance(span, SpanRecord)
        assert (span.scope, dict(span.resource_attributes)) == ("s", {"a": "a", "b": "b"})


def span_of(content: bytes) -> bytes:
    return field(1, field(2, field(2, field(1, b"t" * 16) + field(2, b"s" * 8) + content)))


@pytest.mark.parametrize("content", [
    b"\x4a\x00" * MAX_FIELDS, b"\x5a\x00" * MAX_FIELDS, field(11, b"\x1a\x00" * MAX_FIELDS),
    field(9, field(2, field(5, b"\x0a\x00" * MAX_FIELDS))), field(9, field(2, field(6, b"\x0a\x00" * MAX_FIELDS))),
])  # fmt: skip
def test_a_span_of_too_many_fields_is_refused(content: bytes) -> None:
    with pytest.raises(BadRequest, match="too many"):
        spans_read(span_of(content))
    with pytest.raises(BadRequest, match="too many"):
        spans_read(field(1, field(1, b"\x0a\x00" * MAX_FIELDS) + field(2, field(2, b""))))


def test_a_long_span_of_few_fields_is_read() -> None:
    text = field(9, field(1, b"prompt") + field(2, field(1, b"x" * 5_000_000)))
    times = b"\x39" + (1_790_000_000_000_000_000).to_bytes(8, "little")
    (span,) = spans_read(span_of(times + text))
    assert isinstance(span, SpanRecord)
    assert len(span.attributes["prompt"]) == 5_000_000


def test_a_resource_is_not_stored_a_thousand_times() -> None:
    """Each scope has a copy of its resource."""
    large = field(1, field(1, field(1, b"k") + field(2, field(1, b"x" * 1_000_000))))
    scope = field(2, field(2, b""))
    assert len(scopes_of(field(1, large + scope * 20))) == 20
    with pytest.raises(BadRequest, match="too many scopes"):
        scopes_of(field(1, large + scope * (MAX_HEAD_BYTES // 1_000_000 + 1)))


async def test_a_large_request_is_stored_in_parts_or_not_at_all(any_api: Api) -> None:
    api = any_api
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for i in range(1, 12_001):
        at = time.time_ns()
        spans.add(trace_id=(i // 100 + 1).to_bytes(16, "big"), span_id=i.to_bytes(8, "big"), name="a",
                  start_time_unix_nano=at, end_time_unix_nano=at)  # fmt: skip
    spans[7].span_id = b""
    body = request.SerializeToString()
    assert len(body) > PIECE_BYTES
    assert (await send(api, body[:-1]))[0] == 400
    assert api.service.receiver.stored == 0
    async with api.session.post(f"{api.address}/v1/traces", data=body, headers={"Content-Type": PROTOBUF}) as response:
        assert response.status == 200
        answer = ExportTraceServiceResponse.FromString(await response.read())
    assert answer.partial_success.rejected_spans == 1
    assert "no valid span id" in answer.partial_success.error_message
    assert api.service.receiver.stored == 11_999
    trace = await api.get(f"/jaeger/api/traces/{(50).to_bytes(16, 'big').hex()}")
    assert len(trace["data"][0]["spans"]) == 100


async def open_post(api: Api, length: int, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = api.address.partition("//")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/traces HTTP/1.1\r\nHost: {host}\r\nContent-Type: {PROTOBUF}\r\nContent-Length: {length}\r\n\r\n"
    writer.write(head.encode() + sent)
    await writer.drain()
    return reader, writer


async def test_announced_bytes_take_no_room(api: Api) -> None:
    idle = [await open_post(api, 10_000_000, b"\x0a") for _ in range(20)]
    assert (await send(api, export()))[0] == 200
    assert api.service.receiver.reserve(MAX_BYTES - 1000)
    api.service.receiver.release(MAX_BYTES - 1000)
    for _, writer in idle:
        writer.close()


async def test_room_is_given_back_whatever_happens(api: Api) -> None:
    _, writer = await open_post(api, 10_000, b"\x0a" * 5000)
    await send(api, gzip.compress(b"\0" * 30_000_000), Content_Encoding="gzip")
    await send(api, b"not gzip", Content_Encoding="gzip")
    await send(api, gzip.compress(export())[:-3], Content_Encoding="gzip")
    await send(api, export())
    writer.close()
    async with asyncio.timeout(60):
        while api.service.receiver._waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_too_large_a_body_closes_the_connection(api: Api) -> None:
    reader, writer = await open_post(api, 50_000_000, b"\x0a" * 1000)
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
    assert b" 413 " in head.splitlines()[0]
    assert b"connection: close" in head.lower()
    writer.close()


async def test_names_with_a_null_character_are_taken_or_refused(any_api: Api) -> None:
    api = any_api
    status, _ = await send(api, export("a\0b"))
    assert status in (200, 400)
    assert (await send(api, export("fine")))[0] == 200
