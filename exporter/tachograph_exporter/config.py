"""Settings of the service and their checks."""

from __future__ import annotations

import ipaddress
import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from tachograph.errors import TachographError
from tachograph.recording.recorder import LEASE_SECONDS
from tachograph.workflow.builtin.addresses import AddressPolicy
from tachograph_exporter.defaults import DEFAULT_DATABASE, DEFAULT_LISTEN, TOKEN_VARIABLE

DEFAULT_OTLP_GRPC: Final = "127.0.0.1:4317"
"""Where exporters send by default."""
MIN_TOKEN_LENGTH: Final = 16
MIN_LEASE_SECONDS: Final = 1.0
MAX_LEASE_SECONDS: Final = 86_400.0


class ConfigError(TachographError):
    """Settings are unsafe or cannot work; the message says what to change."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The service's settings.

    Access. ``token`` grants full access to whoever sends it (``Authorization: Bearer …``). Callers need a token (this
    one or one created by ``tachograph tokens create``) unless the service listens on loopback only;
    ``is_token_required`` requires one on loopback too (for use behind a proxy), ``is_insecure`` never requires one.
    ``open_metrics`` makes ``/metrics`` public. ``certificate`` and ``key`` are PEM files for TLS.

    Retention. Executions that ended ``archive_after_days`` ago move to ``archive_directory``, or are deleted after
    ``delete_after_days``.

    Work. ``workspace`` is the default workspace. ``grace_seconds`` is how long running steps may continue when the
    service stops. ``max_executions`` run at once, ``max_queued_executions`` more may wait. ``mapping`` is a file of
    rules that map spans to executions and steps, ``prices`` one of what models cost. ``max_stream_clients`` may follow
    live events at once.

    Bounds. A body may have ``max_body_bytes``, and one with spans ``max_otlp_body_bytes`` (default: as much as the
    OpenTelemetry Collector accepts), as it was sent and when it is decoded. One address may have
    ``max_connections_per_peer`` connections, streams not counted. Reading for a request may take
    ``read_timeout_seconds``.

    ``otlp_grpc`` is the host and port where OTLP/gRPC is taken too; None: nowhere. Its callers need a token as those of
    the other address do, and beyond loopback in any case.

    Leases. A span that has not ended is lost when nothing was heard of it for ``lease_seconds``; an execution that
    another host records after as long a silence, but not before `LEASE_SECONDS`: its heartbeats come every ten seconds.

    ``runner`` has steps done by workers of an engine (see `tachograph.runners`); None: in this process.

    ``http_allow`` names what the handler ``http`` may reach besides public addresses (see `AddressPolicy`).

    Metrics. ``measures`` are the names of step measures to export. ``series_limit`` is the maximum of label sets per
    metric; label sets unchanged for ``series_expire_seconds`` are dropped.

    Expectations. ``expectations`` is a file of what is expected of workflows, and of who is told (see
    docs/expectations.md). ``notify`` are URLs of further receivers. They are secrets.

    Agents. ``mcp``: they are answered at ``/mcp``, by the Model Context Protocol.

    Queues. ``queues`` are the brokers whose queues are watched, such as ``rq+redis://localhost/0``. They may have
    passwords.

    Page. ``trace_url`` is the URL of a trace in a viewer, with ``{trace_id}`` in it; ``logs_url_template`` that of a
    step's lines in a store of logs, with ``{trace_id}``, ``{span_id}`` or ``{execution_id}`` in it.
    """

    host: str = "127.0.0.1"
    port: int = 9923
    database: str = DEFAULT_DATABASE
    token: str | None = None
    grace_seconds: float = 10.0
    max_body_bytes: int = 10_000_000
    max_otlp_body_bytes: int = 20 << 20
    max_executions: int = 100
    max_queued_executions: int = 10_000
    workspace: str = "default"
    series_limit: int = 10_000
    series_expire_seconds: float | None = None
    is_token_required: bool = False
    is_insecure: bool = False
    open_metrics: bool = False
    certificate: Path | None = None
    key: Path | None = None
    archive_after_days: float | None = None
    archive_directory: Path | None = None
    delete_after_days: float | None = None
    measures: tuple[str, ...] = ()
    mapping: Path | None = None
    prices: Path | None = None
    max_stream_clients: int = 2000
    max_connections_per_peer: int = 500
    read_timeout_seconds: float = 10.0
    lease_seconds: float = LEASE_SECONDS
    http_allow: tuple[str, ...] = ()
    runner: str | None = None
    expectations: Path | None = None
    notify: tuple[str, ...] = ()
    trace_url: str | None = None
    logs_url_template: str | None = None
    otlp_grpc: tuple[str, int] | None = None
    mcp: bool = False
    queues: tuple[str, ...] = ()

    @property
    def needs_token(self) -> bool:
        """Whether callers need a token."""
        return not self.is_insecure and (self.is_token_required or self.token is not None or not self.is_loopback)

    @property
    def needs_grpc_token(self) -> bool:
        """Whether callers by OTLP/gRPC need a token."""
        is_open = self.otlp_grpc is not None and not is_loopback(self.otlp_grpc[0])
        return self.needs_token or (is_open and not self.is_insecure)

    @property
    def is_loopback(self) -> bool:
        """Whether the service's API listens on loopback only."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """The service's own URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "https" if self.certificate is not None else "http"

    def tls(self) -> ssl.SSLContext | None:
        """TLS context from the certificate and key files; None without a certificate. Raises `ConfigError`."""
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot use {self.certificate} and {self.key or 'its key'} for TLS: {error}") from None
        return context

    def check(self, *, has_tokens: bool = False) -> None:
        """Raise `ConfigError` if the settings are unsafe or cannot work.

        ``has_tokens``: the database has valid tokens.
        """
        if self.token is not None and len(self.token) < MIN_TOKEN_LENGTH:
            raise ConfigError(f"the token has {len(self.token)} characters; use at least {MIN_TOKEN_LENGTH}")
        if self.token is None and not has_tokens:
            if self.is_token_required:
                raise ConfigError(f"a token is required, but none exists: {_TOKEN_HELP}")
            hosts = [self.host, *([self.otlp_grpc[0]] if self.otlp_grpc is not None else [])]
            public = next((host for host in hosts if not is_loopback(host)), None)
            if public is not None and not self.is_insecure:
                raise ConfigError(
                    f"listening on {public} is open to other machines, so a token is required: {_TOKEN_HELP}, "
                    "listen on 127.0.0.1, or use --insecure if access is restricted by other means"
                )
        if not MIN_LEASE_SECONDS <= self.lease_seconds <= MAX_LEASE_SECONDS:
            raise ConfigError(
                f"a lease of {self.lease_seconds:g} s cannot work; use {MIN_LEASE_SECONDS:g} to {MAX_LEASE_SECONDS:g}"
            )
        if self.key is not None and self.certificate is None:
            raise ConfigError("a TLS key needs a certificate: add --tls-cert FILE")
        if (self.archive_after_days is None) != (self.archive_directory is None):
            raise ConfigError("archiving needs both --archive-after DAYS and --archive-to DIR")
        if self.trace_url is not None and (
            "{trace_id}" not in self.trace_url or not self.trace_url.startswith(("http://", "https://", "/"))
        ):
            raise ConfigError(
                f"{self.trace_url!r} is not a valid trace URL; expected a URL with {{trace_id}} in it, for instance "
                "http://localhost:16686/trace/{trace_id}"
            )
        template = self.logs_url_template
        if template is not None and (
            not any(name in template for name in ("{trace_id}", "{span_id}", "{execution_id}"))
            or not template.startswith(("http://", "https://", "/"))
        ):
            raise ConfigError(
                f"{template!r} is not a valid template of logs' URLs; expected a URL with {{trace_id}}, {{span_id}} or "
                "{execution_id} in it"
            )
        if self.delete_after_days is not None and self.archive_after_days is not None:
            raise ConfigError("either archive old executions or delete them, not both")
        try:
            AddressPolicy(self.http_allow)
        except ValueError as error:
            raise ConfigError(f"--http-allow: {error}") from None
        if self.otlp_grpc is not None and find_spec("grpc") is None:
            raise ConfigError("OTLP/gRPC needs grpcio: pip install 'tachograph[grpc]'")
        if self.mcp and find_spec("mcp") is None:
            raise ConfigError("answering agents needs the protocol's library: pip install 'tachograph[mcp]'")
        self.tls()


_TOKEN_HELP: Final = (
    f"create one with `tachograph tokens create`, or set {TOKEN_VARIABLE} (for instance to the output of "
    "`openssl rand -hex 24`)"
)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of ``127.0.0.1:9923``, ``[::1]:9923``, ``:9923`` (all addresses) or ``9923`` (loopback).

    Raises `ConfigError`.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon:
        host = "127.0.0.1"
    try:
        port = int(port_text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65_535:
        raise ConfigError(
            f"{text!r} is not a valid address to listen on; expected HOST:PORT, for instance {DEFAULT_LISTEN}"
        )
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", port  # noqa: S104 - refused without a token


def read_token(path: Path) -> str:
    """The token in a file. Raises `ConfigError`."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token from {path}: {error}") from None
