"""A Metaflow flow as users write it; Metaflow traces it itself. python metaflow_flow.py run"""

import os
import time

from metaflow import FlowSpec, current, retry, step


class Nightly(FlowSpec):
    @step
    def start(self):
        time.sleep(0.1)
        self.numbers = [0, 1, 2]
        self.next(self.square, foreach="numbers")

    @step
    def square(self):
        time.sleep(0.1)
        self.result = self.input
        self.next(self.merge)

    @step
    def merge(self, inputs):
        self.total = sum(part.result for part in inputs)
        self.next(self.flaky)

    @retry(times=2, minutes_between_retries=0)
    @step
    def flaky(self):
        if current.retry_count == 0:
            raise ConnectionError("no route to the shop")
        self.next(self.end)

    @step
    def end(self):
        if os.environ.get("SHOP_BROKEN"):
            raise RuntimeError("no item 1")


if __name__ == "__main__":
    Nightly()
