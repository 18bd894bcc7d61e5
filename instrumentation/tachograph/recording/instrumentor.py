"""Support for ``opentelemetry-instrument``: record a script's workflows and steps without changing the script.

The entry point ``opentelemetry_instrumentor`` names `TachographInstrumentor`, so ``opentelemetry-instrument python
script.py`` sets up the recorder before the script starts, with the provider that OpenTelemetry's distribution built
from ``OTEL_*``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from tachograph.recording import setup
from tachograph.recording.recorder import Recorder


class TachographInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Sets up the process's recorder, as `tachograph.configure` does.

    ``instrument`` takes ``tracer_provider`` (default: the current one) and, of the options of `configure`,
    ``database``, ``workspace``, ``measures`` and ``spans``. An existing recorder stays. ``uninstrument`` delivers what
    was recorded and closes the recorder that ``instrument`` set up.
    """

    _recorder: Recorder | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """No dependencies: it instruments Tachograph itself."""
        return ()

    def _instrument(self, **options: Any) -> None:
        provider = options.pop("tracer_provider", None)
        chosen = {key: value for key, value in options.items() if key in ("database", "workspace", "measures", "spans")}
        self._recorder = setup.set_up_once(provider=provider, **chosen)

    def _uninstrument(self, **_options: Any) -> None:
        if self._recorder is not None:
            setup.release(self._recorder)
            self._recorder.close()
            self._recorder = None
