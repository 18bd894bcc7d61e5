"""Holds the rules for Prometheus against what a service told: promtool evaluates them on what was scraped of it."""

from __future__ import annotations

import bisect
import itertools
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from tachograph_exporter.expectations.findings import FAILED, FLAPPING, LATE, OVERDUE
from tests.conftest import ROOT

TICK: Final = 600
"""Seconds between two scrapes."""
HOUR, DAY = 3600, 86_400
ALERTS: Final = {
    LATE: "WorkflowLate",
    OVERDUE: "WorkflowOverdue",
    FAILED: "WorkflowLastRunFailed",
    FLAPPING: "WorkflowFlapping",
}
OF_STEP: Final = "WorkflowStepOverdue"
SILENT: Final = ("WorkflowNoSuccess", "WorkflowRunStuck")
"""Whoever says when a workflow should run, and how long it may, is not told what is unusual."""
GROUPS: Final = (
    (TICK, 2 * HOUR, (ALERTS[LATE], ALERTS[OVERDUE], OF_STEP)),
    # What these are about lasts from one run to the next, so it is enough to look once an hour.
    (HOUR, 8 * DAY, (ALERTS[FAILED], ALERTS[FLAPPING], *SILENT)),
)
"""Seconds between two evaluations, how far back they look at most, and of which alerts.

What promtool takes grows with the evaluations and the series that they read.
"""
STRETCH_DAYS: Final = 50
CALM: Final = 4 * HOUR

Samples = Mapping[str, Sequence[tuple[int, float | None]]]
"""What was scraped, by series: (unix seconds, value) whenever it changed; None where the series was gone."""


class Told(NamedTuple):
    """A notice: what it is about, and from when until when it was told (unix seconds)."""

    workflow: str
    kind: str
    key: str
    told_at: float
    recovered_at: float | None

    @property
    def alert(self) -> str:
        """The alert that says the same."""
        return OF_STEP if "/" in self.key else ALERTS[self.kind]


def check_alerts(directory: Path, samples: Samples, told: Sequence[Told], span: range) -> None:
    """Each notice is an alert that fires from soon after it was told until soon after it is over; there is no other."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (apt-get install prometheus)")
    rules = yaml.safe_load((ROOT / "dashboards" / "prometheus" / "alerts.rules.yml").read_text())["groups"][0]
    files = []
    for interval, lookback, alerts in GROUPS:
        kept = [rule for rule in rules["rules"] if rule["alert"] in alerts]
        assert {rule["alert"] for rule in kept} == set(alerts)
        group = {**rules, "interval": f"{interval}s", "rules": kept}
        (directory / f"alerts-{interval}.yml").write_text(yaml.safe_dump({"groups": [group]}))
        files.append((interval, lookback, alerts, yaml.safe_dump(kept)))

    def evaluated(part: tuple[range, tuple[int, int, Sequence[str], str]]) -> subprocess.CompletedProcess[str]:
        stretch, (interval, lookback, alerts, text) = part
        loaded = max(span.start, stretch.start - lookback)
        series = {name: values for name, values in samples.items() if name.partition("{")[0] in text}
        mine = [notice for notice in told if notice.alert in alerts]
        file = _write(directory, interval, series, mine, loaded, stretch)
        ran = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
        if not ran.returncode:
            file.unlink()
        return ran

    # What promtool holds in memory, and looks through for garbage, grows with the days that it is given at once.
    with ThreadPoolExecutor(2) as pool:
        for ran in pool.map(evaluated, itertools.product(_stretches(span, told), files)):
            assert ran.returncode == 0, (ran.stdout + ran.stderr)[:4000]


def _stretches(span: range, told: Sequence[Told]) -> list[range]:
    """The span in stretches of some days, cut where nothing begins or ends to be told."""
    changes = sorted(time for notice in told for time in (notice.told_at, notice.recovered_at) if time is not None)
    cuts = [span.start]
    while span.stop - cuts[-1] > 1.5 * STRETCH_DAYS * DAY:
        at = cuts[-1] + STRETCH_DAYS * DAY
        while bisect.bisect_left(changes, at - CALM) != bisect.bisect_right(changes, at + CALM):
            at += HOUR
        cuts.append(at)
    return [range(begin, end) for begin, end in itertools.pairwise([*cuts, span.stop])]


def _write(directory: Path, interval: int, samples: Samples, told: Sequence[Told], loaded: int, stretch: range) -> Path:
    """What promtool is to see of a stretch. It begins to load and to evaluate at ``loaded``."""
    begin, end = stretch.start, stretch.stop
    tests: list[dict[str, Any]] = []

    def test(expression: str, at: float, expected: Mapping[str, int]) -> None:
        second = int(-(-(at - loaded) // interval) * interval)
        if begin - loaded <= second <= end - loaded:
            values = [{"labels": labels, "value": value} for labels, value in expected.items()]
            tests.append({"expr": expression, "eval_time": f"{second}s", "exp_samples": values})

    mine = [n for n in told if n.told_at < end and (n.recovered_at is None or n.recovered_at > begin)]
    for notice in mine:
        assert notice.recovered_at is not None
        matchers = f'alertname="{notice.alert}", workflow="{notice.workflow}", alertstate="firing"'
        firing = f"count(ALERTS{{{matchers}}}) or vector(0)"
        test(firing, notice.told_at - interval, {"{}": 0})
        test(firing, notice.told_at + 2 * interval, {"{}": 1})
        test(firing, notice.recovered_at - interval, {"{}": 1})
        test(firing, notice.recovered_at + interval, {"{}": 0})
    # So often each became active: as often as it was told. No other did.
    active = f"max by (alertname, workflow) (changes(ALERTS_FOR_STATE[{end - begin}s])) + 1"
    episodes = Counter((notice.alert, notice.workflow) for notice in mine)
    labels = {f'{{alertname="{alert}", workflow="{name}"}}': count for (alert, name), count in episodes.items()}
    test(active, end, labels)
    document = {
        "rule_files": [f"alerts-{interval}.yml"],
        "evaluation_interval": f"{interval}s",
        "tests": [{
            "interval": f"{interval}s",
            "input_series": list(_input_series(samples, loaded, end, interval)),
            "promql_expr_test": tests,
        }],
    }  # fmt: skip
    file = directory / f"history-{interval}-{begin}.yml"
    file.write_text(yaml.dump(document, sort_keys=False, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
    return file


def _input_series(samples: Samples, begin: int, end: int, interval: int) -> Iterator[dict[str, str]]:
    """What was scraped in promtool's notation, whose clock begins at 0 with ``begin``."""
    for series, values in samples.items():
        base = begin if "_timestamp_seconds{" in series else 0
        first = bisect.bisect_right(values, begin, key=lambda sample: sample[0]) - 1
        last = bisect.bisect_left(values, end, key=lambda sample: sample[0])
        before = values[first][1] if first >= 0 else None
        within = [(begin, before), *values[first + 1 : last], (end, None)]
        if any(value is not None for _, value in within):
            yield {"series": series, "values": " ".join(_words(within, base, interval))}


def _words(samples: Sequence[tuple[int, float | None]], base: int, interval: int) -> Iterator[str]:
    begin, is_there = samples[0][0], False
    for (since, value), (until, _) in itertools.pairwise(samples):
        # The scrapes from the one time until before the other.
        count = -((begin - until) // interval) + ((begin - since) // interval)
        if count and value is None:
            yield f"{'stale' if is_there else '_'}{f' _x{count - 1}' if count > 1 else ''}"
        elif count and value is not None:
            yield f"{value - base!r}x{count - 1}"
        is_there = is_there if not count else value is not None
