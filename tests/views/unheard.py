"""Further causes in the world of `tests.views.unnamed`: two at once, and coincidences that caused nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from tests.views.planted import MB, Planted, Try
from tests.views.unnamed import FETCHES, Settlements, play_plant

from tachograph.events import StepStatus
from tachograph_exporter.store.database import Database


def one_query_for_each_row(world: Settlements) -> Planted:
    """A change asks for each row what one query asked before."""
    for run in world.runs[-10:]:
        run.version = "2.8"
        seconds = 420 * world.noise()
        run.step("score").below["POST scores"] = (seconds, run.inputs["rows"] // 25)
        run.step("score").seconds += seconds - 30
    return {("below", "POST scores"), ("version", "2.8")}, {("waiting", "score")}


def two_bad_hosts(world: Settlements) -> Planted:
    world.put(world.last, "node-1")
    for run in world.runs:
        if world.host(run) in ("node-1", "node-5"):
            run.step("score").seconds += 500 * world.noise()
    return {("host", "node-1")}, {("waiting", "score")}


def hotfix_that_fixed_nothing(world: Settlements) -> Planted:
    for i, run in enumerate(world.runs[-18:]):
        run.version = "2.9" if i < 10 else "2.9.1"
        run.step("score").seconds *= 2.2
        run.step("score").cpu += 240
    return {("version", "2.9.1"), ("version", "2.9")}, {("working", "score")}


def one_of_five_levels(world: Settlements) -> Planted:
    """An integer that is a kind, not an amount: neither the smallest nor the largest one is slow."""
    world.last.inputs["flags"]["level"] = 2
    for run in world.runs:
        if run.inputs["flags"]["level"] == 2:
            run.step("geocode").seconds += 380 * world.noise()
    return {("input", "input.flags.level")}, {("waiting", "geocode")}


def busy_hours(world: Settlements) -> Planted:
    """The database is slow for everybody from 9 to 12."""
    day = datetime.fromtimestamp(world.last.at, UTC).replace(hour=10, minute=20)
    world.last.at = day.timestamp() - (86_400 if day.timestamp() > world.last.at else 0)
    for run in world.runs:
        if 9 <= datetime.fromtimestamp(run.at, UTC).hour < 12:
            run.step("score").seconds += 350 * world.noise()
    return {("time_of_day", "time_of_day")}, {("waiting", "score")}


def processors_that_others_use(world: Settlements) -> Planted:
    for run in world.some(0.06):
        run.step("score").used["involuntary_switches"] = 40_000 + world.rng.randrange(9_000)
        run.step("score").seconds += 300 * world.noise()
    return {("resource", "steps.score.involuntary_switches")}, {("waiting", "score")}


def ledger_slow_for_all_instances(world: Settlements) -> Planted:
    for run in world.runs[-8:]:
        for index in range(FETCHES):
            seconds = 240 * world.noise()
            run.steps[index].below["GET ledger"] = (seconds, 4)
            run.steps[index].seconds += seconds - 20
    return {("below", "GET ledger")}, {("waiting", "fetch")}


def pool_too_small_for_two(world: Settlements) -> Planted:
    """Whenever another workflow holds the connections, the step waits for one: its own spans show that."""
    for run in world.some(0.06):
        world.beside("month_end", run.start_of("score") - 40, 420)
        run.step("score").below["pool checkout"] = (360 * world.noise(), 1)
        run.step("score").seconds += 360
    return {("below", "pool checkout"), ("beside", "month_end")}, {("waiting", "score")}


def certificate_that_ran_out(world: Settlements) -> Planted:
    """A deploy three days before has nothing to do with it."""
    for run in world.runs[-25:]:
        run.version = "2.8"
    for run in world.runs[-4:]:
        message = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1006)"
        run.step("geocode").error = (StepStatus.FAILED, "ssl.SSLCertVerificationError", message)
    return {("error", "ssl.SSLCertVerificationError")}, set()


def memory_of_large_inputs(world: Settlements) -> Planted:
    world.last.inputs["rows"] = 170_000
    for run in world.runs:
        if run is not world.last and world.rng.random() < 0.08:
            run.inputs["rows"] = 120_000 + world.rng.randrange(60_000)
        if run.inputs["rows"] > 110_000:
            run.step("score").memory = 3_900 * MB
            run.step("score").error = (
                StepStatus.FAILED,
                "MemoryError",
                f"cannot allocate {world.rng.randrange(10**9)}",
            )
    return {("input", "input.rows"), ("memory", "steps.score.peak_memory_bytes")}, {("error", "MemoryError")}


def many_rows_and_a_retry_storm(world: Settlements) -> Planted:
    """Two at once, in steps after each other, each about half of it."""
    world.last.inputs["rows"] = 400_000
    for run in world.runs:
        if run is not world.last and world.rng.random() < 0.06:
            run.inputs["rows"] = round(400_000 * world.noise())
        if run.inputs["rows"] > 200_000:
            run.step("score").seconds += 320 * world.noise()
            run.step("score").cpu += 300
    for run in world.runs[-3:]:
        run.step("score").tries = [Try(40, "ConnectionResetError", "[Errno 104] reset", 40 * 2**i) for i in range(3)]
    return {("input", "input.rows"), ("retries", "ConnectionResetError")}, {("working", "score"), ("queue", "score")}


def lock_and_a_new_version(world: Settlements) -> Planted:
    """Two at once: the version made a side branch slower, the lock the run."""
    for run in world.runs[-12:]:
        run.version = "2.8"
        run.step("audit").seconds *= 2
        run.step("audit").cpu *= 3
    for run in world.some(0.06):
        world.beside("reindex", run.start_of("score") - 20, 460)
        run.step("score").seconds += 400 * world.noise()
    return {("beside", "reindex")}, {("waiting", "score")}


def host_and_a_query(world: Settlements) -> Planted:
    """Two at once: a bad host, and a query that is slow for one currency."""
    world.put(world.last, "node-3")
    world.last.inputs["currency"] = "GBP"
    for run in world.runs:
        if world.host(run) == "node-3":
            run.step("score").seconds += 300 * world.noise()
        if run.inputs["currency"] == "GBP":
            seconds = 330 * world.noise()
            run.step("score").below["SELECT ledger"] = (60 + seconds, 3)
            run.step("score").seconds += seconds
    return {
        ("host", "node-3"), ("input", "input.currency"), ("below", "SELECT ledger"),
    }, {("waiting", "score")}  # fmt: skip


def first_run_of_a_version(world: Settlements) -> Planted:
    """Healthy: a new version, a new tenant and a backfill, all for the first time, and nothing came of it."""
    world.last.version = "3.0"
    world.last.inputs["tenant"] = "acme"
    world.last.process = "node-77/b.1/9/1"
    world.beside("backfill", world.last.start_of("score") - 60, 900)
    usual(world)
    return set(), set()


def after_an_incident(world: Settlements) -> Planted:
    """Healthy: the ten runs before were slow for a lock, and this one is not, though much is as it was then."""
    for run in world.runs[-11:-1]:
        world.beside("reindex", run.start_of("score") - 20, 400)
        run.step("score").seconds += 400 * world.noise()
        run.version = "2.8"
    world.last.version = "2.8"
    usual(world)
    return set(), set()


def slow_by_itself(world: Settlements) -> Planted:
    """One run waited once, and by coincidence it was the first of a version, of a tenant and on a host."""
    world.last.version = "3.0"
    world.last.inputs["tenant"] = "acme"
    world.last.process = "node-77/b.1/9/1"
    world.beside("backfill", world.last.start_of("score") - 60, 900)
    world.last.step("score").seconds += 1_200
    return {("waiting", "score"), ("beside", "backfill")}, {("waiting", "score")}


def usual(world: Settlements) -> None:
    """The last run takes what the median one takes."""
    for step in world.last.steps:
        step.seconds = sorted(run.step(step.name).seconds for run in world.runs[:100])[50] * world.noise(0.03)
        step.queue = 0.1


UNHEARD: Final[dict[str, tuple[Callable[[Settlements], Planted], str]]] = {
    "a query for each row": (one_query_for_each_row, "score"),
    "two bad hosts": (two_bad_hosts, "score"),
    "a hotfix that fixed nothing": (hotfix_that_fixed_nothing, "score"),
    "one of five levels": (one_of_five_levels, "geocode"),
    "busy hours": (busy_hours, "score"),
    "processors that others use": (processors_that_others_use, "score"),
    "a ledger slow for all instances": (ledger_slow_for_all_instances, "fetch"),
    "a pool too small for two": (pool_too_small_for_two, "score"),
    "a certificate that ran out": (certificate_that_ran_out, "geocode"),
    "memory of large inputs": (memory_of_large_inputs, "score"),
    "many rows and a retry storm": (many_rows_and_a_retry_storm, "score"),
    "a lock and a new version": (lock_and_a_new_version, "score"),
    "a host and a query": (host_and_a_query, "score"),
    "a slow run by itself, first in much": (slow_by_itself, "score"),
    "the first run of a version (healthy)": (first_run_of_a_version, ""),
    "after an incident (healthy)": (after_an_incident, ""),
}


def play_unheard(database: Database, scenario: str, seed: int) -> tuple[str, str, Planted]:
    """Record a scenario in a workspace of its own: (workspace, id of the last run, what was planted)."""
    return play_plant(database, UNHEARD[scenario][0], scenario, seed, random.Random(f"unheard {scenario} {seed}"))
