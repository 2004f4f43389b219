"""Bundles checked against other implementations, byte by byte, and without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evidence import Forgery, Made, make_study

from detect.evidence.bundle import Bundle
from detect.evidence.checks import CHECKS, Status
from detect.evidence.envelope import Envelope, Statement, pae
from detect.evidence.lanes import lanes_tested, order_of_lanes
from detect.evidence.predicates import Claim, Plan, predicate_of
from detect.evidence.report import claim_card
from detect.evidence.study import Study
from detect.evidence.verify import Verification, open_and_verify, verify_bundle
from watermark.commitment_log import CommitmentLog
from watermark.errors import TaggantError, UncheckableError, UsageError
from watermark.keyring import Keyring
from watermark.keys import Params
from watermark.prf import LANES
from watermark.signed_note import NoteVerifier
from watermark.tokenizer import load

STATEMENTS = ("plan", "scores", "opening", "claim")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_study(tmp_path_factory.mktemp("study"), responses=30)


def verified(made: Made, path: Path | None = None, **options: object) -> Verification:
    settings = {"tokenizer": None, "decoys": 20, "tsa_root": None, **options}
    return open_and_verify(path or made.path, str(made.publisher), **settings)


def statuses(verification: Verification) -> dict[str, str]:
    return {result.check.id: result.status.value for result in verification.results}


def predicate(made: Made, kind: str) -> object:
    envelope = Envelope.parse(made.files[f"{kind}.dsse.json"], what=kind)
    return predicate_of(Statement.parse(envelope.payload, kind=kind))


def test_the_checks_rest_on_earlier_ones_alone() -> None:
    seen: set[str] = set()
    for check in CHECKS:
        assert {*check.rests_on} <= seen
        seen.add(check.id)


def test_a_claim_has_the_p_of_an_independent_computation(made: Made) -> None:
    mpmath = pytest.importorskip("mpmath")
    claim = predicate(made, "claim")
    assert isinstance(claim, Claim)
    said = claim.tests["count"]
    n, green, gamma = said.pairs, int(said.green_sum), mpmath.mpf(64) / 256
    with mpmath.workdps(60):
        tail = mpmath.fsum(mpmath.binomial(n, g) * gamma**g * (1 - gamma) ** (n - g) for g in range(green, n + 1))
        exact = float(mpmath.log10(tail))
    assert float(said.log10_p) == pytest.approx(exact, abs=0.0101)
    assert float(said.log10_p) >= exact - 1e-9  # Rounded so that it never says more.


def test_envelopes_verify_with_securesystemslib(made: Made) -> None:
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    verifier = NoteVerifier.load(str(made.publisher))
    key = signer.SSlibKey(verifier.key_id.hex(), "ed25519", "ed25519", {"public": verifier.public_key.hex()})
    for kind in STATEMENTS:
        given = json.loads(made.files[f"{kind}.dsse.json"])
        envelope = dsse.Envelope.from_dict(given)
        assert list(envelope.verify([key], 1)) == [verifier.key_id.hex()]
        envelope.payload += b" "
        with pytest.raises(Exception, match="threshold"):
            envelope.verify([key], 1)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_envelopes_verify_with_openssl(made: Made, tmp_path: Path) -> None:
    """The commands are those of docs/how-to/verify-evidence.md."""
    key = NoteVerifier.load(str(made.publisher)).public_key
    (tmp_path / "publisher.der").write_bytes(bytes.fromhex("302a300506032b6570032100") + key)
    for kind in STATEMENTS:
        envelope = json.loads(made.files[f"{kind}.dsse.json"])
        payload = base64.b64decode(envelope["payload"])
        (tmp_path / "signed").write_bytes(pae(payload))
        (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
        command = (
            "openssl pkeyutl -verify -pubin -keyform DER -inkey publisher.der -rawin -in signed -sigfile signature"
        )
        done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "Verified Successfully" in done.stdout


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 41])
def test_every_changed_byte_of_every_file_is_caught(made: Made, tmp_path: Path, step: int) -> None:
    """Each byte in turn has one bit flipped: names, digests and signatures alone must see each of them."""
    folder = tmp_path / "bundle"
    shutil.copytree(made.path, folder)
    publisher = NoteVerifier.load(str(made.publisher))
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        content = path.read_bytes()
        for at in range(0, len(content), step):
            changed = bytearray(content)
            changed[at] ^= 1 << (at % 8)
            path.write_bytes(changed)
            assert _caught(folder, publisher), (path.name, at)
        path.write_bytes(content)
    assert not _caught(folder, publisher)


def _caught(folder: Path, publisher: NoteVerifier) -> bool:
    """The part of a verification that looks at bytes: names, digests, signatures."""
    try:
        bundle = Bundle.open(folder)
        envelope = Envelope.parse(bundle.read("claim.dsse.json"), what="claim")
        envelope.verify(publisher)
        manifest = bundle.read("MANIFEST.json")
        if dict(Statement.parse(envelope.payload, kind="claim").subject) != {
            "MANIFEST.json": hashlib.sha256(manifest).hexdigest()
        }:
            return True
        bundle.check_manifest()
    except TaggantError:
        return True
    return False


def test_changed_bytes_fail_the_command_and_stop_nothing(made: Made, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    folder = tmp_path / "bundle"
    shutil.copytree(made.path, folder)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        content = path.read_bytes()
        for at in random.integers(0, len(content), 2):
            changed = bytearray(content)
            changed[at] ^= 1 << int(random.integers(8))
            path.write_bytes(changed)
            found = verified(made, folder, decoys=1)
            assert found.exit_code == 5, (path.name, at)
            assert len(found.results) == len(CHECKS)
            assert "could not be made" not in str([result.detail for result in found.failed])
        path.write_bytes(content)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_it_verifies_without_a_network(made: Made) -> None:
    command = [sys.executable, "-m", "cli", "evidence", "verify", str(made.path), "--publisher", str(made.publisher)]
    isolated = ["unshare", "--net", "--map-root-user", *command]
    if subprocess.run(["unshare", "--net", "--map-root-user", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no network namespaces")
    done = subprocess.run(isolated, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_secret_leaves_with_a_bundle_or_a_report(made: Made) -> None:
    keys = Keyring.load(made.keyring).scope()
    opening = made.files["opening.dsse.json"]
    opened = {int(lane) for lane in json.loads(base64.b64decode(json.loads(opening)["payload"]))["predicate"]["seeds"]}
    secrets = {"root": bytes(range(32)), "scope": keys.key.reveal(), "accounts": keys.account_seed().reveal()}
    secrets |= {f"lane {j}": keys.lane_seed(j).reveal() for j in range(LANES) if j not in opened}
    secrets |= {f"key of lane {j}": keys.lane_key(j).reveal() for j in range(LANES)}
    report = claim_card(verified(made), command="taggant evidence verify")
    payloads = [base64.b64decode(json.loads(made.files[f"{kind}.dsse.json"])["payload"]) for kind in STATEMENTS]
    log = (made.log / "entries.jsonl").read_bytes()
    for content in (*made.files.values(), *payloads, report.encode(), log):
        for name, secret in secrets.items():
            for form in (secret, secret.hex().encode(), base64.b64encode(secret)[:40]):
                assert form not in content, name
    assert all(keys.lane_seed(j).reveal().hex().encode() in payloads[2] for j in opened)


def test_the_opened_lanes_are_uniform_whatever_the_scores() -> None:
    tested = lanes_tested(Params(tokenizer="00" * 32, special_ids=(), window=1, account_lanes=16), live=[3, 4])
    assert (tested.sum(), tested[3], tested[48]) == (46, False, False)
    trials, opened = 4_000, 12
    times = np.zeros(LANES)
    for trial in range(trials):
        scores = hashlib.sha256(trial.to_bytes(4, "little")).hexdigest()
        times[order_of_lanes(tested, scores=scores, value="one value of a beacon")[:opened]] += 1
    assert times[~tested].sum() == 0
    share = opened / 46
    z = (times[tested] - trials * share) / math.sqrt(trials * share * (1 - share))
    assert np.abs(z).max() < 4
    assert 0.6 < z.var() * 46 / 45 < 1.5


def test_another_value_opens_other_lanes_and_another_digest_too() -> None:
    tested = np.ones(LANES, dtype=np.bool_)
    first = order_of_lanes(tested, scores="ab" * 32, value="value")
    assert sorted(first) == list(range(LANES))
    assert first == order_of_lanes(tested, scores="ab" * 32, value="value")
    assert first != order_of_lanes(tested, scores="ab" * 32, value="valuf")
    assert first != order_of_lanes(tested, scores="ac" * 32, value="value")


def test_lanes_looked_at_while_collecting_are_neither_scored_nor_opened(tmp_path: Path) -> None:
    def live(config: dict[str, object]) -> None:
        config["stopping"] = {"rule": "e-process", "planned_responses": 20, "live_lanes": [0, 1, 2, 3]}

    made = make_study(tmp_path, forgery=Forgery(config=live), responses=20)
    found = verified(made)
    assert found.exit_code == 0
    assert found.scores is not None
    assert found.opening is not None
    assert [score.lane for score in found.scores.lanes if score.tested] == list(range(4, 48))
    assert not {0, 1, 2, 3} & {*found.opening.lanes}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_external_timestamps_are_verified_by_the_readers_roots(tmp_path: Path) -> None:
    pytest.importorskip("rfc3161_client")
    from timestamp_authority import make_authority, stamp

    from watermark.timestamp import TimestampRoots

    (tmp_path / "tsa").mkdir()
    (tmp_path / "other").mkdir()
    authority, other = make_authority(tmp_path / "tsa"), make_authority(tmp_path / "other")
    made = make_study(tmp_path, responses=20)
    log = CommitmentLog(made.log)
    client = pytest.importorskip("rfc3161_client")

    def take(message: bytes) -> bytes:
        request = client.TimestampRequestBuilder().data(message).hash_algorithm(client.HashAlgorithm.SHA256).build()
        return stamp(authority, request.as_bytes())

    log.timestamp(take)
    Study(made.folder / "study", log).create(tmp_path / "stamped", tokenizer=load("smollm2"), signer=made.signer)
    assert TimestampRoots.load(authority / "root.pem").certificates

    def found(root: Path | None) -> tuple[str, int]:
        verification = verified(made, tmp_path / "stamped", tsa_root=root)
        return statuses(verification)["E-TIME-01"], verification.exit_code

    assert found(authority / "root.pem") == ("pass", 0)
    assert found(None) == ("caution", 0)
    assert found(other / "root.pem") == ("fail", 5)


def test_a_reference_that_knows_the_key_is_refused_by_its_own_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher who weighs by the key gets a small p on nothing; the reader's own check sees it."""
    import detect.evidence.study as steps

    honest = make_study(tmp_path / "honest", marked=False, reference="base", responses=40)
    found = verified(honest)
    assert (found.exit_code, statuses(found)["E-REF-01"]) == (0, "pass")
    monkeypatch.setattr(steps, "check_reference", lambda evidence, mark: None)
    forged = make_study(tmp_path / "forged", marked=False, reference="marked", responses=40)
    found = verified(forged)
    assert found.exit_code == 5
    assert [result.check.id for result in found.failed] == ["E-REF-01"]
    assert "depends on the key" in found.failed[0].detail


def test_a_key_that_is_not_at_hand_is_not_a_failure(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UncheckableError, match="publisher"):
        open_and_verify(made.path, str(tmp_path / "no.pub"), tokenizer=None, decoys=1, tsa_root=None)


def test_a_check_that_meets_the_unforeseen_fails_alone(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from detect.evidence import verify

    def explodes(self: object) -> str:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(verify._Run, "e_plan_01", explodes)
    found = verify_bundle(Bundle.open(made.path), NoteVerifier.load(str(made.publisher)), decoys=1)
    by_id = statuses(found)
    assert by_id["E-PLAN-01"] == "fail"
    assert {id for id, status in by_id.items() if status == "not checked"} == {"E-PLAN-02"}
    assert "secret detail" not in str(found.results)


def test_steps_are_done_once_and_in_order(made: Made, tmp_path: Path) -> None:
    keys, study = Keyring.load(made.keyring).scope(), Study(made.folder / "study", CommitmentLog(made.log))
    tokenizer = load("smollm2")
    with pytest.raises(UsageError, match="plan"):
        study.plan({}, ["one"], keys=keys, signer=made.signer)
    with pytest.raises(UsageError, match=r"scored|once|already"):
        study.score(made.folder / "outputs.jsonl", keys=keys, tokenizer=tokenizer, signer=made.signer)
    with pytest.raises(UsageError, match="opened once"):
        study.open(made.keyring, signer=made.signer, value="another nonce of the auditor's")
    same = study.open(made.keyring, signer=made.signer, value="a nonce of the auditor's")
    assert list(same.lanes) == list(keys.revealed)
    empty = Study(tmp_path / "empty", CommitmentLog(made.log))
    with pytest.raises(UsageError, match="taggant evidence plan"):
        empty.create(tmp_path / "bundle", tokenizer=tokenizer, signer=made.signer)


def test_plans_that_cannot_be_carried_out_are_refused(tmp_path: Path) -> None:
    for change, said in (
        ({"lanes_to_open": 33}, "lanes_to_open"),
        ({"tests": []}, "tests"),
        ({"tests": ["centred"]}, "reference"),
        ({"level": "0.01"}, "level"),
        ({"surprise": 1}, "surprise"),
        ({"prompt_policy": "clean"}, "leaves out what stands in the prompts"),
    ):
        with pytest.raises(TaggantError, match=said):
            make_study(tmp_path / said, forgery=Forgery(config=lambda config, change=change: config.update(change)))


def test_a_plan_says_what_was_signed(made: Made) -> None:
    plan = predicate(made, "plan")
    assert isinstance(plan, Plan)
    assert (plan.log10_level, plan.prompts.count, plan.lanes_to_open) == (-6.0, 30, 12)


def test_the_report_says_so_when_a_bundle_does_not_bear_its_claim_out(tmp_path: Path) -> None:
    def more(claim: dict[str, object]) -> None:
        claim["log10_p"] = "-500.00"

    made = make_study(tmp_path, forgery=Forgery(statements={"claim": more}), responses=20)
    found = verified(made)
    assert found.exit_code == 5
    card = claim_card(found, command="taggant evidence verify")
    assert "is not borne out by its bundle" in card
    assert "e-500" not in card.split("Failed checks")[0]
    assert found.failed[0].status is Status.FAILED


def test_the_table_of_checks_is_that_of_the_documentation() -> None:
    rows = [f"| {check.id} | {check.title} | {check.failure} |" for check in CHECKS]
    table = "\n".join(["| check | what | if it fails |", "|---|---|---|", *rows])
    page = Path(__file__).parents[2] / "docs" / "how-to" / "verify-evidence.md"
    text = page.read_text(encoding="utf-8")
    start, end = text.index("<!-- checks -->"), text.index("## Without our software")
    found = text[start:end]
    expected = f"<!-- checks -->\n\n{table}\n\n"
    if os.environ.get("TAGGANT_WRITE_DOCS"):
        page.write_text(text.replace(found, expected), encoding="utf-8")
        return
    assert found == expected
