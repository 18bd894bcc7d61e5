"""Dask: ``tachograph.integrations.dask.instrument(client)``, once for a cluster.

A plugin of the scheduler tells what happens to tasks; a small one of the workers tells the scheduler when a task really
begins. A run is what was sent in one graph, and what is sent later and depends on its tasks; or a block `together`. A
step is named like the prefix of its tasks' keys; tasks of one layer are instances of one step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tachograph.identity import new_id
from tachograph.names import clean_name
from tachograph.quiet_log import QuietLog

quiet = QuietLog(logging.getLogger(__name__))


def instrument(client: Any) -> None:
    """Report the tasks of a client's cluster, whoever sends them; call it once, or again without effect.

    The scheduler's process needs Tachograph, and says where things are recorded (`tachograph.configure`, or
    ``TACHOGRAPH_URL`` in its environment); workers need only the package. Never raises, and never into Dask.
    """
    try:
        from tachograph.integrations.dask_plugins import TasksPlugin, WorkerTasksPlugin

        client.register_plugin(TasksPlugin())
        client.register_plugin(WorkerTasksPlugin())
    except Exception:
        quiet.exception("instrument", "Dask is not instrumented")


def uninstrument(client: Any) -> None:
    """Take everything back that `instrument` did. Never raises."""
    try:
        from tachograph.integrations.dask_plugins import NAME

        client.unregister_worker_plugin(NAME)
        client.unregister_scheduler_plugin(NAME)
    except Exception:
        quiet.exception("uninstrument", "Dask is not uninstrumented")


@contextmanager
def together(workflow: str, *, run_id: object = None) -> Iterator[None]:
    """Let all graphs that are sent in the block be one run of a workflow.

    Args:
        workflow: name of the workflow.
        run_id: what the run is called, unique in its workflow (default: a new id).
    """
    import dask

    from tachograph.integrations.dask_plugins import ANNOTATION

    dask_: Any = dask  # It does not list what it exports.
    name = clean_name(workflow) or "?"
    identifier = new_id() if run_id is None else clean_name(run_id)
    with dask_.annotate(**{ANNOTATION: [name, identifier]}):
        yield
