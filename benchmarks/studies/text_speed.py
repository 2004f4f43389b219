"""`taggant tally build` from JSON Lines of text beside the tokenizer alone in as many processes on the same texts.

    python benchmarks/studies/text_speed.py FOLDER... [--characters 330000000] [--workers 2] [--capacity PAIRS]

The texts are the source and the documentation in the folders, in pieces of 2,000 characters; where there are too few,
others that begin 400 characters later, and so on. Seconds are of the processors, of all processes together, those of
the start included. The tokenizer alone is timed twice: its own calls, and a program that does nothing else: processes
that read a part of the lines each, parse them with `json` and tokenise.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from watermark.tokenizer import load

KINDS = {".py", ".pyi", ".h", ".hpp", ".cpp", ".c", ".txt", ".md", ".rst", ".js", ".html", ".css", ".pod", ".pl", ".pm"}
CAPACITIES = (2**24, 2**20)


def pieces(folders: Sequence[str]) -> Iterator[str]:
    """Yield the texts under *folders* in pieces."""
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.suffix in KINDS]
    for later in range(0, 2000, 400):
        for path in files:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            yield from (text[i : i + 2000] for i in range(later, len(text), 2000))


def alone(path: Path, which: int, of: int) -> tuple[int, float]:
    """Return how many ids every so many-th text has, and the seconds that the tokenizer's fastest call takes."""
    encode = load("smollm2").encode_text
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, which, None, of)]
    encode(texts[0])
    began = time.process_time()
    ids = sum(len(encode(text)) for text in texts)
    return ids, time.process_time() - began


def used() -> float:
    """Return the processor seconds of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def tokenise(path: Path, which: int, of: int) -> int:
    """Return how many ids the lines have that begin in the so-many-th part of the file."""
    encode = load("smollm2").encode_text
    size = path.stat().st_size
    first, end = size * which // of, size * (which + 1) // of
    ids = 0
    with path.open("rb") as lines:
        # The line that a part begins in, or ends with, is the part's before.
        lines.seek(max(0, first - 1))
        if first:
            lines.readline()
        while lines.tell() < end and (line := lines.readline()):
            ids += len(encode(json.loads(line)["text"]))
    return ids


def tokenise_all(path: Path, workers: int) -> int:
    """Return how many ids the lines have, by several processes."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        asked = [pool.submit(tokenise, path, which, workers) for which in range(workers)]
        return sum(future.result() for future in asked)


def build(path: Path, workers: int, capacity: int) -> float:
    """Return the processor seconds of a build."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "cli", "tally", "build", str(path), "--out", f"{folder}/x.tally"]
        return seconds_of([*command, "--workers", str(workers), "--capacity", str(capacity)])


def seconds_of(command: list[str]) -> float:
    """Return the processor seconds of a command and its processes."""
    began = used()
    subprocess.run(command, check=True, capture_output=True)
    return used() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="*")
    parser.add_argument("--tokenise", type=Path, metavar="JSONL", help="do nothing but that")
    parser.add_argument("--characters", type=int, default=330_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--capacity", type=int, action="append")
    parser.add_argument("--at", type=Path)
    args = parser.parse_args()
    if args.tokenise:
        print(tokenise_all(args.tokenise, args.workers))
        return
    with tempfile.TemporaryDirectory(dir=args.at) as folder:
        path, little = Path(folder, "a.jsonl"), Path(folder, "little.jsonl")
        characters = 0
        with path.open("w", encoding="utf-8") as out:
            for text in pieces(args.folder):
                out.write(json.dumps({"text": text}) + "\n")
                characters += len(text)
                if characters >= args.characters:
                    break
        # Some portions, so that every worker starts.
        little.write_text('{"text": "As little as there may be."}\n' * 20_000 * (args.workers + 1))
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
            asked = [pool.submit(alone, path, which, args.workers) for which in range(args.workers)]
            found = [future.result() for future in asked]
        ids, seconds = sum(ids for ids, _ in found), sum(seconds for _, seconds in found)
        program = seconds_of([sys.executable, __file__, "--tokenise", str(path), "--workers", str(args.workers)])
        print(f"tokenizer alone: {ids:,} ids, {seconds:.1f} s; as a program {program:.1f} s", flush=True)
        start = build(little, args.workers, 2**10)
        for capacity in args.capacity or CAPACITIES:
            took = build(path, args.workers, capacity)
            print(
                f"tally build, {capacity:,} pairs: {took:.1f} s, {program / took:.2f} of the program's throughput, "
                f"{seconds / took:.2f} of the calls'; {start:.1f} s of them are the start, without which "
                f"{seconds / (took - start):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
