"""Tokens a second of published detectors and of Taggant on the same documents, one after the other on one core.

    pip install --no-deps --target PEERS textseal==0.0.5 markllm==0.1.5 ymark==0.2.0 sbw==1.0.0
    OMP_NUM_THREADS=1 python benchmarks/studies/peers_speed.py --peers PEERS

The documents are the repetitive ones of `peers.py`, 1,000 ids each. A peer is given ids in memory and asked for the
p-value of one document after the other, for some seconds of processor time; Taggant reads all of them from
Parquet, builds the tally of the whole and scores it (`taggant tally build`, `taggant tally score`), all included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peers
import pyarrow as pa
import pyarrow.parquet as pq

from detect.mark import GreenListMark
from detect.portions import Sifter
from detect.tally_build import build_tally
from detect.tally_file import read_tally
from detect.tally_score import score_tally
from watermark.keys import ScopeKeys, Secret
from watermark.tokenizer import load

SECONDS = 4.0


def packages() -> list[tuple[str, Callable[[], peers.Detector]]]:
    """Return what is measured beside Taggant."""
    return [
        ("transformers WatermarkDetector, lefthash", lambda: peers.huggingface("lefthash", 1, ignore=True)),
        ("transformers WatermarkDetector, selfhash", lambda: peers.huggingface("selfhash", 4, ignore=True)),
        ("markllm 0.1.5 KGW", peers.markllm),
        ("textseal 0.0.5 green list", lambda: peers.textseal("greenlist", seen=True)),
        ("textseal 0.0.5 Gumbel", lambda: peers.textseal("gumbelmax", seen=True)),
        ("ymark 0.2.0", peers.ymark),
        ("sbw 1.0.0 gpu-simple_1", lambda: peers.sbw("gpu-simple_1")),
    ]


def peer(detector: peers.Detector, docs: list[np.ndarray]) -> float:
    """Return tokens a second of a detector that is asked for one document after the other."""
    ask = detector(1)
    ask(docs[0])
    began, tokens = time.process_time(), 0
    for doc in docs:
        ask(doc)
        tokens += len(doc)
        if time.process_time() - began > SECONDS:
            break
    return tokens / (time.process_time() - began)


def taggant(docs: list[np.ndarray]) -> float:
    """Return tokens a second from Parquet to the scored tally."""
    tokenizer = load("smollm2")
    sifter = Sifter(tokenizer, window=peers.WINDOW, special_ids=tokenizer.special_ids)
    params = peers.Params(tokenizer=tokenizer.digest(), special_ids=tokenizer.special_ids, window=peers.WINDOW)
    mark = GreenListMark(ScopeKeys(name="study", params=params, delta=2.0, key=Secret(bytes(32))))
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "a.parquet", Path(folder) / "a.tally"
        ids = pa.array([(doc + np.uint32(100)).tolist() for doc in docs], type=pa.list_(pa.uint32()))
        pq.write_table(pa.table({"token_ids": ids}), path)
        best = 0.0
        for _ in range(4):
            began = time.process_time()
            build_tally([path], sifter, out=out)
            tally, _ = read_tally(out)
            score_tally(tally, [mark], decoys=0)
            best = max(best, tally.about.tokens / (time.process_time() - began))
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="folder that the packages were installed into")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    docs = peers.documents(peers.repetitive_text(), peers.prose_text(), 100_000)
    tokens = sum(map(len, docs))
    ours = taggant(docs)
    print(f"{len(docs):,} documents, {tokens:,} ids, {len({doc.tobytes() for doc in docs}):,} different\n")
    print("| detector | tokens a core second | Taggant is |\n|---|---|---|")
    print(f"| Taggant, from Parquet to the scored tally | {ours:,.0f} | |", flush=True)
    for name, make in packages():
        try:
            rate = peer(make(), docs)
        except peers.AbsentError as error:
            print(f"| {name} | {error} | |", flush=True)
            continue
        print(f"| {name} | {rate:,.0f} | {ours / rate:,.0f} times as fast |", flush=True)


if __name__ == "__main__":
    main()
