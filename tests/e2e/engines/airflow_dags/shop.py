"""Airflow DAGs as users write them; Airflow traces them itself."""

from datetime import datetime, timedelta
from time import sleep

from airflow.exceptions import AirflowSkipException
from airflow.providers.standard.sensors.time_delta import WaitSensor
from airflow.sdk import dag, task, task_group

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


@dag(**ONCE)
def waiting():
    pause = WaitSensor(task_id="pause", time_to_wait=timedelta(seconds=4), deferrable=True, retries=2)
    extract() >> pause >> load()


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
waiting()
failing()
