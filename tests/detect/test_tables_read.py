"""Parquet, CSV and zstd: read as strictly as JSON Lines, within bounds."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from detect import arrow_rows, inputs
from detect.inputs import Portion
from detect.parquet_footer import column_chunks
from detect.portions import Sifter
from detect.records import Document, Reader
from watermark.errors import InputError, MissingExtraError, UsageError
from watermark.tokenizer import load

RECORDS: list[dict[str, Any]] = [
    {"prompt": "Why?", "response": "Because."},
    {"prompt": 'Say it, "quoted"', "response": "two\nlines, é \u2028 \U0001f600"},
    {"response": "=cmd()|'/c calc'!A1"},
    {"prompt": "", "response": "plain", "fingerprint": "ab" * 32},
]


def read(path: Path, **options: Any) -> tuple[list[Document], Reader]:
    reader = Reader([path], **options)
    documents = []
    for document in reader:
        reader.accounting.score()
        documents.append(document)
    reader.accounting.check()
    return documents, reader


def told(document: Document) -> list[tuple[Any, ...]]:
    return [
        (text.role, text.response, None if text.token_ids is None else text.token_ids.tolist(), text.prompts)
        for text in document.texts
    ]


def write_csv(path: Path, records: list[dict[str, Any]], delimiter: str = ",") -> Path:
    names = sorted({name for record in records for name in record})
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)
    return path


def as_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    lines = as_lines(tmp_path / "a.jsonl", RECORDS)
    expected = [told(document) for document in read(lines)[0]]
    # CSV does not tell an empty prompt from none.
    expected_csv = [*expected[:3], [("response", "plain", None, None)]]
    assert [told(d) for d in read(write_csv(tmp_path / "a.csv", RECORDS))[0]] == expected_csv
    assert [told(d) for d in read(write_csv(tmp_path / "a.tsv", RECORDS, "\t"))[0]] == expected_csv
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    documents, _ = read(tmp_path / "a.parquet")
    assert [told(d) for d in documents] == [[("response", "Because.", None, ("Why?",))], *expected[1:]]
    assert documents[1].source == f"{tmp_path / 'a.parquet'}:2"
    for packed, pack in ((".zst", zstandard.compress), (".gz", gzip.compress)):
        for name in ("a.jsonl", "a.csv"):
            path = tmp_path / (name + packed)
            path.write_bytes(pack((tmp_path / name).read_bytes()))
            assert [told(d) for d in read(path)[0]] == (expected if name == "a.jsonl" else expected_csv)


def test_ids_and_messages_in_tables(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    wanted = [[("response", None, [5, 6, 2**32 - 1], None)], [("assistant", "Hello.", None, ("Hi",))]]
    records = [{"token_ids": [5, 6, 2**32 - 1]}, {"messages": messages}]
    path = write_csv(tmp_path / "a.csv", [{name: json.dumps(value) for name, value in r.items()} for r in records])
    assert [told(d) for d in read(path)[0]] == wanted
    for kind in (pa.uint32(), pa.int64(), pa.uint64()):
        for lists in (pa.list_, pa.large_list):
            columns = {
                "token_ids": pa.array([[5, 6, 2**32 - 1], None], lists(kind)),
                "messages": pa.array([None, messages]),
            }
            pq.write_table(pa.table(columns), tmp_path / "a.parquet")
            assert [told(d) for d in read(tmp_path / "a.parquet")[0]] == wanted


def problems_of(path: Path) -> list[str]:
    with pytest.raises(InputError) as refusal:
        read(path)
    assert str(refusal.value).isprintable()
    _, reader = read(path, max_malformed=1000)
    return reader.accounting.problems


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"response,response\nx,y\n", "names each column once, found 'response' twice"),
        (b"response\nx,y\n", "expected 1 cells as in the header, found 2"),
        (b'response\n"a"b\n', "expected a record of CSV"),
        (b'response\na"b\nc"d\n', "expected a record of CSV"),
        (b'response\n"open\n', "closing quote, found the end of the file"),
        (b"response\n\xff\xfe\n", "expected UTF-8"),
        (b"\xff\xfer\0e\0", "byte order mark of UTF-16"),
        (b"other\nx\n", "expected one of the fields response"),
        (b'token_ids\n"[1, 1, NaN]"\n', "found in it NaN"),
        (b"token_ids\n12\n", "expected an array of token ids"),
        (b'token_ids\n"[1e400]"\n', "number out of range"),
        (b"messages\n" + b"[" * 100_000 + b"\n", "nested too deep"),
        (b"token_ids\n[" + b"9" * 5000 + b"]\n", "integer of thousands of digits"),
        (b"response\nlone\rreturn\n", "expected a record of CSV"),
    ],
)
def test_csv_is_strict(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    found = problems_of(tmp_path / "a.csv")
    assert problem in found[0], found


def test_csv_keeps_what_is_around_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfresponse,id\r\ngood,1\r\nbad\r\n\r\n"two\r\nlines",3\r\n,4\r\nend,5')
    documents, reader = read(tmp_path / "a.csv", max_malformed=1)
    assert [d.texts[0].response for d in documents] == ["good", "two\r\nlines", "", "end"]
    assert [d.source.rsplit(":")[-1] for d in documents] == ["2", "5", "7", "8"]
    assert reader.accounting.problems[0].startswith(f"{tmp_path / 'a.csv'}:3: ")


def test_an_open_quote_costs_a_bounded_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_LINE", 10_000)
    (tmp_path / "a.csv").write_bytes(b'response\n"open\n' + b"x\n" * 20_000)
    _, reader = read(tmp_path / "a.csv", max_malformed=100_000)
    assert "at most 10,000 bytes" in reader.accounting.problems[0]


def test_parquet_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    good = pa.array(["good", "better"])

    def problem(columns: Any, names: list[str]) -> str:
        pq.write_table(pa.Table.from_arrays(columns, names), path)
        return problems_of(path)[0]

    assert "each column once, found response twice" in problem([good, good], ["response", "response"])
    # Bytes that are not UTF-8, in a column that says they are.
    wrong = pa.array([b"good", b"b\xffd"]).view(pa.string())
    assert f"{path}:2: expected UTF-8 in response, found the byte 0xff at byte 1" in problem([wrong], ["response"])
    assert "expected a string in response, found" in problem([pa.array([b"x"])], ["response"])
    assert "found the number -1 at position 1" in problem([pa.array([[1, -1]])], ["token_ids"])
    assert "found the number 4294967296" in problem([pa.array([[2**32]])], ["token_ids"])
    assert "found null" in problem([pa.array([[1, None]])], ["token_ids"])
    assert "found the number 0.5" in problem([pa.array([[0.5]])], ["token_ids"])
    assert "expected one of the fields" in problem([pa.array([None], pa.string())], ["response"])
    pq.write_table(pa.table({"other": good}), path)
    with pytest.raises(InputError, match="no records in"):
        read(path)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"response": [f"answer {i} " * 20 for i in range(500)]}), path, row_group_size=100)
    whole = path.read_bytes()
    for data in (whole[:-9], whole[: len(whole) // 2], b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"plain"):
        path.write_bytes(data)
        assert "expected a" in problems_of(path)[0]
    middle = bytearray(whole)
    middle[len(whole) // 2 : len(whole) // 2 + 400] = bytes(400)
    path.write_bytes(bytes(middle))
    documents, reader = read(path, max_malformed=1)
    assert 0 < len(documents) < 500
    assert "what follows it is lost" in reader.accounting.problems[0]
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress(whole))
    assert "unpack it" in problems_of(tmp_path / "b.parquet.gz")[0]
    with pytest.raises(UsageError, match="Parquet cannot be read from a pipe"):
        list(Reader(["-"], stdin=_Pipe(whole)))  # type: ignore[arg-type]


class _Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *arguments: int) -> int:
        raise io.UnsupportedOperation


def test_parquet_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte said a thousand times is a megabyte in the file, and never a gigabyte in memory."""
    path = tmp_path / "a.parquet"
    said = pa.array(["x" * 2**20] * 1000)
    for column in (said, said.dictionary_encode()):
        pq.write_table(pa.table({"response": column, "prompt": [str(i) for i in range(1000)]}), path)
        assert path.stat().st_size < 2**20
        count = 0
        pa.default_memory_pool().release_unused()
        before = pa.total_allocated_bytes()
        for portion in Reader([path]).portions(2**20):
            count += len(portion)
            assert len(portion) <= 5
            assert len(pickle.dumps(portion.cut)) < 2**22
            assert pa.total_allocated_bytes() - before < 2**27
            assert all(raw.row["response"] == "x" * 2**20 for raw in portion.records() if raw.row is not None)
        assert count == 1000
    monkeypatch.setattr(arrow_rows, "MAX_VALUES", 100)
    pq.write_table(pa.table({"token_ids": [[1] * 101]}), path)
    assert "expected at most 100 values" in problems_of(path)[0]


@pytest.mark.parametrize("cut", [1, 10, 100, 1000])
def test_cut_zstd_keeps_the_lines_before(tmp_path: Path, cut: int) -> None:
    rng = np.random.default_rng(0)
    lines = b"".join(json.dumps({"text": rng.bytes(3000).hex()}).encode() + b"\n" for _ in range(100))
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(lines)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packed[: len(packed) - cut * 100])
    documents, reader = read(path, max_malformed=2)
    assert len(documents) > 30
    assert "expected a whole zstd stream, found its end: it was cut short" in reader.accounting.problems[-1]
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 255
    path.write_bytes(bytes(damaged))
    _, reader = read(path, max_malformed=100)
    assert reader.accounting.malformed > 0


def test_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    frames = [zstandard.compress(json.dumps(record).encode() + b"\n") for record in RECORDS]
    path.write_bytes(b"".join(frames))
    assert len(read(path)[0]) == len(RECORDS)
    (tmp_path / "other.jsonl").write_bytes(frames[0])
    assert len(read(tmp_path / "other.jsonl")[0]) == 1


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_TEXT", 2**16)
    monkeypatch.setattr(inputs, "MAX_LINE", 2**12)
    line = b'{"text": "%s"}\n' % (b"a" * 1000)
    for name, packed in (
        ("a.jsonl.zst", zstandard.compress(line * 20_000)),
        ("b.jsonl.gz", gzip.compress(line + bytes(2**25))),
        ("c.jsonl.zst", zstandard.compress(bytes(2**28))),
    ):
        (tmp_path / name).write_bytes(packed)
        problems = problems_of(tmp_path / name)
        assert "unpacks to more than 500 times its size, a bomb" in problems[-1]


def test_zstd_window_is_bounded(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters)
    packing = packer.compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packing.compress(b'{"text": "x"}\n') + packing.flush())
    assert "expected a whole zstd stream, found damage" in problems_of(path)[0]


def test_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"{}\n"))
    pq.write_table(pa.table({"response": ["x"]}), tmp_path / "a.parquet")
    for module, name in (("zstandard", "a.jsonl.zst"), ("pyarrow", "a.parquet")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtraError, match=r"pip install 'taggant\[corpora\]'"):
                list(Reader([tmp_path / name]))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"response": st.text(max_size=20)}), min_size=1, max_size=30),
    size=st.integers(1, 3000),
)
def test_portions_are_the_records_whatever_their_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("portions")
    lines = as_lines(folder / "a.jsonl", [{"response": "x" + row["response"]} for row in rows])
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=7)
    for path in (lines, folder / "a.parquet"):
        cut: list[Portion] = list(Reader([path]).portions(size))
        whole: list[Portion] = list(Reader([path]).portions(10**6))
        assert sum(map(len, cut)) == len(rows)
        assert [raw for portion in cut for raw in portion.records()] == [
            raw for portion in whole for raw in portion.records()
        ]
        digests = [digest for portion in cut for digest in portion.digests()]
        assert digests == [digest for portion in whole for digest in portion.digests()]
        same = {d: row for d, row in zip(digests, rows, strict=True)}
        assert [same[d] for d in digests] == rows


def test_a_column_elsewhere_makes_no_other_digest(tmp_path: Path) -> None:
    digests = []
    for order in (["prompt", "response"], ["response", "prompt"], ["response", "prompt", "text"]):
        columns = {"prompt": ["Why?"], "response": ["Because."], "text": pa.array([None], pa.string())}
        pq.write_table(pa.table({name: columns[name] for name in order}), tmp_path / "a.parquet")
        (portion,) = Reader([tmp_path / "a.parquet"]).portions(100)
        digests += portion.digests()
        record = {"prompt": "Why?", "response": "Because.", "text": ""}
        write_csv(tmp_path / "a.csv", [{name: record[name] for name in order}])
    assert len(set(digests)) == 1


def test_footer_is_what_pyarrow_says(tmp_path: Path) -> None:
    table = pa.table(
        {
            "response": ["x" * i for i in range(50)],
            "ids": [[i] * i for i in range(50)],
            "messages": [[{"role": "user", "content": "é"}]] * 50,
            "flag": [True, None] * 25,
        }
    ).replace_schema_metadata({"a": "b"})
    for version in ("1.0", "2.6"):
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=7, version=version, compression="zstd")
        with (tmp_path / "a.parquet").open("rb") as stream:
            found = column_chunks(stream)
        metadata = pq.read_metadata(tmp_path / "a.parquet")
        assert len(found) == metadata.num_row_groups
        for group, chunks in enumerate(found):
            columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
            assert [(c.column, c.values, c.unpacked) for c in chunks] == [
                (c.path_in_schema.split(".")[0], c.num_values, c.total_uncompressed_size) for c in columns
            ]


@given(
    rows=st.lists(st.lists(st.integers(0, 60), max_size=6), max_size=12),
    kind=st.sampled_from(["uint32", "int64", "uint16"]),
    window=st.integers(1, 3),
    seen=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_lists_of_ids_are_sifted_at_once_as_one_by_one(
    rows: list[list[int]], kind: str, window: int, seen: random.Random
) -> None:
    """And with an id that the vocabulary has not, one by one."""
    smollm2 = load("smollm2")
    sifter = Sifter(smollm2, window=window, special_ids=smollm2.special_ids)
    table = pa.table({"token_ids": pa.array(rows, type=pa.list_(pa.type_for_alias(kind)))})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    stream.seek(0)
    for cut in arrow_rows.arrow_rows(stream, columns=["token_ids"], size=200):
        portion = Portion("a.parquet", cut)
        before = np.array([seen.choice([0, 0, 1, 2]) for _ in range(len(portion))], dtype=np.uint8)
        found = sifter.sift(portion, before)
        sifter._ids_alone = None
        wanted = sifter.sift(portion, before)
        sifter._ids_alone = "token_ids"
        assert found.accounting == wanted.accounting
        for name in (
            "prompts",
            "echoes",
            "document",
            "sources",
            "record",
            "without_prompt",
            "from_ids",
            "fingerprints",
        ):
            assert getattr(found, name) == getattr(wanted, name)
        assert [ids.tolist() for ids in found.responses] == [ids.tolist() for ids in wanted.responses]
        assert all(ids.dtype == np.uint32 for ids in found.responses)
    over = pa.table({"token_ids": [[1, 2, 3, 4], [smollm2.vocabulary_size, 1, 2, 3, 4]]})
    stream = io.BytesIO()
    pq.write_table(over, stream)
    stream.seek(0)
    portion = Portion("b.parquet", next(arrow_rows.arrow_rows(stream, columns=["token_ids"], size=200)))
    assert sifter.sift(portion, np.zeros(2, dtype=np.uint8)).accounting.malformed == 1


def test_rows_are_the_same_in_another_process(tmp_path: Path) -> None:
    """Parts cut from one batch, sent or not: their own values alone, whatever stands beside them."""
    path = tmp_path / "a.parquet"
    lists = [[i, i + 1, i + 2] for i in range(200)]
    said = ["once", "twice"] * 100
    tables: list[dict[str, list[Any]]] = [
        {"token_ids": lists},
        {"token_ids": lists, "response": said},
        {"token_ids": [None, [1, None], *lists]},
    ]
    for columns in tables:
        pq.write_table(pa.table(columns), path)
        with path.open("rb") as stream:
            parts = list(arrow_rows.arrow_rows(stream, columns=["token_ids", "response"], size=300))
        assert len(parts) > 3
        for part in parts:
            sent = pickle.loads(pickle.dumps(part))  # noqa: S301
            assert (sent.first, sent.length, sent.file_bytes) == (part.first, part.length, part.file_bytes)
            assert sent.digests() == part.digests()
            assert [_plain(row) for row in sent.rows()] == [_plain(row) for row in part.rows()]
            found, again = part.id_lists("token_ids"), sent.id_lists("token_ids")
            assert (found is None) == (again is None)
            if found is not None and again is not None:
                ids, starts = found
                assert [ids.tolist(), starts.tolist()] == [again[0].tolist(), again[1].tolist()]
                rows = [ids[start:end].tolist() for start, end in pairwise(starts.tolist())]
                assert rows == columns["token_ids"][part.first - 1 : part.first - 1 + part.length]


def _plain(row: dict[str, object] | str) -> object:
    if isinstance(row, str):
        return row
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
