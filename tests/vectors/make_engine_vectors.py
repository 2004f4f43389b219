"""Make engines.json: which logits every engine adapter has to raise, by the specification alone.

    PYTHONPATH=. python tests/vectors/make_engine_vectors.py

Nothing of `watermark.green_list` or of the compiled kernels is used: the keyed function is asked token by token, as
a detector does.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from watermark import prf
from watermark.keys import Params, ScopeKeys, Secret, scope_key

ROOT = bytes(range(32))
VOCABULARY = 512
SPECIAL = (0, 3)


def scope_of(window: int) -> ScopeKeys:
    params = Params(tokenizer="00" * 32, special_ids=SPECIAL, window=window, account_lanes=16)
    return ScopeKeys(name="test", params=params, delta=2.0, key=scope_key(Secret(ROOT), "test"))


def raised(scope: ScopeKeys, response: list[int], account: str | None) -> list[int]:
    h = scope.params.window
    window = response[-h:]
    if len(response) < h or set(window) & set(SPECIAL):
        return []
    one = np.array([window], dtype=np.uint32)
    lane = int(prf.lane(one)[0])
    fleet = lane < scope.params.fleet_lanes
    if not fleet and account is None:
        return []
    bound = prf.green_below(scope.params.fleet_k if fleet else scope.params.account_k)
    flipped = False
    if not fleet and account is not None:
        position = int(prf.siphash24(scope.code_key().reveal(), one)[0]) % 4096
        flipped = bool(scope.code_word(account)[position])
    green = []
    for token in range(VOCABULARY):
        u = int(prf.uniform(scope.lane_key(lane).reveal(), one, np.array([token], dtype=np.uint32))[0])
        if token not in SPECIAL and (u < bound) != flipped:
            green.append(token)
    return green


def main() -> None:
    rng = np.random.default_rng(7)
    cases = []
    for window in (1, 2, 4):
        scope = scope_of(window)
        for number in range(16):
            response = rng.integers(0, VOCABULARY, rng.integers(0, 7)).tolist()
            account = [None, "acme", "globex"][number % 3]
            said = {"prompt": rng.integers(0, VOCABULARY, 5).tolist(), "response": response, "account": account}
            cases.append({"window": window, **said, "raised": raised(scope, response, account)})
    about = "python tests/vectors/make_engine_vectors.py: each case's logits are raised by delta = 2 at these ids"
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    text = (
        f'{{\n "about": {json.dumps(about)},\n "root": "{ROOT.hex()}",\n "vocabulary": {VOCABULARY},\n'
        f' "special_ids": {list(SPECIAL)},\n "cases": [\n  {lines}\n ]\n}}\n'
    )
    Path(__file__).with_name("engines.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
