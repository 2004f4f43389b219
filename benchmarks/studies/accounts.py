"""Attribution: how long a text must be, and which clusters of accounts a student gives away.

    python benchmarks/studies/accounts.py texts      # five minutes
    python benchmarks/studies/accounts.py alone      # the same where nobody's answers are set aside: two minutes
    python benchmarks/studies/accounts.py cohorts    # a quarter of an hour

Texts are drawn from a Zipf-like model of 800 tokens, delta 2, window 2, 16 account lanes (a quarter of the windows);
24,000 accounts, level 1e-6 after Holm, 100 texts a cell. Students are the bigrams (window 1, 400 tokens, delta 3) of
answers of all clusters, of which half supplied equal shares and the others none; their reference is the bigrams of
unmarked text; 10 keys a row. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import builders
from bigrams import bigrams, said_by
from marked_texts import marked_texts

from detect import attribution
from detect.attribution import attribute
from detect.cohorts import detect_cohorts
from watermark.errors import UsageError
from watermark.keys import ScopeKeys

ACCOUNTS = [f"account-{i}" for i in range(24_000)]
_PLACE = {account: place for place, account in enumerate(ACCOUNTS)}
TEXTS = 100
V = 400


def texts() -> None:
    keys = builders.scope_of(key=77, window=2, account_lanes=16)
    derived = keys.packed_code_words(ACCOUNTS)
    # Deriving the words once is enough for thousands of texts.
    ScopeKeys.packed_code_words = lambda self, names: derived[[_PLACE[name] for name in names] or slice(0)]  # type: ignore[method-assign]
    owners = [[ACCOUNTS[i * 37 + k] for i in range(TEXTS)] for k in range(3)]
    whole = [marked_texts(keys, names, length=3_000, seed=1 + k) for k, names in enumerate(owners)]
    random = np.random.default_rng(3)
    print(
        "tokens  alone | half each: both, one | by turns of 20: both | 80/20: both | thirds: all, two | "
        "edited 10%, 20%, 30% | wrong"
    )
    for length in (150, 200, 300, 400, 600, 800, 1_000, 1_200, 1_600, 2_000, 3_000):
        part = length // 5
        mixes = {
            "alone": ([length], length),
            "half": ([length // 2, length - length // 2], length),
            "turns": ([length // 2, length - length // 2], 20),
            "80/20": ([length - part, part], length),
            "thirds": ([length // 3, length // 3, length - 2 * (length // 3)], length),
        }
        named: dict[str, list[int]] = {}
        wrong = 0
        for name, (parts, turn) in mixes.items():
            made = [_mixed([whole[k][i][:n] for k, n in enumerate(parts)], turn) for i in range(TEXTS)]
            found = _found(keys, made)
            right = [{owners[k][i] for k in range(len(parts))} for i in range(TEXTS)]
            named[name] = [len(a & b) for a, b in zip(found, right, strict=True)]
            wrong += sum(len(a - b) for a, b in zip(found, right, strict=True))
        edits = []
        for share in (0.1, 0.2, 0.3):
            copies = []
            for text in whole[0]:
                copy = text[:length].copy()
                hit = random.random(length) < share
                copy[hit] = random.integers(0, 800, int(hit.sum()))
                copies.append(copy)
            found = _found(keys, copies)
            edits.append(np.mean([owner in names for owner, names in zip(owners[0], found, strict=True)]))
            wrong += sum(len(names - {owner}) for owner, names in zip(owners[0], found, strict=True))

        cells = [
            [np.mean(np.array(named[name]) >= least) for name, least in group]
            for group in (
                [("alone", 1)],
                [("half", 2), ("half", 1)],
                [("turns", 2)],
                [("80/20", 2)],
                [("thirds", 3), ("thirds", 2)],
            )
        ]
        shown = " | ".join(" ".join(f"{cell:.2f}" for cell in group) for group in [*cells, edits])
        print(f"{length:6,}  {shown} | {wrong}", flush=True)


def _mixed(parts: list[np.ndarray], turn: int) -> np.ndarray:
    """Return the parts by turns of so many tokens."""
    turns = [[part[at : at + turn] for at in range(0, len(part), turn)] for part in parts]
    return np.concatenate([piece for round_ in itertools.zip_longest(*turns) for piece in round_ if piece is not None])


def _found(keys: ScopeKeys, parts: list[np.ndarray]) -> list[set[str]]:
    return [
        {each.account for each in attribute(builders.corpus_of([part]), keys, ACCOUNTS, level=1e-6)[0].found}
        for part in parts
    ]


def cohorts() -> None:
    print("clusters  accounts each  tokens   stated  fed: found  others: found  false discoveries  mean z of fed")
    for clusters, size in ((8, 1), (8, 16), (64, 1)):
        for tokens in (30_000, 120_000, 480_000):
            _cohorts(clusters, size, tokens, keys=10)


def _cohorts(clusters: int, size: int, tokens: int, *, keys: int) -> None:
    fed = [f"c{c}" for c in range(clusters // 2)]
    named = {f"c{c}": [f"c{c}-{i}" for i in range(size)] for c in range(clusters)}
    right, false, discovery, zs, stated, refused = 0, 0, [], [], [], 0
    clean = bigrams(marked_texts(builders.scope_of(delta=0.0), [None] * 320, length=1_500, vocabulary=V, seed=9), V)
    for key in range(keys):
        scope = builders.scope_of(key=500 + key, window=1, account_lanes=16, delta=3.0)
        callers = [account for name in fed for account in named[name]]
        served = [callers[i % len(callers)] for i in range(320)]
        student = bigrams(marked_texts(scope, served, length=1_500, vocabulary=V, seed=key), V)
        text, reference = said_by(student, clean, length=tokens, seed=key)
        corpus = builders.corpus_of([text])
        try:
            result = detect_cohorts(corpus, scope, named, reference=reference, level=0.01, share=1 / len(fed))
        except UsageError:
            refused += 1
            continue
        found = {each.cluster for each in result.findings if each.found}
        right += len(found & {*fed})
        false += len(found - {*fed})
        discovery.append(len(found - {*fed}) / max(1, len(found)))
        zs += [each.z for each in result.findings if each.cluster in fed]
        stated.append(result.power.found)
    made = keys - refused
    if not made:
        print(f"{clusters:8}  {size:13}  {tokens:7,}  refused under all {keys} keys")
        return
    print(
        f"{clusters:8}  {size:13}  {tokens:7,}  {np.mean(stated):7.0%}  {right:5}/{made * len(fed):<5}  "
        f"{false:5}/{made * (clusters - len(fed)):<6}  {np.mean(discovery):17.3f}  "
        f"{np.mean(zs):13.1f}" + (f"  ({refused} refused)" if refused else "")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["texts", "alone", "cohorts"])
    what = parser.parse_args().what
    if what == "alone":
        attribution._LONGEST = 0
    {"texts": texts, "alone": texts, "cohorts": cohorts}[what]()
