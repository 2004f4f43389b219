"""`--mark SCHEME:FILE`: strict, private, and with errors that say what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detect.marks.mark_file import load_mark
from watermark.errors import KeyringError, TaggantError, UsageError

KEY = 2345678901234567891


def written(folder: Path, content: object, mode: int = 0o600) -> Path:
    path = folder / "mark.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("scheme", "content", "name", "window"),
    [
        ("vllm", {"key": KEY}, "vllm gumbel", 4),
        ("vllm", {"algorithm": "dual_key_gumbel", "key": KEY, "alpha": 0.2, "context_width": 2}, "dual_key", 2),
        (
            "transformers",
            {"hashing_key": KEY, "bias": 2.5, "greenlist_ratio": 0.5, "taggant": {"vocabulary": 49152}},
            "lefthash",
            1,
        ),
        (
            "transformers",
            {"hashing_key": KEY, "seeding_scheme": "selfhash", "context_width": 4, "taggant": {"vocabulary": 100}},
            "selfhash",
            3,
        ),
        ("synthid", {"ngram_len": 5, "keys": [KEY, 3], "debug_mode": False}, "synthid", 4),
        ("textseal", {"secret_key": KEY, "ngram": 2, "watermark_type": "gumbelmax"}, "textseal", 2),
    ],
)
def test_reads_the_servers_own_configuration(
    tmp_path: Path, scheme: str, content: object, name: str, window: int
) -> None:
    mark = load_mark(f"{scheme}:{written(tmp_path, content)}")
    assert name in mark.name
    assert mark.window == window
    assert len(mark.fingerprint) == 64


def test_extras(tmp_path: Path) -> None:
    content = {"key": KEY, "taggant": {"special_ids": [5, 1, 5], "tokenizer": "ab" * 32}}
    mark = load_mark(f"vllm:{written(tmp_path, content)}")
    assert (mark.special_ids, mark.tokenizer) == ((1, 5), "ab" * 32)


@pytest.mark.parametrize(
    ("scheme", "content", "expected"),
    [
        ("vllm", {}, "field key: expected a whole number from 0 to 18446744073709551615, found none"),
        ("vllm", {"key": str(KEY)}, "field key: expected a whole number"),
        ("vllm", {"key": True}, "field key: expected a whole number"),
        ("vllm", {"key": KEY, "algorithm": "kgw"}, "'gumbel' or 'dual_key_gumbel'"),
        ("vllm", {"key": KEY, "keyy": 1}, "'keyy' is unknown"),
        ("vllm", {"key": KEY, "taggant": {"x": 1}}, "'x' is unknown"),
        ("vllm", f'{{"key": {KEY}, "key": {KEY}}}', "expected one JSON object"),
        ("vllm", "not json", "expected one JSON object"),
        ("transformers", {"hashing_key": KEY}, "taggant: field vocabulary"),
        ("synthid", {"ngram_len": 5, "keys": []}, "field keys: expected a list"),
        ("textseal", {"secret_key": KEY, "watermark_type": "greenlist"}, "'gumbelmax'"),
    ],
)
def test_refuses_by_field_and_shows_no_key(tmp_path: Path, scheme: str, content: object, expected: str) -> None:
    with pytest.raises(KeyringError) as caught:
        load_mark(f"{scheme}:{written(tmp_path, content)}")
    assert expected in str(caught.value)
    assert "e.g." in str(caught.value) or "a whole one:" in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        example = "{" + str(error).partition("{")[2]
        assert str(KEY) not in str(error).replace(example, "")
        error = error.__cause__ or error.__context__


def test_refuses_what_others_can_read(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match="chmod 600"):
        load_mark(f"vllm:{written(tmp_path, {'key': KEY}, mode=0o644)}")


@pytest.mark.parametrize("spec", ["vllm", "kgw:file", "vllm:", ":x"])
def test_refuses_unknown_schemes(spec: str) -> None:
    with pytest.raises(UsageError, match="SCHEME:FILE"):
        load_mark(spec)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TaggantError, match="no such file"):
        load_mark(f"vllm:{tmp_path / 'none.json'}")
