"""A task that does nothing. Celery's worker loads this module."""

import os

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])


@app.task
def nothing(before: int) -> int:
    return before
