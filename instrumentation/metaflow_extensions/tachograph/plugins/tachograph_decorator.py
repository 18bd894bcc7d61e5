"""The step decorator ``tachograph``. See `tachograph.integrations.metaflow`.

Metaflow takes this file to wherever a step runs. Where Tachograph is not installed there, it does nothing.
"""

from __future__ import annotations

from typing import Any

from metaflow.decorators import StepDecorator

try:
    from tachograph.integrations import metaflow as reports
except ImportError:
    reports = None  # type: ignore[assignment]


class TachographDecorator(StepDecorator):  # type: ignore[misc]
    """Reports what happens to the tasks of its step, and to the run: ``--with tachograph``."""

    name = "tachograph"

    def runtime_init(self, flow: Any, graph: Any, package: Any, run_id: Any) -> None:
        """The scheduler begins a run."""
        if reports is not None:
            reports.run_starts(flow, graph, run_id)

    def runtime_task_created(
        self, task_datastore: Any, task_id: Any, split_index: Any, input_paths: Any, is_cloned: Any, ubf_context: Any
    ) -> None:
        """The scheduler has a task to run."""
        if reports is not None:
            reports.task_created(task_datastore, split_index, input_paths)

    def runtime_step_cli(self, cli_args: Any, retry_count: Any, max_user_code_retries: Any, ubf_context: Any) -> None:
        """The scheduler starts the process of an attempt."""
        if reports is not None:
            reports.attempt_launched(cli_args, retry_count)

    def runtime_finished(self, exception: Any) -> None:
        """The scheduler ends."""
        if reports is not None:
            reports.run_ended(exception)

    def task_pre_step(
        self, step_name: Any, task_datastore: Any, metadata: Any, run_id: Any, task_id: Any, flow: Any, graph: Any,
        retry_count: Any, max_user_code_retries: Any, ubf_context: Any, inputs: Any,
    ) -> None:  # fmt: skip
        """The step's function is called next."""
        if reports is not None:
            reports.task_starts(flow, graph, run_id, step_name, task_id, retry_count, inputs)

    def task_exception(
        self, exception: Any, step_name: Any, flow: Any, graph: Any, retry_count: Any, max_user_code_retries: Any
    ) -> None:
        """The step's function raised an exception."""
        if reports is not None:
            reports.task_raised(exception, retry_count < max_user_code_retries)

    def task_finished(
        self, step_name: Any, flow: Any, graph: Any, is_task_ok: Any, retry_count: Any, max_user_code_retries: Any
    ) -> None:
        """The task is over, and what it made is stored."""
        if reports is not None:
            reports.task_ended(bool(is_task_ok))
