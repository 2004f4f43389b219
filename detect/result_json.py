"""Results as one JSON object each: integers as they are, log10 p, digests of the inputs.

Schemas are named ``taggant/<command>/<number>``; a field may be added to a schema, none changes meaning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from detect.calibration import CalibrationResult
from detect.corpus import Corpus
from detect.count import CountTest
from detect.demo import Demo
from detect.distillation import ModelResult
from detect.e_process import SequentialResult
from detect.marked_text import TextResult
from detect.open_weight import OpenWeightResult
from detect.reference_choice import Candidate
from detect.study.table import Table
from detect.supervised import SupervisedTest
from detect.top_logprobs import LogprobsResult
from detect.verdict import DOES_NOT_SAY
from detect.warning import Warned
from detect.weighted_test import WeightedTest
from watermark import __version__

__all__ = [
    "calibration_json",
    "demo_json",
    "dumps",
    "head",
    "inputs_json",
    "model_json",
    "models_json",
    "outcome_json",
    "study_json",
    "text_json",
    "weights_json",
]

JsonObject = dict[str, Any]


def dumps(value: Mapping[str, Any]) -> str:
    """Return the JSON text that ``--json`` prints."""
    return json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False)


def head(command: str) -> JsonObject:
    """Return what every result begins with."""
    return {"schema": f"taggant/{command}/1", "version": __version__}


def inputs_json(corpus: Corpus) -> JsonObject:
    """Return the inputs' digests and where every record went."""
    return {
        "inputs": corpus.digests,
        "accounting": corpus.accounting.to_json(),
        "texts": len(corpus.responses),
        "texts_scored_by_recorded_ids": corpus.from_ids,
        "texts_without_prompt": corpus.without_prompt,
    }


def model_json(
    result: ModelResult,
    corpus: Corpus,
    warned: Sequence[Warned],
    *,
    tokenizer: str,
    candidates: Sequence[Candidate] = (),
    sequential: SequentialResult | None = None,
    supervised: SupervisedTest | None = None,
    logprobs: LogprobsResult | None = None,
) -> JsonObject:
    """Return one key's result of `detect model`; *candidates* are the references of which one was used."""
    fields = asdict(result)
    del fields["unweighted"], fields["weighted"]
    fields["verdict"] = result.verdict.value
    tests = {test.name: outcome_json(test) for test in result.tests}
    return {
        **head("detect-model"),
        **fields,
        "tests": tests,
        "reference_candidates": [asdict(candidate) for candidate in candidates],
        "sequential": None
        if sequential is None
        else {**asdict(sequential), "tokens": sequential.tokens, "tokens_needed": sequential.tokens_needed},
        "supervised": None
        if supervised is None
        else {
            **asdict(supervised),
            "never_served": {"name": supervised.never_served.name, **outcome_json(supervised.never_served)},
        },
        "logprobs": None
        if logprobs is None
        else {
            **asdict(logprobs),
            "test": {"name": logprobs.test.name, **outcome_json(logprobs.test)},
            "accounting": logprobs.accounting.to_json(),
        },
        "tokenizer": tokenizer,
        **inputs_json(corpus),
        "warnings": [warning.value for warning in warned],
        "does_not_say": DOES_NOT_SAY,
    }


def outcome_json(test: CountTest | WeightedTest) -> JsonObject:
    """Return one test; of a weighted one the decoys' spread instead of every decoy's z."""
    fields = asdict(test)
    del fields["name"]
    if isinstance(test, WeightedTest):
        del fields["decoy_z"]
        fields.update(z=test.z, decoy_sd=test.decoy_sd)
        if not math.isfinite(test.log10_p_smallest):
            fields["log10_p_smallest"] = None
    return fields


def weights_json(result: OpenWeightResult, corpus: Corpus, warned: Sequence[Warned], *, tokenizer: str) -> JsonObject:
    """Return one key's result of `detect weights`."""
    fields = asdict(result)
    test = outcome_json(result.test)
    return {
        **head("detect-weights"),
        **fields,
        "origin": result.origin.value,
        "verdict": result.verdict.value,
        "test": {"name": result.test.name, **test},
        "tokenizer": tokenizer,
        **inputs_json(corpus),
        "warnings": [warning.value for warning in warned],
        "does_not_say": DOES_NOT_SAY,
    }


def study_json(tables: Sequence[Table]) -> JsonObject:
    """Return what `study table` prints."""
    return {**head("study-table"), "tables": [asdict(table) for table in tables]}


def models_json(results: Sequence[JsonObject]) -> JsonObject:
    """Return what `detect model` prints: the one scope's result, or all of them under "scopes"."""
    return results[0] if len(results) == 1 else {**head("detect-models"), "scopes": list(results)}


def text_json(result: TextResult, corpus: Corpus, warned: Sequence[Warned], *, tokenizer: str) -> JsonObject:
    """Return what `detect text` prints."""
    fields = asdict(result)
    documents = [{**document, "verdict": document["verdict"].value} for document in fields.pop("documents")]
    del fields["pooled"]
    pooled = {**outcome_json(result.pooled), "verdict": fields.pop("pooled_verdict").value}
    return {
        **head("detect-text"),
        **fields,
        "documents": documents,
        "pooled": pooled,
        "tokenizer": tokenizer,
        **inputs_json(corpus),
        "warnings": [warning.value for warning in warned],
    }


def calibration_json(result: CalibrationResult, corpus: Corpus, *, tokenizer: str) -> JsonObject:
    """Return what `calibrate` prints."""
    fields = asdict(result)
    del fields["log10_ps"]
    fields["rates"] = {
        test: [{**asdict(rate), "rate": rate.rate, "within": rate.within} for rate in rates]
        for test, rates in result.rates.items()
    }
    return {**head("calibrate"), **fields, "tokenizer": tokenizer, **inputs_json(corpus)}


def demo_json(demo: Demo) -> JsonObject:
    """Return what `demo` prints: the student's and the clean twin's results as `detect model` prints them."""
    return {
        **head("demo"),
        "commitments_that_fit": demo.fitting_commitments,
        "teacher": text_json(demo.teacher, demo.teacher_corpus, demo.teacher_warnings, tokenizer=demo.tokenizer),
        "student": model_json(
            demo.student.result, demo.student.corpus, demo.student.warnings, tokenizer=demo.tokenizer
        ),
        "clean_twin": model_json(
            demo.clean_twin.result, demo.clean_twin.corpus, demo.clean_twin.warnings, tokenizer=demo.tokenizer
        ),
    }
