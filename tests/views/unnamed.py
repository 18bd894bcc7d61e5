"""Another world of planted causes, of a shape that nothing in the answer to *why* was made for.

The workflow *settle* runs seven times a day for four weeks: ten instances of a mapped step, three branches, durations
that vary by an eighth and sometimes by more. Tenants, versions, hosts and other workflows come and go without any
effect. As in `tests.views.planted`, a cause shows in nothing but what the world would show.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from tests.views.planted import END_NS, MB, Plan, Planted, Recording, Step, Try

from tachograph.clock import NS
from tachograph.events import StepStatus
from tachograph_exporter.store.database import Database

RUNS: Final = 200
DAYS: Final = 27
HOSTS: Final = tuple(f"node-{i}" for i in range(6))
FETCHES: Final = 10
CURRENCIES: Final = ("EUR", "USD", "JPY", "GBP", "CHF")


class Settlements:
    """The runs of four weeks, before a cause is planted."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.start = END_NS // NS - DAYS * 86_400
        every = DAYS * 86_400 / RUNS
        self.runs = [self._settle(i, self.start + i * every + rng.uniform(-900, 900)) for i in range(RUNS)]
        self.others: list[Plan] = []
        for name, each, seconds in (("mail", 3_000, 900), ("invoices", 9_000, 1_200), ("vacuum", 86_400, 4_000)):
            for i in range(DAYS * 86_400 // each):
                self.beside(name, self.start + i * each + rng.uniform(0, 600), seconds * self.noise(0.3))

    @property
    def last(self) -> Plan:
        """The run in question."""
        return self.runs[-1]

    def noise(self, deviation: float = 0.12) -> float:
        tail = 1.35 if self.rng.random() < 0.02 else 1.0
        return tail * math.exp(self.rng.gauss(0, deviation))

    def _settle(self, number: int, at: float) -> Plan:
        rng, noise = self.rng, self.noise
        rows = round(50_000 * noise(0.2))

        def step(name: str, seconds: float, *after: str, **more: Any) -> Step:
            length = seconds * noise() * (rows / 50_000) ** 0.3
            used = {
                "read_bytes": round(40 * MB * noise(0.3)), "written_bytes": round(10 * MB * noise(0.3)),
                "gc_seconds": round(0.01 * length * noise(0.2), 4), "memory_growth_bytes": round(rng.gauss(0, MB)),
                "voluntary_switches": round(100 * length), "involuntary_switches": rng.randrange(40),
            }  # fmt: skip
            output = {"rows": round(rows * noise(0.03)), "rejected": rng.randrange(12), "checksum": rng.getrandbits(32)}
            return Step(
                name, length, after, cpu=0.3 * seconds * noise(0.15), memory=500 * MB * noise(0.08), used=used,
                output=output, queue=rng.expovariate(4), **more,
            )  # fmt: skip

        def spans(**seconds: float) -> dict[str, tuple[float, int]]:
            return {
                name.replace("_", " "): (value * noise(0.2), rng.randrange(2, 6)) for name, value in seconds.items()
            }

        inputs = {
            "day": f"2026-{8 + number // 100:02d}-{1 + number % 28:02d}", "rows": rows, "serial": 7_000 + 3 * number,
            "tenant": f"t{min(29, int(rng.expovariate(0.15)))}", "currency": rng.choice(CURRENCIES),
            "mode": "full" if rng.random() < 0.1 else "delta", "shards": rng.choice((4, 8, 16)),
            "flags": {"strict": rng.random() < 0.3, "compress": rng.random() < 0.5, "level": rng.randrange(5)},
            "note": None, "sources": rng.sample(("crm", "erp", "web", "pos"), 2), "token": f"{rng.getrandbits(96):x}",
        }  # fmt: skip
        fetches = [
            step("fetch", 30, index=i, is_mapped=True, below=spans(GET_ledger=20, connect=0.5)) for i in range(FETCHES)
        ]
        version = number // 45
        return Plan(
            "settle",
            at,
            [
                *fetches,
                step("clean", 90, "fetch", below=spans(SELECT_rules=10)),
                step("score", 200, "clean", below=spans(SELECT_ledger=60, POST_scores=30)),
                step("geocode", 120, "clean", below=spans(GET_geo=80)),
                step("audit", 60, "clean"),
                step("export", 40, "score", "geocode", "audit"),
            ],
            version=f"2.{version}",
            process=f"{rng.choice(HOSTS)}/b.7/{400 + 10 * version + rng.randrange(3)}/1",
            inputs=inputs,
        )

    def host(self, run: Plan) -> str:
        return run.process.partition("/")[0]

    def put(self, run: Plan, host: str) -> None:
        """Have a host run it."""
        run.process = f"{host}/{run.process.partition('/')[2]}"

    def some(self, share: float) -> list[Plan]:
        return [*(run for run in self.runs[:-1] if self.rng.random() < share), self.last]

    def beside(self, name: str, at: float, seconds: float, process: str = "node-9/b.1/7/1") -> None:
        self.others.append(Plan(name, at, [Step("work", seconds, cpu=1)], process=process))


def unseen_lock(world: Settlements) -> Planted:
    for run in world.some(0.06):
        world.beside("reindex", run.start_of("score") - 20, 400)
        run.step("score").seconds += 330 * world.noise()
    return {("beside", "reindex")}, {("waiting", "score")}


def query_of_a_tenant(world: Settlements) -> Planted:
    world.last.inputs["tenant"] = "t7"
    for run in world.runs:
        if run.inputs["tenant"] == "t7":
            seconds = 300 * world.noise()
            run.step("score").below["SELECT ledger"] = (seconds, 3)
            run.step("score").seconds += seconds - 60
    return {("input", "input.tenant"), ("below", "SELECT ledger")}, {("waiting", "score")}


def slow_host(world: Settlements) -> Planted:
    world.put(world.last, "node-4")
    for run in world.runs:
        if world.host(run) == "node-4":
            for step in run.steps:
                step.seconds *= 1.9
    return {("host", "node-4")}, {("waiting", "score")}


def slightly_slower_version(world: Settlements) -> Planted:
    for run in world.runs[-20:]:
        run.version = "2.9"
        run.step("score").seconds *= 1.7
        run.step("score").cpu += 0.7 * 200
    return {("version", "2.9")}, {("working", "score")}


def throttled(world: Settlements) -> Planted:
    for run in world.some(0.05):
        seconds = 500 * world.noise()
        run.step("geocode").below["GET geo"] = (seconds, 12)
        run.step("geocode").seconds += seconds - 80
    return {("below", "GET geo")}, {("waiting", "geocode")}


def collector(world: Settlements) -> Planted:
    for i, run in enumerate(world.runs):
        life = (i + 30) % 50 / 49 if run is not world.last else 1.0
        pause = 400 * max(0.0, life - 0.8) * 5 * world.noise()
        step = run.step("score")
        step.memory *= 1 + 5 * life
        step.seconds, step.cpu = step.seconds + pause, step.cpu + pause
        step.used["gc_seconds"] = step.used["gc_seconds"] + pause
    memory = {("memory", "steps.score.peak_memory_bytes"), ("resource", "steps.score.gc_seconds")}
    return memory, {("working", "score")}


def full_queue(world: Settlements) -> Planted:
    first = world.runs[-14].at
    for i, run in enumerate(world.runs[-14:]):
        run.at = first + 90 * i
        run.step("clean").queue = 60 + 45 * i
    return {("queue", "clean"), ("concurrency", "runs_at_once")}, {("queue", "clean")}


def storm(world: Settlements) -> Planted:
    for run in world.some(0.04):
        run.step("clean").tries = [
            Try(25, "botocore.exceptions.ClientError", f"SlowDown: request {world.rng.getrandbits(64):x}", 20 * 2**i)
            for i in range(5)
        ]
    return {("retries", "botocore.exceptions.ClientError")}, set()


def taken_slot(world: Settlements) -> Planted:
    for run in world.some(0.05):
        world.beside("backfill", run.start_of("score") - 30, 520, process=run.process)
        run.step("score").queue = 480 * world.noise(0.1)
    return {("slot", "backfill"), ("beside", "backfill")}, {("queue", "score")}


def silent_socket(world: Settlements) -> Planted:
    world.last.step("score").seconds += 1_500
    return {("waiting", "score")}, set()


def backtracking(world: Settlements) -> Planted:
    world.last.step("clean").seconds += 700
    world.last.step("clean").cpu += 695
    return {("working", "clean")}, set()


def dns(world: Settlements) -> Planted:
    for run in world.runs[-7:]:
        run.step("score").below["dns lookup"] = (200 * world.noise(), 40)
        run.step("score").seconds += 200
    return {("below", "dns lookup")}, {("waiting", "score")}


def disk_full(world: Settlements) -> Planted:
    world.put(world.last, "node-2")
    for run in world.runs[-60:]:
        if world.host(run) == "node-2":
            message = f"[Errno 28] No space left on device: '/var/spool/{world.rng.getrandbits(40):x}.tmp'"
            run.step("export").error = (StepStatus.FAILED, "OSError", message)
    return {("host", "node-2")}, set()


def slow_writes(world: Settlements) -> Planted:
    for run in world.some(0.06):
        run.step("export").used["written_bytes"] *= 60
        run.step("export").seconds += 300 * world.noise()
    return {("resource", "steps.export.written_bytes")}, {("waiting", "export")}


def cold_cache(world: Settlements) -> Planted:
    for run in world.some(0.06):
        run.step("score").used["read_bytes"] *= 50
        run.step("score").seconds += 300 * world.noise()
        run.step("score").output["cache_hit"] = False
    for run in world.runs:
        run.step("score").output.setdefault("cache_hit", True)
    return {
        ("resource", "steps.score.read_bytes"),
        ("output", "steps.score.output.cache_hit"),
    }, {("waiting", "score")}


def summer_time_ends(world: Settlements) -> Planted:
    """Since the clocks went back, the run meets a backup that keeps to UTC."""
    for run in world.runs[-12:]:
        run.at -= 3_600
        world.beside("backup", run.start_of("score") - 100, 500)
        run.step("score").seconds += 300 * world.noise()
    for run in world.runs[:-12]:
        world.beside("backup", run.at - 3_600, 500)
    return {("beside", "backup")}, {("waiting", "score")}


def deploy_at_noon(world: Settlements) -> Planted:
    for run in world.runs[-9:]:
        run.version = "3.0"
        run.process = f"{world.host(run)}/b.7/77{world.rng.randrange(3)}/1"
        for index in range(FETCHES):
            run.steps[index].seconds *= 8
    return {("version", "3.0")}, {("waiting", "fetch")}


def mondays(world: Settlements) -> Planted:
    day = datetime.fromtimestamp(world.last.at, UTC).weekday()
    for run in world.runs:
        if datetime.fromtimestamp(run.at, UTC).weekday() == day:
            run.step("score").seconds *= 3
    return {("weekday", "weekday")}, {("waiting", "score")}


def two_causes(world: Settlements) -> Planted:
    world.put(world.last, "node-1")
    world.last.inputs["currency"] = "JPY"
    for run in world.runs:
        if world.host(run) == "node-1":
            run.step("score").seconds += 350
        if run.inputs["currency"] == "JPY":
            run.step("score").seconds += 350
    return {("host", "node-1"), ("input", "input.currency")}, {("waiting", "score")}


def off_the_path(world: Settlements) -> Planted:
    """A version made a step slower that nothing waits for; an input made the run slow."""
    for run in world.runs[-15:]:
        run.version = "2.9"
        run.step("audit").seconds *= 2.2
    world.last.inputs["mode"] = "full"
    for run in world.runs:
        if run.inputs["mode"] == "full":
            run.step("score").seconds *= 3
            run.step("score").cpu *= 9
    return {("input", "input.mode")}, {("working", "score")}


def step_that_vanished(world: Settlements) -> Planted:
    _prefilter(world, 1.0)
    for run in world.some(0.05):
        run.steps = [step for step in run.steps if step.name != "prefilter"]
        run.step("score").after = ("clean",)
        run.step("score").seconds *= 2.6
        run.step("score").cpu *= 8
    return {("missing_step", "prefilter")}, {("working", "score")}


def step_that_is_skipped(world: Settlements) -> Planted:
    _prefilter(world, 1.0)
    for run in world.some(0.05):
        run.step("prefilter").is_skipped = True
        run.step("score").seconds *= 2.6
        run.step("score").cpu *= 8
    return {("missing_step", "prefilter")}, {("working", "score")}


def _prefilter(world: Settlements, share: float) -> None:
    for run in world.runs:
        if world.rng.random() < share:
            run.steps.insert(FETCHES + 1, Step("prefilter", 20 * world.noise(), ("clean",), cpu=5 * world.noise()))
            run.step("score").after = ("prefilter",)


def added_step(world: Settlements) -> Planted:
    for run in world.runs[-4:]:
        run.steps.append(Step("sign", 300 * world.noise(), ("score",), cpu=4))
        run.step("export").after = ("sign", "geocode", "audit")
    return {("new_step", "sign")}, set()


def slow_trend(world: Settlements) -> Planted:
    for run in world.runs:
        day = (run.at - world.start) / 86_400
        for step in run.steps:
            step.seconds *= 1.01**day
    for step in world.last.steps:
        step.seconds = {"clean": 90, "score": 200, "geocode": 120}.get(step.name, 30) * 1.31
    return {("trend", "settle"), ("trend", "score")}, {("waiting", "score")}


def interaction(world: Settlements) -> Planted:
    """Only the new version on one host."""
    for run in world.runs[-70:]:
        run.version = "2.9"
    world.put(world.last, "node-3")
    for run in world.runs:
        if run.version == "2.9" and world.host(run) == "node-3":
            run.step("score").seconds *= 2.6
    return {("pair", "host node-3, version 2.9")}, {("waiting", "score")}


def interaction_of_inputs(world: Settlements) -> Planted:
    world.last.inputs["currency"], world.last.inputs["shards"] = "CHF", 16
    for run in world.runs:
        if run.inputs["currency"] == "CHF" and run.inputs["shards"] == 16:
            run.step("score").seconds *= 2.6
    return {("pair", "input.currency CHF, input.shards 16")}, {("waiting", "score")}


def seventh_instance(world: Settlements) -> Planted:
    for run in world.some(0.05):
        run.steps[7].seconds += 400 * world.noise()
    return {("skew", "fetch")}, {("waiting", "fetch")}


def nested(world: Settlements) -> Planted:
    for run in world.runs:
        export = run.step("export")
        slow = run in world.runs[-6:]
        copying = 30 * world.noise() + (500 if slow else 0)
        export.seconds, export.below = copying + 12, {}
        steps = [Step("open", 5), Step("upload", copying, ("open",), cpu=3)]
        export.child = Plan("uploader", run.start_of("export") + 2, steps, process=run.process)
    return {("child", "uploader")}, {("waiting", "export")}


def larger_rows(world: Settlements) -> Planted:
    world.last.inputs["rows"] = 600_000
    world.last.step("score").seconds *= 3.2
    world.last.step("score").cpu *= 8
    for run in world.runs:
        run.step("score").seconds *= (run.inputs["rows"] / 50_000) ** (0.6 if run is not world.last else 0)
    return {("input", "input.rows")}, {("working", "score")}


def fails_for_a_source(world: Settlements) -> Planted:
    for run in world.runs:
        if "pos" in run.inputs["sources"] and run.inputs["flags"]["strict"] and world.rng.random() < 0.9:
            error = f"row {world.rng.randrange(10**6)}: amount {world.rng.random():.2f} is not positive"
            run.step("clean").error = (StepStatus.FAILED, "AssertionError", error)
    last = world.last
    last.inputs["sources"], last.inputs["flags"]["strict"] = ["pos", "crm"], True
    last.step("clean").error = (StepStatus.FAILED, "AssertionError", "row 17: amount -3.40 is not positive")
    return {
        ("pair", "input.flags.strict true, input.sources[pos] true"),
        ("input", "input.sources[pos]"),
        ("input", "input.flags.strict"),
    }, set()


def lot(world: Settlements) -> Planted:
    """Runs that waited for what nobody recorded, drawn by lot."""
    for run in world.some(0.08):
        run.step("score").seconds += 300 * world.noise()
    return {("waiting", "score")}, set()


def recent_lot(world: Settlements) -> Planted:
    """The same, but only lately."""
    for run in [*(run for run in world.runs[-60:-1] if world.rng.random() < 0.3), world.last]:
        run.step("score").seconds += 300 * world.noise()
    return {("waiting", "score")}, set()


def nothing(world: Settlements) -> Planted:
    for step, before in zip(world.last.steps, world.runs[-2].steps, strict=True):
        step.seconds = before.seconds * world.noise(0.02)
    return set(), set()


def noisy_neighbour(world: Settlements) -> Planted:
    """Nothing but chance: one run whose steps were all a little longer."""
    for step in world.last.steps:
        step.seconds *= 1.04
    return set(), set()


UNNAMED: Final[dict[str, tuple[Callable[[Settlements], Planted], str]]] = {
    "a lock that only its holder shows": (unseen_lock, "score"),
    "a query slow for one tenant": (query_of_a_tenant, "score"),
    "a slow host of six": (slow_host, "score"),
    "a version 1.7 times as slow": (slightly_slower_version, "score"),
    "a throttled API on a side branch": (throttled, "geocode"),
    "garbage collection of a long life": (collector, "score"),
    "a full queue": (full_queue, "clean"),
    "a retry storm": (storm, "clean"),
    "a slot held by another workflow": (taken_slot, "score"),
    "a silent socket": (silent_socket, "score"),
    "a regex that backtracks": (backtracking, "clean"),
    "DNS": (dns, "score"),
    "a disk that is full": (disk_full, "export"),
    "slow writes": (slow_writes, "export"),
    "a cold cache": (cold_cache, "score"),
    "the end of summer time": (summer_time_ends, "score"),
    "a deploy at noon": (deploy_at_noon, "fetch"),
    "one day of the week": (mondays, "score"),
    "two causes at once": (two_causes, "score"),
    "a decoy off the critical path": (off_the_path, "score"),
    "a step that vanished": (step_that_vanished, "score"),
    "a step that is skipped": (step_that_is_skipped, "score"),
    "a step that was added": (added_step, ""),
    "one percent a day": (slow_trend, ""),
    "a version on one host": (interaction, "score"),
    "a pair of inputs": (interaction_of_inputs, "score"),
    "instance 7": (seventh_instance, "fetch"),
    "a nested run": (nested, "export"),
    "many rows, once": (larger_rows, "score"),
    "failures of a pair of inputs": (fails_for_a_source, "clean"),
    "a lot": (lot, "score"),
    "a lot, lately": (recent_lot, "score"),
    "nothing (the control)": (nothing, ""),
    "chance (the control)": (noisy_neighbour, ""),
}


def play_unnamed(database: Database, scenario: str, seed: int) -> tuple[str, str, Planted]:
    """Record a scenario in a workspace of its own: (workspace, id of the last run, what was planted)."""
    return play_plant(database, UNNAMED[scenario][0], scenario, seed, random.Random(f"{scenario} {seed}"))


def play_plant(
    database: Database, plant: Callable[[Settlements], Planted], scenario: str, seed: int, chance: random.Random
) -> tuple[str, str, Planted]:
    """`play_unnamed` of a cause that is planted with this chance."""
    world = Settlements(chance)
    planted = plant(world)
    workspace = f"{scenario} {seed}"
    Recording(database, seed).write(workspace, [*world.runs, *world.others])
    last = world.last.execution
    assert last is not None
    return workspace, last.execution_id, planted
