"""Pipelines with nodes that write down when they run."""

import functools
import json
import os
import time

from kedro.pipeline import Pipeline, node


def write_down(name, kind):
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(json.dumps({"node": name, "kind": kind, "at": time.time()}) + "\n")


def call(name, function, *inputs):
    write_down(name, "started")
    try:
        result = function(*inputs)
    except BaseException:
        write_down(name, "failed")
        raise
    write_down(name, "completed")
    return result


def doing(name, function, inputs, outputs):
    return node(functools.partial(call, name, function), inputs, outputs, name=name)


def extract():
    time.sleep(0.05)
    return 3


def work(number):
    time.sleep(0.05)
    return number


def merge(*numbers):
    return sum(numbers)


def broken(_):
    raise RuntimeError("no item 1")


def stuck():
    time.sleep(60)
    return 1


def register_pipelines():
    works = [doing(f"work_{i}", work, "extracted", f"worked_{i}") for i in range(5)]
    fan = Pipeline(
        [
            doing("extract", extract, None, "extracted"),
            *works,
            doing("merge", merge, [f"worked_{i}" for i in range(5)], "merged"),
        ]
    )
    failing = Pipeline(
        [
            doing("extract", extract, None, "extracted"),
            doing("broken", broken, "extracted", "nothing"),
            doing("after", work, "nothing", "result"),
        ]
    )
    waiting = Pipeline([doing("stuck", stuck, None, "unstuck")])
    return {"__default__": fan, "fan": fan, "failing": failing, "stuck": waiting}
