"""Simulated workflows: their schedules, what is done to their runs, and what should be told of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from tachograph.clock import NS
from tachograph.expectation import Expectation
from tachograph_exporter.expectations.evaluation import Evaluation, evaluate
from tachograph_exporter.expectations.findings import FAILED, FLAPPING, LATE, OVERDUE
from tachograph_exporter.expectations.history import History, Run
from tachograph_exporter.expectations.limits import limits_of
from tachograph_exporter.expectations.outcomes import FLAP_RUNS
from tachograph_exporter.expectations.transitions import Told, transitions

GRACE, DEADLINE, STEP_DEADLINE = 600, 3600, 900
SETTLE = 60
KEPT = 24


@dataclass
class Plan:
    """A workflow: its cron expression, zone, and its times (unix seconds), which cronsim did not compute."""

    cron: str
    zone: str
    times: list[int]
    schedule: str | None = None


@dataclass
class Fault:
    """What should be told: a kind, from when at the earliest, and when it should have recovered (unix seconds)."""

    kind: str
    since: float
    until: float


@dataclass
class Notice:
    kind: str
    key: str
    told_at: float
    recovered_at: float | None = None


@dataclass
class Simulated:
    """The runs of a workflow: (start, end, status), and the faults among them.

    ``steps``: some runs have a step that begins with them; when it ends, by when it begins.
    """

    runs: list[tuple[float, float, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    steps: dict[float, float] = field(default_factory=dict)


def local_times(zone: str, hour: int, minute: int, days: Sequence[date]) -> list[int]:
    """A time of day on these days, as cron has it: what the clock skips happens right after it was put forward."""
    info, times = ZoneInfo(zone), []
    for day in days:
        moment = datetime(day.year, day.month, day.day, hour, minute, tzinfo=info)
        back = moment.astimezone(UTC).astimezone(info)
        if (back.hour, back.minute) != (hour, minute):
            # The first minute after the gap.
            at = datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC) - (moment.utcoffset() or timedelta())
            while (before := (at - timedelta(minutes=1)).astimezone(info)).utcoffset() != moment.utcoffset():
                at = before.astimezone(UTC)
            moment = at
        times.append(round(moment.timestamp()))
    return times


def plans(first: date, days: int) -> list[Plan]:
    """Fifty schedules: daily, on weekdays, weekly, monthly, several times a day, at an interval, and learned."""
    zones = ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "UTC", "America/Sao_Paulo"]
    every_day = [first + timedelta(days=n) for n in range(days)]
    all_plans = []
    for n in range(22):
        hour, minute, zone = (2, 3, 0, 23, 1, 12)[n % 6], (30, 0, 15, 59)[n % 4], zones[n % len(zones)]
        all_plans.append(Plan(f"{minute} {hour} * * *", zone, local_times(zone, hour, minute, every_day)))
    for n in range(10):
        zone, weekdays = zones[n % len(zones)], [day for day in every_day if day.weekday() < 5]
        all_plans.append(Plan(f"30 {n + 1} * * 1-5", zone, local_times(zone, n + 1, 30, weekdays)))
    for n in range(10):
        zone, sundays = zones[n % len(zones)], [day for day in every_day if day.isoweekday() % 7 == n % 7]
        all_plans.append(Plan(f"15 2 * * {n % 7}", zone, local_times(zone, 2, 15, sundays)))
    for n in range(4):
        zone, firsts = zones[n], [day for day in every_day if day.day == 1]
        all_plans.append(Plan("0 4 1 * *", zone, local_times(zone, 4, 0, firsts)))
    begin = round(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp())
    six_hourly = list(range(begin + 6 * 3600, begin + days * 86_400, 6 * 3600))
    all_plans += [Plan("0 */6 * * *", "UTC", six_hourly), Plan("every 6h", "UTC", six_hourly, "every 6h")]
    for n in range(2):
        all_plans.append(Plan("learned", zones[n], local_times(zones[n], 5, 30, every_day), "learned"))
    assert len(all_plans) == 50
    return all_plans


def simulate(
    plan: Plan,
    dice: random.Random,
    *,
    quiet: int = 14,
    share: float = 0.1,
    until: float | None = None,
    least_delay: float = 60,
    steps: bool = False,
) -> Simulated:
    """Runs of a workflow, with faults that are at least ``quiet`` healthy times apart.

    Args:
        plan: when it should run.
        dice: decides.
        quiet: so many healthy times come before each fault.
        share: how often a fault comes after them.
        until: no fault lasts longer, and healthy runs go on to the last time; by default nothing runs at the last ten.
        least_delay: late starts are later than their grace by so many seconds, at least.
        steps: some runs have a step that runs past its deadline.
    """
    simulated = Simulated()
    times = plan.times
    healthy, i = 0, 0
    steady_since = -FLAP_RUNS - 1
    # So many times later everything is as usual, and whether runs fail.
    kinds: list[tuple[int, bool, Callable[[int], int]]] = [
        (1, False, lambda i: _late(simulated, times, i, dice, least_delay)),
        (4, False, lambda i: _missing(simulated, times, i, dice)),
        (3, False, lambda i: _hung(simulated, times, i, dice)),
        (4, True, lambda i: _failing(simulated, times, i, dice)),
        (8, True, lambda i: _flapping(simulated, times, i)),
    ]
    if plan.schedule == "every 6h":
        del kinds[0]  # After a late start, the next one is due so much later.
    if steps:
        kinds.append((1, False, lambda i: _long_step(simulated, times, i)))
    end = len(times) - (10 if until is None else 0)
    while i < end:
        # Failures soon after others are told as one that goes on.
        is_steady = len(simulated.runs) - steady_since > FLAP_RUNS
        possible = [
            (fails, fault)
            for room, fails, fault in kinds
            if i + room < len(times) and (until is None or times[i + room] < until) and (is_steady or not fails)
        ]
        if healthy >= quiet and possible and dice.random() < share:
            fails, fault = dice.choice(possible)
            i, healthy = fault(i), 0
            steady_since = len(simulated.runs) if fails else steady_since
        else:
            jitter = 0.0 if plan.schedule == "every 6h" else dice.uniform(-20, GRACE - 30)
            _run(simulated, times[i] + jitter, dice.uniform(1, DEADLINE - 60))
            i, healthy = i + 1, healthy + 1
    return simulated


def _run(simulated: Simulated, start: float, seconds: float, status: str = "completed") -> None:
    simulated.runs.append((start, start + seconds, status))


def _late(simulated: Simulated, times: list[int], i: int, dice: random.Random, least_delay: float) -> int:
    start = times[i] + dice.uniform(GRACE + least_delay, (times[i + 1] - times[i]) / 3)
    _run(simulated, start, 60)
    simulated.faults.append(Fault(LATE, times[i] + GRACE, start))
    return i + 1


def _missing(simulated: Simulated, times: list[int], i: int, dice: random.Random) -> int:
    count = dice.randint(1, 3)
    back = times[i + count] + 5.0
    _run(simulated, back, 60)
    simulated.faults.append(Fault(LATE, times[i] + GRACE, back))
    return i + count + 1


def _hung(simulated: Simulated, times: list[int], i: int, dice: random.Random) -> int:
    # Sometimes past the next times, which its scheduler leaves out.
    start, end = times[i] + 5.0, times[i] + dice.choice([2 * DEADLINE, times[i + 1] - times[i] + 2 * DEADLINE])
    _run(simulated, start, end - start)
    simulated.faults.append(Fault(OVERDUE, start + DEADLINE, end))
    return next(n for n in range(i, len(times)) if times[n] > end)


def _failing(simulated: Simulated, times: list[int], i: int, dice: random.Random) -> int:
    count = dice.randint(1, 3)
    for n in range(count):
        _run(simulated, times[i + n] + 5.0, 60, dice.choice(["failed", "timeout", "lost"]))
    _run(simulated, times[i + count] + 5.0, 60)
    simulated.faults.append(Fault(FAILED, times[i] + 65, times[i + count] + 65))
    return i + count + 1


def _long_step(simulated: Simulated, times: list[int], i: int) -> int:
    start, end = times[i] + 5.0, times[i] + DEADLINE - 300.0
    _run(simulated, start, DEADLINE - 240)
    simulated.steps[start] = end
    simulated.faults.append(Fault(OVERDUE, start + STEP_DEADLINE, end))
    return i + 1


def _flapping(simulated: Simulated, times: list[int], i: int) -> int:
    for n, status in enumerate("fsfsfsss"):
        _run(simulated, times[i + n] + 5.0, 60, "failed" if status == "f" else "completed")
    simulated.faults.append(Fault(FAILED, times[i] + 65, times[i + 1] + 65))
    simulated.faults.append(Fault(FLAPPING, times[i + 2] + 65, times[i + 7] + 65))
    return i + 8


def watch(
    plan: Plan, simulated: Simulated, outages: Sequence[tuple[float, float]] = (), *, every: int | None = None
) -> tuple[list[Notice], int]:
    """(what a service tells of these runs, how often it evaluated); ``outages``: when it was down.

    Between facts it evaluates only when the last evaluation said that something may change, or ``every`` so many
    seconds.
    """
    limits = limits_of(
        Expectation(schedule=plan.schedule or plan.cron, timezone=plan.zone, grace_seconds=GRACE,
                    deadline_seconds=DEADLINE, last_failed_seconds=0.0)
    )  # fmt: skip
    known = (plan.times[0] - 3600) * NS
    notices: dict[str, Notice] = {}
    told: list[Told] = []
    since = settled = known
    evaluations = 0
    for now, history in _moments(simulated, outages):
        if isinstance(history, float):
            settled = round((now + SETTLE) * NS)
            continue
        moment: int | None = round(now * NS)
        while moment is not None:
            result = evaluate(limits, history.known(moment), since, moment, known_ns=known, settled_ns=settled)
            evaluations += 1
            _tell(result, told, notices, moment)
            since, moment = moment, result.next_ns if every is None else moment + every * NS
            if moment is not None and moment >= history.until_ns:
                moment = None
    return list(notices.values()), evaluations


def _tell(result: Evaluation, told: list[Told], notices: dict[str, Notice], now: int) -> None:
    if not result.findings and not any(entry.resolved_ns is None for entry in told):
        return
    news = transitions(told, result.findings, now)
    for recovery in news.recovered:
        told[told.index(recovery.told)] = recovery.told._replace(resolved_ns=recovery.until_ns)
        notices[recovery.told.id].recovered_at = now / NS
    for finding in news.opened:
        identifier = f"{finding.kind}:{finding.key}"
        assert identifier not in notices
        recovered = None if finding.until_ns is None else now / NS
        notices[identifier] = Notice(finding.kind, finding.key, now / NS, recovered)
        told.append(Told(identifier, finding.kind, finding.key, finding.since_ns, finding.until_ns))
    del told[:-KEPT]


@dataclass
class _Known:
    """The facts of a moment, and until when there is no other."""

    runs: list[Run]
    until_ns: int

    def known(self, now_ns: int) -> History:
        newest = [
            run if (run.finished_ns or 0) <= now_ns else run._replace(finished_ns=None, status="running")
            for run in self.runs
        ]
        return History(runs=newest)


def _moments(simulated: Simulated, outages: Sequence[tuple[float, float]]) -> Iterator[tuple[float, _Known | float]]:
    """(time, facts) of every moment at which a fact appears while the service is up, and (time, 0.0) of its starts."""
    runs = sorted((round(s * NS), round(e * NS), status) for s, e, status in simulated.runs)
    numbered = [Run(str(n), start, end, status) for n, (start, end, status) in enumerate(runs)]
    facts = sorted({time for start, end, _ in runs for time in (start, end)})
    starts = sorted((round(down * NS), round(up * NS)) for down, up in outages)
    times = sorted({*(t for t in facts if not any(a <= t < b for a, b in starts)), *(up for _, up in starts)})
    ups = {up for _, up in starts}
    downs = [down for down, _ in starts]
    started = 0
    for now, following in zip(times, [*times[1:], times[-1] + 1], strict=True):
        while started < len(numbered) and numbered[started].started_ns <= now:
            started += 1
        if now in ups:
            yield now / NS, 0.0
        # While it is down, it is not evaluated.
        until = min([following, *(down for down in downs if down > now)])
        yield now / NS, _Known(numbered[max(0, started - KEPT) : started], until)
