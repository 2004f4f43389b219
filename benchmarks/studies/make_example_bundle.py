"""Make examples/bundle and examples/publisher.pub from the demo's data.

    taggant detect model examples/student.jsonl    -k examples/keyring.json --retokenize --decoys 0 \
        --reference-model smollm2 --save-reference student.npz
    taggant detect model examples/clean-twin.jsonl -k examples/keyring.json --retokenize --decoys 0 \
        --reference-model smollm2 --save-reference clean-twin.npz
    python benchmarks/studies/make_example_bundle.py student.npz clean-twin.npz

The first two want the extra hf and a minute each: a bundle's texts are tokenised from their text, so that their
references are made on those ids and not on the recorded ones. The demo's key is published and was never activated: the
bundle says so, and shows how evidence looks, not that anybody did anything. The publisher's private key is thrown away.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from detect.evidence.study import ControlFiles, Study
from watermark.activation import commit
from watermark.commitment_log import CommitmentLog, activation_leaf
from watermark.keyring import Keyring
from watermark.signed_note import create_note_key
from watermark.tokenizer import load

EXAMPLES = Path(__file__).parents[2] / "examples"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("student", type=Path)
    parser.add_argument("clean_twin", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.student, options.clean_twin)


def make(folder: Path, student: Path, clean_twin: Path) -> None:
    tokenizer = load("smollm2")
    signer = create_note_key(folder / "publisher.key", name="example.org/taggant-demo")
    keyring = folder / "keyring.json"
    shutil.copy(EXAMPLES / "keyring.json", keyring)
    keyring.chmod(0o600)
    keys = Keyring.load(keyring).scope()
    log = CommitmentLog(folder / "log")
    log.append(activation_leaf(commit(Keyring.load(keyring), keys.name, log=log.folder, signer=signer), None), signer)

    records = [json.loads(line) for line in (EXAMPLES / "student.jsonl").read_text("utf-8").splitlines()]
    prompts = list(dict.fromkeys(record["prompt"] for record in records))
    samples: dict[str, int] = {}
    outputs = folder / "outputs.jsonl"
    with outputs.open("w", encoding="utf-8") as file:
        for record in records:
            prompt = record["prompt"]
            sample = samples[prompt] = samples.get(prompt, -1) + 1
            asked = {"prompt_index": prompts.index(prompt), "sample_index": sample}
            file.write(json.dumps({**asked, "prompt": prompt, "response": record["response"]}) + "\n")
    study = Study(folder / "study", log)
    study.plan(
        {
            "title": "Was the demo's student trained on the demo teacher's answers?",
            "suspect": {
                "endpoint": "none: examples/student.jsonl, sampled on the authors' machine",
                "model": "the demo's student",
                "released": None,
            },
            "hypotheses": {
                "null": "the outputs are independent of the key",
                "alternative": "the outputs depend on the key, as those of a student of its answers would",
            },
            "samples_per_prompt": max(samples.values()) + 1,
            "sampling": {"temperature": 1.0},
            "stopping": {"rule": "fixed", "planned_responses": len(records), "live_lanes": []},
            "prompt_policy": "own",
            "exclusions": ["answers not longer than the window"],
            "tests": ["quasi-score", "centred"],
            "reference": "SmolLM2-135M-Instruct, the public base of student and teacher",
            "level": "1e-6",
            "lanes_to_open": 32,
            "lane_choice": {"kind": "nonce", "name": "the authors, as an example", "round": None},
            "controls": [
                {
                    "name": "clean-twin",
                    "kind": "clean-twin",
                    "text": "trained like the student, on answers without the mark to the same prompts",
                }
            ],
            "deviations": ["the outputs were collected before this plan was written: it is an example"],
        },
        prompts,
        keys=keys,
        signer=signer,
    )
    study.score(
        outputs,
        keys=keys,
        tokenizer=tokenizer,
        signer=signer,
        reference=student,
        controls={"clean-twin": ControlFiles(outputs=EXAMPLES / "clean-twin.jsonl", reference=clean_twin)},
    )
    study.open(keyring, signer=signer, value="an example's nonce, which no auditor drew")
    shutil.rmtree(EXAMPLES / "bundle", ignore_errors=True)
    claim = study.create(EXAMPLES / "bundle", tokenizer=tokenizer, signer=signer, published=True)
    (EXAMPLES / "publisher.pub").write_text(f"{signer.verifier()}\n", encoding="utf-8")
    print("\n".join(claim.statement))


if __name__ == "__main__":
    main()
