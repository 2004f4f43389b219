"""The tally on Daft: the bytes of the build without it, on its local engine and on a Ray cluster of several workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from detect.daft_plan import build_tally_on_daft
from detect.near_search import find_near_duplicates
from detect.portions import Sifter
from detect.tally_build import Build, build_tally
from watermark.errors import MissingExtraError, UsageError
from watermark.tokenizer import load

RUN = """
import sys
from pathlib import Path
from detect.daft_plan import build_tally_on_daft
from detect.portions import Sifter
from detect.tally_build import Build
from watermark.tokenizer import load

smollm2 = load("smollm2")
if sys.argv[1] != "-":
    import ray

    # A cluster of three nodes on this machine, each with a worker of its own.
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
build_tally_on_daft(
    sys.argv[4:], Sifter(smollm2, window=2, special_ids=smollm2.special_ids), out=Path(sys.argv[2]),
    build=Build(capacity=400, portion=3000), max_malformed=1, ray=None if sys.argv[1] == "-" else "auto",
    span=3000, near_duplicates=None if sys.argv[3] == "-" else float(sys.argv[3]),
)
import os

assert os.environ["DO_NOT_TRACK"] == "1"
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Files that share records, in several spans each, one of them with a malformed line."""
    paths = []
    for n in range(4):
        records = [{"prompt": f"what {i % 7}", "response": f"answer {i * n % 50}, {i % 30} or so"} for i in range(200)]
        path = tmp_path / f"{n}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        paths.append(str(path))
    with (tmp_path / "2.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("{}\n")
    return paths


@pytest.mark.parametrize("near", [None, 0.6])
@pytest.mark.parametrize(("engine", "module"), [("-", "daft"), pytest.param("ray", "ray", marks=pytest.mark.slow)])
def test_the_same_bytes(tmp_path: Path, files: list[str], engine: str, module: str, near: float | None) -> None:
    pytest.importorskip("daft", reason="extra daft")
    pytest.importorskip(module, reason="extra ray")
    smollm2 = load("smollm2")
    sifter = Sifter(smollm2, window=2, special_ids=smollm2.special_ids)
    build = Build(capacity=400)
    if near is not None:
        found = find_near_duplicates(
            files, sifter, threshold=near, out=tmp_path / "a", portion=build.portion, max_malformed=1
        )
        assert len(found.left_out) > 100
        build = replace(build, near=found)
    build_tally(files, sifter, out=tmp_path / "a", build=build, max_malformed=1)
    # A process of its own, since Daft has one engine a process.
    ran = subprocess.run(
        [sys.executable, "-c", RUN, engine, str(tmp_path / "b"), str(near or "-"), *files],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_daft_cannot_do(tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    smollm2 = load("smollm2")
    sifter = Sifter(smollm2, window=2, special_ids=smollm2.special_ids)
    with pytest.raises(UsageError, match="standard input and pipes"):
        build_tally_on_daft(["-"], sifter, out=tmp_path / "x")
    with pytest.raises(UsageError, match="not with --keep-duplicates"):
        build_tally_on_daft(files, sifter, out=tmp_path / "x", build=Build(keep_duplicates=True), near_duplicates=0.8)
    monkeypatch.setitem(sys.modules, "daft", None)
    with pytest.raises(MissingExtraError, match=r"taggant\[corpora,daft\]"):
        build_tally_on_daft(files, sifter, out=tmp_path / "x")
