"""Expose the metrics of your own process. They are in prometheus_client's registry, beside your other metrics."""

import urllib.request

from prometheus_client import start_http_server

import tachograph


@tachograph.step
def work(n: int) -> int:
    """Something that takes time."""
    return sum(i * i for i in range(n))


@tachograph.workflow
def batch() -> None:
    """Run a few steps."""
    for n in (1_000, 10_000, 100_000):
        work(n)


if __name__ == "__main__":
    server, thread = start_http_server(0, addr="127.0.0.1")
    batch()
    tachograph.get_recorder().flush()
    address = f"http://127.0.0.1:{server.server_port}/metrics"
    with urllib.request.urlopen(address) as response:
        lines = response.read().decode().splitlines()
    print("\n".join(line for line in lines if line.startswith("workflow_step_duration_seconds_count")))
    server.shutdown()
    server.server_close()
    thread.join()
