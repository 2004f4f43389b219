"""A PostgreSQL server of the tests' own: made in a temporary folder, on a Unix socket, run without privileges."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def _folder_of_binaries() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    for folder in reversed(folders):
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    pytest.skip("no PostgreSQL server is installed here (Debian: apt install postgresql)")


@contextlib.contextmanager
def cluster() -> Iterator[Callable[[], str]]:
    """Run a server; what is yielded makes an empty place for a ledger and returns its URL."""
    pytest.importorskip("psycopg")
    import psycopg

    binaries = _folder_of_binaries()
    # Not pytest's folder: it is the caller's alone, and PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="taggant-pg-"))
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)

    def call(*command: str) -> None:
        done = subprocess.run(
            [str(binaries / command[0]), *command[1:]], user=user, cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + done.stdout

    data = str(folder / "data")
    try:
        call("initdb", "-D", data, "-U", "taggant", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=40"
        # pg_ctl's own output goes to a file: the server keeps what it inherits open.
        call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", settings, "start")
        try:

            def schema() -> str:
                # A schema each: a database each takes a quarter of a second to make, and a second to remove.
                name = f"t{uuid.uuid4().hex[:12]}"
                with psycopg.connect(f"host={folder} user=taggant dbname=postgres", autocommit=True) as connection:
                    connection.execute(f"CREATE SCHEMA {name}".encode())
                return f"postgresql://taggant@/postgres?host={folder}&options=-csearch_path%3D{name}"

            yield schema
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
