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

SECONDS = float(os.environ.get("FUZZ_SECONDS", "8"))
# The same requests each time, unless there is time for others.
FIRST_ROUND = 0 if SECONDS < 60 else random.SystemRandom().randrange(1 << 30)


@pytest.fixture
def service(any_database_url: str, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, "--database", any_database_url, "--require-token", TACHOGRAPH_TOKEN=TOKEN)
    yield server.start()
    if server.process is not None:
        server.process.kill()
        server.process.wait()


@pytest.mark.timeout(SECONDS + 120)
def test_no_request_is_an_error_of_the_service(service: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert service.process is not None
    fuzzer = Fuzzer(service.address, service.process.pid)
    fuzzer.run(SECONDS, FIRST_ROUND)
    fuzzer.session.close()
    with capsys.disabled():
        print(f"\nseed {FIRST_ROUND}: {report(fuzzer)}")
    assert not fuzzer.failures, "\n".join(fuzzer.failures[:20])
    assert fuzzer.memory_mib < MAX_MEMORY_MIB
    assert get(f"{service.address}/-/ready")[0] == 200
    assert fuzzer.count > 50
    log = service.log.read_text()
    assert "Traceback" not in log, log[-4000:]
