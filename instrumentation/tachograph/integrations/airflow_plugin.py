"""The plugin that Airflow finds by entry point. See `tachograph.integrations.airflow`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

from tachograph.integrations import airflow as hooks

_F = TypeVar("_F", bound=Callable[..., None])


def _hook(function: _F) -> _F:
    return cast(_F, hookimpl(function))


class _Listener:
    """Hands on what Airflow's listener interface says."""

    @_hook
    def on_dag_run_running(self, dag_run: Any, msg: str) -> None:
        """A DAG run starts."""
        hooks.dag_run_running(dag_run)

    @_hook
    def on_dag_run_success(self, dag_run: Any, msg: str) -> None:
        """A DAG run ended well."""
        hooks.dag_run_success(dag_run)

    @_hook
    def on_dag_run_failed(self, dag_run: Any, msg: str) -> None:
        """A DAG run failed."""
        hooks.dag_run_failed(dag_run, msg)

    @_hook
    def on_task_instance_running(self, previous_state: Any, task_instance: Any) -> None:
        """A try of a task starts."""
        hooks.task_instance_running(task_instance)

    @_hook
    def on_task_instance_success(self, previous_state: Any, task_instance: Any) -> None:
        """A task ended well."""
        hooks.task_instance_success(task_instance)

    @_hook
    def on_task_instance_failed(self, previous_state: Any, task_instance: Any, error: Any) -> None:
        """A try of a task failed."""
        hooks.task_instance_failed(task_instance, error)

    @_hook
    def on_task_instance_skipped(self, previous_state: Any, task_instance: Any) -> None:
        """A task skipped itself."""
        hooks.task_instance_skipped(task_instance)


class TachographPlugin(AirflowPlugin):  # type: ignore[misc]
    """Reports runs, if the environment says where to (``TACHOGRAPH_URL``)."""

    name = "tachograph"
    listeners = [_Listener()] if hooks.is_configured() else []
