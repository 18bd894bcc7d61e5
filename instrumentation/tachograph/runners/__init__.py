"""Runners that have the steps of a workflow done by an engine's workers; the executor still decides what runs when.

One file an engine, each imports its engine only when it is used. What travels to a worker and back is `Work` and `Done`
(see `work`): the same for all of them.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from tachograph.errors import SetupError
from tachograph.workflow.runner import Runner

SCHEMES = ("celery", "dask", "temporal")


def runner_of(url: str) -> Runner:
    """The runner that a URL names: ``celery+BROKER``, ``dask://HOST:PORT``, or ``temporal://HOST:PORT/NAMESPACE``.

    Raises `SetupError` if there is no such runner, or its engine is not installed.
    """
    scheme = scheme_of(url)
    if scheme == "celery":
        from tachograph.runners.celery import CeleryRunner

        return CeleryRunner(url)
    if scheme == "temporal":
        from tachograph.runners.temporal import TemporalRunner

        return TemporalRunner(url)
    from tachograph.runners.dask import DaskRunner

    return DaskRunner(url)


def scheme_of(url: str) -> str:
    """The engine that a runner's URL names. Raises `SetupError`."""
    scheme = urlsplit(url).scheme.partition("+")[0]
    if scheme not in SCHEMES:
        raise SetupError(
            f"{url.partition('@')[2] or url!r} names no runner: expected celery://BROKER (such as "
            "celery+redis://localhost:6379/0), dask://HOST:PORT or temporal://HOST:PORT/NAMESPACE"
        )
    return scheme
