"""Airflow DAGs as users write them; Airflow traces them itself."""

import os
import signal
from datetime import datetime, timedelta
from time import sleep

from airflow.exceptions import AirflowSkipException
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.sensors.time_delta import WaitSensor
from airflow.sdk import dag, task, task_group

ONCE = {"schedule": "@once", "start_date": datetime(2026, 1, 1), "catchup": False}


@task
def extract():
    sleep(0.2)
    return [*range(5)]


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


@task(retries=1, retry_delay=timedelta(seconds=1))
def fragile(**context):
    if context["ti"].try_number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@dag(schedule=None, start_date=datetime(2026, 1, 1))
def child():
    load()


@dag(**ONCE)
def starting():
    started = TriggerDagRunOperator(task_id="start", trigger_dag_id="child", wait_for_completion=True, poke_interval=1)
    fragile() >> started


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
child()
starting()
failing()
