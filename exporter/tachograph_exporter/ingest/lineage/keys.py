"""The keys by which a run is recognized that several sources tell of, or several of one source's events."""

from __future__ import annotations

import hashlib

from tachograph_exporter.ingest.lineage.events import LineageEvent


def airflow_key(dag_id: str, run_id: str) -> str:
    """The key of a run of a DAG, by Airflow's own ids."""
    digest = hashlib.blake2b(f"{dag_id}\0{run_id}".encode(), digest_size=16).hexdigest()
    return f"airflow:{digest}"


def keys_of(event: LineageEvent) -> list[str]:
    """The keys of the runs that an event says belong together, its own first."""
    keys = list(event.mentioned)
    facts = event.airflow
    if facts is not None and facts.dag_id and facts.run_id:
        keys.append(airflow_key(facts.dag_id, facts.run_id))
    return keys
