"""`taggant tally build` from JSON Lines of text beside the tokenizer alone in as many processes on the same texts.

    python benchmarks/studies/text_speed.py FOLDER... [--characters 330000000] [--workers 2] [--at WHERE]

The texts are the source and the documentation in the folders, in pieces of 2,000 characters. Seconds are of the
processors, of all processes together, those of the start included; of the tokenizer those of its own calls alone.
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
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in KINDS and path.is_file():
                try:
                    text = path.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                yield from (text[i : i + 2000] for i in range(0, len(text), 2000))


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


def build(path: Path, workers: int, capacity: int) -> float:
    """Return the processor seconds of a build."""
    began = used()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "cli", "tally", "build", str(path), "--out", f"{folder}/x.tally"]
        options = ["--workers", str(workers), "--capacity", str(capacity)]
        subprocess.run([*command, *options], check=True, capture_output=True)
    return used() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="+")
    parser.add_argument("--characters", type=int, default=330_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--at", type=Path)
    args = parser.parse_args()
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
        print(f"tokenizer alone: {ids:,} ids, {seconds:.1f} s", flush=True)
        start = build(little, args.workers, 2**10)
        for capacity in CAPACITIES:
            took = build(path, args.workers, capacity)
            print(
                f"tally build, {capacity:,} pairs: {took:.1f} s, {seconds / took:.2f} of the tokenizer's throughput; "
                f"{start:.1f} s of them are the start, without which {seconds / (took - start):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
