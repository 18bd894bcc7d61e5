"""Airflow DAGs as users write them; Airflow traces them itself."""

import os
from datetime import datetime, timedelta
from pathlib import Path
from time import sleep

from airflow.exceptions import AirflowSkipException
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, dag, task, task_group

ONCE = {"schedule": "@once", "start_date": datetime(2026, 1, 1), "catchup": False}


@task
def extract():
    sleep(0.2)
    return [0, 1, 2]


@task
def work(number):
    sleep(0.2)
    return number


@task
def merge(numbers):
    sleep(0.2)


@task(retries=2, retry_delay=timedelta(seconds=1))
def flaky(**context):
    if context["ti"].try_number == 1:
        raise ConnectionError("no route to the shop")


@task.branch
def choose():
    return "load"


@task
def load():
    sleep(0.1)


@task
def never():
    raise AssertionError("never run")


@task
def skipper():
    raise AirflowSkipException("nothing to do")


@task
def check():
    sleep(0.1)


@task_group
def checks():
    check()


@task
def broken():
    raise RuntimeError("no item 1")


@task
def after():
    raise AssertionError("never run")


class Later(BaseOperator):
    """Gives its worker back until two seconds have passed."""

    def execute(self, context):
        sleep(0.2)
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=2)), method_name="go_on")

    def go_on(self, context, event=None):
        sleep(0.2)


@task.sensor(poke_interval=1, mode="reschedule", timeout=60)
def ready():
    """Looks twice, and gives its worker back in between."""
    path = Path(os.environ["AIRFLOW_HOME"], "ready")
    was_there = path.exists()
    path.touch()
    return was_there


@dag(**ONCE)
def waiting():
    fetched = extract()
    fetched >> [Later(task_id="later"), ready()] >> load()


@dag(**ONCE)
def nightly():
    merged = merge(work.expand(number=extract()))
    skipper()
    merged >> checks()
    merged >> flaky() >> (chosen := choose())
    chosen >> [load(), never()]


@dag(**ONCE)
def failing():
    fetched = extract()
    fetched >> broken() >> after()
    fetched >> load()


nightly()
failing()
waiting()
