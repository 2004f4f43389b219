"""What every engine adapter holds: admission by policy, scopes that change, and mixed batches row by row."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from watermark.accounts import add_account
from watermark.errors import KeyringError, TokenizerError, UsageError
from watermark.green_list import Outcome
from watermark.keyring import Keyring
from watermark.keys import CODE_BITS, Params, ScopeKeys
from watermark.life_cycle import activate, add_scope, derive, retire, update_key_file
from watermark.marker import UNMARKED, Marker, RequestMark
from watermark.prf import green_below, lane, row, siphash24
from watermark.serving import FieldTrust, IngressConfig, Policy, ServingConfig
from watermark.ticket import (
    TICKET_FIELD,
    RequestRefusedError,
    Ticket,
    create_ingress_key,
    process_key,
    read_ingress_key,
    sign_ticket,
)

VOCABULARY = 40
PARAMS = Params(tokenizer="ab" * 32, special_ids=(3, 5), window=2, fleet_k=64, account_k=128, account_lanes=16)
OTHER = replace(PARAMS, window=1, fleet_k=100)

Serve = Callable[..., Marker]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keyring = Keyring.create("first", params=PARAMS, delta=2.0, state="active")
    keyring.write(tmp_path / "key.json")
    return tmp_path / "key.json"


@pytest.fixture
def serve(key_file: Path) -> Iterator[Serve]:
    """Return a function that makes a marker of a configuration."""
    made: list[Marker] = []

    def serve(**changes: Any) -> Marker:
        made.append(Marker(ServingConfig(**({"keyring": key_file, "refresh": 0.02} | changes))))
        return made[-1]

    yield serve
    for marker in made:
        marker.close()


def ticket(**said: Any) -> dict[str, object]:
    return {TICKET_FIELD: sign_ticket(Ticket(**said), process_key())}


def add(key_file: Path, name: str, *, params: Params = PARAMS, delta: float = 2.0) -> None:
    update_key_file(key_file, lambda keyring: activate(add_scope(keyring, name, params=params, delta=delta), name))


def refusal(marker: Marker, fields: dict[str, object] | None, **options: Any) -> RequestRefusedError:
    before = marker.counts.requests[None, "refused"]
    with pytest.raises(RequestRefusedError) as caught:
        marker.admit(fields, **options)
    assert marker.counts.requests[None, "refused"] == before + 1
    assert str(caught.value).isprintable()
    return caught.value


# Admission


def test_a_request_without_a_word_is_marked_for_nobody(serve: Serve) -> None:
    marker = serve()
    for fields in (None, {}, {"other": 1}):
        request = marker.admit(fields)
        assert (request.marked, request.account, request.scope, request.reason) == (True, None, "first", None)
        assert request.green_list is marker.green_list


def test_a_ticket_says_account_and_mark(serve: Serve) -> None:
    marker = serve()
    assert marker.admit(ticket(account="alice"), strength=1.5) == RequestMark(
        green_list=marker.green_list, account="alice", strength=1.5
    )
    assert marker.admit({**ticket(account="bob", mark=False), "other": 1}) == RequestMark(account="bob", reason="off")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({TICKET_FIELD: "forged.ticket"}, 403),
        ({TICKET_FIELD: 5}, 403),
        ({"taggant_account": "alice"}, 403),
        ({"taggant_mark": "off"}, 403),
        ({TICKET_FIELD: "x", "taggant_mark": "off"}, 403),
        ({"taggant_key": "x"}, 400),
        ({"taggant_\x1b[31m" + "x" * 500: "x"}, 400),
    ],
)
def test_a_clients_own_word_is_refused(serve: Serve, fields: dict[str, object], status: int) -> None:
    assert refusal(serve(), fields).status == status


def test_a_ticket_of_another_process_needs_its_key_file(serve: Serve, tmp_path: Path) -> None:
    create_ingress_key(tmp_path / "ingress")
    fields: dict[str, object] = {TICKET_FIELD: sign_ticket(Ticket(account="a"), read_ingress_key(tmp_path / "ingress"))}
    assert refusal(serve(), fields).status == 403
    assert serve(ingress=IngressConfig(key=tmp_path / "ingress")).admit(fields).account == "a"
    with pytest.raises(KeyringError, match="no such ingress key"):
        serve(ingress=IngressConfig(key=tmp_path / "none"))


def test_what_another_process_has_checked_is_not_checked_again(serve: Serve) -> None:
    marker = serve()
    old: dict[str, object] = {TICKET_FIELD: sign_ticket(Ticket(account="a"), process_key(), now=0.0)}
    assert refusal(marker, old).status == 403
    assert marker.admit(old, verified=True).account == "a"


def test_plain_fields_are_believed_where_the_operator_says_so(serve: Serve, tmp_path: Path) -> None:
    marker = serve(fields=FieldTrust.PLAIN)
    assert marker.admit({"taggant_account": "a"}) == RequestMark(green_list=marker.green_list, account="a")
    assert marker.admit({"taggant_account": "a", "taggant_mark": "off"}).reason == "off"
    assert refusal(marker, ticket(account="a")).status == 400
    assert refusal(marker, {"taggant_account": 5}).status == 400
    assert marker.admit({"taggant_account": "unheard-of"}).account == "unheard-of"
    add_account(tmp_path / "accounts", "known", "k" * 16)
    marker = serve(fields=FieldTrust.PLAIN, ingress=IngressConfig(accounts=tmp_path / "accounts"))
    assert marker.admit({"taggant_account": "known"}).account == "known"
    assert "no such account" in str(refusal(marker, {"taggant_account": "unheard-of"}))


@pytest.mark.parametrize("strength", [1e39, float("inf"), float("nan"), -1.0])
def test_a_temperature_that_no_logit_can_hold_is_refused(serve: Serve, strength: float) -> None:
    assert refusal(serve(), None, strength=strength).status == 400


def test_an_account_that_is_added_is_known_without_a_restart(serve: Serve, tmp_path: Path) -> None:
    add_account(tmp_path / "accounts", "alice", "k" * 16)
    marker = serve(fields=FieldTrust.PLAIN, ingress=IngressConfig(accounts=tmp_path / "accounts"))
    refusal(marker, {"taggant_account": "bob"})
    add_account(tmp_path / "accounts", "bob", "l" * 16)
    time.sleep(0.05)  # Longer than `refresh`.
    assert marker.admit({"taggant_account": "bob"}).account == "bob"


def test_an_account_can_be_required(serve: Serve) -> None:
    marker = serve(require_account=True)
    assert refusal(marker, None).status == 401
    assert refusal(marker, ticket()).status == 401
    assert marker.admit(ticket(account="a")).marked
    assert marker.admit(ticket(mark=False)).reason == "off"


def test_off_marks_nothing_and_needs_no_key(serve: Serve, tmp_path: Path) -> None:
    marker = serve(policy=Policy.OFF, keyring=None)
    assert marker.green_list is None
    assert marker.admit(ticket(account="a")) == RequestMark(account="a", reason="policy")
    logits = np.ones((1, VOCABULARY), dtype=np.float32)
    marker.bias(logits, [[7, 8]], [marker.admit(None)])
    assert (logits == 1).all()
    assert marker.counts.tokens == {(None, Outcome.OFF): 1}
    marker.refresh()


def test_admissions_are_counted_by_scope_and_reason(serve: Serve) -> None:
    marker = serve()
    for fields in (None, ticket(account="a"), ticket(mark=False)):
        marker.took_on(marker.admit(fields))
    assert marker.counts.requests == {("first", "marked"): 2, (None, "off"): 1}


# Scopes that change


def test_a_scope_that_is_activated_is_taken_up_by_the_requests_after(serve: Serve, key_file: Path) -> None:
    marker = serve()
    before = marker.admit(None)
    add(key_file, "second", params=OTHER)
    assert marker.admit(None).scope == "first"
    marker.refresh()
    assert marker.admit(None).scope == "second"
    assert before.scope == "first"
    update_key_file(key_file, lambda keyring: retire(keyring, "second"))
    marker.refresh()
    after = marker.admit(None)
    assert after.scope == "first"
    assert after.green_list is before.green_list  # With its caches.


def test_other_keys_under_a_name_that_marks_are_not_taken_up(
    serve: Serve, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests under way are marked with the earlier ones, and a detector knows one set of keys for a name."""
    marker = serve()
    before = marker.admit(None)
    scope = Keyring.load(key_file).scopes[0]
    key_file.unlink()
    other = Keyring.create(scope.name, params=scope.params, delta=scope.delta)
    other.write(key_file)
    marker.refresh()
    assert marker.counts.reload_errors == 1
    assert "its keys are not those that it had here before" in caplog.text
    assert marker.admit(None).green_list is before.green_list
    assert other.scope().key.reveal().hex() not in caplog.text


def test_a_named_scope_stays_the_named_one(serve: Serve, key_file: Path) -> None:
    add(key_file, "second")
    marker = serve(scope="first")
    assert marker.admit(None).scope == "first"
    with pytest.raises(UsageError, match="no scope 'third'"):
        serve(scope="third")


def test_retiring_the_last_scope(serve: Serve, key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    required, optional = serve(), serve(policy=Policy.OPTIONAL)
    update_key_file(key_file, lambda keyring: retire(keyring, "first"))
    for marker in (required, optional):
        marker.refresh()
        assert marker.green_list is None
        # Whoever was admitted a moment ago by another process of this server is still marked.
        assert marker.admit(ticket(account="a"), verified=True).scope == "first"
    assert caplog.text.count("nothing is marked now") == 2
    assert refusal(required, None).status == 503
    assert optional.admit(ticket(account="a")) == RequestMark(account="a", reason="no active scope")
    with pytest.raises(KeyringError, match="is retired"):
        serve()
    assert serve(policy=Policy.OPTIONAL).admit(None).reason == "no active scope"


def test_a_ticket_can_name_the_scope(serve: Serve, key_file: Path) -> None:
    """So that ledger and engine agree, whichever of them has looked at the key file last."""
    marker = serve()
    add(key_file, "second")
    assert marker.admit(ticket(account="a", scope="first")).scope == "first"
    assert marker.admit(ticket(account="a", scope="second")).scope == "second"  # It looks at once.
    assert marker.admit(None).scope == "second"
    update_key_file(key_file, lambda keyring: retire(keyring, "first"))
    marker.refresh()
    assert marker.admit(ticket(scope="first")).scope == "first"  # Named by an ingress that has not looked yet.
    refused = refusal(marker, ticket(scope="third"))
    assert refused.status == 503
    assert "give both the same file" in str(refused)
    assert refusal(serve(), ticket(scope="first")).status == 503  # It never marked under it.


def test_a_scope_is_named_for_what_is_marked_only(serve: Serve) -> None:
    assert serve().admit(ticket(account="a", mark=False, scope="nowhere")).reason == "off"
    assert serve(policy=Policy.OFF, keyring=None).admit(ticket(scope="nowhere")).reason == "policy"


def test_a_bad_key_file_changes_nothing(serve: Serve, key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    marker = serve()
    content = key_file.read_bytes()
    for bad in (b"", content[:-9], content.replace(b"taggant_sk1_", b"taggant_sk2_")):
        key_file.write_bytes(bad)
        marker.refresh()
        marker.refresh()
        assert marker.admit(None).scope == "first"
    assert marker.counts.reload_errors == 3  # Once for each.
    key_file.unlink()
    marker.refresh()
    assert marker.admit(None).scope == "first"
    assert "the earlier keys stay in use" in caplog.text
    key_file.write_bytes(content)
    key_file.chmod(0o644)
    marker.refresh()
    assert "chmod 600" in caplog.text
    assert "taggant_sk" not in caplog.text


def test_a_scope_of_another_tokenizer_is_not_taken_up(
    serve: Serve, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = serve()
    add(key_file, "second", params=replace(PARAMS, tokenizer="cd" * 32))
    marker.refresh()
    assert marker.admit(None).scope == "first"
    assert "is for another tokenizer than that of first" in caplog.text


def test_a_scope_of_another_tokenizer_is_not_taken_up_after_the_last_was_retired(serve: Serve, key_file: Path) -> None:
    marker = serve()
    update_key_file(key_file, lambda keyring: retire(keyring, "first"))
    marker.refresh()
    add(key_file, "second", params=replace(PARAMS, tokenizer="cd" * 32))
    marker.refresh()
    assert marker.green_list is None
    with pytest.raises(RequestRefusedError, match="no scope"):
        marker.admit(None)


def test_the_engines_tokenizer_is_remembered_where_no_scope_is_active_yet(serve: Serve, key_file: Path) -> None:
    update_key_file(key_file, lambda keyring: retire(keyring, "first"))
    marker = serve(policy=Policy.OPTIONAL)
    marker.check_tokenizer("ab" * 32, "m")
    add(key_file, "second", params=replace(PARAMS, tokenizer="cd" * 32))
    marker.refresh()
    assert marker.green_list is None
    add(key_file, "third", params=PARAMS)
    marker.refresh()
    assert marker.green_list is not None
    assert marker.green_list.scope.name == "third"


def test_the_engines_tokenizer_is_checked(serve: Serve) -> None:
    marker = serve()
    marker.check_tokenizer("ab" * 32, "m")
    with pytest.raises(TokenizerError, match="made for another tokenizer than m's"):
        marker.check_tokenizer("cd" * 32, "m")
    serve(policy=Policy.OFF, keyring=None).check_tokenizer("cd" * 32, "m")


def test_a_serving_keyring_is_enough(serve: Serve, key_file: Path, tmp_path: Path) -> None:
    derive(Keyring.load(key_file)).write(tmp_path / "serving.json")
    logits = [np.zeros((1, VOCABULARY), dtype=np.float32) for _ in range(2)]
    for marker, target in zip((serve(), serve(keyring=tmp_path / "serving.json")), logits, strict=True):
        marker.bias(target, [[7, 8, 9]], [marker.admit(ticket(account="a"))])
    assert logits[0].any()
    assert (logits[0] == logits[1]).all()


def test_watching_takes_changes_up_and_writes_the_metrics(serve: Serve, key_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="metrics need prometheus_client")
    marker = serve(metrics=tmp_path / "metrics")
    marker.watch()
    marker.watch()
    add(key_file, "second")
    until = time.monotonic() + 10
    while marker.admit(None).scope != "second" and time.monotonic() < until:
        time.sleep(0.01)
    marker.took_on(marker.admit(None))
    assert marker.admit(None).scope == "second"
    marker.close()
    assert not [thread for thread in threading.enumerate() if thread is marker._thread]
    [file] = (tmp_path / "metrics").iterdir()
    counted = f'taggant_requests_total{{outcome="marked",process="{os.getpid()}",scope="second"}} 1.0'
    assert counted in file.read_text()


def test_a_look_that_fails_is_tried_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    marker = serve()
    looks: list[int] = []

    def refresh() -> None:
        looks.append(1)
        raise OSError("the disk is full")

    monkeypatch.setattr(marker, "refresh", refresh)
    marker.watch()
    until = time.monotonic() + 10
    while len(looks) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    marker._stop.set()
    assert len(looks) >= 3
    assert "it is tried again" in caplog.text


def test_threads_that_ask_while_the_file_changes_get_one_green_list_a_scope(serve: Serve, key_file: Path) -> None:
    marker = serve()
    add(key_file, "second")
    found: list[RequestMark] = []
    threads = [threading.Thread(target=lambda: found.append(marker.admit(ticket(scope="second")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(request.green_list) for request in found}) == 1
    assert len(found) == 8


# Batches


def test_shadow_computes_and_marks_nothing(serve: Serve) -> None:
    marker = serve(shadow=True)
    logits = np.ones((2, VOCABULARY), dtype=np.float32)
    request = marker.admit(ticket(account="a"))
    assert request.marked
    marker.bias(logits, [[7, 8], [7]], [request, request])
    assert (logits == 1).all()
    assert marker.counts.shadowed == {"first": 1}
    assert marker.counts.tokens == {("first", Outcome.NO_WINDOW): 1}


def test_a_placeholder_is_an_error(serve: Serve) -> None:
    marker = serve()
    with pytest.raises(ValueError, match="placeholder"):
        marker.bias(np.zeros((1, VOCABULARY), dtype=np.float32), [[7, -1]], [marker.admit(None)])


def test_low_entropy_is_left_alone(serve: Serve) -> None:
    marker = serve(min_entropy=1.0)
    logits = np.zeros((2, VOCABULARY), dtype=np.float32)
    logits[0, 9] = 40.0
    before = logits.copy()
    marker.bias(logits, [[7, 8], [7, 8]], [marker.admit(ticket(account="a"))] * 2)
    assert (logits[0] == before[0]).all()
    assert (logits[1] != before[1]).any()
    assert marker.counts.tokens[("first", Outcome.LOW_ENTROPY)] == 1


def expected_row(scope: ScopeKeys, response: list[int], request: RequestMark, logits: Any) -> Any:
    """What one row becomes, straight from the specification."""
    h = scope.params.window
    out = logits.copy()
    if len(response) < h or set(response[-h:]) & set(scope.params.special_ids):
        return out
    window = np.array(response[-h:], dtype=np.uint32)
    j = int(lane(window[None, :])[0])
    fleet = j < scope.params.fleet_lanes
    if not fleet and request.account is None:
        return out
    u = row(scope.lane_key(j).reveal(), window, VOCABULARY)
    green = u < np.uint64(green_below(scope.params.fleet_k if fleet else scope.params.account_k))
    if not fleet:
        position = int(siphash24(scope.code_key().reveal(), window[None, :])[0]) % CODE_BITS
        assert request.account is not None
        green ^= scope.code_word(request.account)[position]
    green[list(scope.params.special_ids)] = False
    out[green] += np.float32(scope.delta) * np.float32(request.strength)
    return out


ids = st.lists(st.integers(0, VOCABULARY - 1), max_size=6)
rows = st.tuples(
    ids, st.sampled_from(["first", "second", "off"]), st.sampled_from([None, "a", "zoë"]), st.sampled_from([1.0, 1.5])
)


@given(st.lists(rows, min_size=1, max_size=8), st.integers(0, 2**31))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_a_mixed_batch_is_each_row_by_itself(
    serve: Serve, key_file: Path, batch: list[tuple[list[int], str, str | None, float]], seed: int
) -> None:
    """Two scopes with windows of different widths, accounts, strengths and unmarked rows, in one call."""
    if "second" not in [scope.name for scope in Keyring.load(key_file).scopes]:
        add(key_file, "second", params=OTHER, delta=0.5)
    marker = serve(scope="first")
    marker.admit(ticket(scope="first"))
    marker.config = replace(marker.config, scope="second")
    marker._seen = None
    marker.refresh()  # Both scopes have been taken up now.
    keyring = Keyring.load(key_file)
    requests = [
        marker.admit(
            ticket(account=account, mark=False) if name == "off" else ticket(account=account, scope=name),
            strength=strength,
            verified=True,
        )
        for _, name, account, strength in batch
    ]
    assert [request.scope or "off" for request in requests] == [name for _, name, *_ in batch]
    logits = np.random.default_rng(seed).normal(size=(len(batch), VOCABULARY)).astype(np.float32)
    logits[:, 11] = -np.inf
    before = logits.copy()
    marker.bias(logits, [response for response, *_ in batch], requests)
    for b, (response, name, _, _) in enumerate(batch):
        expected = before[b] if name == "off" else expected_row(keyring.scope(name), response, requests[b], before[b])
        assert logits[b].tobytes() == expected.tobytes()
    counted = sum(marker.counts.tokens.values())
    assert counted == len(batch)


def test_an_empty_slot_is_left_alone(serve: Serve) -> None:
    marker = serve()
    logits = np.ones((2, VOCABULARY), dtype=np.float32)
    marker.bias(logits, [[], [7, 8]], [UNMARKED, marker.admit(ticket(account="a"))])
    assert (logits[0] == 1).all()
    assert (logits[1] != 1).any()


def test_it_shows_no_key(serve: Serve, key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = Keyring.load(key_file).root
    assert root is not None
    with caplog.at_level(logging.DEBUG):
        marker = serve()
        add(key_file, "second")
        marker.refresh()
        shown = repr([marker, marker.admit(None), marker.green_list, marker.config]) + caplog.text
    assert "second" in shown
    for secret in (root.reveal(), process_key().reveal(), marker.green_list.scope.key.reveal()):  # type: ignore[union-attr]
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
