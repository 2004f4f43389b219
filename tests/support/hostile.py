"""Inputs that are meant to break a reader: seeds, random changes of them, and what must hold of every one.

    python tests/support/hostile.py --executions 1000000 [--seed 0] [--corpus tests/detect/hostile]

runs that many, on one core, says how many of each outcome there were, and keeps an input that breaks a promise in the
corpus, where the tests read it from then on.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detect import inputs
from detect.inputs import Input, Source, _Form
from detect.portions import Sifter
from watermark.errors import TaggantError

#: Every form in which a file may be read.
FORMS = {
    "jsonl": _Form.LINES,
    "txt": _Form.TEXT,
    "csv": _Form.COMMAS,
    "tsv": _Form.TABS,
    "parquet": _Form.PARQUET,
    "any": _Form.EITHER,
}

#: Pieces that changes are made of.
PIECES = [
    b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"\\", b"\n", b"\r", b"\0", b"\t", b"\x1b[31m", b"\xff\xfe",
    b"\xef\xbb\xbf", "\u2028".encode(), "\u202e".encode(), "\u0085".encode(), b"\xed\xa0\x80", b"\\ud800", b"\\udc00",
    b"NaN", b"Infinity", b"-0", b"1e400", b"1E-400", b"9" * 5000, b"[" * 2000, b'{"a":' * 1500, b"null", b"true",
    b'"response"', b'"text"', b'"prompt"', b'"messages"', b'"token_ids"', b'"role":"assistant"', b'"content"',
    b'"fingerprint"', b"4294967295", b"4294967296", b"-1", b"1.0", b"=cmd()", b"@SUM(1)", b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd", b"PAR1", b"PK\x03\x04", b"a" * 300,
]  # fmt: skip

GOOD = b'{"prompt": "Why?", "response": "Because the sky is blue, as far as anybody knows."}\n'


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield the name (whose ending is the form) and the bytes of every seed: EVIDENCE 5's list, and good ones."""
    yield "good.jsonl", GOOD * 3
    yield "twice.jsonl", b'{"response": "a", "response": "b"}\n'
    yield "nested_twice.jsonl", b'{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}\n'
    yield "nan.jsonl", b'{"response": "a", "x": NaN}\n{"response": "a", "x": -Infinity}\n'
    yield "large.jsonl", b'{"response": "a", "x": 1e400}\n{"token_ids": [1e400]}\n'
    yield "utf16.jsonl", '{"response": "a"}\n'.encode("utf-16")
    yield "utf16_be.jsonl", '{"response": "a"}\n'.encode("utf-16-be")
    yield "surrogate.jsonl", b'{"response": "\\ud800"}\n{"response": "\xed\xa0\x80"}\n{"\\udfff": 1, "text": "x"}\n'
    yield "separators.jsonl", '{"response": "a\u2028b\u2029c\u0085d"}\n'.encode()
    yield "deep.jsonl", b'{"response": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    yield "deep_objects.jsonl", b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n"
    yield "deep_calls.jsonl", (
        b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": '
        + b"[" * 900 + b"]" * 900 + b"}}]}]}\n"
    )  # fmt: skip
    yield "digits.jsonl", b'{"token_ids": [' + b"9" * 5000 + b"]}\n"
    yield "control.jsonl", '{"text": "\\u001b[2J\\u202e evil", "\u202e": 1}\n{"\x1b[31m": 1}\n'.encode()
    yield "nul.txt", b"a\0b"
    yield "plain.txt", "Ein Text. \u202e\n".encode()
    yield "formulas.csv", b'response,prompt\n=1+1,@SUM(1)\n"+a","-b"\n'
    yield "quotes.csv", b'response\n"open\nmore\n'
    yield "cells.csv", b'messages\n"[{""role"": ""assistant"", ""content"": ""x y z""}]"\n'
    yield "ids.tsv", b"token_ids\ttext\n[1, 2, 3]\ta\n"
    yield "good.any", GOOD
    yield "gzip.jsonl", gzip.compress(GOOD * 3, mtime=0)
    yield "cut_gzip.jsonl", gzip.compress(GOOD * 300, mtime=0)[:-15]
    yield "gzip_bomb.jsonl", gzip.compress(bytes(2**22), mtime=0)
    yield "gzip_in_gzip.jsonl", gzip.compress(gzip.compress(GOOD, mtime=0), mtime=0)
    yield "zip.jsonl", b"PK\x03\x04" + bytes(50)
    try:
        import zstandard
    except ImportError:
        return
    yield "zstd.jsonl", zstandard.compress(GOOD * 3)
    yield "zstd_bomb.jsonl", zstandard.compress(bytes(2**24))
    yield "cut_zstd.jsonl", zstandard.compress(GOOD * 300)[:-9]
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, columns in {
        "text.parquet": {"response": ["a b c d e"] * 20, "prompt": ["x"] * 20},
        "ids.parquet": {"token_ids": pa.array([[1, 2, 3, 4]] * 9, pa.list_(pa.uint32()))},
        "chat.parquet": {"messages": [[{"role": "assistant", "content": "hello"}]] * 3},
    }.items():
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink, row_group_size=7)
        yield name, sink.getvalue()


def changed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return *data* with some random changes, parts of *other* among them."""
    made = bytearray(data[:4000] if len(data) > 8000 and rng.random() < 0.98 else data)
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        at = rng.randrange(len(made) + 1)
        kind = rng.randrange(6)
        if kind == 0 and made:
            made[min(at, len(made) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at:at] = rng.choice(PIECES)
        elif kind == 2:
            del made[at : at + rng.choice([1, 2, 8, 64, 1000])]
        elif kind == 3:
            start = rng.randrange(len(other) + 1)
            made[at:at] = other[start : start + rng.choice([4, 30, 300])]
        elif kind == 4:
            made[at : at + 4] = rng.randbytes(4)
        else:
            end = at + rng.choice([1, 10, 100])
            made[at:at] = made[at:end]
    return bytes(made)


class BrokenPromiseError(AssertionError):
    """A reader did with an input what it must never do."""


def try_one(form: str, data: bytes, sifter: Sifter) -> str:
    """Read, parse and tokenise *data*; return how it went.

    Promises: it ends with an account that adds up or with an error of Taggant's; whatever is said is one printable
    line; the digest is that of the bytes; cut into portions of another size it gives the same records.

    Raises:
        BrokenPromiseError: one was broken; also any other exception that comes out.
    """
    file = Input(None, "hostile." + form, "-", FORMS[form])
    outcomes = []
    for size in (2**20, 97):
        try:
            source = Source(file, io.BytesIO(data), columns=("prompt", "response", "text", "messages", "token_ids"))
            read, told, sums = 0, [], hashlib.sha256()
            for portion in source.portions(size):
                found = sifter.sift(portion, np.zeros(len(portion), dtype=np.bool_))
                found.accounting.check()
                if len(portion.digests()) != len(portion):
                    raise BrokenPromiseError("a digest for each record")
                read += found.accounting.read
                told += found.accounting.problems
                positions = sifter.positions(found)
                if positions.valid.shape != positions.ids.shape:
                    raise BrokenPromiseError("positions of the ids")
                for ids in found.responses:
                    sums.update(ids.tobytes() + b"/")
            if source.digest() != hashlib.sha256(data).hexdigest():
                raise BrokenPromiseError("the digest of the bytes")
            outcome = f"{'malformed' if told else 'read' if read else 'blank'}"
            outcomes.append((outcome, read, sums.hexdigest()))
        except TaggantError as error:
            told = [str(error)]
            outcomes.append((type(error).__name__, 0, ""))
        if not all(line.isprintable() for line in told):
            raise BrokenPromiseError("printable lines")
    if outcomes[0] != outcomes[1]:
        raise BrokenPromiseError(f"one outcome, whatever the portions: {outcomes}")
    return outcomes[0][0]


def bounded() -> None:
    """Lower the bounds, so that inputs of a few thousand bytes meet them."""
    inputs.MAX_LINE = 2**18
    inputs.MAX_TEXT = 2**18


#: Executions a process.
BLOCK = 5000


class _TooLongError(Exception):
    pass


def _alarm(*unused: Any) -> None:
    raise _TooLongError


def main() -> None:
    """Run changed inputs."""
    from watermark.tokenizer import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=Path(__file__).parents[1] / "detect" / "hostile")
    options = parser.parse_args()
    bounded()
    smollm2 = load("smollm2")
    sifter = Sifter(smollm2, window=2, special_ids=smollm2.special_ids)
    stock = [(name.rsplit(".")[-1], data) for name, data in seeds()]
    stock += [(path.suffix[1:], path.read_bytes()) for path in sorted(options.corpus.glob("*.*"))]
    outcomes: Counter[str] = Counter()
    options.corpus.mkdir(exist_ok=True, parents=True)
    began = time.monotonic()
    done = 0
    # Each block in a process of its own, so that one that is ended by a signal is a broken promise like others.
    for block in range(-(-options.executions // BLOCK)):
        count = min(BLOCK, options.executions - done)
        outcomes.update(_in_child(options.corpus, lambda b=block, c=count: _block(options, stock, sifter, b, c)))
        done += count
        print(f"{done:,} {dict(outcomes)} {done / (time.monotonic() - began):.0f}/s", flush=True)
    broken = sum(count for outcome, count in outcomes.items() if outcome.startswith("BROKEN"))
    print(f"{options.executions:,} executions, seed {options.seed}, {broken} broken promises: {dict(outcomes)}")
    raise SystemExit(1 if broken else 0)


def _in_child(corpus: Path, run: Callable[[], Counter[str]]) -> Counter[str]:
    """Run a block in a forked process; what it was at when it died is kept."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            os.write(writing, json.dumps(run()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        answer = told.read()
    os.waitpid(child, 0)
    if answer:
        return Counter(json.loads(answer))
    for path in corpus.glob("current.*"):
        kept = path.with_name(hashlib.sha256(path.read_bytes()).hexdigest()[:12] + path.suffix)
        path.rename(kept)
        print(f"{kept}: ended the process", file=sys.stderr, flush=True)
    return Counter({"BROKEN process": 1})


def _block(
    options: argparse.Namespace, stock: list[tuple[str, bytes]], sifter: Sifter, block: int, count: int
) -> Counter[str]:
    rng = random.Random(f"{options.seed} {block}")
    outcomes: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, _alarm)
    for _ in range(count):
        form, data = rng.choice(stock)
        if rng.random() < 0.1:
            form = rng.choice(list(FORMS))
        made = changed(data, rng.choice(stock)[1], rng)
        current = options.corpus / f"current.{form}"
        if made.startswith(b"PAR1"):
            # Arrow is C++: what it does not foresee may end the process.
            current.write_bytes(made)
        signal.setitimer(signal.ITIMER_REAL, 60)
        try:
            outcomes[try_one(form, made, sifter)] += 1
        except Exception as error:
            outcomes[f"BROKEN {type(error).__name__}"] += 1
            kept = options.corpus / f"{hashlib.sha256(made).hexdigest()[:12]}.{form}"
            kept.write_bytes(made)
            print(f"{kept}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            current.unlink(missing_ok=True)
    return outcomes


if __name__ == "__main__":
    main()
