"""Ids and jitter come from a generator of our own: the program's `random` is its own, too."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys

import pytest

from tachograph import identity
from tachograph.events import Event, ExecutionStarted, StepRetrying
from tachograph.workflow import Backoff, Executor, WorkflowBuilder, registry

PROGRAM = """
import random, sys
import tachograph
from tachograph.workflow.definition import Backoff
from prometheus_client import CollectorRegistry
recorder = tachograph.configure(database="", registry=CollectorRegistry())
seen = []
recorder.add("test", seen.append)
random.seed(7)
numbers = []
for _ in range(3):
    if sys.argv[1] == "record":
        with tachograph.workflow("w"):
            with tachograph.step("a"):
                numbers.append(random.random())

            @tachograph.step(max_retries=1, backoff=Backoff(initial_seconds=0.001))
            def flaky(tries=[]):
                tries.append(1)
                if len(tries) == 1:
                    raise ValueError("again")
            flaky()
    else:
        numbers.append(random.random())
assert recorder.flush(60)
print(numbers)
print(len({event.execution.trace_id for event in seen}))
"""


def ran(*arguments: str) -> list[str]:
    result = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_seeded_program_gets_its_own_numbers_and_every_run_its_own_ids() -> None:
    recorded, plain = ran("record"), ran("plain")
    assert recorded[0] == plain[0]
    assert recorded[1] == "3"


STATE = random.getstate()


def new_ids() -> list[str]:
    return [identity.new_trace_id(), identity.new_span_id(), identity.new_id(0), str(identity.random01())]


@pytest.mark.parametrize("restore", [lambda: random.seed(7), lambda: random.setstate(STATE)])
def test_the_state_of_the_global_generator_repeats_no_id(restore: object) -> None:
    before = random.getstate()
    try:
        restore()  # type: ignore[operator]
        first = new_ids()
        restore()  # type: ignore[operator]
        assert not set(first) & set(new_ids())
    finally:
        random.setstate(before)


def test_making_ids_leaves_the_global_generator_alone() -> None:
    before = random.getstate()
    new_ids()
    assert random.getstate() == before


async def test_the_executor_leaves_it_alone_too() -> None:
    before, events = random.getstate(), list[Event]()
    backoff = Backoff(initial_seconds=0.001, jitter=1)
    flow = WorkflowBuilder("w").step("a", handler="fail", max_retries=2, retry_backoff=backoff).build()
    executor = Executor(events.append, handlers=registry.copy())
    for _ in range(3):
        random.seed(7)
        await executor.run(flow)
    delays = [event.delay_ns for event in events if isinstance(event, StepRetrying)]
    assert len(set(delays)) > 2
    assert len({event.execution.trace_id for event in events if isinstance(event, ExecutionStarted)}) == 3
    random.setstate(before)


def ids_of_a_child() -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, " ".join(new_ids()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


def test_forked_children_have_ids_of_their_own() -> None:
    ids = [*ids_of_a_child().split(), *ids_of_a_child().split(), *new_ids()]
    assert len(ids) == len(set(ids)) == 12


def test_ids_of_a_grandchild_differ_too() -> None:
    asyncio.run(asyncio.sleep(0))  # A process that has had a loop.
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, f"{' '.join(new_ids())} {ids_of_a_child()}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        ids = [*pipe.read().split(), *new_ids()]
    os.waitpid(child, 0)
    assert len(ids) == len(set(ids)) == 12
