"""A real PostgreSQL: Debian's binaries, a data folder of its own, loopback alone, a password that is made up."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.processes import identify

USER = "mosis"
_PATIENCE_S = 120.0
_UNPRIVILEGED = ("postgres", "nobody")
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    # We kill the server and never the machine, which keeps what was written.
    "fsync": "off",
}


class Postgres:
    """A server in `folder`, which belongs to `account` where we are root: PostgreSQL refuses to run as root."""

    def __init__(self, binaries: Path, folder: Path, account: pwd.struct_passwd | None) -> None:
        self.binaries, self.folder, self.account = binaries, folder, account
        self.password = f"planted-{secrets.token_hex(8)}"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None
        self._initialise()

    def url(self, database: str = "postgres", *, password: str | None = None) -> str:
        """postgresql://, as `mosis up --database` takes it. password: another one than the right one."""
        return f"postgresql://{USER}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Also after `kill`; returns when it answers."""
        options = [word for name, value in _OPTIONS.items() for word in ("-c", f"{name}={value}")]
        command = [str(self.binaries / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([*self._dies_with_us(), *command], stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.rows("SELECT 1")
                return
            except OSError:
                said = (self.folder / "log").read_text()[-2000:]
                assert self.process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)

    def kill(self) -> None:
        """kill -9 of the server, which its own processes notice; returns when they have gone, too."""
        assert self.process is not None
        family = list(filter(None, map(identify, _children(self.process.pid))))
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + _PATIENCE_S
        while any(process.is_alive() for process in family):
            assert time.monotonic() < deadline, "PostgreSQL's processes outlive it"
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def make_database(self, name: str) -> str:
        """A new empty database; its URL."""
        self.rows(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def rows(self, query: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """What the query gives. Raises OSError where the server does not answer."""
        import psycopg

        try:
            with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
                cursor = connection.execute(query)  # type: ignore[call-overload]
                return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError as error:
            raise OSError(str(error)) from None

    def dump(self, database: str) -> bytes:
        """All that the database holds, as text."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, database]
        own = {**os.environ, "PGPASSWORD": self.password}
        command = [str(self.binaries / "pg_dump"), *where]
        return subprocess.run(command, env=own, capture_output=True, check=True, timeout=_PATIENCE_S).stdout

    def _initialise(self) -> None:
        words = self.folder / "password"
        words.write_text(self.password)
        words.chmod(0o600)
        if self.account:
            os.chown(words, self.account.pw_uid, self.account.pw_gid)
            os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
        command = [str(self.binaries / "initdb"), "-D", str(self.folder / "data"), "-U", USER, "-E", "UTF8"]
        command += ["--locale=C", "--auth=scram-sha-256", f"--pwfile={words}", "--no-sync"]
        done = subprocess.run([*self._dies_with_us(), *command], capture_output=True, text=True, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        words.unlink()

    def _dies_with_us(self) -> list[str]:
        words = ["setpriv", "--pdeathsig", "INT"]
        if self.account:
            words += [f"--reuid={self.account.pw_uid}", f"--regid={self.account.pw_gid}", "--clear-groups"]
        return words


def find_binaries() -> Path | None:
    """The folder of initdb and postgres: on the PATH, or Debian's newest."""
    places = [shutil.which("postgres"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)]
    for place in filter(None, places):
        folder = Path(place).resolve().parent
        if (folder / "initdb").exists():
            return folder
    return None


@contextlib.contextmanager
def serve_postgres() -> Iterator[Postgres]:
    """A running server, gone with all its data afterwards. The test skips where PostgreSQL is not installed."""
    binaries = find_binaries()
    if binaries is None or shutil.which("setpriv") is None:
        pytest.skip("needs PostgreSQL's server and setpriv: apt-get install postgresql util-linux")
    account = None
    if os.getuid() == 0:
        known = {one.pw_name: one for one in pwd.getpwall()}
        account = next((known[name] for name in _UNPRIVILEGED if name in known), None)
        if account is None:
            pytest.skip("needs a user postgres or nobody: PostgreSQL does not run as root")
    # Not below pytest's own folder: that user may not enter it.
    with tempfile.TemporaryDirectory(prefix="mosis-postgres-") as folder:
        server = Postgres(binaries, Path(folder), account)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
