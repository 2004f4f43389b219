"""Serve a small student behind an OpenAI-compatible address, for docs/tutorial.md.

    python benchmarks/studies/serve_student.py --keyring keyring.json --port 8001          # a student of marked answers
    python benchmarks/studies/serve_student.py --keyring keyring.json --port 8002 --clean  # its clean twin

The student is a bigram model of words, trained on 250 answers of 60 words that favour the key's green ones (or, the
twin's, do not). It is as small as a student can be, and everything around it is what it would be for a large one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from student_server import Student, StudentServer

from watermark.keyring import Keyring
from watermark.tokenizer import load


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keyring", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--clean", action="store_true")
    options = parser.parse_args()
    keys = Keyring.load(options.keyring).scope()
    student = Student.taught(None if options.clean else keys, load("smollm2"), seed=6 if options.clean else 5)
    uvicorn.run(StudentServer(student).app, port=options.port, log_level="warning", lifespan="off")


if __name__ == "__main__":
    main()
