"""Whether what is expected of a workflow holds: a pure function of limits, history and time.

What it finds depends on stored facts and on ``now_ns`` alone. So a restart changes nothing, and a year is simulated in
seconds. It says when it may say something else without a new fact, so it need not be asked before.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from tachograph.clock import NS
from tachograph_exporter.expectations import outcomes
from tachograph_exporter.expectations.findings import (
    COST,
    FAILED,
    FLAPPING,
    LATE,
    REGRESSION,
    STALE,
    SUCCESS_RATE,
    Finding,
)
from tachograph_exporter.expectations.history import Count, History, Hour, Run
from tachograph_exporter.expectations.limits import Limits
from tachograph_exporter.expectations.long_running import find_long
from tachograph_exporter.expectations.schedules import Learned, Schedule, due_after, schedule_of
from tachograph_exporter.times import format_duration

BURNS: Final = ((300, 3600, 14.4), (1800, 21_600, 6.0), (7200, 86_400, 3.0), (21_600, 259_200, 1.0))
"""(short window, long window, times the allowed failures), as the rules for Prometheus have them.

https://sre.google/workbook/alerting-on-slos/: multi-window, multi-burn-rate. The first two are critical.
"""
MIN_FAILURES: Final = 2
MIN_HOURS: Final = 5
"""So many earlier hours say what is usual."""
LATELY_S: Final = 86_400
"""An hour that was out of the ordinary is told for so long."""
IT_FAILED: Final = "It failed."
_FAILURES: Final = {"timeout": "It ran into its timeout.", "lost": "Its process died, or was heard of no more."}
_AGAIN_NS: Final = 300 * NS


class Evaluation(NamedTuple):
    """What was found, when the next start is expected, by which schedule, and until when nothing changes by itself.

    ``long_steps`` are the names of steps that run for too long, also of executions that do. ``is_flapping``: it failed,
    and if it does not succeed soon enough, that is told as failing and succeeding by turns; or has been.
    """

    findings: Sequence[Finding] = ()
    expected_start_ns: int | None = None
    schedule: Schedule | None = None
    next_ns: int | None = None
    long_steps: Sequence[str] = ()
    is_flapping: bool = False

    def of(self, kind: str) -> Finding | None:
        """The finding of a kind that is not over, or None."""
        return next((f for f in self.findings if f.kind == kind and f.until_ns is None), None)


def evaluate(
    limits: Limits, history: History, since_ns: int, now_ns: int, *, known_ns: int = 0, settled_ns: int = 0
) -> Evaluation:
    """What does not hold now, and what did not for a while after ``since_ns``, when it was evaluated before.

    Args:
        limits: what is expected.
        history: what is known.
        since_ns: what was over by then is left out.
        now_ns: now.
        known_ns: since when this is expected: no earlier start is missed.
        settled_ns: until then starts may still be told of that have happened, for instance by a spool; nothing new is
            late before.
    """
    if limits.is_paused:
        return Evaluation()
    oldest = max(since_ns, known_ns)
    long = find_long(limits, history, now_ns)
    running, times = long.findings, [*long.times]
    schedule = schedule_of(limits.schedule, limits.timezone, [run.started_ns for run in history.runs])
    expected: int | None = None
    late: list[Finding] = []
    if schedule is not None:
        moments = _Moments(now_ns, known_ns, settled_ns, oldest)
        late, expected = _late(limits, schedule, history, running, moments, times)
    failing, is_flapping = _failing(limits, history, now_ns, times)
    is_failing = any(finding.until_ns is None for finding in failing)
    rate = _success_rate(limits, history.counts, now_ns) if limits.has_target and not is_failing else None
    others = (rate, _stale(limits, history, (now_ns, known_ns), times), *_unusual(limits, history.hours, now_ns))
    if rate is not None:
        times.append(now_ns + _AGAIN_NS)
    findings = [*late, *running, *failing, *(finding for finding in others if finding is not None)]
    reported = [f for f in findings if f.until_ns is None or (f.until_ns > oldest and f.until_ns > f.since_ns)]
    next_ns = min((t for t in times if t > now_ns), default=None)
    return Evaluation(reported, expected, schedule, next_ns, long.steps, is_flapping)


def shown_time(time_ns: int, zone: str | None) -> str:
    """A time for people, in the schedule's zone."""
    name = zone or "UTC"
    moment = datetime.fromtimestamp(time_ns / NS, UTC if name == "UTC" else ZoneInfo(name))
    return f"{moment:%Y-%m-%d %H:%M} ({name})"


class _Moments(NamedTuple):
    now: int
    known: int
    settled: int
    since: int


def _late(
    limits: Limits,
    schedule: Schedule,
    history: History,
    running: Sequence[Finding],
    moments: _Moments,
    times: list[int],
) -> tuple[list[Finding], int | None]:
    """Starts that were late, and when the next one is due."""
    now, known, settled, since = moments
    grace = limits.grace_seconds
    if isinstance(schedule, Learned):
        grace = max(grace, schedule.spread_seconds if limits.has_grace else schedule.grace_seconds)
    grace_ns = round(grace * NS)
    # Whoever schedules a workflow may not start it while it hangs: those times are not missed.
    hung = {finding.execution_id for finding in running}
    hung_ends = {run.execution_id: run.finished_ns for run in history.runs if run.execution_id in hung}
    findings = []
    for run, later in itertools.pairwise([None, *history.runs]):
        if later is None or later.started_ns <= since:
            continue
        before = max(run.started_ns, hung_ends.get(run.execution_id) or 0) if run is not None else 0
        due = due_after(schedule, before) if before >= known else schedule.after(known)
        if due is not None and later.started_ns > due + grace_ns:
            findings.append(_late_finding(limits, _late_key(schedule, due, run), (due, due + grace_ns), later))
    last = history.runs[-1] if history.runs else None
    mark = max(last.started_ns, hung_ends.get(last.execution_id) or 0) if last is not None else 0
    due = due_after(schedule, mark) if mark >= known else schedule.after(known)
    if due is None:
        return findings, None
    if now <= due + grace_ns:
        times.append(due + grace_ns + 1)
        return findings, due
    if now < settled:
        times.append(settled)
    is_hanging = any(finding.until_ns is None for finding in running)
    text = "it has never started" if last is None else "it has not started since"
    if history.waiting_ns is not None:
        text = f"an execution has been queued since {shown_time(history.waiting_ns, limits.timezone)}"
    findings.append(
        Finding(LATE, _late_key(schedule, due, last), due + grace_ns, None, limits.severity,
                f"It was due at {shown_time(due, limits.timezone)}, and {text}.",
                is_certain=now >= settled and not is_hanging)
    )  # fmt: skip
    return findings, due


def _late_key(schedule: Schedule, due: int, before: Run | None) -> str:
    """A learned time differs with every start, so what is late is what comes after the start before it."""
    if isinstance(schedule, Learned) and before is not None:
        return f"after {before.execution_id}"
    return str(due // NS)


def _late_finding(limits: Limits, key: str, due_since: tuple[int, int], run: Run) -> Finding:
    due, since = due_since
    delay = format_duration(run.started_ns - due)
    return Finding(
        LATE, key, since, run.started_ns, limits.severity,
        f"It was due at {shown_time(due, limits.timezone)}, and started {delay} late.",
        f"It started {delay} late.", run.execution_id,
    )  # fmt: skip


def _failing(limits: Limits, history: History, now: int, times: list[int]) -> tuple[list[Finding], bool]:
    """Times in which it failed, or failed and succeeded by turns; and whether it does the latter, told or not yet."""
    findings: list[Finding] = []
    if not any(run.is_bad for run in history.runs):
        return findings, False
    judged = sorted((r for r in history.runs if r.is_bad or r.is_good), key=lambda r: (r.finished_ns, r.started_ns))
    episodes = outcomes.episodes(judged, round(limits.last_failed_seconds * NS))
    for episode in episodes:
        if episode.since_ns > now:
            times.append(episode.since_ns)
            continue
        if episode.kind == FLAPPING:
            text = f"It fails and succeeds by turns: {episode.failures} failures since it last recovered."
        else:
            text = _FAILURES.get(episode.last.status, IT_FAILED)
            if episode.failures > 1:
                text = f"It failed {episode.failures} times in a row."
        findings.append(
            Finding(
                episode.kind, episode.first.execution_id, episode.since_ns, episode.until_ns, limits.severity, text,
                "It succeeded again."
                if episode.kind == FAILED
                else f"It succeeded {outcomes.STEADY_RUNS} times in a row.",
                episode.last.execution_id,
            )
        )  # fmt: skip
    return findings, any(episode.kind == FLAPPING and episode.until_ns is None for episode in episodes)


def _stale(limits: Limits, history: History, now_known: tuple[int, int], times: list[int]) -> Finding | None:
    now, known = now_known
    if limits.stale_seconds <= 0:
        return None
    last = max((run.finished_ns or 0 for run in history.runs if run.is_good), default=0)
    last = max(last, history.last_success_ns or 0)
    since = max(last, known) + round(limits.stale_seconds * NS)
    if now <= since:
        times.append(since + 1)
        return None
    when = f"The last success was at {shown_time(last, limits.timezone)}" if last else "It has never succeeded"
    return Finding(STALE, str(last // NS), since, None, limits.severity,
                   f"{when}; it should succeed every {_text(limits.stale_seconds)}.", "It succeeded.")  # fmt: skip


def _success_rate(limits: Limits, counts: Mapping[int, Count], now: int) -> Finding | None:
    allowed = 1 - limits.success_target

    def burning(short: int, long: int, factor: float) -> bool:
        windows = [counts.get(window, Count()) for window in (short, long)]
        is_enough = windows[1].failed >= MIN_FAILURES and windows[1].judged >= limits.burn_runs
        return is_enough and all(
            count.judged > 0 and count.failed / count.judged / allowed > factor for count in windows
        )

    burns = [burning(*burn) for burn in BURNS]
    if not any(burns):
        return None
    long = counts[BURNS[burns.index(True)][1]]
    severity = "critical" if any(burns[:2]) else limits.severity
    rate = 100 * (1 - long.failed / long.judged)
    text = f"{long.failed} of {long.judged} executions failed: {rate:.3g} % succeed, and the target is " \
           f"{100 * limits.success_target:g} %."  # fmt: skip
    return Finding(SUCCESS_RATE, str(now // NS), now, None, severity, text, "It meets its target again.")


def _unusual(limits: Limits, hours: Sequence[Hour], now: int) -> Iterator[Finding | None]:
    """What the last hour in which it ran says about cost and steps, beside the hours before."""
    if len(hours) <= MIN_HOURS or now - hours[-1].start_s * NS > (LATELY_S + 3600) * NS:
        return
    *before, last = hours
    costs = [hour.cost_usd for hour in before if hour.cost_usd > 0]
    if len(costs) >= MIN_HOURS:
        usual = statistics.median(costs)
        if last.cost_usd > limits.cost_usd and last.cost_usd > limits.cost_factor * usual:
            yield Finding(
                COST, str(last.start_s), last.start_s * NS, None, limits.severity,
                f"It cost ${last.cost_usd:.2f} in the last hour it ran; such an hour usually costs ${usual:.2f}.",
                "It costs what is usual again.",
            )  # fmt: skip
    slower = []
    for name, mean in last.steps.items():
        means = [hour.steps[name] for hour in before if name in hour.steps]
        if len(means) < MIN_HOURS:
            continue
        usual = statistics.median(means)
        if mean > limits.regression_factor * usual and mean - usual > limits.regression_seconds:
            slower.append((mean - usual, name, mean, usual))
    if slower:
        _, name, mean, usual = max(slower)
        more = f" So do {len(slower) - 1} other steps." if len(slower) > 1 else ""
        yield Finding(
            REGRESSION, f"{last.start_s}/{name}"[:200], last.start_s * NS, None, limits.severity,
            f"Its step “{name}” took {_text(mean)} on average in the last hour it ran; it usually takes "
            f"{_text(usual)}.{more}",
            "Its steps take what is usual again.",
        )  # fmt: skip


def _text(seconds: float) -> str:
    return format_duration(round(seconds * NS))
