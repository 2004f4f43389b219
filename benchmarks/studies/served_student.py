"""Collect from a student of SmolLM2 and its clean twin behind a real vLLM server, with `taggant collect`.

    python benchmarks/studies/demo/train.py examples/teacher.jsonl STUDENT --seed 3        # the demo's student again
    python benchmarks/studies/demo/train.py unmarked.jsonl TWIN --seed 3                   # of unmarked answers
    python examples/serve/make_smollm2.py SMOLLM2
    python benchmarks/studies/served_student.py STUDENT TWIN SMOLLM2 WORK --server PYTHON  # a Python that has vLLM

For each of the two: collect until p is 1e-6, by the plan of 10,000 tokens in 16 looks with the base model as reference,
or until it is futile; then go on without a key to the end of the plan; then test the whole. The twin besides under 200
keys that marked nothing. The key is that of examples/. WORK keeps the journals, so that an interrupted run is
gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from detect.corpus import read_corpus
from detect.e_process import sequential_test
from detect.mark import GreenListMark
from detect.records import Reader
from detect.reference import Reference
from detect.study.keys import study_scope
from detect.study.real import study_prompts
from watermark.tokenizer import load

ANSWER, TOKENS, LOOKS, KEYS = 160, 10_000, 16, 200
DELTA, GAMMA_256 = 3.0, 64
KEYRING = Path(__file__).parents[2] / "examples" / "keyring.json"
TOKENIZER = load("smollm2")


def scope_of(number: int) -> Any:
    """Return a public key of that number, which marked nothing."""
    return study_scope(number, tokenizer=TOKENIZER, window=1, delta=DELTA, gamma_256=GAMMA_256)


@contextmanager
def served(student: Path, tokenizer: Path, python: str) -> Iterator[str]:
    """Serve a student's weights with SmolLM2's tokenizer and chat template, and yield the address."""
    for file in tokenizer.iterdir():
        if file.suffix != ".safetensors" and not (student / file.name).exists():
            shutil.copy(file, student / file.name)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    command = [python, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server", "--model", str(student)]
    command += ["--served-model-name", "student", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "8", "--enforce-eager"]
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    # Where Taggant is installed beside vLLM it would refuse to serve without a key.
    environment |= {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "2", "TAGGANT_POLICY": "off"}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (student / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=inherited | environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
                if server.poll() is not None:
                    raise SystemExit((student / "server.log").read_text()[-2000:]) from None
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def taggant(*arguments: str | Path) -> dict[str, Any]:
    """Run a command and return its JSON."""
    done = subprocess.run([sys.executable, "-m", "cli", *map(str, arguments), "--json"], capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def audit(name: str, student: Path, options: argparse.Namespace) -> None:
    """Collect from one suspect and print what came of it."""
    prompts, journal = options.work / "prompts.txt", options.work / f"{name}.jsonl"
    rest = options.work / f"{name}.npz"
    watching = ["--keyring", KEYRING, "--until", "1e-6", "--looks", str(LOOKS), "--planned-tokens", str(TOKENS)]
    with served(student, options.smollm2, options.server) as url:
        asking = ["collect", url, "--model", "student", "--prompts", prompts, "--out", journal]
        asking += ["--max-tokens", str(ANSWER), "--concurrency", "4"]
        began = time.monotonic()
        first = taggant(*asking, *watching, "--reference-model", "smollm2")
        seconds = time.monotonic() - began
        evidence = first["evidence"]
        at = evidence["looks"][-1]["tokens"] if evidence["looks"] else 0
        print(
            f"{name}: {first['stopped']} after {at:,} tokens ({len(evidence['looks'])} looks, {seconds:.0f} s, "
            f"{first['collection']['errors']} errors): anytime log10 p {evidence['log10_p']:.2f}",
            flush=True,
        )
        whole = taggant(*asking)
    print(f"  then all: {whole['collection']['completion_tokens']:,} tokens, {whole['stopped']}", flush=True)
    found = taggant(
        *("detect", "model", journal, "-k", KEYRING, "--retokenize", "--decoys", "999"),
        *("--reference-model", "smollm2", "--save-reference", rest),
    )
    print(f"  fixed size: {json.dumps(found)[:3000]}", flush=True)
    if name == "clean-twin":
        corpus, reference = read_corpus(Reader([journal]), TOKENIZER, window=1, retokenize=True), Reference.load(rest)
        tests = [
            sequential_test(corpus, GreenListMark(scope_of(key)), reference=reference, looks=LOOKS)
            for key in range(1_000, 1_000 + KEYS)
        ]
        log10_p = np.array([test.log10_p for test in tests])
        mean = np.mean([10.0**test.log10_e for test in tests])
        counts = ", ".join(f"{(log10_p <= -n).sum()} at 1e-{n}" for n in (1, 2, 3, 6))
        print(f"  under {KEYS} keys that marked nothing: {counts}; mean e {mean:.2f}", flush=True)


def main() -> None:
    """Audit both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("student", "twin", "smollm2"):
        parser.add_argument(name, type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--server", default=sys.executable)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    asked = [prompt for prompt, _ in study_prompts()[1]][: TOKENS // 150]
    (options.work / "prompts.txt").write_text("".join(prompt + "\n" for prompt in asked), encoding="utf-8")
    for name, folder in (("student", options.student), ("clean-twin", options.twin)):
        audit(name, folder, options)


if __name__ == "__main__":
    main()
