"""For ``opentelemetry-instrument``: a script's workflows and steps are recorded without a change to the script.

The entry point ``opentelemetry_instrumentor`` names `TachographInstrumentor`, so ``opentelemetry-instrument python
script.py`` sets the recorder up with the provider that OpenTelemetry's distribution made from ``OTEL_*``, before the
script begins.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from tachograph.recording import setup
from tachograph.recording.recorder import Recorder


class TachographInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Sets up the process's recorder, as `tachograph.configure` does.

    ``instrument`` takes ``tracer_provider`` (default: the one set) and what `configure` takes. A recorder that is
    there already stays. ``uninstrument`` delivers what was recorded and closes the one made here.
    """

    _made: Recorder | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing: what is instrumented is Tachograph itself."""
        return ()

    def _instrument(self, **options: Any) -> None:
        provider = options.pop("tracer_provider", None)
        known = {key: value for key, value in options.items() if key in ("database", "workspace", "measures", "spans")}
        self._made = setup.set_up_once(provider=provider, **known)

    def _uninstrument(self, **_options: Any) -> None:
        if self._made is not None:
            setup.release(self._made)
            self._made.close()
            self._made = None
