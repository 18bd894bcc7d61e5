"""Of several services on one database, one archives and deletes; when it is killed in the middle, another goes on."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select
from tests.e2e.conftest import Server, eventually
from tests.store.test_rollups import a_run, differing

from tachograph_exporter.metrics.workflow_metrics import LEASE
from tachograph_exporter.store import state
from tachograph_exporter.store.archive import read_records
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.schema import archived_executions, workflow_executions
from tachograph_exporter.store.writer import StoreWriter

RUNS = 4_000
DAYS = 5


@pytest.mark.e2e
@pytest.mark.slow
def test_of_two_services_one_archives_and_the_other_goes_on_when_it_is_killed(
    postgres: Callable[..., str], server: Callable[..., Server], tmp_path: Path
) -> None:
    url, kept = postgres(), tmp_path / "kept"
    database, rng = Database(url), random.Random(3)
    old = time.time() - 20 * 86_400
    runs = [a_run(rng, old + number * DAYS * 86_400 / RUNS) for number in range(RUNS)]
    recent = a_run(rng, time.time() - 3_600)
    writer = StoreWriter(database)
    for first in range(0, RUNS, 500):
        writer.apply([event for run in runs[first : first + 500] for event in run])
    writer.apply(recent)
    archived = select(func.count()).select_from(archived_executions)

    def count() -> int:
        return int(database.look(lambda c: c.execute(archived).scalar_one()))

    options = ("--database", url, "--archive-after", "10", "--archive-to", str(kept))
    services = [server(*options), server(*options)]
    pids = {service.process.pid: service for service in services if service.process is not None}
    eventually(lambda: count() > 0)
    # Whoever has the lease archives.
    owner = database.look(lambda c: state.state_of(c, LEASE)) or ""
    (killed,) = [service for pid, service in pids.items() if re.search(rf"\b{pid}\b", owner)]
    (other,) = [service for service in services if service is not killed]
    killed.stop(signal.SIGKILL)
    at_the_kill = count()
    assert "archived or deleted" not in other.log.read_text()
    eventually(lambda: count() == RUNS)
    assert 0 < at_the_kill <= RUNS
    eventually(lambda: other.get("/-/ready")["status"] == "ready")
    # Each is archived once, in a file that has it, and what is not old is where it was.
    files = database.look(
        lambda c: c.execute(select(archived_executions.c.execution_id, archived_executions.c.archive)).all()
    )
    assert {row[0] for row in files} == {run[0].execution.execution_id for run in runs}
    by_file: dict[str, list[str]] = {}
    for execution_id, path in files:
        by_file.setdefault(path, []).append(execution_id)
    for path, ids in by_file.items():
        assert read_records(Path(path), ids).keys() == set(ids)
    left = database.look(lambda c: c.execute(select(workflow_executions.c.execution_id)).scalars().all())
    assert left == [recent[0].execution.execution_id]
    assert differing(database) == 0
    database.close()
