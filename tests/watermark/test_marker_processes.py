"""One server of several processes, each with a marker of its own, must mark one request alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from watermark.keyring import Keyring
from watermark.keys import Params, Secret
from watermark.life_cycle import activate, add_scope, retire, update_key_file
from watermark.marker import Marker
from watermark.serving import FieldTrust, IngressConfig, Policy, ServingConfig
from watermark.ticket import SCOPE_FIELD, RequestRefusedError

PARAMS = Params(tokenizer="ab" * 32, special_ids=(0, 1), window=2)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keyring = Keyring(root=Secret(bytes(range(32))), scopes=())
    for name in ("a", "b"):
        keyring = add_scope(keyring, name, params=PARAMS, delta=2.0)
    activate(keyring, "a").write(tmp_path / "k.json")
    return tmp_path / "k.json"


def marker_of(key_file: Path, policy: Policy = Policy.REQUIRED) -> Marker:
    return Marker(ServingConfig(keyring=key_file, policy=policy))


def decided(marker: Marker) -> dict[str, object]:
    return marker.decided_fields(None, marker.admit(None))


def test_a_process_ahead_and_a_process_behind_mark_under_the_scope_that_was_decided(key_file: Path) -> None:
    admitting, behind = marker_of(key_file), marker_of(key_file)
    old = decided(admitting)
    update_key_file(key_file, lambda keyring: retire(activate(keyring, "b"), "a"))
    admitting.refresh()
    new = decided(admitting)
    assert (old[SCOPE_FIELD], new[SCOPE_FIELD]) == ("a", "b")
    # The one behind learns of "b" from the request, and still knows "a".
    for marker in (behind, admitting):
        assert [marker.admit(fields, verified=True).scope for fields in (new, old)] == ["b", "a"]


def test_a_request_that_was_admitted_unmarked_stays_so(key_file: Path) -> None:
    admitting = marker_of(key_file, Policy.OPTIONAL)
    sampling = marker_of(key_file, Policy.OPTIONAL)
    update_key_file(key_file, lambda keyring: retire(keyring, "a"))
    admitting.refresh()
    fields = decided(admitting)
    assert not sampling.admit(fields, verified=True).marked
    assert sampling.admit(None).marked


def test_a_scope_that_nobody_knows_leaves_the_request_marked_under_the_current_one(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert marker_of(key_file).admit({SCOPE_FIELD: "z"}, verified=True).scope == "a"
    assert "scope z" in caplog.text


def test_nobody_outside_names_the_scope(key_file: Path) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        marker_of(key_file).admit({SCOPE_FIELD: "b"})
    assert refused.value.status in (400, 403)


def test_an_account_that_was_admitted_is_not_looked_up_again(key_file: Path, tmp_path: Path) -> None:
    accounts = tmp_path / "accounts.txt"
    accounts.touch(mode=0o600)
    marker = Marker(ServingConfig(keyring=key_file, fields=FieldTrust.PLAIN, ingress=IngressConfig(accounts=accounts)))
    with pytest.raises(RequestRefusedError, match="no such account"):
        marker.admit({"taggant_account": "acme"})
    assert marker.admit({"taggant_account": "acme"}, verified=True).account == "acme"


def test_what_an_engine_cannot_mark_is_refused_and_counted(key_file: Path) -> None:
    marker = marker_of(key_file)
    marker.refuse_if(None)
    with pytest.raises(RequestRefusedError, match="beams") as refused:
        marker.refuse_if("beams", status=503)
    assert refused.value.status == 503
    assert marker.counts.requests == {(None, "refused"): 1}
