"""The key tree, fingerprints and commitments against the second implementation's vectors; secrets stay secret."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from watermark.errors import KeyringError, UsageError
from watermark.keys import Params, ScopeKeys, Secret, account_bytes, check_scope_name, commitment, scope_key

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "keys.json").read_text(encoding="utf-8")
)


def params_of(vector: dict[str, Any]) -> Params:
    return Params(**{**vector["params"], "special_ids": tuple(vector["params"]["special_ids"])})


def scope_of(vector: dict[str, Any]) -> ScopeKeys:
    return ScopeKeys(
        name=vector["scope"],
        params=params_of(vector),
        delta=2.0,
        key=scope_key(Secret(bytes.fromhex(vector["root"])), vector["scope"]),
        activation=bytes.fromhex(vector["activation"]),
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["scope"])
def test_vectors(vector: dict[str, Any]) -> None:
    params, scope = params_of(vector), scope_of(vector)
    assert params.canonical().decode() == vector["canonical"]
    assert params.fingerprint() == vector["fingerprint"]
    assert scope.key.reveal().hex() == vector["scope_key"]
    assert [scope.lane_seed(j).reveal().hex() for j in range(64)] == vector["lane_seeds"]
    assert [scope.lane_key(j).reveal().hex() for j in range(64)] == vector["lane_keys"]
    assert scope.lane_words().astype("<u8").tobytes().hex() == "".join(vector["lane_keys"])
    assert scope.account_seed().reveal().hex() == vector["account_seed"]
    assert scope.code_key().reveal().hex() == vector["code_key"]
    assert scope.commitments() == vector["commitments"]
    for account, word in vector["code_words"].items():
        bits = scope.code_word(account)
        data = bytes.fromhex(word)
        assert all(bits[i] == bool(data[i // 8] >> (i % 8) & 1) for i in range(4096))


def test_code_words_of_two_accounts_differ_in_half_their_bits() -> None:
    scope = scope_of(VECTORS[0])
    agree = np.mean(scope.code_word("a") == scope.code_word("b"))
    assert abs(agree - 0.5) < 4 * 0.5 / np.sqrt(4096)


def test_activation_changes_the_keys_and_not_the_commitments() -> None:
    plain, activated = (
        ScopeKeys(name="s", params=params_of(VECTORS[0]), delta=2.0, key=Secret(bytes(32)), activation=activation)
        for activation in (bytes(32), bytes([1]) * 32)
    )
    assert plain.commitments() == activated.commitments()
    assert not (plain.lane_words() == activated.lane_words()).any()
    assert not plain.activated
    assert activated.activated


def test_bounds_follow_the_lanes() -> None:
    with_accounts, without = params_of(VECTORS[0]), params_of(VECTORS[1])
    assert with_accounts.bounds().tolist() == [64 << 56] * 48 + [128 << 56] * 16
    assert without.bounds().tolist() == [64 << 56] * 64


@pytest.mark.parametrize("name", ["", "A", "a" * 65, "a b", "a\n", "é", "../x"])
def test_scope_names_refused(name: str) -> None:
    with pytest.raises(UsageError, match="scope name"):
        check_scope_name(name)


@pytest.mark.parametrize("account", ["", " a", "a\t", "a\x00b", "\ud800", "x" * 256, "a\x85b"])
def test_account_ids_refused(account: str) -> None:
    with pytest.raises(UsageError, match="account id"):
        account_bytes(account)


def test_account_ids_are_compared_as_bytes() -> None:
    assert account_bytes("\u00e9") != account_bytes("e\u0301")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suite", "sipmix-v2"),
        ("window", 0),
        ("window", 9),
        ("fleet_k", 0),
        ("account_k", 256),
        ("account_lanes", 8),
        ("tokenizer", "abc"),
        ("special_ids", (2, 1)),
        ("special_ids", (1, 1)),
        ("special_ids", (-1,)),
    ],
)
def test_params_refused(field: str, value: object) -> None:
    good = {**VECTORS[0]["params"], "special_ids": (0, 1)}
    with pytest.raises(UsageError):
        Params(**{**good, field: value})


def test_commitment_kinds() -> None:
    with pytest.raises(ValueError, match="takes a lane"):
        commitment("s", "00" * 32, "lane", bytes(32))
    with pytest.raises(ValueError, match="none"):
        commitment("s", "00" * 32, "accounts", bytes(32), lane=3)


def test_keys_of_wrong_length_are_refused() -> None:
    with pytest.raises(KeyringError, match="32 bytes"):
        ScopeKeys(name="s", params=params_of(VECTORS[0]), delta=2.0, key=Secret(b"short"))


def test_a_secret_does_not_come_out() -> None:
    scope = scope_of(VECTORS[0])
    secret = scope.key
    for shown in (repr(secret), str(secret), f"{secret}", repr(scope), str(scope)):
        assert secret.reveal().hex() not in shown
    assert "key=Secret(32 bytes)" in repr(scope)
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            way(secret)
