"""Objects of a store as inputs, read from a real server of the S3 protocol on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from detect import object_store
from detect.inputs import find_inputs
from detect.object_store import find_objects
from detect.portions import Sifter
from detect.records import Reader
from detect.tally_build import Build, build_tally
from watermark.errors import InputError, UsageError
from watermark.tokenizer import load

SECRET = "secret-of-nobody"  # noqa: S105 - the server asks for none


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server with a bucket of files, which are in the folder returned, too."""
    server = pytest.importorskip("moto.server", reason="moto[server], of the extra test").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    folder = tmp_path_factory.mktemp("store")
    for n in range(3):
        (folder / "answers").mkdir(exist_ok=True)
        records = [{"prompt": f"what {i % 7}", "response": f"answer {i * n % 50}, {i % 30} or so"} for i in range(200)]
        data = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "answers" / f"{n}.jsonl").write_text(data, encoding="utf-8")
    (folder / "answers" / "deep").mkdir()
    with (folder / "answers" / "2.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("{}\n")
    texts = pa.table({"text": [f"the text of row {i} and so on" for i in range(300)]})
    pq.write_table(texts, folder / "answers" / "deep" / "x.parquet", row_group_size=100)
    (folder / "answers" / ".hidden.jsonl").write_text("no record\n")
    (folder / "answers" / "picture.png").write_bytes(b"none")
    (folder / "answers" / "q?.jsonl").write_text('{"text": "a name that would be a pattern"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        object_store._store.cache_clear()
        client = pafs.S3FileSystem(
            endpoint_override=f"http://{host}:{port}", region="us-east-1", allow_bucket_creation=True
        )
        client.create_dir("bucket")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with client.open_output_stream(f"bucket/{path.relative_to(folder)}") as stream:
                    stream.write(path.read_bytes())
        yield folder
    object_store._store.cache_clear()
    server.stop()


@pytest.fixture(scope="module")
def sifter() -> Sifter:
    smollm2 = load("smollm2")
    return Sifter(smollm2, window=2, special_ids=smollm2.special_ids)


def test_what_is_found(store: Path) -> None:
    def found(given: str) -> list[str]:
        return [file.name.removeprefix("s3://bucket/answers/") for file in find_inputs([given], noted.append_two)]

    class Noted(list[tuple[str, int]]):
        def append_two(self, what: str, count: int) -> None:
            self.append((what, count))

    noted = Noted()
    assert found("s3://bucket/answers/1.jsonl") == ["1.jsonl"]
    everything = ["0.jsonl", "1.jsonl", "2.jsonl", "deep/x.parquet", "q?.jsonl"]
    assert found("s3://bucket/answers") == found("s3://bucket/answers/") == everything
    assert found("s3://bucket/") == found("s3://bucket") == everything
    assert noted == [("files passed over in folders: hidden, or of a suffix that is not read", 2)] * 4
    assert found("s3://bucket/answers/[01].jsonl") == ["0.jsonl", "1.jsonl"]
    assert found("s3://bucket/*/*.jsonl") == ["0.jsonl", "1.jsonl", "2.jsonl", "q?.jsonl"]
    assert found("s3://bucket/**/*.parquet") == ["deep/x.parquet"]
    assert found("s3://bucket/**/x.parquet") == found("s3://bucket/answers/deep/?.parquet") == ["deep/x.parquet"]
    # A name that exists is no pattern.
    assert found("s3://bucket/answers/q?.jsonl") == ["q?.jsonl"]
    size = (store / "answers" / "1.jsonl").stat().st_size
    assert Reader(["s3://bucket/answers/1.jsonl"]).bytes_total == size


def test_what_is_not_found(store: Path) -> None:
    for given, problem in {
        "s3://bucket/answers/9.jsonl": "no such object or prefix",
        "s3://bucket/answers/9*.jsonl": "no object matches",
        "s3://other/*": "the store says NO_SUCH_BUCKET|no object matches",
    }.items():
        with pytest.raises(InputError, match=problem):
            find_inputs([given], lambda what, count: None)
    for given in ("s3://", "s3:///key", "s3://buc*/key", "s3://bucket:9000/key", "s3://bu ck/key"):
        with pytest.raises(UsageError, match="with the bucket's name written out"):
            find_inputs([given], lambda what, count: None)
    for given in ("s3://bucket//key", "s3://bucket/a//b", "s3://bucket/\0", "s3://bucket/\udc80"):
        with pytest.raises(UsageError, match="a key with an empty name"):
            find_inputs([given], lambda what, count: None)
    (file,) = find_inputs(["s3://bucket/answers/1.jsonl"], lambda what, count: None)
    with pytest.raises(OSError, match="no such object"):
        object_store.open_object(file.name.replace("1", "9"))


@pytest.mark.parametrize(
    "given", [f"s3://nobody:{SECRET}@bucket/a.jsonl", f"s3://bucket/a.jsonl?secret_key={SECRET}&region=x"]
)
def test_credentials_are_not_taken_from_an_address_nor_repeated(given: str) -> None:
    with pytest.raises(UsageError, match="come from the environment") as caught:
        find_objects(given)
    assert SECRET not in str(caught.value)


def test_what_a_store_says_is_not_repeated() -> None:
    said = OSError(f"When reading: AWS Error ACCESS_DENIED during GetObject operation: {SECRET} may not")
    assert "the store says ACCESS_DENIED: are AWS_ACCESS_KEY_ID" in str(object_store._meant(said))
    for error in (said, OSError(SECRET)):
        assert SECRET not in str(object_store._meant(error))


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    object_store._store.cache_clear()
    try:
        with pytest.raises(InputError, match="cannot read s3://bucket/a: the store says NETWORK_CONNECTION: is AWS_E"):
            find_objects("s3://bucket/a")
    finally:
        object_store._store.cache_clear()


@pytest.mark.parametrize("workers", [1, 2])
def test_tally_of_objects_is_that_of_files(store: Path, tmp_path: Path, sifter: Sifter, workers: int) -> None:
    build = Build(portion=4000, workers=workers)
    local = build_tally([store / "answers"], sifter, out=tmp_path / "a", build=build, max_malformed=1)
    remote = build_tally(["s3://bucket/answers"], sifter, out=tmp_path / "b", build=build, max_malformed=1)
    assert remote.digest() == local.digest()
    expected = [(digest, name.replace(str(store), "s3://bucket")) for digest, name in local.about.inputs]
    assert list(remote.about.inputs) == sorted(expected)
    assert remote.about.accounting.problems[0].startswith("s3://bucket/answers/2.jsonl:201: ")
    same = {"inputs": (), "accounting": local.about.accounting}
    assert replace(remote.about, **same) == replace(local.about, **same)


RUN = """
import sys
from pathlib import Path
from detect.daft_plan import build_tally_on_daft
from detect.portions import Sifter
from detect.tally_build import Build
from watermark.tokenizer import load

smollm2 = load("smollm2")
build_tally_on_daft(
    sys.argv[2:], Sifter(smollm2, window=2, special_ids=smollm2.special_ids), out=Path(sys.argv[1]),
    build=Build(capacity=400, portion=3000), max_malformed=1, span=2500,
)
"""


def test_daft_reads_objects_in_spans(store: Path, tmp_path: Path, sifter: Sifter) -> None:
    pytest.importorskip("daft", reason="extra daft")
    given = ["s3://bucket/answers"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": 300}
    build_tally(given, sifter, out=tmp_path / "a", build=Build(capacity=400), max_malformed=1)
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "b"), *given],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert SECRET not in ran.stdout + ran.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
