"""kill -9 while writing, repeatedly: every acknowledged execution is stored and counted once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select
from tests import programs
from tests.conftest import ROOT
from tests.e2e.conftest import environment
from tests.store.test_concurrent_writers import check, ended
from tests.store.test_rollups import KEY, differing

from tachograph_exporter.store.database import Database
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.schema import workflow_executions, workflow_step_executions

LOAD = """
import random, sys, time
from tests.store.test_rollups import a_run
from tachograph_exporter.store.writer import open_writer
from tachograph.recording.recorder import Recorder

recorder = Recorder()
recorder.add("store", open_writer(sys.argv[1]))
rng = random.Random()
while True:
    runs = [a_run(rng, time.time() - rng.random() * 90_000) for _ in range(rng.randrange(1, 60))]
    for run in runs:
        for event in run:
            recorder(event)
    assert recorder.queues["store"].flush(60)
    # Committed: must not be lost from here on.
    print(*[run[0].execution.execution_id for run in runs], flush=True)
"""


def test_after_each_kill_every_acknowledged_execution_is_stored_and_counted_once(any_database_url: str) -> None:
    rng = random.Random()
    acknowledged: set[str] = set()
    kills = 0
    # A slow machine acknowledges little before it is killed.
    while kills < 4 or len(acknowledged) <= 100:
        kills += 1
        process = programs.Popen(
            [sys.executable, "-c", LOAD, any_database_url], cwd=ROOT, env=environment(),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first
        acknowledged.update(first.split())
        time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        # The last line may be cut off; an incomplete id was not acknowledged.
        rest = process.stdout.read()
        acknowledged.update(
            word for line in rest.splitlines(keepends=True) if line.endswith("\n") for word in line.split()
        )
        process.stdout.close()
        process.wait()
    database = Database(any_database_url)
    stored = set(database.look(lambda c: c.execute(select(workflow_executions.c.execution_id)).scalars().all()))
    assert acknowledged <= stored
    ended = select(func.count()).where(workflow_executions.c.finished_ns.is_not(None))
    totals = database.look(lambda c: read.read(c, KEY))
    assert sum(status.count for status in totals.executions.values()) == database.look(
        lambda c: c.execute(ended).scalar()
    )
    steps = select(func.count()).where(workflow_step_executions.c.execution_id.in_(select(
        workflow_executions.c.execution_id).where(workflow_executions.c.finished_ns.is_not(None))))  # fmt: skip
    counted = sum(status.count for step in totals.steps.values() for status in step.by_status.values())
    assert counted == database.look(lambda c: c.execute(steps).scalar())
    assert differing(database) == 0
    database.close()


LOAD_OF_ONE = """
import random, sys, time
from tests.store.test_concurrent_writers import moved
from tests.store.test_rollups import a_run
from tachograph_exporter.store.writer import open_writer
from tachograph.recording.recorder import Recorder

recorder = Recorder()
recorder.add("store", open_writer(sys.argv[1]))
rng = random.Random()
while True:
    runs = [moved(a_run(rng, time.time()), rng.choice(sys.argv[2:])) for _ in range(rng.randrange(1, 40))]
    for run in runs:
        for event in run:
            recorder(event)
    assert recorder.queues["store"].flush(60)
    print(*[run[0].execution.execution_id for run in runs], flush=True)
"""


def test_two_on_one_postgresql_of_which_one_is_killed_lose_nothing_and_count_once(postgres: Callable[..., str]) -> None:
    url, rng = postgres(), random.Random()
    acknowledged: dict[int, set[str]] = {0: set(), 1: set()}

    def started(number: int) -> subprocess.Popen[str]:
        return programs.Popen(
            [sys.executable, "-c", LOAD_OF_ONE, url, f"own{number}", "common"], cwd=ROOT, env=environment(),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def read_lines(process: subprocess.Popen[str], number: int, count: int) -> None:
        assert process.stdout is not None
        while count and (line := process.stdout.readline()).endswith("\n"):
            acknowledged[number].update(line.split())
            count -= 1

    survivor = started(0)
    for _ in range(3):
        other = started(1)
        read_lines(other, 1, 2)
        time.sleep(rng.random() * 0.2)
        other.send_signal(signal.SIGKILL)
        read_lines(other, 1, -1)
        other.wait()
        assert other.stdout is not None
        other.stdout.close()
        # What the killed one held is free, and the other goes on.
        before = len(acknowledged[0])
        read_lines(survivor, 0, 2)
        assert len(acknowledged[0]) > before
    survivor.send_signal(signal.SIGKILL)
    read_lines(survivor, 0, -1)
    survivor.wait()
    assert survivor.stdout is not None
    survivor.stdout.close()
    database = Database(url)
    check(database)
    ids = select(workflow_executions.c.execution_id)
    stored = set(database.look(lambda c: c.execute(ids).scalars().all()))
    assert acknowledged[0] | acknowledged[1] <= stored
    whole = database.look(
        lambda c: c.execute(ids.where(workflow_executions.c.finished_ns.is_not(None))).scalars().all()
    )
    assert sum(ended(database, name) for name in ("own0", "own1", "common")) == len(whole)
    database.close()


def test_an_archive_run_killed_midway_is_completed_by_the_next_one(
    database_url: str, tmp_path: Path, server: Callable[..., object]
) -> None:
    from tests.store.test_rollups import a_run

    from tachograph_exporter.store.writer import StoreWriter

    database = Database(database_url)
    rng = random.Random(1)
    now = time.time()
    runs = [a_run(rng, now - (10 + rng.random() * 5) * 86_400) for _ in range(3000)]
    StoreWriter(database).apply([event for run in runs for event in run])
    command = [sys.executable, "-m", "tachograph_exporter", "archive", "--older-than", "5d", "--to",
               str(tmp_path / "kept"), "--database", database_url]  # fmt: skip
    for delay in (0.9, 1.2, 1.5):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert "archived" in done.stdout
    left = select(func.count()).select_from(workflow_executions)
    assert database.look(lambda c: c.execute(left).scalar()) == 0
    listed = {
        row[0]
        for row in database.look(lambda c: c.exec_driver_sql("SELECT execution_id FROM archived_executions").all())
    }
    assert listed == {run[0].execution.execution_id for run in runs}
    assert differing(database) == 0
    database.close()
