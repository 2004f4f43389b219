"""What each reference costs: the demo's student under its base model and n-gram models of its clean twin's outputs.

    python benchmarks/studies/references.py

Prints nats a token, and z and -log10 p of every weighted test. Some seconds.
"""

from __future__ import annotations

from detect.corpus import Corpus, read_corpus
from detect.family import FAMILY
from detect.mark import GreenListMark
from detect.ngram_reference import ngram_reference
from detect.records import Reader
from detect.reference import Reference
from detect.tally import tally_of
from detect.weighted_test import weighted_test
from watermark.examples import examples_path
from watermark.keyring import Keyring
from watermark.tokenizer import load


def main() -> None:
    tokenizer, mark = load("smollm2"), GreenListMark(Keyring.load(examples_path("keyring.json")).scope())

    def corpus_of(name: str) -> Corpus:
        return read_corpus(Reader([examples_path(name)]), tokenizer, window=mark.window)

    student, twin = corpus_of("student.jsonl"), corpus_of("clean-twin.jsonl")
    references = {"base": Reference.load(examples_path("student-reference.npz"))}
    for order in (1, 2, 3):
        references[f"n-gram, order {order}"] = ngram_reference(
            student.responses,
            twin.responses,
            tokenizer=tokenizer.digest(),
            name="twin",
            vocabulary_size=tokenizer.vocabulary_size,
            order=order,
        )
    for name, reference in references.items():
        tally = tally_of(
            student.responses,
            window=mark.window,
            special_ids=mark.special_ids,
            prompts=student.prompts,
            echoes=student.echoes,
            reference=reference,
        )
        tested, scores = mark.tested(tally), mark.scores(tally)
        figures = []
        for weighting in FAMILY.values():
            weights = weighting.weigh(tally, reference).within(tested)
            test = weighted_test(weights, mark=mark, tally=tally, scores=scores)
            figures.append(f"{test.name} {test.z:.1f}, {-test.log10_p:.1f}")
        print(f"{name}: {reference.negative_log_likelihood():.2f} nats; {'; '.join(figures)}")


if __name__ == "__main__":
    main()
