from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watermark.errors import KeyringError, UsageError
from watermark.keys import Secret
from watermark.ticket import (
    RequestRefusedError,
    Ticket,
    create_ingress_key,
    open_ticket,
    process_key,
    read_ingress_key,
    read_plain_fields,
    sign_ticket,
)

KEY = Secret(bytes(range(32)))

accounts = st.none() | st.text(
    st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60
)  # A part of what an account id may be.
scopes = st.none() | st.from_regex(r"[a-z0-9._-]{1,64}", fullmatch=True)
tickets = st.builds(Ticket, account=accounts, mark=st.booleans(), scope=scopes)


@settings(deadline=None)
@given(tickets, st.floats(0, 1e11))
def test_a_ticket_comes_back_as_it_was_signed(ticket: Ticket, now: float) -> None:
    text = sign_ticket(ticket, KEY, now=now)
    assert text.isascii()
    assert open_ticket(text, KEY, now=now) == ticket
    assert open_ticket(text, None, now=now + 1e6) == ticket


def test_the_form_of_a_ticket() -> None:
    """Taken down by hand from the module's text; another ingress must be able to make it."""
    import hashlib
    import hmac

    text = sign_ticket(Ticket(account="zoë", scope="a"), KEY, now=1000.25)
    body, tag = text.split(".")
    said = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert said == {"account": "zoë", "mark": True, "scope": "a", "time": 1000.25}
    expected = hmac.new(KEY.reveal(), body.encode(), hashlib.sha256).digest()[:16]
    assert base64.urlsafe_b64decode(tag + "==") == expected


def test_a_ticket_without_a_scope_is_of_an_earlier_ingress() -> None:
    body = base64.urlsafe_b64encode(b'{"account": "a", "mark": true, "time": 5}').decode().rstrip("=")
    assert open_ticket(f"{body}.x", None, now=5) == Ticket(account="a")


@settings(deadline=None)
@given(st.data(), tickets)
def test_a_changed_ticket_is_refused(data: st.DataObject, ticket: Ticket) -> None:
    text = sign_ticket(ticket, KEY, now=0.0)
    at = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.sampled_from("ABCZaz09-_.=é "))
    changed = text[:at] + new + text[at + 1 :]
    if changed != text:
        with pytest.raises(RequestRefusedError, match="was not signed by this server's ingress") as caught:
            open_ticket(changed, KEY, now=0.0)
        assert caught.value.status == 403


@pytest.mark.parametrize("text", ["", ".", "a", "a.", ".a", "é.é", None, 5, ["a.b"], {"a": 1}])
def test_what_is_no_ticket_is_refused(text: object) -> None:
    with pytest.raises(RequestRefusedError, match="leave it out"):
        open_ticket(text, KEY)


@pytest.mark.parametrize(
    "said",
    [
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"account": null, "mark": true}',
        '{"account": 1, "mark": true, "time": 0}',
        '{"account": "\\ud800", "mark": true, "time": 0}',
        '{"account": null, "mark": "off", "time": 0}',
        '{"account": null, "mark": true, "scope": 1, "time": 0}',
        '{"account": null, "mark": true, "time": NaN}',
        '{"account": null, "mark": true, "time": "0"}',
        '{"account": null, "mark": true, "time": 1%s}' % ("0" * 400),
    ],
)
def test_a_signed_ticket_that_says_something_else_is_refused(said: str) -> None:
    body = base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")
    tag = hmac.new(KEY.reveal(), body.encode(), hashlib.sha256).digest()[:16]
    text = f"{body}.{base64.urlsafe_b64encode(tag).decode().rstrip('=')}"
    with pytest.raises(RequestRefusedError) as caught:
        open_ticket(text, KEY, now=0.0)
    assert caught.value.status == 403


@pytest.mark.parametrize("text", ["abc.def", "a.def"])
def test_what_another_process_has_checked_is_read_with_care(text: str) -> None:
    with pytest.raises(RequestRefusedError):
        open_ticket(text, None)


def test_another_key_opens_nothing() -> None:
    text = sign_ticket(Ticket(), KEY)
    with pytest.raises(RequestRefusedError, match="was not signed"):
        open_ticket(text, Secret(bytes(32)))


@pytest.mark.parametrize(("age", "fits"), [(0, True), (299.9, True), (-299.9, True), (300.1, False), (-300.1, False)])
def test_a_ticket_is_good_for_five_minutes(age: float, fits: bool) -> None:
    text = sign_ticket(Ticket(account="a"), KEY, now=1000.0)
    if fits:
        assert open_ticket(text, KEY, now=1000.0 + age) == Ticket(account="a")
    else:
        with pytest.raises(RequestRefusedError, match="ago" if age > 0 else "in the future") as caught:
            open_ticket(text, KEY, now=1000.0 + age)
        assert caught.value.status == 403


@pytest.mark.parametrize(("account", "scope"), [("", None), ("\n", None), ("a" * 256, None), (None, "A"), (None, "")])
def test_a_ticket_holds_what_can_be_an_account_and_a_scope(account: str | None, scope: str | None) -> None:
    with pytest.raises(UsageError):
        Ticket(account=account, scope=scope)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Ticket()),
        ({"taggant_account": "a"}, Ticket(account="a")),
        ({"taggant_account": "a", "taggant_mark": "off"}, Ticket(account="a", mark=False)),
        ({"taggant_mark": "on", "other": 1}, Ticket()),
    ],
)
def test_plain_fields(fields: dict[str, object], expected: Ticket) -> None:
    assert read_plain_fields(fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"taggant_account": 5},
        {"taggant_account": ["a"]},
        {"taggant_account": ""},
        {"taggant_account": "\x1b[31m"},
        {"taggant_mark": False},
        {"taggant_mark": "OFF"},
        {"taggant_mark": "\x1b"},
    ],
)
def test_malformed_plain_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        read_plain_fields(fields)
    assert caught.value.status == 400
    assert str(caught.value).isprintable()


def test_an_ingress_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    create_ingress_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = read_ingress_key(path)
    assert len(key) == 32
    assert open_ticket(sign_ticket(Ticket(account="a"), key), read_ingress_key(path)) == Ticket(account="a")
    with pytest.raises(KeyringError, match="never overwritten"):
        create_ingress_key(path)
    path.chmod(0o640)
    with pytest.raises(KeyringError, match="chmod 600"):
        read_ingress_key(path)
    path.chmod(0o600)
    content = path.read_text()
    for broken in (content[:-3], content.replace("taggant_sk1_", "taggant_sk2_"), "", "\xff"):
        path.write_text(broken)
        with pytest.raises(KeyringError, match="checksum does not fit") as caught:
            read_ingress_key(path)
        assert key.reveal().hex() not in str(caught.value)
    with pytest.raises(KeyringError, match="no such ingress key; `taggant keys ingress"):
        read_ingress_key(tmp_path / "none")


def test_a_process_has_one_key_and_another_has_another() -> None:
    assert process_key() is process_key()
    code = (
        "from watermark.ticket import process_key as key; print(key().reveal() == key().reveal(), key().reveal().hex())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    same, drawn = ran.stdout.split()
    assert same == "True"
    assert drawn != process_key().reveal().hex()
    assert repr(process_key()) == "Secret(32 bytes)"
