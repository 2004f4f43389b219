"""Open weights at small doses: the open-weight test beside the Hoeffding bound on the same logits, and reading mode.

    nice -n 10 python benchmarks/studies/open_weight.py

Teacher, base and students are interpolated trigram models (Witten-Bell) of the standard library's code, over regular-
expression tokens, the 3,000 commonest. The teacher is trained on 3 million tokens and marked with a green list (window
2, gamma 1/2, delta 2); the base on 1 million others; a student on the base's text and marked output of the teacher, a
dose of 1 million tokens. Contexts are 20,000 positions of text that nothing was trained on. n-gram students memorise
more than neural ones do; `--suspect`, `--reference` and `--contexts` take real models.

The second part is the null in reading mode: suspects that never saw the key read marked text, and p is made by the
naive rules and by the rigorous one.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numba as nb
import numpy as np

from detect.baselines import UNCENTRED, hoeffding
from detect.mark import GreenListMark
from detect.open_weight import OPEN_WEIGHT, OPEN_WEIGHT_ROOT, ContextCollector, Origin, open_weight_test, read_contexts
from detect.weighted_test import weighted_test
from watermark import kernels
from watermark.keys import Params, ScopeKeys, Secret

VOCABULARY = 3000
DELTA = 2.0


def mark_of(seed: int, *, window: int = 2) -> GreenListMark:
    """A random green list, gamma 1/2."""
    params = Params(tokenizer="00" * 32, special_ids=(), window=window, fleet_k=128, account_k=128, account_lanes=0)
    key = Secret(np.random.default_rng([seed, 77]).bytes(32))
    return GreenListMark(ScopeKeys(name="study", params=params, delta=DELTA, key=key))


def code_tokens(most: int = 4_800_000) -> tuple[np.ndarray, int]:
    """The standard library's source as ids below VOCABULARY, files in a shuffled order."""
    files = sorted(Path(os.__file__).parent.rglob("*.py"))
    files = [f for f in files if "site-packages" not in f.parts and "lib2to3" not in f.parts]
    order = np.random.default_rng(1).permutation(len(files))
    texts: list[list[str]] = []
    total = 0
    for i in order:
        found = re.findall(r"\w+|[^\w\s]|\n", files[i].read_text(encoding="utf-8", errors="replace"))
        texts.append(found)
        total += len(found)
        if total > most:
            break
    counts = Counter(token for text in texts for token in text)
    ids = {token: i + 1 for i, (token, _) in enumerate(counts.most_common(VOCABULARY - 1))}
    return np.array([ids.get(token, 0) for text in texts for token in text], dtype=np.uint32), len(texts)


class Trigram:
    """An interpolated trigram model (Witten and Bell 1991) of ids below VOCABULARY."""

    def __init__(self, ids: np.ndarray) -> None:
        v = VOCABULARY
        x = ids.astype(np.int64)
        unigram = np.bincount(x, minlength=v) + 0.5
        pairs, count = np.unique(x[:-1] * v + x[1:], return_counts=True)
        two = np.zeros((v, v), dtype=np.float32)
        two.ravel()[pairs] = count
        kinds, total = (two > 0).sum(axis=1), two.sum(axis=1)
        rest = kinds + (total == 0)
        self.two = (two + rest[:, None] * (unigram / unigram.sum())) / (total + rest)[:, None]
        self.two = self.two.astype(np.float32)
        triples, count = np.unique((x[:-2] * v + x[1:-1]) * v + x[2:], return_counts=True)
        context = triples // v
        self.starts = np.searchsorted(context, np.arange(v * v + 1)).astype(np.int64)
        self.next, self.count = (triples % v).astype(np.int64), count.astype(np.float64)

    def rows(self, windows: np.ndarray) -> np.ndarray:
        """Next-token probabilities after windows (B, 2): float32 (B, V)."""
        out = np.empty((len(windows), VOCABULARY), dtype=np.float32)
        _rows(windows.astype(np.int64), self.two, self.starts, self.next, self.count, out)
        return out

    def generate(self, n: int, *, seed: int, mark: GreenListMark | None = None) -> np.ndarray:
        """Draw n tokens, tilted by the mark's green list where there is one."""
        rng = np.random.default_rng(seed)
        ids = np.zeros(n + 2, dtype=np.uint32)
        ids[:2] = rng.integers(1, 50, 2)
        vocabulary = np.arange(VOCABULARY, dtype=np.uint32)
        same = np.zeros(VOCABULARY, dtype=np.int64)
        lift = math.exp(DELTA)
        if mark is not None:
            words, bounds = mark.scope.lane_words(), mark.scope.params.bounds()
        for i in range(2, n + 2):
            p = self.rows(ids[None, i - 2 : i])[0].astype(np.float64)
            if mark is not None:
                window = ids[None, i - mark.window : i]
                lane = kernels.lanes(window)
                p[kernels.green(kernels.seeds(words, window, lane), bounds[lane], same, vocabulary)] *= lift
            total = np.cumsum(p)
            ids[i] = np.searchsorted(total, rng.random() * total[-1])
        return ids[2:]


@nb.njit(nogil=True)
def _rows(windows, two, starts, following, count, out):
    v = two.shape[0]
    for b in range(windows.shape[0]):
        context = windows[b, 0] * v + windows[b, 1]
        begin, end = starts[context], starts[context + 1]
        kinds = end - begin
        total = 0.0
        for i in range(begin, end):
            total += count[i]
        scale = kinds / (total + kinds) if kinds else 1.0
        for token in range(v):
            out[b, token] = scale * two[windows[b, 1], token]
        for i in range(begin, end):
            out[b, following[i]] += count[i] / (total + kinds)


def read(suspect: Trigram, reference: Trigram, windows: np.ndarray) -> ContextCollector:
    """Collect key-free contexts."""
    collector = ContextCollector(window=2)
    for start in range(0, len(windows), 2000):
        part = windows[start : start + 2000]
        collector.add(part, suspect.rows(part), reference.rows(part))
    return collector


def doses(seeds: int, contexts: int) -> None:
    """The first table."""
    ids, files = code_tokens()
    teacher, base_ids, held = Trigram(ids[:3_000_000]), ids[3_000_000:4_000_000], ids[4_000_000:]
    base = Trigram(base_ids)
    print(f"{len(ids):,} tokens of {files} files; {contexts:,} contexts, {seeds} keys; -log10 p, mean (least)\n")
    print("| dose | Hoeffding | uncentred | open-weight | its z | tau | root | its z | open-weight over Hoeffding |")
    print("|---|---|---|---|---|---|---|---|---|")
    for dose in (0.0, 0.01, 0.02, 0.05):
        rows = []
        for seed in range(seeds):
            mark = mark_of(seed)
            rng = np.random.default_rng([seed, 5])
            at = rng.choice(len(held) - 2, contexts, replace=False)
            windows = held[at[:, None] + np.arange(2)[None, :]]
            # At dose 0 a clean twin: as much unmarked output as the 2% student has marked.
            new = teacher.generate(int(1e6 * (dose or 0.02)), seed=seed, mark=mark if dose else None)
            tally = read(Trigram(np.concatenate([base_ids, new])), base, windows).tally()
            test, effect = open_weight_test(tally, mark, decoys=0)
            root, _ = open_weight_test(tally, mark, weighting=OPEN_WEIGHT_ROOT, decoys=0)
            scores = mark.scores(tally)
            plain = weighted_test(
                UNCENTRED.weigh(tally).within(mark.tested(tally)), mark=mark, tally=tally, scores=scores
            )
            bound = hoeffding(tally, mark).log10_p
            tau = effect.tau if effect else math.nan
            row = (-bound, -plain.log10_p, -test.log10_p, test.z, tau, -root.log10_p, root.z, bound - test.log10_p)
            rows.append(row)
        cells = [f"{mean:.2f} ({least:.2f})" for mean, least in zip(np.mean(rows, 0), np.min(rows, 0), strict=True)]
        print(f"| {dose:.0%} | " + " | ".join(cells) + " |", flush=True)


def reading_null(keys: int) -> None:
    """The second table: suspects that never saw the key, reading marked text."""
    print(f"\nReading mode, suspects that never saw the key, {keys} random keys: share of p <= alpha\n")
    print("| suspect | rule | p by | z: mean | z: sd | alpha 0.05 | 0.01 | 0.001 |")
    print("|---|---|---|---|---|---|---|---|")
    rules = {"every position": "saddlepoint", "new in its sequence": "saddlepoint", "new in all sequences": "mixture"}
    for suspect, simulate in (("copier", _copier), ("pairing", _pairing)):
        found: dict[str, list[tuple[float, float]]] = {rule: [] for rule in rules}
        for seed in range(keys):
            mark, sequences, probabilities = simulate(seed)
            for rule in rules:
                marked = rule == "new in all sequences"
                collector = ContextCollector(window=1, origin=Origin.MARKED if marked else Origin.KEY_FREE, floor=1e-6)
                windows, rows = _chosen(rule, collector, sequences, probabilities)
                collector.add(windows, rows, np.full(rows.shape, 1 / rows.shape[1], dtype=np.float32))
                test, _ = open_weight_test(collector.tally(), mark, decoys=0)
                found[rule].append((test.z, test.log10_p if marked else test.log10_p_saddlepoint or 0.0))
        for rule, by in rules.items():
            z, p = np.array(found[rule]).T
            rates = " | ".join(f"{(p <= math.log10(alpha)).mean():.4f}" for alpha in (0.05, 0.01, 0.001))
            print(f"| {suspect} | {rule} | {by} | {z.mean():+.2f} | {z.std():.2f} | {rates} |", flush=True)


def _chosen(
    rule: str, collector: ContextCollector, sequences: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows (B, 1) and the suspect's rows (B, V) that a rule takes of sequences (R, N)."""
    last = sequences.shape[1] - 1
    windows, rows, left = [], [], len(np.unique(sequences[:, :last]))
    for ids, each in zip(sequences, probabilities, strict=True):
        at = np.arange(last)
        if rule == "new in its sequence":
            at = np.unique(ids[:last], return_index=True)[1]
        elif rule == "new in all sequences":
            if not left:  # Every window has been visited: `positions` would return none.
                break
            at = collector.positions(ids[:last]) - 1
            left -= len(at)
        windows.append(ids[at])
        rows.append(each[at])
    return np.concatenate(windows)[:, None], np.concatenate(rows)


def _greens(mark: GreenListMark, vocabulary: int) -> np.ndarray:
    """Which token is green after which: bool (V, V)."""
    windows = np.arange(vocabulary, dtype=np.uint32)[:, None]
    lanes = kernels.lanes(windows)
    return kernels.green(
        kernels.seeds(mark.scope.lane_words(), windows, lanes),
        mark.scope.params.bounds()[lanes],
        np.repeat(np.arange(vocabulary), vocabulary),
        np.tile(np.arange(vocabulary, dtype=np.uint32), vocabulary),
    ).reshape(vocabulary, vocabulary)


def _copier(seed: int, vocabulary: int = 64, sequences: int = 60, length: int = 60):
    """Marked random text, and a suspect that says again what followed the same token earlier in what it reads.

    Where nothing did, it says what a fixed table says.
    """
    mark = mark_of(seed, window=1)
    rng = np.random.default_rng([seed, 3])
    p = np.where(_greens(mark, vocabulary), math.exp(DELTA), 1.0)
    total = np.cumsum(p, axis=1)
    table = np.random.default_rng(0).dirichlet(np.ones(vocabulary), vocabulary).astype(np.float32)
    texts, rows = [], []
    for _ in range(sequences):
        ids = np.zeros(length, dtype=np.uint32)
        ids[0] = rng.integers(vocabulary)
        for i in range(1, length):
            row = total[ids[i - 1]]
            ids[i] = np.searchsorted(row, rng.random() * row[-1])
        out = table[ids]
        last: dict[int, int] = {}
        for i in range(length):
            seen = last.get(int(ids[i]))
            if seen is not None:
                out[i] *= 0.2
                out[i, seen] += 0.8
            if i + 1 < length:
                last[int(ids[i])] = int(ids[i + 1])
        texts.append(ids)
        rows.append(out)
    return mark, np.array(texts), np.array(rows)


def _pairing(seed: int, group: int = 16, repeats: int = 6):
    """Marked text that visits token a before b in half of the sequences and b before a in the others.

    The suspect has a fixed sign for each pair {a, b}. After the later of the two it leans to the first or the second
    of two tokens, by that sign and by which of them followed the earlier one. It never saw the key.
    """
    mark = mark_of(seed, window=1)
    rng = np.random.default_rng([seed, 4])
    signs = np.random.default_rng(0).choice([-1, 1], (group, group))
    vocabulary = 2 * group + 2
    green = _greens(mark, vocabulary)
    first, second = 2 * group, 2 * group + 1
    # Each pair in both orders, several times over.
    a, b, order = (each.ravel() for each in np.mgrid[:group, :group, : 2 * repeats])
    earlier = np.where(order % 2 == 0, a, group + b)
    later = np.where(order % 2 == 0, group + b, a)

    def said(windows: np.ndarray) -> np.ndarray:
        lift = np.exp(3 * DELTA * green[windows][:, first : second + 1])
        return np.where(rng.random(len(windows)) * lift.sum(axis=1) < lift[:, 0], first, second)

    after_earlier, after_later = said(earlier), said(later)
    rows = np.full((len(a), 4, vocabulary), 1 / vocabulary, dtype=np.float32)
    lean = signs[a, b] * np.where(after_earlier == first, 0.9, -0.9) / vocabulary
    rows[:, 2, first] += lean
    rows[:, 2, second] -= lean
    texts = np.column_stack([earlier, after_earlier, later, after_later]).astype(np.uint32)
    shuffled = rng.permutation(len(a))
    return mark, texts[shuffled], rows[shuffled]


def models(given: argparse.Namespace) -> None:
    """The same on transformers: folders or hub names, or the `.pt` students of the study harness with their lab."""
    if given.suspect.endswith(".pt"):
        from detect.study.keys import study_scope
        from detect.study.transformer import TrainedModel
        from watermark.models import LanguageModel
        from watermark.tokenizer import load

        tokenizer = load(given.lab / "tokenizer.json")

        def wrapped(path: str) -> LanguageModel:
            model = TrainedModel.load(Path(path), name=path).model.eval()
            return LanguageModel(name=path, model=model, tokenizer=tokenizer, prompt_ids=lambda _: [], end_ids=())

        one, other = wrapped(given.suspect), wrapped(given.reference)
        keys = [
            study_scope(key, tokenizer=tokenizer, window=given.window, delta=given.delta, gamma_256=64)
            for key in given.key
        ]
    else:
        from watermark.keyring import read_keyring
        from watermark.models import load_model

        one, other = load_model(given.suspect), load_model(given.reference)
        keys = list(read_keyring(given.keyring).scopes)
    ids = one.tokenizer.encode(given.contexts.read_text(encoding="utf-8"))
    texts = [ids[i : i + 512] for i in range(0, len(ids), 512)]
    shapes = {(key.params.window, key.params.special_ids) for key in keys}
    collectors = {shape: ContextCollector(window=shape[0], special_ids=shape[1]) for shape in shapes}
    read_contexts(one, other, texts, list(collectors.values()), limit=given.number)
    for key in keys:
        mark = GreenListMark(key)
        tally = collectors[mark.window, mark.special_ids].tally()
        print(f"\n{key.name}: {tally.contexts:,} contexts, {len(tally.windows):,} windows, {len(tally.tokens):,} pairs")
        print(f"mass dropped: suspect {tally.dropped_suspect:.4f}, reference {tally.dropped_reference:.4f}")
        for weighting in (OPEN_WEIGHT, OPEN_WEIGHT_ROOT):
            test, effect = open_weight_test(tally, mark, weighting=weighting)
            print(
                f"{test.name}: z {test.z:.2f}, log10 p {test.log10_p:.2f}, rank {test.decoy_rank} of {test.decoys + 1}"
            )
        print(effect)
        print(hoeffding(tally, mark))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--number", type=int, default=20_000, help="contexts")
    parser.add_argument("--null-keys", type=int, default=500)
    parser.add_argument("--suspect")
    parser.add_argument("--reference")
    parser.add_argument("--contexts", type=Path)
    parser.add_argument("--keyring", type=Path)
    parser.add_argument("--lab", type=Path, help="the study harness's folder, for .pt models")
    parser.add_argument("--key", type=int, action="append", default=[], help="of the study harness")
    parser.add_argument("--window", type=int, default=1, help="of the study harness's keys")
    parser.add_argument("--delta", type=float, default=2.0, help="of the study harness's keys")
    given = parser.parse_args()
    begin = time.process_time()
    if given.suspect:
        if not (given.reference and given.contexts and (given.keyring or (given.lab and given.key))):
            sys.exit("--suspect wants --reference, --contexts, and --keyring or --lab with --key")
        models(given)
    else:
        doses(given.seeds, given.number)
        reading_null(given.null_keys)
    print(f"\n{time.process_time() - begin:.0f} s of CPU time; seeds 0 to {given.seeds - 1}")


if __name__ == "__main__":
    main()
