"""The plugin that Airflow finds by entry point. See `tachograph.integrations.airflow`."""

from __future__ import annotations

from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

from tachograph.integrations import airflow as hooks


class _Listener:
    """Hands on what Airflow's listener interface says."""

    @hookimpl
    def on_dag_run_running(self, dag_run: Any, msg: str) -> None:
        """A DAG run starts."""
        hooks.dag_run_running(dag_run)

    @hookimpl
    def on_dag_run_success(self, dag_run: Any, msg: str) -> None:
        """A DAG run ended well."""
        hooks.dag_run_success(dag_run)

    @hookimpl
    def on_dag_run_failed(self, dag_run: Any, msg: str) -> None:
        """A DAG run failed."""
        hooks.dag_run_failed(dag_run, msg)

    @hookimpl
    def on_task_instance_running(self, previous_state: Any, task_instance: Any) -> None:
        """A try of a task starts."""
        hooks.task_instance_running(task_instance)

    @hookimpl
    def on_task_instance_success(self, previous_state: Any, task_instance: Any) -> None:
        """A task ended well."""
        hooks.task_instance_success(task_instance)

    @hookimpl
    def on_task_instance_failed(self, previous_state: Any, task_instance: Any, error: Any) -> None:
        """A try of a task failed."""
        hooks.task_instance_failed(task_instance, error)

    @hookimpl
    def on_task_instance_skipped(self, previous_state: Any, task_instance: Any) -> None:
        """A task skipped itself."""
        hooks.task_instance_skipped(task_instance)


class TachographPlugin(AirflowPlugin):  # type: ignore[misc]
    """Reports runs, if the environment says where to (``TACHOGRAPH_URL``)."""

    name = "tachograph"
    listeners = [_Listener()] if hooks.is_configured() else []
