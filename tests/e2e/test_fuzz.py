"""No request that can be made up is an error of the service, takes long, or takes much memory.

`FUZZ_SECONDS` says how long each database is tried: a few seconds here, ten minutes with `make fuzz`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import Server, get
from tests.e2e.fuzzing import MAX_MEMORY_MIB, TOKEN, Fuzzer, report

from tachograph_exporter.ingest.envelope import field

SECONDS = float(os.environ.get("FUZZ_SECONDS", "8"))
# The same requests each time, unless there is time for others.
FIRST_ROUND = 0 if SECONDS < 60 else random.SystemRandom().randrange(1 << 30)


DENSE = [
    ("/v1/traces", "application/x-protobuf", field(1, field(2, field(2, b"\x4a\x00" * 4_900_000)))),
    ("/v1/traces", "application/json", b'{"resourceSpans":[' + b"1," * 900_000 + b"1]}"),
    ("/v1/traces", "application/json", b'{"resourceSpans":[' + b",".join([b'{"a":1}'] * 500_000) + b"]}"),
    ("/api/workflows/validate", "application/json", b'{"name":"w","metadata":[' + b"{}," * 3_000_000 + b"1]}"),
]


@pytest.fixture
def service(any_database_url: str, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, "--database", any_database_url, "--require-token", TACHOGRAPH_TOKEN=TOKEN)
    yield server.start()
    if server.process is not None:
        server.process.kill()
        server.process.wait()


@pytest.mark.timeout(SECONDS + 900)
def test_no_request_is_an_error_of_the_service(service: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert service.process is not None
    fuzzer = Fuzzer(service.address, service.process.pid)
    fuzzer.run(SECONDS, FIRST_ROUND)
    if fuzzer.count <= 50:
        # A busy machine: as long again, and more.
        fuzzer.run(max(30.0, SECONDS), FIRST_ROUND + 1)
    # A hundred times as large in memory as they are sent, if they are read as a whole.
    assert {fuzzer.post(*body) for body in DENSE for _ in range(2)} == {400, 413}
    fuzzer.session.close()
    with capsys.disabled():
        print(f"\nseed {FIRST_ROUND}: {report(fuzzer)}")
    assert not fuzzer.failures, "\n".join(fuzzer.failures[:20])
    assert fuzzer.memory_mib < MAX_MEMORY_MIB
    assert get(f"{service.address}/-/ready")[0] == 200
    assert fuzzer.count > 10
    log = service.log.read_text()
    assert "Traceback" not in log, log[-4000:]
