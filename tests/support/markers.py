"""Markers as a server holds them: keys in a file, made for the shipped tokenizer or for none in particular."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from watermark.green_list import GreenList
from watermark.keyring import Keyring
from watermark.keys import Params, Secret
from watermark.marker import Marker, RequestMark
from watermark.serving import FieldTrust, Policy, ServingConfig
from watermark.tokenizer import load

ROOT = Secret(bytes(range(32)))


def key_file(folder: Path, *, smollm2: bool = False, **params: Any) -> Path:
    """Write a key file with an active scope, for the shipped tokenizer or for none in particular."""
    path = folder / "key.json"
    tokenizer = load("smollm2") if smollm2 else None
    chosen = {
        "tokenizer": tokenizer.digest() if tokenizer else "00" * 32,
        "special_ids": tokenizer.special_ids if tokenizer else (0, 3),
        "window": 2,
        "account_lanes": 16,
        **{name: value for name, value in params.items() if name != "delta"},
    }
    Keyring.create("test", params=Params(**chosen), delta=params.get("delta", 2.0), root=ROOT).write(path)
    return path


def config_of(folder: Path, **changes: Any) -> ServingConfig:
    values = {"keyring": folder / "key.json", "fields": FieldTrust.PLAIN, **changes}
    return ServingConfig(**values)


def marker_of(folder: Path, *, smollm2: bool = False, policy: Policy = Policy.REQUIRED, **params: Any) -> Marker:
    key_file(folder, smollm2=smollm2, **params)
    return Marker(config_of(folder, policy=policy))


def green_of(green_list: GreenList, window: list[int], vocabulary: int, account: str | None = None) -> np.ndarray:
    """Return a window's green tokens as a detector looks them up: one token at a time, by the specification."""
    from watermark import prf

    scope = green_list.scope
    one = np.array([window], dtype=np.uint32)
    lane = int(prf.lane(one)[0])
    in_fleet = lane < scope.params.fleet_lanes
    if not in_fleet and account is None:
        return np.zeros(vocabulary, dtype=np.bool_)
    bound = np.uint64(prf.green_below(scope.params.fleet_k if in_fleet else scope.params.account_k))
    tokens = np.arange(vocabulary, dtype=np.uint32)
    windows = np.repeat(one, vocabulary, axis=0)
    green = prf.uniform(scope.lane_key(lane).reveal(), windows, tokens) < bound
    if not in_fleet and account is not None:
        position = int(prf.siphash24(scope.code_key().reveal(), one)[0]) % 4096
        green = ~green if scope.code_word(account)[position] else green
    green[[i for i in scope.params.special_ids if i < vocabulary]] = False
    return np.asarray(green)


def expected_row(row: np.ndarray, request: RequestMark, response: list[int], *, strength: float = 1.0) -> np.ndarray:
    """Return what a float32 row is after the mark, by the specification: (V,)."""
    green_list = request.green_list
    h = 0 if green_list is None else green_list.window
    if green_list is None or len(response) < h or set(response[-h:]) & set(green_list.scope.params.special_ids):
        return row
    green = green_of(green_list, response[-h:], len(row), request.account)
    return np.where(green, row + np.float32(green_list.delta * strength), row)


__all__ = ["ROOT", "config_of", "expected_row", "green_of", "key_file", "marker_of"]
