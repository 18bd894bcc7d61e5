"""The load: executions through the API, spans by OTLP and scripts that record, each with what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import aiohttp

from tests.conftest import ROOT
from tests.e2e.conftest import environment

WORKFLOW: Final = {
    "name": "probe",
    "variables": [{"name": "n"}],
    "steps": [
        {"name": "a", "config": {"handler": "sleep", "seconds": 0.005}},
        {"name": "b", "config": {"handler": "sleep", "seconds": 0.005}, "depends_on_steps": ["a"]},
    ],
}
SCRIPT: Final = """
import sys, tachograph

@tachograph.step
def work():
    pass

@tachograph.workflow(name="script")
def script():
    work()
    print(tachograph.current_execution().execution_id, flush=True)

script()
"""
PATIENCE: Final = aiohttp.ClientTimeout(total=15)


class Oracle:
    """What was promised.

    Attributes:
        acknowledged: inputs of executions that were accepted, with the time; they must be there once.
        refused: inputs that were refused, in so many words; they must not be there.
        unknown: inputs of which the service said that it did not know; no step of theirs may have begun.
        traces: ids of traces that were accepted, with the time.
        pieces: ids of traces whose spans were accepted one by one, with the time.
        scripts: ids of runs whose process ended well, with the time.
    """

    def __init__(self) -> None:
        self.acknowledged: dict[str, float] = {}
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self.traces: dict[str, float] = {}
        self.pieces: dict[str, float] = {}
        self.scripts: dict[str, float] = {}
        self.answers: dict[int, int] = {}
        self.surprises: list[str] = []


class Load:
    """Sends load to the services until it is stopped.

    Args:
        addresses: of the services; each request goes to one of them.
        database: URL of the database that scripts record to.
        spool: where scripts leave what the database did not take.
    """

    def __init__(self, addresses: Sequence[str], database: str, spool: str) -> None:
        self.oracle = Oracle()
        self.scripts: set[asyncio.subprocess.Process] = set()
        self._addresses = addresses
        self._environment = environment(
            TACHOGRAPH_DATABASE_URL=database, TACHOGRAPH_SPOOL_DIR=spool, PYTHONPATH=str(ROOT)
        )
        self._numbers = itertools.count(1)
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin."""
        jobs = [
            self._execute(is_keyed=True), self._execute(is_keyed=False), self._post_spans(), self._run_scripts(),
            self._post_pieces(),
        ]  # fmt: skip
        self._tasks = [asyncio.create_task(job) for job in jobs]

    async def stop(self) -> None:
        """End; requests that have no answer yet are sent again until they have one."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _request(
        self, session: aiohttp.ClientSession, path: str, body: Any, **headers: str
    ) -> tuple[int | None, str]:
        """The status and the body; no status if there was no answer."""
        try:
            async with session.post(
                random.choice(self._addresses) + path, json=body, headers=headers, timeout=PATIENCE
            ) as response:
                text = await response.text()
                status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None, ""
        self.oracle.answers[status] = self.oracle.answers.get(status, 0) + 1
        if status >= 400 and status not in (429, 503):
            self.oracle.surprises.append(f"{path} answered {status}")
        return status, text

    async def _until(self, accepted: int, session: aiohttp.ClientSession, path: str, body: Any, **headers: str) -> None:
        """Send a request again and again until it is accepted."""
        while True:
            status, _ = await self._request(session, path, body, **headers)
            if status == accepted:
                return
            await asyncio.sleep(0.2)

    async def _execute(self, *, is_keyed: bool) -> None:
        async with aiohttp.ClientSession() as session:
            while not self._is_over:
                name = f"{'keyed' if is_keyed else 'plain'}-{next(self._numbers)}"
                body = {"input_variables": {"n": name}}
                path = "/api/workflows/probe/execute"
                if not is_keyed:
                    status, text = await self._request(session, path, body)
                    if status == 202:
                        self.oracle.acknowledged[name] = time.time()
                    elif "it is not known whether" in text:
                        self.oracle.unknown.add(name)
                    elif status is not None:
                        self.oracle.refused.add(name)
                else:
                    # Sent again until it is accepted: it must run once.
                    await self._until(202, session, path, body, **{"Idempotency-Key": name})
                    self.oracle.acknowledged[name] = time.time()
                await asyncio.sleep(0.02)

    async def _post_spans(self) -> None:
        async with aiohttp.ClientSession() as session:
            while not self._is_over:
                trace_id = secrets.token_hex(16)
                body = _trace(trace_id)
                await self._until(200, session, "/v1/traces", body)
                self.oracle.traces[trace_id] = time.time()
                await asyncio.sleep(0.1)

    async def _post_pieces(self) -> None:
        """Spans of one trace, each in a request of its own, at the same time, to any of the services; of some, their
        run was days ago, and may be archived when the rest of them arrives.
        """
        async with aiohttp.ClientSession() as session:
            while not self._is_over:
                trace_id, days = secrets.token_hex(16), random.choice([0, 0, 5])
                pieces = _pieces(trace_id, time.time_ns() - days * 86_400 * 1_000_000_000)
                late = [pieces.pop(random.randrange(len(pieces)))] if random.random() < 0.3 else []
                posts = [self._until(200, session, "/v1/traces", piece) for piece in pieces]
                await asyncio.gather(*posts)
                if late:
                    await asyncio.sleep(random.uniform(0, 3))
                    await self._until(200, session, "/v1/traces", late[0])
                self.oracle.pieces[trace_id] = time.time()
                await asyncio.sleep(0.1)

    async def _run_scripts(self) -> None:
        while not self._is_over:
            clock = random.choice(["", "", "-30s", "+90s"])
            faked = ["faketime", "--exclude-monotonic", "-f", clock] if clock else []
            process = await asyncio.create_subprocess_exec(
                *faked, sys.executable, "-c", SCRIPT, env=self._environment,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            self.scripts.add(process)
            out, _ = await process.communicate()
            self.scripts.discard(process)
            if process.returncode == 0:
                self.oracle.scripts[out.decode().strip()] = time.time()
            await asyncio.sleep(0.3)

    def kill_a_script(self) -> None:
        """kill -9 a script that runs, if one does."""
        for process in list(self.scripts):
            with contextlib.suppress(ProcessLookupError):
                process.kill()


PIECES: Final = 4
"""Spans of a trace of pieces: a run and its steps."""


def _trace(trace_id: str) -> dict[str, Any]:
    now = time.time_ns()
    root, child = secrets.token_hex(8), secrets.token_hex(8)
    return _request_of([
        _span(trace_id, root, "spans", "", now - 10_000_000, now),
        _span(trace_id, child, "inner", root, now - 8_000_000, now - 10),
    ])  # fmt: skip


def _pieces(trace_id: str, now: int) -> list[dict[str, Any]]:
    root = secrets.token_hex(8)
    spans = [_span(trace_id, root, "pieces", "", now - 10_000_000, now)]
    for number in range(1, PIECES):
        start = now - 9_000_000 + number * 1_000_000
        spans.append(_span(trace_id, secrets.token_hex(8), f"piece{number}", root, start, start + 900_000))
    return [_request_of([span]) for span in spans]


def _span(trace_id: str, span_id: str, name: str, parent: str, start: int, end: int) -> dict[str, Any]:
    return {"traceId": trace_id, "spanId": span_id, "parentSpanId": parent, "name": name, "kind": 1,
            "startTimeUnixNano": str(start), "endTimeUnixNano": str(end)}  # fmt: skip


def _request_of(spans: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scope_spans = [{"scope": {"name": "chaos"}, "spans": list(spans)}]
    return {"resourceSpans": [{"resource": {}, "scopeSpans": scope_spans}]}
