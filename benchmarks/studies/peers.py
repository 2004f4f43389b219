"""False positives of detectors on text that nobody marked, with random keys: published packages and Taggant.

    pip install --no-deps --target PEERS textseal==0.0.5 markllm==0.1.5 ymark==0.2.0 sbw==1.0.0
    nice -n 10 python benchmarks/studies/peers.py --peers PEERS

Packages that are absent are left out, with the reason. Text: licences and Python's documentation topics (*prose*),
Debian copyright and changelog files (*repetitive*), 60 documents of 1,000 tokens each, by a byte-level BPE of 8,192
entries trained on the same text; and 400 such documents pooled under one key. The last table is reading mode: a
suspect that never saw the key reads marked text and copies from it. Intervals are Clopper and Pearson's, 95%.

Packages are called through their public functions and are not part of Taggant.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import math
import sys
import time
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from open_weight import _greens, mark_of

from detect.binomial import green_interval, log10_tails
from detect.centred import CENTRED
from detect.decoys import random_words
from detect.entropy_weighted import ENTROPY_WEIGHTED
from detect.goodness_of_fit import goodness_of_fit
from detect.mark import GreenListMark
from detect.ngram_reference import ngram_reference
from detect.open_weight import ContextCollector, Origin, open_weight_test
from detect.tally import UNIT, Tally, tally_of
from detect.weighted_sums import WeightedSum
from watermark import kernels
from watermark.keys import Params, ScopeKeys, Secret

VOCABULARY = 8192
TOKENS = 1000
WINDOW = 2
K = 64  # gamma = 1/4
LEVELS = (0.01, 0.001)

#: From a key's number to a test of one document: ids to p.
Detector = Callable[[int], Callable[[np.ndarray], float]]


class AbsentError(Exception):
    """A package that is not installed, or does not work here."""


# Text


def prose_text() -> str:
    from pydoc_data.topics import topics

    licences = [path.read_text(errors="replace") for path in sorted(Path("/usr/share/common-licenses").glob("*"))]
    return "\n\n".join([*licences, *topics.values()])


def repetitive_text(most: int = 6_000_000) -> str:
    texts, size = [], 0
    for path in sorted(Path("/usr/share/doc").glob("*/*")):
        if path.name == "copyright":
            text = path.read_text(errors="replace")
        elif path.name.startswith("changelog") and path.suffix == ".gz":
            text = gzip.decompress(path.read_bytes()).decode(errors="replace")
        else:
            continue
        texts.append(text[:20_000])
        size += len(texts[-1])
        if size > most:
            break
    return "\n\n".join(texts)


def documents(text: str, others: str, count: int) -> list[np.ndarray]:
    """Return up to *count* documents of TOKENS ids, spread over the text."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text[i : i + 5000] for i in range(0, len(text), 5000)] + [others[:500_000]], VOCABULARY)
    ids = np.array(bpe.encode(text).ids, dtype=np.uint32)
    whole = [ids[i : i + TOKENS] for i in range(0, len(ids) - TOKENS + 1, TOKENS)]
    chosen = np.linspace(0, len(whole) - 1, min(count, len(whole))).astype(int)
    return [whole[i] for i in chosen]


# Packages


def huggingface(seeding: str, width: int, *, ignore: bool) -> Detector:
    try:
        import torch
        from transformers import GPT2Config, WatermarkDetector, WatermarkingConfig
    except ImportError as error:
        raise AbsentError(f"transformers: {error}") from None
    config = GPT2Config(vocab_size=VOCABULARY, bos_token_id=VOCABULARY - 1, eos_token_id=VOCABULARY - 1)

    def with_key(key: int) -> Callable[[np.ndarray], float]:
        detector = WatermarkDetector(
            model_config=config,
            device="cpu",
            watermarking_config=WatermarkingConfig(seeding_scheme=seeding, context_width=width, hashing_key=key),
            ignore_repeated_ngrams=ignore,
        )
        return lambda ids: float(detector(torch.from_numpy(ids.astype(np.int64))[None], return_dict=True).p_value[0])

    return with_key


@cache
def _textseal() -> tuple[types.ModuleType, types.ModuleType]:
    """Import its scoring alone: its package imports a sentence model and downloads data."""
    try:
        found = importlib.util.find_spec("textseal")
    except ImportError:
        found = None
    if found is None or not found.submodule_search_locations:
        raise AbsentError("textseal: not installed")
    root = Path(found.submodule_search_locations[0])
    for name, folder in (("textseal", root), ("textseal.posthoc", root / "posthoc")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules.setdefault(name, module)
    try:
        return (
            importlib.import_module("textseal.posthoc.detector"),
            importlib.import_module("textseal.common.watermark.core"),
        )
    except ImportError as error:
        raise AbsentError(f"textseal: {error}") from None


def textseal(kind: str, *, seen: bool) -> Detector:
    detectors, core = _textseal()
    tokenizer = SimpleNamespace(
        vocab_size=VOCABULARY,
        add_special_tokens=None,
        encode=lambda ids, add_special_tokens: ids,
        decode=lambda ids: ids,
    )

    def with_key(key: int) -> Callable[[np.ndarray], float]:
        green = kind == "greenlist"
        config = core.WatermarkConfig(
            secret_key=key, ngram=2, gamma=0.25, method="binary" if green else "uniform", watermark_type=kind
        )
        made = detectors.GreenlistDetector if green else detectors.GumbelmaxDetector

        class Sized(made):  # type: ignore[misc, valid-type]
            def _get_vocab_size(self) -> int:
                return VOCABULARY

        detector = Sized(tokenizer, config)

        def p(ids: np.ndarray) -> float:
            scores = detector.get_scores_by_t([ids.tolist()], scoring_method="v2", seen_windows=set() if seen else None)
            return float(detector.get_pvalues(scores)[0])

        return p

    return with_key


def markllm() -> Detector:
    try:
        import torch
        from markllm.watermark.kgw.kgw import KGWUtils
    except ImportError as error:
        raise AbsentError(f"markllm: {error}") from None

    def with_key(key: int) -> Callable[[np.ndarray], float]:
        utils = KGWUtils(
            SimpleNamespace(
                hash_key=key,
                vocab_size=VOCABULARY,
                device="cpu",
                gamma=0.5,
                delta=2.0,
                prefix_length=1,
                f_scheme="time",
                window_scheme="left",
            )
        )
        return lambda ids: _normal_tail(float(utils.score_sequence(torch.from_numpy(ids.astype(np.int64)))[0]))

    return with_key


def ymark() -> Detector:
    try:
        from ymark import WatermarkConfig, WatermarkDetector
    except ImportError as error:
        raise AbsentError(f"ymark: {error}") from None

    def with_key(key: int) -> Callable[[np.ndarray], float]:
        detector = WatermarkDetector(WatermarkConfig(gamma=0.5, seed=key), SimpleNamespace(vocab_size=VOCABULARY))
        return lambda ids: _normal_tail(detector.detect_tokens(ids.tolist()).z_score)

    return with_key


def sbw(scheme: str) -> Detector:
    try:
        import torch
        from sbw import WatermarkDetector
    except ImportError as error:
        raise AbsentError(f"sbw: {error}") from None

    def with_key(key: int) -> Callable[[np.ndarray], float]:
        detector = WatermarkDetector(
            device=torch.device("cpu"),
            tokenizer=SimpleNamespace(bos_token_id=None, vocab_size=VOCABULARY),
            vocab=list(range(VOCABULARY)),
            seeding_scheme=scheme,
            hash_key=key,
            ignore_repeated_ngrams=True,
        )
        return lambda ids: float(detector.detect(tokenized_text=torch.from_numpy(ids.astype(np.int64)))["p_value"])

    return with_key


def _normal_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


# Taggant


def params() -> Params:
    return Params(tokenizer="00" * 32, special_ids=(), window=WINDOW, fleet_k=K, account_k=128, account_lanes=0)


def taggant(docs: list[np.ndarray], *, keys: int, seed: int) -> dict[str, np.ndarray]:
    """Return log10 p of each test for each of *keys* random keys, of the pooled documents."""
    others = docs[1::2] if len(docs) > 1 else docs
    clean = _CLEAN or others
    reference = ngram_reference(
        docs, clean, order=WINDOW + 1, vocabulary_size=50_000, tokenizer="00" * 32, name="other documents"
    )
    tally = tally_of(docs, window=WINDOW, reference=reference)
    said = np.where(tally.said > 0, 1, 0)
    weights = {"centred": CENTRED, "entropy-weighted": ENTROPY_WEIGHTED}
    values = {name: each.weigh(tally, reference).values for name, each in weights.items()}
    columns = np.column_stack([said, tally.said, *values.values()]).astype(np.int64)
    sums = _sums(tally, columns, keys, seed)
    pairs, n = int(said.sum()), int(tally.said.sum())
    found = {"count": log10_tails(sums[:, 0], pairs=pairs, k=K)}
    for number, (name, value) in enumerate(values.items(), start=2):
        statistics = (256.0 * sums[:, number] - K * float(value.sum())) / (256 * UNIT)
        law = WeightedSum(value / UNIT, gamma=K / 256)
        # The sums' last bits: no statistic may pass the largest one.
        found[name] = law.log10_chernoff_many(np.minimum(statistics, law.max)) if law.sd else np.zeros(keys)
    z = (sums[:, 1] - n * K / 256) / math.sqrt(n * K / 256 * (1 - K / 256))
    found["naive z"] = np.log10(np.maximum(1e-300, [_normal_tail(each) for each in z]))
    return found


_CLEAN: list[np.ndarray] = []


def _sums(tally: Tally, columns: np.ndarray, keys: int, seed: int) -> np.ndarray:
    return kernels.green_sums(
        random_words(keys, seed=seed),
        tally.windows,
        tally.lanes,
        params().bounds(),
        tally.pair_window,
        tally.tokens,
        np.ascontiguousarray(columns),
    )


def goodness(docs: list[np.ndarray], *, keys: int, seed: int) -> np.ndarray:
    found = []
    for number in range(keys):
        tally = tally_of([docs[number % len(docs)]], window=WINDOW)
        secret = Secret(np.random.default_rng([seed, number]).bytes(32))
        mark = GreenListMark(ScopeKeys(name="study", params=params(), delta=2.0, key=secret))
        found.append(goodness_of_fit(tally, mark, draws=999, seed=number).log10_p)
    return np.array(found)


# Tables


def cell(log10_ps: np.ndarray) -> str:
    """Shares at or below each level, with their intervals, in percent."""
    parts = []
    for level in LEVELS:
        below = int((log10_ps <= math.log10(level) + 1e-12).sum())
        low, high = green_interval(below, pairs=len(log10_ps))
        mark = "**" if low > level else ""
        parts.append(f"{mark}{100 * below / len(log10_ps):.2f}{mark} ({100 * low:.2f}-{100 * high:.2f})")
    return " | ".join([*parts, f"{len(log10_ps):,}"])


def single_documents(corpora: dict[str, list[np.ndarray]], tests: int, keys: int) -> None:
    print("\nPercent of tests of one unmarked document with p at or below 1% and 0.1% (95% interval); bold: above\n")
    print("| detector | corpus | 1% | 0.1% | tests |")
    print("|---|---|---|---|---|")
    peers: list[tuple[str, Callable[[], Detector], float]] = [
        ("transformers lefthash, default", lambda: huggingface("lefthash", 1, ignore=False), 1),
        ("transformers lefthash, dedup", lambda: huggingface("lefthash", 1, ignore=True), 1),
        ("transformers lefthash, width 4, dedup", lambda: huggingface("lefthash", 4, ignore=True), 1),
        ("transformers selfhash, width 4, dedup", lambda: huggingface("selfhash", 4, ignore=True), 1),
        ("textseal 0.0.5 green list, v2 as called by default", lambda: textseal("greenlist", seen=False), 1),
        ("textseal 0.0.5 green list, v2 with `seen_windows`", lambda: textseal("greenlist", seen=True), 1),
        ("textseal 0.0.5 Gumbel, v2 as called by default", lambda: textseal("gumbelmax", seen=False), 1),
        ("markllm 0.1.5 KGW", markllm, 1),
        ("ymark 0.2.0", ymark, 0.4),
        ("sbw 1.0.0 gpu-simple_1", lambda: sbw("gpu-simple_1"), 1),
        ("sbw 1.0.0 gpu-selfhash", lambda: sbw("gpu-selfhash"), 1),
    ]
    absent = []
    for name, make, share in peers:
        try:
            detector = make()
            for corpus, docs in corpora.items():
                rng = np.random.default_rng([len(name), len(corpus)])
                begin, ps = time.process_time(), []
                for number in range(int(tests * share)):
                    ps.append(detector(int(rng.integers(1, 2**30)))(docs[number % len(docs)]))
                    if time.process_time() - begin > 45 and number >= 99:
                        break
                print(f"| {name} | {corpus} | {cell(np.log10(np.maximum(ps, 1e-300)))} |", flush=True)
        except Exception as error:
            absent.append(
                f"{name}: {error if isinstance(error, AbsentError) else f'{type(error).__name__}: {error}'}"[:200]
            )
    for corpus, docs in corpora.items():
        found: dict[str, list[np.ndarray]] = {}
        for number, doc in enumerate(docs):
            _CLEAN[:] = [other for other in docs if other is not doc]
            for test, log10_ps in taggant([doc], keys=keys // len(docs), seed=number).items():
                found.setdefault(test, []).append(log10_ps)
        for test, parts in found.items():
            name = "every position, z (what many report)" if test == "naive z" else f"Taggant {test}"
            print(f"| {name} | {corpus} | {cell(np.concatenate(parts))} |", flush=True)
        print(f"| Taggant goodness-of-fit | {corpus} | {cell(goodness(docs, keys=1000, seed=3))} |", flush=True)
    for line in absent:
        print(f"\nLeft out: {line}")


def pooled(corpora: dict[str, list[np.ndarray]], keys: int) -> None:
    print("\nDocuments pooled under one key: percent of keys with p at or below 1% and 0.1%\n")
    print("| test | corpus | 1% | 0.1% | keys |")
    print("|---|---|---|---|---|")
    for corpus, docs in corpora.items():
        _CLEAN[:] = []
        found = taggant(docs, keys=keys, seed=17)
        each = np.zeros(keys, dtype=np.int64)
        total = 0
        for doc in docs:
            tally = tally_of([doc], window=WINDOW)
            each += _sums(tally, np.ones((len(tally.tokens), 1), dtype=np.int64), keys, 17)[:, 0]
            total += len(tally.tokens)
        found["exact binomial, repeats removed inside documents only"] = log10_tails(each, pairs=total, k=K)
        for test, log10_ps in found.items():
            ours = test in ("count", "centred", "entropy-weighted")
            name = f"Taggant {test}" if ours else "every position, z" if test == "naive z" else test
            print(f"| {name} | {corpus}, {len(docs)} documents | {cell(log10_ps)} |", flush=True)


def copying(keys: int) -> None:
    """Reading mode: a suspect that never saw the key copies what followed the same token earlier in what it reads."""
    print("\nReading mode, a copying suspect that never saw the key: percent of keys with p at or below 1% and 0.1%\n")
    print("| rule | 1% | 0.1% | keys |")
    print("|---|---|---|---|")
    vocabulary, length, texts = 256, 200, 40
    table = np.random.default_rng(0).dirichlet(np.full(vocabulary, 0.1), vocabulary)
    found: dict[str, list[float]] = {}
    try:
        _, core = _textseal()
    except AbsentError as error:
        core = None
        print(f"\nLeft out: {error}")
    import torch

    for key in range(keys):
        rng = np.random.default_rng([key, 9])
        if core is not None:
            grid = torch.stack(torch.meshgrid(*[torch.arange(vocabulary)] * 2, indexing="ij"), dim=-1).reshape(-1, 2)
            config = core.WatermarkConfig(secret_key=int(rng.integers(1, 2**30)), ngram=1, gamma=0.5, method="binary")
            green = core.prf_binary(grid[:, :1], grid[:, 1], config.secret_key, gamma=0.5)
            ids, said = _read_and_copy(rng, table, green.numpy().reshape(vocabulary, vocabulary) > 0, texts, length)
            for rule in ("v2", "v1"):
                config.scoring_method = rule
                flags, _ = core.score_batch(
                    torch.from_numpy(ids.reshape(-1, 1)), torch.from_numpy(said.reshape(-1)), config
                )
                name = f"textseal 0.0.5, {rule}{' (its default)' if rule == 'v2' else ''}, exact binomial"
                p = log10_tails(np.array([int(sum(flags))]), pairs=len(flags), k=128)[0]
                found.setdefault(name, []).append(float(p))
        mark = mark_of(key, window=1)
        ids, said = _read_and_copy(rng, table, _greens(mark, vocabulary), texts, length)
        collector = ContextCollector(window=1, origin=Origin.MARKED)
        windows, rows = [], []
        for text, predicted in zip(ids.astype(np.uint32), said, strict=True):
            at = collector.positions(text) - 1
            windows.append(text[at])
            rows.append(np.eye(vocabulary, dtype=np.float32)[predicted[at]])
        one = np.concatenate(rows)
        before = np.concatenate(windows)
        collector.add(before[:, None], one, table[before].astype(np.float32))
        test, _ = open_weight_test(collector.tally(), mark, decoys=0)
        found.setdefault("Taggant open-weight, marked contexts", []).append(test.log10_p)
    for name, log10_ps in found.items():
        print(f"| {name} | {cell(np.array(log10_ps))} |", flush=True)


def _read_and_copy(
    rng: np.random.Generator, table: np.ndarray, green: np.ndarray, texts: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return marked texts and, at each of their positions, what the suspect would say next: int64 (texts, length)."""
    tilted = np.cumsum(table * np.where(green, math.exp(2.0), 1.0), axis=1)
    clean = table.argmax(axis=1)
    ids = np.zeros((texts, length), dtype=np.int64)
    ids[:, 0] = rng.integers(len(table), size=texts)
    for i in range(1, length):
        rows = tilted[ids[:, i - 1]]
        drawn = rng.random(texts) * rows[:, -1]
        ids[:, i] = np.minimum((rows <= drawn[:, None]).sum(axis=1), len(table) - 1)
    said = np.empty_like(ids)
    for text in range(texts):
        last: dict[int, int] = {}
        for i in range(length):
            said[text, i] = last.get(int(ids[text, i]), int(clean[ids[text, i]]))
            if i + 1 < length:
                last[int(ids[text, i])] = int(ids[text, i + 1])
    return ids, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder that the packages were installed into")
    parser.add_argument("--tests", type=int, default=300, help="tests a cell of other packages")
    parser.add_argument("--keys", type=int, default=12_000, help="tests a cell of ours")
    parser.add_argument("--pooled-keys", type=int, default=2000)
    parser.add_argument("--copying-keys", type=int, default=300)
    given = parser.parse_args()
    if given.peers:
        sys.path.append(str(given.peers))
    begin = time.process_time()
    prose, repetitive = prose_text(), repetitive_text()
    many = {"prose": documents(prose, repetitive, 400), "repetitive": documents(repetitive, prose, 400)}
    few = {name: [docs[i] for i in np.linspace(0, len(docs) - 1, 60).astype(int)] for name, docs in many.items()}
    copying(given.copying_keys)
    pooled(many, given.pooled_keys)
    single_documents(few, given.tests, given.keys)
    print(f"\n{time.process_time() - begin:.0f} s of CPU time")


if __name__ == "__main__":
    main()
