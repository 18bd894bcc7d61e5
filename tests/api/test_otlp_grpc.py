"""OTLP/gRPC: the same spans, limits, tokens and answers as by HTTP, and no client that stops the service."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Status as SpanStatus
from opentelemetry.trace import StatusCode as SpanCode
from tests.api.test_otlp import PLAIN, export, span, timeline
from tests.conftest import Api, running

from tachograph.errors import StoreUnavailable
from tachograph.workflow import HandlerRegistry
from tachograph_exporter import config as config_module
from tachograph_exporter.api import grpc_reads, otlp_grpc
from tachograph_exporter.config import Config, ConfigError
from tachograph_exporter.ingest import receiver
from tachograph_exporter.ingest.envelope import field
from tachograph_exporter.service import CannotListen, Service
from tachograph_exporter.serving import serve

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LOCAL = ("127.0.0.1", 0)
GOOD = export(PLAIN).SerializeToString()


class Door:
    """A service with its door for gRPC, and a client of it."""

    def __init__(self, api: Api, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.api = api
        self.credentials = credentials
        assert api.service.grpc_door is not None
        self.port = api.service.grpc_door.port

    def channel(self, compression: grpc.Compression = grpc.Compression.NoCompression) -> grpc.aio.Channel:
        target = f"localhost:{self.port}" if self.credentials else f"127.0.0.1:{self.port}"
        # A channel of its own, not a connection that another test's channel had to this port.
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.credentials is not None:
            return grpc.aio.secure_channel(target, self.credentials, options, compression)
        return grpc.aio.insecure_channel(target, options, compression)

    async def send(
        self,
        body: bytes = GOOD,
        compression: grpc.Compression = grpc.Compression.NoCompression,
        method: str = EXPORT,
        **metadata: str,
    ) -> tuple[grpc.StatusCode, bytes, Mapping[str, Any]]:
        """The status of a call, its response, or details in ``grpc-status-details-bin``, and the trailers."""
        async with self.channel(compression) as channel:
            export: Any = channel.unary_unary(method)
            call = export(
                body, metadata=tuple((key.replace("_", "-"), value) for key, value in metadata.items()), timeout=60
            )
            try:
                return grpc.StatusCode.OK, await call, {}
            except grpc.aio.AioRpcError as error:
                return error.code(), (error.details() or "").encode(), dict(error.trailing_metadata() or ())


@asynccontextmanager
async def opened(
    handlers: HandlerRegistry, database: str, credentials: grpc.ChannelCredentials | None = None, **settings: Any
) -> AsyncIterator[Door]:
    config = Config(database=database, grace_seconds=0.1, otlp_grpc=LOCAL, **settings)
    async with running(config, handlers) as api:
        yield Door(api, credentials)


@pytest.fixture
async def door(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Door]:
    async with opened(handlers, any_database_url) as door:
        yield door


@pytest.fixture
async def local_door(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Door]:
    async with opened(handlers, database_url) as door:
        yield door


def retry_seconds(trailers: Mapping[str, Any]) -> int:
    """When a client may try again, as OTLP says it; 0: never."""
    if "grpc-status-details-bin" not in trailers:
        return 0
    (detail,) = RpcStatus.FromString(trailers["grpc-status-details-bin"]).details
    info = RetryInfo()
    assert detail.Unpack(info)
    assert RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"]) == info
    return int(info.retry_delay.seconds)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_the_sdks_own_exporter_sends_by_grpc(door: Door, compression: grpc.Compression) -> None:
    def run() -> None:
        exporter = OTLPSpanExporter(
            endpoint=f"http://127.0.0.1:{door.port}", insecure=True, compression=compression, timeout=30
        )
        provider = TracerProvider(resource=Resource({"service.name": "etl"}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        with (
            tracer.start_as_current_span("nightly"),
            suppress(ValueError),
            tracer.start_as_current_span("load") as load,
        ):
            load.set_status(SpanStatus(SpanCode.ERROR))
            raise ValueError("disk full")
        provider.shutdown()

    await asyncio.to_thread(run)
    # Acknowledged is committed: nothing has to be waited for.
    nightly = await timeline(door.api)
    (load,) = nightly["step_timeline"]
    assert (nightly["workflow_name"], load["step_name"], load["error_message"]) == ("nightly", "load", "disk full")
    text = await door.api.metrics()
    stored = 'tachograph_otlp_requests_total{outcome="stored",protocol="grpc",signal="traces"}'
    assert f"{stored} 2.0" in text
    assert stored.replace("grpc", "http") + " 0.0" in text


async def test_spans_that_are_rejected_are_a_partial_success(local_door: Door) -> None:
    bad = span("no id", 1)
    bad.trace_id = b""
    code, body, _ = await local_door.send(export([*PLAIN, bad]).SerializeToString())
    partial = ExportTraceServiceResponse.FromString(body).partial_success
    assert (code, partial.rejected_spans) == (grpc.StatusCode.OK, 1)
    assert "no valid trace id" in partial.error_message


async def test_what_cannot_be_read_is_an_invalid_argument(local_door: Door) -> None:
    for body in (b"\x0a\xff", b"no protobuf", gzip.compress(b"no protobuf"), gzip.compress(GOOD)[:-9]):
        code, why, trailers = await local_door.send(body)
        assert (code, retry_seconds(trailers)) == (grpc.StatusCode.INVALID_ARGUMENT, 0), why
    code, _, _ = await local_door.send(method="/opentelemetry.proto.collector.trace.v1.TraceService/Import")
    assert code is grpc.StatusCode.UNIMPLEMENTED
    code, _, _ = await local_door.send(compression=grpc.Compression.Deflate)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert (await local_door.send())[0] is grpc.StatusCode.OK


async def test_messages_are_as_large_as_bodies_may_be_also_when_they_are_decompressed(
    database_url: str, handlers: HandlerRegistry
) -> None:
    async with opened(handlers, database_url, max_otlp_body_bytes=100_000) as door:
        # A field that OTLP does not have is ignored.
        filling = GOOD + field(15, b"\0" * 100_000)
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            code, _, trailers = await door.send(filling, compression)
            assert (code, retry_seconds(trailers)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 0)
            assert (await door.send(compression=compression))[0] is grpc.StatusCode.OK
        assert door.api.service.receiver.stored == len(PLAIN)


async def test_who_may_send_and_where(database_url: str, handlers: HandlerRegistry) -> None:
    admin = "a-token-of-the-administrator"
    async with opened(handlers, database_url, token=admin) as door:
        headers = {"Authorization": f"Bearer {admin}"}
        for slug in ("ours", "theirs"):
            assert (await door.api.call("POST", "/api/workspaces", {"name": slug, "slug": slug}, headers=headers))[
                0
            ] == 201

        async def token(scope: str, workspace: str) -> str:
            body = {"name": scope, "scopes": [scope], "workspace": workspace}
            status, created = await door.api.call("POST", "/api/tokens", body, headers=headers)
            assert status == 201, created
            return f"Bearer {created['token']}"

        reading, ingesting = await token("read", "ours"), await token("ingest", "ours")
        code = grpc.StatusCode
        calls: list[tuple[grpc.StatusCode, dict[str, Any]]] = [
            (code.UNAUTHENTICATED, {}),
            (code.UNAUTHENTICATED, {"authorization": "Bearer wrong"}),
            (code.UNAUTHENTICATED, {"authorization": "Basic dXNlcjpwYXNz"}),
            (code.PERMISSION_DENIED, {"authorization": reading}),
            (code.PERMISSION_DENIED, {"authorization": ingesting, "origin": "https://example.com"}),
            (code.NOT_FOUND, {"authorization": ingesting, "x_workspace_slug": "theirs"}),
            (code.OK, {"authorization": ingesting}),
            (code.OK, {"authorization": f"Bearer {admin}", "x_workspace_slug": "theirs"}),
        ]
        for expected, metadata in calls:
            assert (await door.send(**metadata))[0] is expected, metadata
        for slug, count in (("ours", 1), ("theirs", 1), ("default", 0)):
            page = await door.api.get(f"/api/workflows/executions?workspace_slug={slug}", headers=headers)
            assert page["total"] == count, slug


async def test_an_unavailable_database_and_a_full_queue_are_worth_another_try(
    local_door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = local_door.api.service.span_store

    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", away)
        code, _, trailers = await local_door.send()
        assert (code, retry_seconds(trailers)) == (grpc.StatusCode.UNAVAILABLE, 5)
    with monkeypatch.context() as patch:
        patch.setattr(receiver, "MAX_BYTES", 10)
        assert local_door.api.service.receiver.reserve(1)
        code, _, trailers = await local_door.send()
        assert (code, retry_seconds(trailers)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1)
        local_door.api.service.receiver.release(1)
    with monkeypatch.context() as patch:
        patch.setattr(otlp_grpc, "MAX_CALLS", 0)
        code, _, trailers = await local_door.send()
        assert (code, retry_seconds(trailers)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1)
    assert (await local_door.send())[0] is grpc.StatusCode.OK
    assert local_door.api.service.receiver.reserve(receiver.MAX_BYTES), "room was not given back"


async def test_calls_whose_message_never_comes_make_room_for_others(
    local_door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_reads, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(grpc_reads, "WAIT_SECONDS", 60.0)
    async with local_door.channel() as channel:
        silent: list[Any] = [channel.stream_unary(EXPORT)(timeout=60) for _ in range(3 * grpc_reads.MAX_READS)]
        for call in silent:
            await call.wait_for_connection()
        answers = await asyncio.gather(*[local_door.send() for _ in range(4)])
        assert {code for code, _, _ in answers} == {grpc.StatusCode.OK}
        for call in silent:
            call.cancel()
    page = await local_door.api.get("/api/workflows/executions")
    assert page["total"] == 1
    for _ in range(3_000):
        if local_door.api.service.grpc_door is not None and not local_door.api.service.grpc_door.calls:
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("calls that ended are still counted")


async def test_a_message_that_never_comes_ends_its_call(local_door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_reads, "READ_SECONDS", 0.2)
    async with local_door.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.stream_unary(EXPORT)(timeout=60)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "did not arrive" in (failure.value.details() or "")


async def test_bytes_that_are_no_http2_and_idle_connections_stop_nobody(local_door: Door) -> None:
    writers = []
    for first in (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01" + b"\0" * 200):
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", local_door.port)
            writer.write(first)
            writers.append(writer)
    assert (await local_door.send())[0] is grpc.StatusCode.OK
    for writer in writers:
        writer.transport.abort()


async def test_the_certificate_of_the_service_encrypts_grpc_too(
    database_url: str, handlers: HandlerRegistry, tmp_path: Path
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    both, chain, key = tmp_path / "both.pem", tmp_path / "chain.pem", tmp_path / "key.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(both)
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    trust = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    for certificate, private in ((both, None), (chain, key)):
        async with opened(handlers, database_url, trust, certificate=certificate, key=private) as door:
            assert (await door.send())[0] is grpc.StatusCode.OK
            door.credentials = None
            assert (await door.send())[0] is grpc.StatusCode.UNAVAILABLE


def test_beyond_loopback_a_token_is_required() -> None:
    public = Config(otlp_grpc=("0.0.0.0", 4317))
    with pytest.raises(ConfigError, match=r"listening on 0\.0\.0\.0 is open"):
        public.check()
    public.check(has_tokens=True)
    assert (public.needs_grpc_token, public.needs_token) == (True, False)
    assert not Config(otlp_grpc=("0.0.0.0", 4317), is_insecure=True).needs_grpc_token
    assert not Config(otlp_grpc=LOCAL).needs_grpc_token
    assert Config(otlp_grpc=LOCAL, host="0.0.0.0").needs_grpc_token


def test_without_grpcio_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"tachograph\[grpc\]"):
        Config(otlp_grpc=LOCAL).check()
    Config().check()


async def test_a_port_that_is_taken_is_said(database_url: str, handlers: HandlerRegistry) -> None:
    with socket.create_server(LOCAL) as taken:
        port = taken.getsockname()[1]
        service = Service(Config(database=database_url, port=0, otlp_grpc=("127.0.0.1", port)), handlers)
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port} for OTLP/gRPC: Address already in use"):
            await serve(service)


async def test_a_call_that_is_being_stored_is_answered_before_the_service_ends(
    database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    async with opened(handlers, database_url) as door:
        store = door.api.service.span_store
        commit: Callable[..., Any] = store.commit

        def slow(work: Any) -> Any:
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(60)
            return commit(work)

        monkeypatch.setattr(store, "commit", slow)
        sending = asyncio.create_task(door.send())
        await entered.wait()
        loop.call_later(0.1, go_on.set)
    assert (await sending)[0] is grpc.StatusCode.OK


async def test_a_call_that_its_client_gives_up_while_it_is_stored_leaves_nothing_behind(
    local_door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sent may be stored, once, however often the client sends it again."""
    entered, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    service = local_door.api.service
    commit: Callable[..., Any] = service.span_store.commit

    def slow(work: Any) -> Any:
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(60)
        return commit(work)

    with monkeypatch.context() as patch:
        patch.setattr(service.span_store, "commit", slow)
        async with local_door.channel() as channel:
            method: Any = channel.unary_unary(EXPORT)
            call = method(GOOD, timeout=60)
            await entered.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        go_on.set()
        for _ in range(2):
            assert (await local_door.send())[0] is grpc.StatusCode.OK
    assert service.receiver.stored == len(PLAIN)
    page = await local_door.api.get("/api/workflows/executions")
    assert page["total"] == 1
    assert service.grpc_door is not None
    for _ in range(3_000):
        if not service.grpc_door.calls:
            break
        await asyncio.sleep(0.02)
    assert service.grpc_door.calls == 0
    assert service.receiver.reserve(receiver.MAX_BYTES), "room was not given back"
