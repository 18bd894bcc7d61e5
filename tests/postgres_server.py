"""A real PostgreSQL server of a test's own, which it may stop, restart and reconfigure."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tools.local_service import free_port

from tests.temporary import root


def binary(name: str) -> str | None:
    """Where a program of PostgreSQL is; Debian keeps the server's outside the path."""
    path = shutil.which(name)
    if path is None:
        versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        path = str(versions[-1]) if versions else None
    return path


def _directory() -> Path:
    """A new directory for the server's files, which its user can enter."""
    directory = Path(tempfile.mkdtemp(prefix="tachograph-pg-", dir=root()))
    if os.getuid() == 0:
        shutil.chown(directory, "postgres")
    return directory


def _run(command: list[str]) -> None:
    # The server refuses to run as root, so the package's user runs it.
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/tmp")


@functools.cache
def _new_data() -> Path:
    """The data directory of a new server, made once a process: a copy costs a tenth of ``initdb``."""
    directory = _directory()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    initdb = binary("initdb")
    assert initdb is not None
    data = directory / "data"
    _run([initdb, "-D", str(data), "-A", "trust", "-U", "postgres", "--locale=C.UTF-8", "--no-sync"])
    return data


class PostgresServer:
    """A server on a free port with a data directory of its own. Skips the test where PostgreSQL is not installed.

    ``data``: a data directory to begin with, of a server that was stopped; the server uses a copy.
    """

    def __init__(self, data: Path | None = None, /, **settings: str | int) -> None:
        pg_ctl, basebackup = binary("pg_ctl"), binary("pg_basebackup")
        if binary("initdb") is None or pg_ctl is None or basebackup is None:
            pytest.skip("needs PostgreSQL (apt-get install postgresql)")
        self._pg_ctl = pg_ctl
        self._basebackup = basebackup
        self.directory = _directory()
        self._first_data = data
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}"
        self.settings: dict[str, str | int] = {"fsync": "off", "max_connections": 200, **settings}
        self._fill()

    def _fill(self) -> None:
        _run(["cp", "--recursive", str(self._first_data or _new_data()), self.data])
        self.start()

    @property
    def runs_url(self) -> str:
        """The database of the role ``app``, if the test has created it."""
        return f"postgresql://app@127.0.0.1:{self.port}/runs"

    @property
    def data(self) -> str:
        """The data directory."""
        return str(self.directory / "data")

    def start(self) -> None:
        """Start it with its settings, and wait until it accepts connections."""
        settings = " ".join(f"-c {name}={value}" for name, value in self.settings.items())
        options = f"-p {self.port} -k {self.directory} -c listen_addresses=127.0.0.1 {settings}"
        _run([self._pg_ctl, "-D", self.data, "-l", str(self.directory / "log"), "-o", options, "-w", "start"])

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``fast`` ends its sessions, ``immediate`` is a crash."""
        _run([self._pg_ctl, "-D", self.data, "-m", mode, "-w", "stop"])

    def restart(self) -> None:
        """As ``pg_ctl restart -m fast`` does."""
        self.stop()
        self.start()

    def follow(self, primary: PostgresServer) -> None:
        """Become a standby of another server, with a new copy of its data; must not be running."""
        shutil.rmtree(self.data, ignore_errors=True)
        source = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"]
        _run([self._basebackup, "-D", self.data, *source, "--write-recovery-conf", "--checkpoint=fast"])
        self.start()

    def promote(self) -> None:
        """End being a standby: from now on it is a primary."""
        _run([self._pg_ctl, "-D", self.data, "-w", "promote"])

    def sql(
        self, statement: str, *, database: str = "postgres", settings: str = "", timeout: float | None = None
    ) -> str:
        """Execute a statement as the superuser; its output. ``settings``: the session's own, as ``-c name=value``."""
        psql = binary("psql")
        assert psql is not None
        command = [psql, "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database]
        command += ["-qAt", "-c", statement]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd="/tmp", timeout=timeout,
            env={**os.environ, "PGOPTIONS": settings},
        )  # fmt: skip
        return done.stdout.strip()

    @contextlib.contextmanager
    def session(self) -> Iterator[Callable[[str], None]]:
        """Executes statements as the superuser in one session: for those that are many."""
        psql = binary("psql")
        assert psql is not None
        command = [psql, "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", "postgres"]
        command += ["-qAtX"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/tmp"
        ) as process:
            answers, statements = process.stdout, process.stdin
            assert answers is not None
            assert statements is not None

            def execute(statement: str) -> None:
                statements.write(f"{statement};\n\\echo executed\n")
                statements.flush()
                # The session goes on after an error: the next statement may be another test's.
                output = ""
                while (line := answers.readline()) != "executed\n":
                    if not line:
                        raise RuntimeError(f"{statement}: the session has ended: {output}")
                    output += line
                if output:
                    raise RuntimeError(f"{statement}: {output}")

            yield execute
            statements.close()

    def process_ids(self) -> list[int]:
        """The server's processes, its sessions' included."""
        parent = int((Path(self.data) / "postmaster.pid").read_text().split()[0])
        children = (Path(f"/proc/{parent}/task/{parent}/children")).read_text().split()
        return [parent, *map(int, children)]

    def close(self) -> None:
        """Stop it and remove its files."""
        with contextlib.suppress(subprocess.CalledProcessError):  # A test has stopped it.
            self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)


class PostgresStandby(PostgresServer):
    """A standby that follows another server."""

    def __init__(self, primary: PostgresServer) -> None:
        self._first_primary = primary
        super().__init__(**primary.settings)

    def _fill(self) -> None:
        self.follow(self._first_primary)


class PostgresDatabases:
    """Databases of one server, for tests that follow each other: each has its own, and sees nobody else's.

    ``execute``: a session of the superuser; ``template``: a database that nobody is connected to.
    """

    def __init__(self, server: PostgresServer, execute: Callable[[str], None], *, template: str) -> None:
        self.server = server
        self._execute = execute
        self._template = template
        # Copying through the log, the default since 15, costs three times the processor time.
        self._strategy = " STRATEGY FILE_COPY" if int(server.sql("SHOW server_version_num")) >= 150_000 else ""
        self._created = 0
        self._names: list[str] = []

    def create(self, *, empty: bool = False) -> str:
        """The URL of a new database: a copy of the template, or an ``empty`` one."""
        name = f"test_{self._created}"
        self._created += 1
        self._execute(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else self._template}{self._strategy}")
        self._names.append(name)
        return f"{self.server.url}/{name}"

    def drop(self) -> None:
        """Drop all databases created so far, whoever is still connected to them."""
        names, self._names = self._names, []
        for name in names:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")
