"""Log records as they arrive by OTLP and as they are stored: masked, bounded, with the exception that they tell of.

Wire format: opentelemetry/proto/logs/v1/logs.proto. Exceptions: https://opentelemetry.io/docs/specs/semconv/exceptions/exceptions-logs/
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as OtlpRecord
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs

from tachograph.clock import NS
from tachograph.redaction import TEXT_LIMIT, mask_text
from tachograph.summary import summarise
from tachograph_exporter.ingest.spans import AHEAD_SECONDS, EARLIEST_NS, attributes_of, clean, service_of, value_of

EXCEPTION: Final = "exception"
"""Event name of a record that is an exception, as a span event of that name is."""
MAX_STACK: Final = 20_000
_MAX_SEVERITY: Final = 24
_SEVERITIES: Final = {
    "trace": 1, "debug": 5, "info": 9, "information": 9, "notice": 10, "warn": 13, "warning": 13, "error": 17,
    "critical": 18, "fatal": 21,
}  # fmt: skip
"""Numbers of those that say their severity only as text, see OpenTelemetry's log data model, appendix B."""
_BODY_BYTES: Final = 4 * TEXT_LIMIT
_EXCEPTION_KEYS: Final = ("exception.type", "exception.message", "exception.stacktrace")


class LogRecord(msgspec.Struct, gc=False):
    """One log record. Ids are lower-case hex; ``trace_id`` is "" if it belongs to no trace, ``span_id`` if to no span.

    ``severity`` is OTLP's number (0: not said). ``attributes`` is a JSON object, or None. ``exception``: type, message
    and stack of the exception that it tells of.
    """

    trace_id: str
    span_id: str
    time_ns: int
    id: str
    severity: int
    service: str
    event_name: str
    body: str
    attributes: str | None
    exception: tuple[str, str, str] | None

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        stack = sum(map(len, self.exception)) if self.exception is not None else 0
        return len(self.body) + len(self.attributes or "") + stack + 200


def log_records(group: ResourceLogs, now_ns: int | None = None) -> Iterator[LogRecord | str]:
    """Each record of a group; for one that is not valid, the reason as text.

    ``now_ns``: the time that records may not be far ahead of (default: now); one that says no time was written now.
    """
    now = time.time_ns() if now_ns is None else now_ns
    service = service_of(attributes_of(group.resource.attributes))
    for scope in group.scope_logs:
        for record in scope.log_records:
            fault = _fault(record, now)
            yield fault if fault is not None else _stored(record, service, now)


def _fault(record: OtlpRecord, now: int) -> str | None:
    for what, identifier, size in (("trace id", record.trace_id, 16), ("span id", record.span_id, 8)):
        if identifier and len(identifier) != size:
            return f"a log record has no valid {what}"
    at = record.time_unix_nano or record.observed_time_unix_nano
    if at and not EARLIEST_NS <= at <= now + round(AHEAD_SECONDS * NS):
        return "the time of a log record is before the year 2000 or more than a day from now: check the host's clock"
    return None


def _stored(record: OtlpRecord, service: str, now: int) -> LogRecord:
    attributes = attributes_of(record.attributes)
    event_name = record.event_name or attributes.pop("event.name", "")
    kind, message, stack = (attributes.pop(key, None) for key in _EXCEPTION_KEYS)
    exception = None
    if kind is not None or message is not None:
        exception = (_masked(kind or "Exception", 300), _masked(message or "", 4000), _masked(stack or "", MAX_STACK))
    at = record.time_unix_nano or record.observed_time_unix_nano
    trace_id = record.trace_id.hex() if any(record.trace_id) else ""
    return LogRecord(
        trace_id=trace_id,
        span_id=record.span_id.hex() if trace_id and any(record.span_id) else "",
        time_ns=at or now,
        id=_digest(record, service),
        severity=_severity(record),
        service=service,
        event_name=_masked(event_name, 200),
        body=_body(record),
        attributes=_clean_or_none(summarise(attributes)),
        exception=exception,
    )


def _severity(record: OtlpRecord) -> int:
    if record.severity_number > 0:
        return min(record.severity_number, _MAX_SEVERITY)
    return _SEVERITIES.get(record.severity_text.lower(), 0)


def _digest(record: OtlpRecord, service: str) -> str:
    """The same for the same record, so that one that is sent again changes nothing."""
    digest = hashlib.blake2b(record.SerializeToString(deterministic=True), digest_size=8)
    digest.update(service.encode())
    return digest.hexdigest()


def _body(record: OtlpRecord) -> str:
    value = value_of(record.body)
    if value is None:
        return ""
    if isinstance(value, str):
        return _masked(value, TEXT_LIMIT)
    return clean(summarise(value) or "")


def _masked(value: Any, limit: int) -> str:
    return clean(mask_text(value if isinstance(value, str) else str(value), limit))


def _clean_or_none(text: str | None) -> str | None:
    return clean(text) if text is not None else None
