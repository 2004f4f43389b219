"""What an endpoint's log-probabilities add: p of the same collected answers with and without them.

    python benchmarks/studies/logprobs.py --keys 5

Students and clean twins of `tests/support/student_server.py`, bigram models of 195 words taught by 250 answers of 60
words, asked over HTTP with `taggant collect --logprobs K`; each key teaches a student of its own. -log10 p, the mean
over keys and the least: of the text (`detect model`), and of the lists. The reference is the clean twin's text.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import builders
from evidence import WORDS, answers
from student_server import Student, StudentServer, served

from detect.collection.command import Asked, run_collection
from detect.corpus import read_corpus
from detect.distillation import detect_model
from detect.mark import GreenListMark
from detect.ngram_reference import ngram_reference
from detect.records import Reader
from detect.top_lists import LogprobReader
from detect.top_logprobs import detect_logprobs
from watermark.keys import ScopeKeys
from watermark.tokenizer import load

TOKENIZER = load("smollm2")


def scope(key: int) -> ScopeKeys:
    keys = builders.scope_of(key=key, delta=2.0)
    return replace(keys, params=replace(keys.params, tokenizer=TOKENIZER.digest(), special_ids=TOKENIZER.special_ids))


def measured(student: Student, twin: Student, key: int, *, prompts: int, k: int, folder: Path) -> list[float]:
    """Return log10 p: text, lists, text with the reference, lists with the reference."""
    (folder / "prompts.txt").write_text("".join(f"Say something about {i}.\n" for i in range(prompts)))
    out = folder / "journal.jsonl"
    out.unlink(missing_ok=True)
    with served(StudentServer(student)) as url:
        asked = Asked(
            url=url,
            model="student",
            sampling={"temperature": 1.0, "max_tokens": 40},
            logprobs=k,
            prompts=folder / "prompts.txt",
        )
        run_collection(asked, out, watched=None)
    reading = LogprobReader(TOKENIZER)
    corpus = read_corpus(Reader([out]), TOKENIZER, window=1, progress=reading)
    lists = reading.lists(corpus)
    reference = ngram_reference(
        corpus.responses,
        [TOKENIZER.encode(twin.say(60, seed)) for seed in range(300)],
        tokenizer=TOKENIZER.digest(),
        name="twin",
        vocabulary_size=TOKENIZER.vocabulary_size,
    )
    mark, found = GreenListMark(scope(key)), []
    for used in (None, reference):
        found.append(detect_model(corpus, [mark], reference=used, decoys=0)[0].log10_p)
        found.append(detect_logprobs(corpus, lists, mark, reference=used, decoys=0).log10_p)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=5)
    options = parser.parse_args()
    print(f"{len(WORDS)} words; columns: text, lists | text, lists with the twin's text as reference")
    twin = Student.taught(None, TOKENIZER, seed=99)
    with tempfile.TemporaryDirectory() as name:
        for bias in (0.6, 0.2, 0.0):
            for prompts, k in ((10, 5), (10, 20), (40, 5), (40, 20), (160, 20)):
                rows = []
                for key in range(1, options.keys + 1):
                    said = answers(
                        scope(key) if bias else None, TOKENIZER, count=250, length=60, seed=5 + key, bias=bias
                    )
                    rows.append(measured(Student(said), twin, key, prompts=prompts, k=k, folder=Path(name)))
                p = -np.array(rows)
                told = "  ".join(f"{p[:, i].mean():6.1f} ({p[:, i].min():.1f})" for i in range(4))
                print(f"bias {bias}  answers {prompts:3d} x 40  k {k:2d}   {told}", flush=True)


if __name__ == "__main__":
    main()
