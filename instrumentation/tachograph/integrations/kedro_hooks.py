"""The hooks that Kedro finds by entry point. See `tachograph.integrations.kedro`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from kedro.framework.hooks import hook_impl

from tachograph.integrations import kedro as reports

_F = TypeVar("_F", bound=Callable[..., None])


def _hook(function: _F) -> _F:
    return cast(_F, hook_impl(function))


class TachographHooks:
    """Hands on what Kedro's hook specifications say."""

    @_hook
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any) -> None:
        """A session is about to run a pipeline."""
        reports.pipeline_starts(run_params, pipeline)

    @_hook
    def after_pipeline_run(self, run_params: dict[str, Any]) -> None:
        """The pipeline has run."""
        reports.pipeline_ended(run_params)

    @_hook
    def on_pipeline_error(self, error: Exception, run_params: dict[str, Any]) -> None:
        """The pipeline failed."""
        reports.pipeline_failed(run_params, error)

    @_hook
    def before_node_run(self, node: Any, run_id: str) -> None:
        """A node begins."""
        reports.node_starts(node, run_id)

    @_hook
    def after_node_run(self, node: Any, outputs: dict[str, Any], run_id: str) -> None:
        """A node ended well."""
        reports.node_ended(node, outputs, run_id)

    @_hook
    def on_node_error(self, error: Exception, node: Any, run_id: str) -> None:
        """A node failed."""
        reports.node_failed(node, error, run_id)


class _Nothing:
    """Hooks where the environment does not say where to report."""


hooks = TachographHooks() if reports.is_configured() else _Nothing()
