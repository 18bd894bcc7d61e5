"""Steps that are not measured, because many of their kind were tiny.

Of a tiny step nothing will be said, so most of the counters need not be read for it. What starts with a kind of which
most steps are tiny is taken for tiny, and only looked at when it ends. If it takes longer after all, it says what
follows from the counters that the tiny steps before it have read now and then, unless these are too old for that.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tachograph import counters, meter, step_kinds
from tachograph.counters import Sample, Thread
from tachograph.meter import LONG_NS, MAX_DOUBT, SHORT_NS, Meter
from tachograph.resources import Resources
from tachograph.step_kinds import Kind

CLOCK_FRESH_NS: Final = 1_000_000
_FRESH_NS: Final = 20_000_000
"""How old a thread's processor time, and its counters, become while there are tiny steps."""
_OLD_NS: Final = 500_000_000
"""How old the counters of a thread become that works little meanwhile."""
_NS: Final = 1_000_000_000
_since_ns = _until_ns = 0
"""When, by the clock of its execution, a tiny step last read the clock of its thread, and until when that will do."""
_thread: Thread | None = None
_elsewhere_ns = 0
"""The thread of the tiny step that did so, and when that was another one than the time before."""
_outermost: dict[Kind, Unmeasured] = {}
"""One is enough for all steps of a kind that are inside of none."""


def start_step(outer: Meter | Unmeasured | None, is_on_loop: bool, kind: Kind) -> Meter | Unmeasured | None:
    """As `meter.start` for a step of this kind, that is not dispatched; `Unmeasured` if it is taken for tiny."""
    if kind in step_kinds.tiny and not is_on_loop and meter.is_enabled:
        if outer is not None:
            return Unmeasured(kind, outer)
        unmeasured = _outermost.get(kind)
        if unmeasured is None:
            if len(_outermost) >= step_kinds.MAX_KINDS:
                _outermost.clear()
            unmeasured = _outermost[kind] = Unmeasured(kind, None)
        return unmeasured
    return meter.start(outer if outer is None else _measured(outer), is_on_loop, False, kind)


class Unmeasured(msgspec.Struct, eq=False, gc=False):
    """In place of a `Meter`: of a step that is taken for tiny. It is not among the active ones."""

    _kind: Kind
    _outer: Meter | Unmeasured | None

    def stop(self, began_ns: int, now_ns: int) -> Resources | None:
        """What the attempt used that started and ended then, by the clock of its execution; None: nothing is known."""
        if now_ns - began_ns < SHORT_NS:
            if not _since_ns <= now_ns < _until_ns:
                _look_at_thread(now_ns)
                meter.run_beside(_measured(self._outer))
                step_kinds.scores[self._kind] = min(
                    step_kinds.scores.get(self._kind, 0) + step_kinds.TAKEN_FOR_TINY, step_kinds.MAX_SCORE
                )
            return None
        return self._stop_late(now_ns - began_ns)

    def _stop_late(self, took_ns: int) -> Resources | None:
        now, thread_ns, thread = meter._now_ns(), meter._thread_time_ns(), counters.local.thread
        worked_ns = thread_ns - thread.thread_ns if thread is not None else took_ns
        step_kinds.note_other(self._kind, worked_long=worked_ns >= LONG_NS)
        began_ns = now - took_ns
        outer = _measured(self._outer)
        is_alone = not meter.run_beside(outer) and max(_elsewhere_ns, meter.left_ns) < began_ns
        if thread is None or not counters.HAS_THREAD_TIME:
            return None
        since_ns = began_ns - thread.read_ns
        used_ns = thread_ns - thread.thread_ns - since_ns
        thread.read_ns, thread.thread_ns = now, thread_ns
        if not 0 <= since_ns * MAX_DOUBT <= took_ns or thread.collected is None:
            return None  # Its thread may have waited before, and is not known to have worked.
        cpu_ns, sample = max(0, used_ns), thread.sample
        is_shared = not is_alone or counters.services > 0 or not thread.is_main
        if took_ns < LONG_NS or sample is None or not counters.HAS_USAGE or _is_doubtful(sample, began_ns, took_ns):
            # What it started is not known, if it may have started something.
            return Resources(cpu_ns / _NS, is_shared=is_shared or took_ns >= LONG_NS)
        late = Meter(
            outer, False, False, thread, thread.collected, began_ns, sample, sample.children, self._kind,
            _thread_ns=thread_ns - cpu_ns, _is_alone=is_alone,
        )  # fmt: skip
        return late._all(now, cpu_ns, is_shared=is_shared)


def _is_doubtful(sample: Sample, began_ns: int, took_ns: int) -> bool:
    """Whether a step that began after the sample may have something wrong that matters."""
    if (began_ns - sample.time_ns) * MAX_DOUBT > took_ns:
        return True
    # A child counts as a whole when it ends, and one may have ended between the two.
    return sample.children is None or sample.children.ru_maxrss > 0


def _look_at_thread(now_ns: int) -> None:
    """Read the clock of the calling thread, and its counters if they are old; see `Unmeasured`."""
    global _since_ns, _until_ns, _thread, _elsewhere_ns
    now, thread = meter._now_ns(), counters.local.thread
    if thread is None:
        thread = counters.local.thread = Thread()
    if thread is not _thread:
        _thread, _elsewhere_ns = thread, now
    thread_ns = meter._thread_time_ns()
    age_ns = now - thread.sample[0] if thread.sample is not None else _OLD_NS
    # On a busy machine more time passes between two steps than a thread works.
    if age_ns >= _OLD_NS or (age_ns > _FRESH_NS and thread_ns - thread.sampled_ns > _FRESH_NS // 2):
        counters.take(thread, now)
        thread.sampled_ns = thread_ns
    _since_ns, _until_ns = now_ns, now_ns + CLOCK_FRESH_NS
    thread.read_ns, thread.thread_ns, thread.collected = now, thread_ns, counters.collected


def _measured(outer: Meter | Unmeasured | None) -> Meter | None:
    """The innermost of those around a step that is measured."""
    while isinstance(outer, Unmeasured):
        outer = outer._outer
    return outer
