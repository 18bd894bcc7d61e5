"""A Metaflow flow as users write it. python metaflow_shop.py run

KIND of the environment says what goes wrong. Each task writes down when it runs.
"""

import json
import os
import signal
import time

from metaflow import FlowSpec, Parameter, catch, current, retry, step


def write_down(kind):
    entry = {"step": current.step_name, "task": current.task_id, "attempt": current.retry_count, "kind": kind}
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(json.dumps({**entry, "at": time.time()}) + "\n")


def goes_wrong(kind):
    return os.environ.get("KIND") == kind


class Shop(FlowSpec):
    day = Parameter("day", default="2026-11-25")

    @step
    def start(self):
        write_down("started")
        self.numbers = list(range(5 if "KIND" not in os.environ else 2))
        self.next(self.branch, self.square_all)

    @step
    def branch(self):
        write_down("started")
        self.next(self.join)

    @step
    def square_all(self):
        write_down("started")
        self.next(self.square, foreach="numbers")

    @step
    def square(self):
        write_down("started")
        if goes_wrong("failed"):
            raise RuntimeError("no item 1")
        self.result = self.input**2
        self.letters = ["a", "b"] if self.input == 1 else ["a"]
        self.next(self.spell, foreach="letters")

    @step
    def spell(self):
        self.next(self.say)

    @step
    def say(self):
        self.next(self.letters_done)

    @step
    def letters_done(self, inputs):
        self.result = inputs[0].result
        self.next(self.merge)

    @step
    def merge(self, inputs):
        self.total = sum(part.result for part in inputs)
        self.next(self.flaky)

    @retry(times=2, minutes_between_retries=0)
    @step
    def flaky(self):
        write_down("started")
        if current.retry_count == 0:
            raise ConnectionError("no route to the shop")
        self.next(self.caught)

    @catch(var="problem")
    @step
    def caught(self):
        raise ValueError("nobody minds")
        self.next(self.join)

    @step
    def join(self, inputs):
        write_down("started")
        self.next(self.fragile)

    @retry(times=1, minutes_between_retries=0)
    @step
    def fragile(self):
        write_down("started")
        if goes_wrong("killed_twice") or (goes_wrong("killed_once") and current.retry_count == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if goes_wrong("stuck"):
            time.sleep(600)
        self.next(self.end)

    @step
    def end(self):
        write_down("started")


if __name__ == "__main__":
    Shop()
