"""Storing records again that were refused and set aside."""

from __future__ import annotations

from tachograph.errors import StoreUnavailable
from tachograph_exporter.ingest.lineage.events import read_event
from tachograph_exporter.ingest.lineage.lineage_store import Arrived
from tachograph_exporter.ingest.span_store import SpanStore
from tachograph_exporter.ingest.spans import SpanRecord, parse, records
from tachograph_exporter.store import refused
from tachograph_exporter.store.refused import RefusedRecord
from tachograph_exporter.store.writer import StoreWriter


def retry(writer: StoreWriter, spans: SpanStore, record: RefusedRecord) -> str:
    """Store a record. Returns why it was refused again; empty: it is stored, and no longer set aside.

    Raises `StoreUnavailable`.
    """
    try:
        if record.kind == refused.EVENT:
            writer.apply([refused.decode_event(record.payload)])
        elif record.kind == refused.LINEAGE:
            _store_lineage(spans, record)
        else:
            _store_trace(spans, record)
    except StoreUnavailable:
        raise
    except Exception as error:
        problem = error
        writer.database.run(lambda c: refused.refused_again(c, record.id, problem))
        return refused.reason_of(error)
    writer.database.run(lambda c: refused.remove(c, record.id))
    return ""


def _store_lineage(store: SpanStore, record: RefusedRecord) -> None:
    event = read_event(record.payload)
    if event is None:
        return
    arrived = [Arrived(event, record.payload)]
    taken = store.commit(
        lambda c: ((result := store.lineage.take(c, record.workspace_id, record.workspace, arrived)), result.events)
    )
    if taken.refused:
        raise ValueError(f"run {record.subject} has no room for more events")


def _store_trace(store: SpanStore, record: RefusedRecord) -> None:
    decoded = list(records(parse(record.payload).resource_spans))
    faults = [fault for fault in decoded if isinstance(fault, str)]
    if faults:
        raise ValueError("; ".join(faults[:3]))
    spans = [span for span in decoded if isinstance(span, SpanRecord)]
    taken = store.commit(
        lambda c: ((result := store.take(c, record.workspace_id, record.workspace, spans)), result.events)
    )
    if taken.refused:
        raise ValueError(f"trace {record.subject} has no room for more spans")
