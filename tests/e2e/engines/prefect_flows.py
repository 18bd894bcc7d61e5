"""Prefect flows as users write them; Prefect traces them itself.

opentelemetry-instrument python prefect_flows.py FLOW
python prefect_flows.py serve FLOW        as a deployment, whose runs are started by the server
"""

import sys
import time

from prefect import flow, task


@task
def extract():
    time.sleep(0.1)
    return [0, 1, 2]


@task
def work(number):
    time.sleep(0.1 + 0.1 * number)
    return number


@task
def merge(numbers):
    time.sleep(0.05)
    return sum(numbers)


@task(retries=2, retry_delay_seconds=1)
def flaky(number):
    from prefect.runtime import task_run

    time.sleep(0.05)
    if task_run.run_count == 1:
        raise ConnectionError("no route to the shop")
    return number


@task(cache_key_fn=lambda *_: "the same", persist_result=True)
def cached():
    time.sleep(0.05)
    return 1


@task
def load(number):
    time.sleep(0.1)


@task
def broken(number):
    raise RuntimeError("no item 1")


@task
def unreachable(number):
    raise AssertionError("never run")


@flow
def child(number):
    load(number)


@flow
def nightly():
    numbers = extract()
    total = merge(work.map(numbers))
    cached()
    cached()
    total = flaky(total)
    child(total)
    load(total)


@flow
def failing():
    extracted = extract.submit()
    failed = broken.submit(extracted)
    after = unreachable.submit(failed)
    return after.result()


@task(retries=1, retry_delay_seconds=0.2)
def refused(number):
    time.sleep(0.05)
    raise ConnectionError("no route to the shop")


@flow
def middle(number):
    extract()
    child(number)


@flow
def careless():
    broken(1)


@flow
def varied():
    first = extract.submit()
    loads = [load.submit(number) for number in range(3)]
    merged = merge.submit([1, 2], wait_for=[first, *loads])
    middle(merged.result())
    refused(1, return_state=True)
    careless(return_state=True)
    cached()


@flow(retries=1, retry_delay_seconds=1)
def twice():
    from prefect.runtime import flow_run

    extract()
    if flow_run.run_count == 1:
        raise ConnectionError("no route to the shop")


@flow(timeout_seconds=2)
def slow():
    extract()
    time.sleep(60)


@flow
def sleeping():
    extract()
    with open("asleep", "w"):
        time.sleep(60)


@task
def outer(number):
    return load.fn(number), inner(number)


@task
def inner(number):
    time.sleep(0.05)
    return number


@flow
def wide():
    """Five at once, some within a task, one after all of them whose results it does not get."""
    numbers = [work.submit(number % 2) for number in range(5)]
    within = outer(1)
    merge.submit([1], wait_for=[*numbers]).result()
    load(within)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        globals()[sys.argv[2]].serve(name="kinds")
    try:
        globals()[sys.argv[1]]()
    except Exception as error:
        print(repr(error), file=sys.stderr)
