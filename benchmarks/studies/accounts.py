"""Attribution: how long a text must be, and which clusters of accounts a student gives away.

    python benchmarks/studies/accounts.py texts      # a minute
    python benchmarks/studies/accounts.py cohorts    # a quarter of an hour

Texts are drawn from a Zipf-like model of 800 tokens, delta 2, window 2, 16 account lanes (a quarter of the windows);
24,000 accounts, level 1e-6 after Holm, 100 texts a cell. Students are the bigrams (window 1, 400 tokens, delta 3) of
answers of all clusters, of which half supplied equal shares and the others none; their reference is the bigrams of
unmarked text; 10 keys a row. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import builders
from bigrams import bigrams, said_by
from marked_texts import marked_texts

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
    ScopeKeys.packed_code_words = lambda self, names: derived[_PLACE[names[0]] :][: len(names)]  # type: ignore[method-assign]
    owners = [ACCOUNTS[i * 37] for i in range(TEXTS)]
    others = [ACCOUNTS[i * 37 + 1] for i in range(TEXTS)]
    whole = marked_texts(keys, owners, length=3_000, seed=1)
    second = marked_texts(keys, others, length=3_000, seed=2)
    random = np.random.default_rng(3)
    print("tokens  alone  two mixed: both  two mixed: one  10% edited  20% edited  30% edited  wrong")
    for length in (150, 200, 300, 400, 600, 800, 1_200, 2_000, 3_000):
        cells, wrong = [], 0
        found = _found(keys, [text[:length] for text in whole])
        cells.append(np.mean([owner in names for owner, names in zip(owners, found, strict=True)]))
        wrong += sum(len(names - {owner}) for owner, names in zip(owners, found, strict=True))
        mixed = [
            np.concatenate([a[: length // 2], b[: length - length // 2]]) for a, b in zip(whole, second, strict=True)
        ]
        found = _found(keys, mixed)
        right = [len(names & {a, b}) for a, b, names in zip(owners, others, found, strict=True)]
        wrong += sum(len(names - {a, b}) for a, b, names in zip(owners, others, found, strict=True))
        cells += [np.mean(np.array(right) == 2), np.mean(np.array(right) >= 1)]
        for share in (0.1, 0.2, 0.3):
            edited = []
            for text in whole:
                copy = text[:length].copy()
                hit = random.random(length) < share
                copy[hit] = random.integers(0, 800, int(hit.sum()))
                edited.append(copy)
            found = _found(keys, edited)
            cells.append(np.mean([owner in names for owner, names in zip(owners, found, strict=True)]))
            wrong += sum(len(names - {owner}) for owner, names in zip(owners, found, strict=True))
        print(f"{length:6,}  {cells[0]:5.2f}" + "".join(f"  {cell:10.2f}" for cell in cells[1:]) + f"  {wrong:5}")


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
    parser.add_argument("what", choices=["texts", "cohorts"])
    {"texts": texts, "cohorts": cohorts}[parser.parse_args().what]()
