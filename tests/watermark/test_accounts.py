from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from watermark.accounts import AccountMap, WatchedAccounts, add_account
from watermark.errors import UsageError
from watermark.ticket import Ticket

KEY = "sk-0123456789abcdef"
OTHER = "sk-fedcba9876543210"


def digest(api_key: str) -> str:
    return hashlib.sha256(api_key.encode()).hexdigest()


def test_the_file_is_read_as_it_is_described(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text(f"# callers\n\n{digest(KEY)} alice\n  {digest(OTHER)}\tbob   off  \r\n{digest('x')} Zoë-é off\n")
    callers = AccountMap.load(path)
    assert callers.caller(KEY) == Ticket(account="alice", mark=True)
    assert callers.caller(OTHER) == Ticket(account="bob", mark=False)
    assert callers.caller("x") == Ticket(account="Zoë-é", mark=False)
    assert callers.caller("") is None
    assert callers.caller(digest(KEY)) is None
    assert callers.accounts() == {"alice", "bob", "Zoë-é"}


def test_a_comment_after_an_account_is_no_part_of_its_id(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text(f"{digest(KEY)} alice # the big one\n{digest(OTHER)} bo#b off  # evaluation\n")
    callers = AccountMap.load(path)
    assert callers.caller(KEY) == Ticket(account="alice", mark=True)
    assert callers.caller(OTHER) == Ticket(account="bo#b", mark=False)


def test_an_account_may_have_several_keys(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    add_account(path, "alice", KEY)
    add_account(path, "alice", OTHER, mark=False)
    callers = AccountMap.load(path)
    assert callers.caller(KEY) == Ticket(account="alice")
    assert callers.caller(OTHER) == Ticket(account="alice", mark=False)
    assert callers.accounts() == {"alice"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{KEY} alice", "expected the SHA-256"),
        (f"{digest(KEY).upper()} alice", "expected the SHA-256"),
        (f"{digest(KEY)[1:]} alice", "expected the SHA-256"),
        (f"{digest(KEY)}", "expected the SHA-256"),
        (f"{digest(KEY)} alice of", "without white space"),
        (f"{digest(KEY)} alice OFF", "without white space"),
        (f"{digest(KEY)} the alice off", "without white space"),
        (f"{digest(KEY)} al\x1bice", "account id"),
        (f"{digest(KEY)} {'a' * 256}", "account id"),
        (f"{digest(OTHER)} twice", "stands in an earlier line"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_and_not_shown(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "accounts"
    path.write_text(f"{digest(OTHER)} bob\n{line}\n")
    with pytest.raises(UsageError, match=f"accounts:2: .*{message}") as caught:
        AccountMap.load(path)
    assert KEY not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the accounts"):
        AccountMap.load(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"# \xff")
    with pytest.raises(UsageError, match="not UTF-8 at byte 2"):
        AccountMap.load(tmp_path / "bytes")


def test_the_api_key_is_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    add_account(path, "alice", KEY)
    assert KEY not in path.read_text()
    callers = AccountMap.load(path)
    assert digest(KEY) not in repr(callers)
    with pytest.raises(UsageError) as caught:
        add_account(path, "bob", KEY)
    assert KEY not in str(caught.value)
    assert digest(KEY) not in str(caught.value)


@pytest.mark.parametrize("account", ["", "two words", "tab\t", "\x00", "a" * 256, "\ud800"])
def test_accounts_that_cannot_stand_in_the_file_are_refused(tmp_path: Path, account: str) -> None:
    with pytest.raises(UsageError, match="account id"):
        add_account(tmp_path / "accounts", account, KEY)
    assert not (tmp_path / "accounts").exists()


@pytest.mark.parametrize("api_key", ["", "short", f" {KEY}", f"{KEY}\n"])
def test_api_keys_that_are_none_are_refused(tmp_path: Path, api_key: str) -> None:
    with pytest.raises(UsageError, match="at least 16 characters"):
        add_account(tmp_path / "accounts", "alice", api_key)


def test_a_last_line_without_an_end_is_not_grown(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text(f"{digest(KEY)} alice")
    add_account(path, "bob", OTHER)
    assert AccountMap.load(path).accounts() == {"alice", "bob"}


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write the accounts"):
        add_account(tmp_path / "none" / "accounts", "alice", KEY)


@given(
    st.dictionaries(
        st.text(min_size=16, max_size=40).filter(lambda key: key == key.strip()),
        st.tuples(st.from_regex(r"[^\s\x00-\x1f\x7f-\x9f]{1,20}", fullmatch=True), st.booleans()),
        max_size=6,
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_added_is_found(tmp_path: Path, callers: dict[str, tuple[str, bool]]) -> None:
    path = tmp_path / "accounts"
    path.write_text("# none yet")
    added = {}
    for api_key, (account, mark) in callers.items():
        try:
            add_account(path, account, api_key, mark=mark)
        except UsageError:
            continue  # Half a surrogate pair, or a character that no account id has.
        added[api_key] = Ticket(account=account, mark=mark)
    found = AccountMap.load(path)
    assert {api_key: found.caller(api_key) for api_key in added} == added
    assert len(found.callers) == len(added)


def test_a_watched_file_is_taken_up_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "accounts"
    add_account(path, "alice", KEY)
    watched = WatchedAccounts(path, interval=0.0)
    assert watched.caller(OTHER) is None
    add_account(path, "bob", OTHER)
    assert watched.caller(OTHER) == Ticket(account="bob")
    path.write_text(KEY)
    with caplog.at_level(logging.INFO):
        assert watched.caller(OTHER) == Ticket(account="bob")
        assert watched.caller(OTHER) == Ticket(account="bob")
    assert caplog.text.count("were not taken up") == 1  # Said once.
    assert KEY not in caplog.text
    path.unlink()
    assert watched.caller(KEY) == Ticket(account="alice")
    add_account(path, "carol", KEY)
    assert watched.caller(KEY) == Ticket(account="carol")
    assert watched.caller(OTHER) is None


def test_a_watched_file_is_not_looked_at_for_each_caller(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    add_account(path, "alice", KEY)
    watched = WatchedAccounts(path, interval=3600.0)
    path.unlink()
    assert watched.caller(KEY) == Ticket(account="alice")
    with pytest.raises(UsageError):
        WatchedAccounts(path, interval=1.0)
