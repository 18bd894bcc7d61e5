"""Dagster jobs as users write them, instrumented only with opentelemetry-instrumentation-dagster.

opentelemetry-instrument python dagster_jobs.py JOB        with DAGSTER_HOME
"""

import os
import signal
import sys
import time

from dagster import (
    DagsterInstance,
    Definitions,
    DynamicOut,
    DynamicOutput,
    Failure,
    Out,
    Output,
    RetryPolicy,
    asset,
    define_asset_job,
    graph,
    job,
    op,
)


@op
def extract():
    time.sleep(0.1)
    return 3


@op(out=DynamicOut(int))
def fan(number):
    for i in range(number):
        yield DynamicOutput(i, mapping_key=f"m{i}")


@op
def work(number):
    time.sleep(0.05 + 0.05 * number)
    return number


@op
def merge(numbers):
    time.sleep(0.05)
    return sum(numbers)


@op(retry_policy=RetryPolicy(max_retries=2, delay=0.5))
def flaky(context, number):
    time.sleep(0.05)
    if context.retry_number == 0:
        raise ConnectionError("no route to the shop")
    return number


@op(out={"left": Out(is_required=False), "right": Out(is_required=False)})
def choose(number):
    yield Output(number, "left")


@op
def load(number):
    time.sleep(0.05)
    return number


@op
def never(number):
    raise AssertionError("never run")


@op
def broken(number):
    raise Failure("no item 1")


@graph
def sub(number):
    return load(number)


@job
def nightly():
    total = flaky(merge(fan(extract()).map(work).collect()))
    left, right = choose(total)
    never(right)
    load.alias("store")(left)
    sub(total)


@job
def failing():
    load(broken(extract()))


@op
def die(number):
    # Spans of steps that have ended are sent every 0.2 s.
    time.sleep(0.6)
    os.kill(os.getpid(), signal.SIGKILL)


@job
def dying():
    die(extract())


@op
def check(number):
    time.sleep(0.05)
    return number


@op(retry_policy=RetryPolicy(max_retries=1, delay=0.3))
def refused(number):
    time.sleep(0.05)
    raise ConnectionError("no route to the shop")


@graph
def outer(number):
    return check(sub(number))


@graph
def for_each(number):
    return check.alias("second")(check.alias("first")(number))


@job
def varied():
    """Graphs in graphs, one of them for each of several, and a step that fails as often as it may."""
    merge(fan(outer(extract())).map(for_each).collect())
    load.alias("after")(refused(extract.alias("other")()))


@asset
def orders():
    time.sleep(0.05)
    return [1, 2]


@asset
def customers():
    time.sleep(0.05)
    return [3]


@asset
def report(orders, customers):
    time.sleep(0.05)
    return len(orders) + len(customers)


assets = Definitions(assets=[orders, customers, report], jobs=[define_asset_job("warehouse")])
warehouse = assets.resolve_job_def("warehouse")


if __name__ == "__main__":
    with DagsterInstance.get() as instance:
        globals()[sys.argv[1]].execute_in_process(instance=instance, raise_on_error=False)
