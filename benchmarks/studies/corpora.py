"""Tally synthetic corpora of token ids and measure time and memory: the table "Corpora" of docs/benchmarks.md.

    python benchmarks/studies/corpora.py make FOLDER --tokens 1e9
    python benchmarks/studies/corpora.py measure FOLDER --workers 2 [--capacity 16777216] [--kill 2]

`make` writes Parquet files of Zipf-distributed ids (exponent 1.2 over SmolLM2's vocabulary) in documents of 1,000, from
a seed. `measure` runs `taggant tally build` in a process of its own and prints a row: tokens, bytes, workers, seconds,
seconds of all cores together, tokens for each of those, the largest resident memory of all its processes together, the
windows kept, pairs. With `--kill N` the run is made a second time, killed (kill -9) N times and gone on with,
and the files are compared.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LENGTH = 1000
PER_FILE = 10**8
VOCABULARY = 49_152


def make(folder: Path, tokens: int) -> None:
    """Write the files that are not there."""
    folder.mkdir(exist_ok=True, parents=True)
    # Drawing from a table of the quantiles is twenty times faster than numpy's zipf.
    rng = np.random.default_rng(0)
    weights = np.arange(1, VOCABULARY - 19) ** -1.2
    quantiles = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(2**20)).clip(max=VOCABULARY - 21)
    table = rng.permutation(np.arange(20, VOCABULARY, dtype=np.uint32))[quantiles]
    for number in range(-(-tokens // PER_FILE)):
        count = min(PER_FILE, tokens - number * PER_FILE)
        path = folder / f"{number:04}.parquet"
        if path.exists():
            continue
        rng = np.random.default_rng(number + 1)
        schema = pa.schema([("token_ids", pa.list_(pa.uint32()))])
        partial = path.with_suffix(".partial")
        with pq.ParquetWriter(partial, schema, compression="lz4", use_dictionary=False) as out:
            for start in range(0, count, 10**7):
                size = min(10**7, count - start)
                ids = table[rng.integers(0, 2**20, size)]
                offsets = pa.array(np.arange(0, size + 1, LENGTH, dtype=np.int32))
                out.write_table(pa.table([pa.ListArray.from_arrays(offsets, pa.array(ids))], schema=schema))
        partial.rename(path)


def resident(pid: int) -> int:
    """Return the resident kilobytes of a process and all below it together: pages that they share count once (PSS)."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            for line in Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii").splitlines():
                total += int(line.split()[1]) if line.startswith("Pss:") else 0
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text(encoding="ascii").split())
        except (OSError, ValueError):
            continue
    return total


def run(command: list[str], *, until: float = float("inf")) -> tuple[bool, float, int]:
    """Run to the end, or kill the process group after *until* seconds: ended by itself, seconds, kilobytes at most."""
    began, most = time.monotonic(), 0
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, resident(process.pid))
        if time.monotonic() - began > until:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False, time.monotonic() - began, most
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    return True, time.monotonic() - began, most


def measure(folder: Path, workers: int, capacity: int, kills: int, every: float) -> None:
    """Print the row."""
    from detect.tally_file import read_tally

    out = folder / "undisturbed.tally"
    options = ["--workers", str(workers), "--capacity", str(capacity), "--checkpoint-seconds", str(every)]

    def command(path: Path) -> list[str]:
        files = [str(file) for file in sorted(folder.glob("*.parquet"))]
        return [sys.executable, "-m", "cli", "tally", "build", *files, "--out", str(path), *options]

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, seconds, most = run(command(out))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tally, _ = read_tally(out)
    tokens = tally.about.tokens
    size = sum(file.stat().st_size for file in folder.glob("*.parquet"))
    print(
        f"| {tokens:,} | {size / 1e9:.1f} GB | {workers} | {seconds:.1f} s | {busy:.1f} s | "
        f"{tokens / busy / 1e6:.1f} M | "
        f"{most / 1e6:.2f} GB | 1 in {2**tally.rows.level} | {tally.rows.pairs:,} |",
        flush=True,
    )
    if kills:
        disturbed = folder / "disturbed.tally"
        for number in range(kills):
            done, after, _ = run(command(disturbed), until=seconds * random.Random(number).uniform(0.3, 0.6))
            print(f"  run {number + 1}: {'done' if done else 'killed'} after {after:.0f} s", flush=True)
        _, rest, _ = run(command(disturbed))
        same = disturbed.read_bytes() == out.read_bytes()
        print(f"  gone on with: {rest:.0f} s; the file is {'the same' if same else 'ANOTHER'}", flush=True)
        raise SystemExit(0 if same else 1)


def main() -> None:
    """Make or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=float, default=1e8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--capacity", type=int, default=2**24)
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--checkpoint-seconds", type=float, default=20.0)
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder, int(options.tokens))
    else:
        measure(options.folder, options.workers, options.capacity, options.kill, options.checkpoint_seconds)


if __name__ == "__main__":
    main()
