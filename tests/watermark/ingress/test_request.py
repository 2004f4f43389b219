from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from watermark.ingress.request import parse_body, strip_marking, written

numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=8).filter(lambda name: not name.lower().startswith("taggant")), json_values))
def test_what_goes_on_is_what_came(body: dict[str, Any]) -> None:
    parsed = parse_body(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
    assert json.loads(written(parsed)) == parsed
    assert parse_body(json.dumps(body).encode()) == body
    assert json.loads(written(parse_body(json.dumps(body).encode()))) == body


@settings(deadline=None)
@given(st.text(max_size=4), st.sampled_from(["vllm_xargs", "custom_params", "extra_body", "extra_args", None]))
def test_whatever_is_named_after_us_goes(end: str, table: str | None) -> None:
    fields = {f"taggant{end}": 1, "other": 2}
    body: dict[str, Any] = {table: fields} if table else fields
    assert strip_marking(body) == ["taggant"]
    assert body == ({table: {"other": 2}} if table else {"other": 2})
