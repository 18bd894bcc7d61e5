"""What Jaeger UI and Grafana ask for while somebody looks for a trace in the last day of a million spans:
their lists and their searches, over HTTP from a running service.

    python benchmarks/run.py viewers
"""

from __future__ import annotations

import statistics
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import databases
import msgspec
import search
from ingest import tachograph
from rich.console import Console
from rich.table import Table

from tachograph_exporter.store.database import Database
from tachograph_exporter.times import rfc3339

ROUNDS = 7
MAX_MS = 200


def requests(now_ns: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(what, path, parameters)"""
    seconds = {"start": (now_ns - search.DAY) // search.S, "end": now_ns // search.S, "limit": 5000}
    yield "Jaeger UI: services", "/jaeger/api/v3/services", {}
    yield "Jaeger UI: operations", "/jaeger/api/v3/operations", {"service": "service 3"}
    yield "Grafana: names of attributes", "/tempo/api/v2/search/tags", seconds
    for tag in ("resource.service.name", "name", "span.attempt", "span.workflow.execution.id"):
        yield f"Grafana: values of {tag}", f"/tempo/api/v2/search/tag/{tag}/values", {**seconds, "q": "{}"}
    of_service = {
        "query.serviceName": "service 3",
        "query.startTimeMin": rfc3339(now_ns - search.DAY),
        "query.startTimeMax": rfc3339(now_ns),
        "query.searchDepth": 20,
    }
    for what, more in (
        ("a service", {}),
        ("and a span name", {"query.operationName": "step 4"}),
        ("and a seldom one", {"query.operationName": "seldom"}),
        ("and an error", {"query.attributes": '{"error":"true"}'}),
        ("and an attribute", {"query.attributes": '{"attempt":"2"}'}),
        ("and an attribute that no span has", {"query.attributes": '{"attempt":"9"}'}),
        ("and spans over 50 s", {"query.durationMin": "50s"}),
    ):
        yield f"Jaeger UI: traces of {what}", "/jaeger/api/v3/trace-summaries", {**of_service, **more}


def measure(address: str, path: str, parameters: dict[str, Any]) -> tuple[float, int]:
    """Milliseconds (median), and how many things were listed."""
    url = f"{address}{urllib.parse.quote(path)}?{urllib.parse.urlencode(parameters)}"
    took, body = [], b""
    for _ in range(ROUNDS):
        started = time.perf_counter()
        with urllib.request.urlopen(url) as response:
            body = response.read()
        took.append((time.perf_counter() - started) * 1000)
    (answer,) = msgspec.json.decode(body).values()
    return statistics.median(took), len(answer)


def main(console: Console) -> None:
    """Measure on every database that is installed."""
    now_ns = time.time_ns()
    for name, url in databases.installed(console):
        database = Database(url)
        search.fill(database, now_ns)
        database.close()
        table = Table("request", "ms", "listed", title=f"{name}: {search.SPANS:,} spans of a day")
        with tachograph(url) as (address, _):
            for what, path, parameters in requests(now_ns):
                took, count = measure(address, path, parameters)
                table.add_row(what, f"{took:,.1f}{' (!)' if took > MAX_MS else ''}", f"{count:,}")
        console.print(table)


if __name__ == "__main__":
    main(Console())
