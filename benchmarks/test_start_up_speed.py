"""How long a person waits for `taggant --help`: a process of its own, interpreter included."""

from __future__ import annotations

import subprocess
import sys

from pytest_benchmark.fixture import BenchmarkFixture


def test_help(benchmark: BenchmarkFixture) -> None:
    command = [sys.executable, "-c", "import cli; cli.main()", "--help"]
    done = benchmark.pedantic(subprocess.run, (command,), {"capture_output": True, "check": True}, rounds=10)
    assert done.stdout.startswith(b"Usage: taggant")
