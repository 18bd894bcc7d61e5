"""Prints the notifications of an Alertmanager, one line for each alert: `python print_alerts.py [HOST:PORT]`.

To see what is sent before there is a receiver of your own. The body is what a webhook gets
(https://prometheus.io/docs/alerting/latest/configuration/#webhook_config).
"""

import contextlib
import http.server
import json
import sys
from typing import Any

DEFAULT = "127.0.0.1:9095"


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            alerts = json.loads(body)["alerts"]
            lines = "".join(f"{line(alert)}\n" for alert in alerts)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            self.send_error(400, f"not a notification of an Alertmanager: {type(error).__name__}")
            return
        # In one piece, because notifications arrive at the same time.
        sys.stdout.write(lines)
        sys.stdout.flush()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def line(alert: dict[str, Any]) -> str:
    labels, notes = alert["labels"], alert["annotations"]
    words = (alert["status"].upper(), labels.get("severity", "-"), labels["alertname"], notes.get("summary", ""),
             notes.get("runbook_url", ""))  # fmt: skip
    # What a workflow is called may hold anything.
    return "  ".join("".join(c if c.isprintable() else "?" for c in word) for word in words)


if __name__ == "__main__":
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else DEFAULT).rpartition(":")
    with http.server.ThreadingHTTPServer((host, int(port)), Receiver) as server:
        print("listening on {}:{}".format(*server.server_address[:2]), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
