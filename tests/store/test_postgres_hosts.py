"""URLs that name several hosts, and options as libpq has them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from tachograph.errors import BadDatabaseURL, DatabaseUnavailable
from tachograph.recording.spool import address
from tachograph_exporter.store import postgres_hosts
from tachograph_exporter.store.database import Database


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p@a:1,b:2/runs?sslmode=require", (("a", 1), ("b", 2))),
        ("postgresql://u:p%2C@a,b:2/runs", (("a", 5432), ("b", 2))),
        ("postgresql://[::1]:1,[fe80::2]/runs", (("::1", 1), ("fe80::2", 5432))),
        ("postgresql+asyncpg://u:p,q/r@a:1,b:2/runs", (("a", 1), ("b", 2))),
        ("postgresql://u@/runs?host=a:1&host=b:2", (("a", 1), ("b", 2))),
        ("postgresql://u@/runs?host=a,b&port=1,2", (("a", 1), ("b", 2))),
        ("postgresql://u@/runs?host=a,b&port=3", (("a", 3), ("b", 3))),
        ("postgresql://u:p,q/r@a:1/runs", ()),
        ("postgresql://u@/runs?host=/run/postgresql", ()),
    ],
)
def test_hosts_of_a_url(url: str, hosts: postgres_hosts.Hosts) -> None:
    rest, parsed = postgres_hosts.split(make_url(postgres_hosts.with_hosts_as_options(url)))
    assert parsed == hosts
    assert rest.database == "runs"
    if hosts and "q/r" not in url:
        assert "host" not in rest.query
        assert rest.host is None
        assert address(url) == address("postgresql://" + ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in
                                                                  reversed(hosts)) + "/runs")  # fmt: skip


def test_a_url_is_shown_as_it_is_written_without_its_password() -> None:
    for url in ("postgresql://u@a:1,[::1]:2/runs?sslmode=require", "postgresql://a:1,b:2/runs", "postgresql://u@a:1/x"):
        assert postgres_hosts.display(make_url(postgres_hosts.with_hosts_as_options(url))) == url
    shown = postgres_hosts.display(make_url(postgres_hosts.with_hosts_as_options("postgresql://u:secret@a,b/runs")))
    assert shown == "postgresql://u:***@a:5432,b:5432/runs"


@pytest.mark.parametrize("url", ["postgresql://u@a:1,b:x/runs", "postgresql://u@a,/runs", "postgresql://u@,/runs"])
def test_what_is_no_host_is_refused(url: str) -> None:
    with pytest.raises(BadDatabaseURL):
        Database(url, wait_seconds=1)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Accepts connections, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_first_host_that_answers_is_used(postgres: Callable[..., str], silent_port: int, closed_port: int) -> None:
    before, _, after = postgres().partition("127.0.0.1")
    url = (
        f"{before}127.0.0.1:{closed_port},127.0.0.1:{silent_port},127.0.0.1{after}?application_name=here&sslmode=prefer"
    )
    database = Database(url)
    try:
        name = database.run(lambda c: c.execute(text("SELECT current_setting('application_name')")).scalar())
        assert name == "here"
        assert f"127.0.0.1:{closed_port},127.0.0.1:{silent_port},127.0.0.1:" in database.name
    finally:
        database.close()


def test_the_error_is_that_of_the_server_that_answered(
    postgres: Callable[..., str], silent_port: int, closed_port: int
) -> None:
    before, _, after = postgres().partition("127.0.0.1")
    hosts = f"127.0.0.1:{silent_port},127.0.0.1{after.replace('test_', 'none_')}"
    with pytest.raises(Exception, match="does not exist"):
        Database(f"{before.replace('postgres@', 'u:secret@')}{hosts}")
    with pytest.raises(DatabaseUnavailable) as raised:
        Database(f"postgresql://u:secret@127.0.0.1:{closed_port},127.0.0.1:{silent_port}/runs")
    assert "secret" not in str(raised.value)
