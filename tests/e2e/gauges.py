"""Gauges for a Prometheus to scrape, which a test changes as it goes."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator


class Gauges:
    """Shows gauges, as a service does. All belong to the workspace "team"."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        gauges = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = "".join(f"{series} {value!r}\n" for series, value in [*gauges._values.items()]).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                # Prometheus may have given up.
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    def set(self, metric: str, value: float, **labels: str) -> None:
        """Show this value of a series."""
        inside = ",".join(f'{name}="{text}"' for name, text in {"workspace": "team", **labels}.items())
        self._values[f"{metric}{{{inside}}}"] = float(value)

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Answer scrapes meanwhile."""
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
