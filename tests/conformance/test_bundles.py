"""Good bundles pass; each bad one fails its named check, and only what rests on it. Driven through a command."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evidence import Files, Forgery, Made, first_fleet_lanes, make_study

import cli
from detect.evidence.checks import CHECKS
from detect.evidence.envelope import pae
from watermark.signed_note import NoteSigner, create_note_key

#: Another implementation's command, to which the bundle and --publisher KEY --json are appended.
VERIFIER = shlex.split(os.environ.get("TAGGANT_VERIFY", ""))


def run(bundle: Path, publisher: Path | str) -> tuple[int, dict[str, str]]:
    arguments = [str(bundle), "--publisher", str(publisher), "--json"]
    if VERIFIER:
        done = subprocess.run([*VERIFIER, *arguments], capture_output=True, text=True, timeout=120, check=False)
        code, out, errors = done.returncode, done.stdout, done.stderr
    else:
        code, out, errors = in_this_process(["evidence", "verify", *arguments])
    assert "Traceback" not in errors
    checks = {each["id"]: each["status"] for each in json.loads(out)["checks"]} if out else {}
    return code, checks


def in_this_process(arguments: list[str]) -> tuple[int, str, str]:
    """Run our own command line, without the seconds that a process takes to start."""
    out, errors = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["taggant", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.argv = before
    return code, out.getvalue(), errors.getvalue()


def rests_on(failing: set[str]) -> set[str]:
    """The checks that are not made when *failing* fail."""
    blocked: set[str] = set()
    for check in CHECKS:
        if check.id not in failing and {*check.rests_on} & (failing | blocked):
            blocked.add(check.id)
    return blocked


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_study(tmp_path_factory.mktemp("good"))


def test_a_good_bundle_passes(good: Made) -> None:
    code, checks = run(good.path, good.publisher)
    assert code == 0
    assert set(checks) == {check.id for check in CHECKS}
    assert {id for id, status in checks.items() if status != "pass"} == {"E-TIME-01"}  # A caution.


def test_a_good_tar_passes(good: Made, tmp_path: Path) -> None:
    code, checks = run(_tar(tmp_path / "bundle.tar", good), good.publisher)
    assert (code, set(checks.values())) == (0, {"pass", "caution"})


def test_a_study_that_found_nothing_is_a_good_bundle(tmp_path: Path) -> None:
    made = make_study(tmp_path, marked=False)
    code, checks = run(made.path, made.publisher)
    assert (code, set(checks.values())) == (0, {"pass", "caution"})
    assert b"No sign of this key" in base64.b64decode(json.loads(made.files["claim.dsse.json"])["payload"])


# What a forger without the publisher's key can do to the files: name to the change.


def edit(name: str, old: bytes, new: bytes) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        assert old in files[name]
        files[name] = files[name].replace(old, new, 1)

    return change


def put(name: str, content: bytes) -> Callable[[Files], None]:
    return lambda files: files.__setitem__(name, content)


def drop(name: str) -> Callable[[Files], None]:
    return lambda files: files.__delitem__(name)


def envelope(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Files], None]:
    """Change the JSON of an envelope, and write it in canonical form."""

    def apply(files: Files) -> None:
        value = json.loads(files[name])
        change(value)
        files[name] = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    return apply


def payload(name: str, old: bytes, new: bytes) -> Callable[[Files], None]:
    def change(value: dict[str, Any]) -> None:
        content = base64.b64decode(value["payload"])
        assert old in content
        value["payload"] = base64.b64encode(content.replace(old, new, 1)).decode()

    return envelope(name, change)


def other_key(name: str) -> Callable[[Files], None]:
    """Sign a statement with a key that is not the publisher's."""

    def change(value: dict[str, Any]) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        signature = Ed25519PrivateKey.from_private_bytes(bytes(32)).sign(pae(base64.b64decode(value["payload"])))
        value["signatures"][0]["sig"] = base64.b64encode(signature).decode()

    return envelope(name, change)


# What a forger with the publisher's key does.


def falsified_lane(predicate: dict[str, Any]) -> None:
    for lane in predicate["lanes"]:
        if lane["tested"]:
            lane["green"] += 1


def hidden_root(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    extra = {**leaves[0], "scope": "another", "time": leaves[-1]["time"]}
    return [*leaves, extra]


def swapped(first: int, second: int) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def change(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
        leaves[first], leaves[second] = leaves[second], leaves[first]
        times = sorted(leaf["time"] for leaf in leaves)
        return [{**leaf, "time": time} for leaf, time in zip(leaves, times, strict=True)]

    return change


def without_kind(kind: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda leaves: [leaf for leaf in leaves if leaf.get("kind") != kind]


def compromised(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first = leaves[0]
    state = {
        "type": "taggant/state/1",
        "time": first["time"],
        "scope": first["scope"],
        "fingerprint": first["fingerprint"],
        "state": "compromised",
    }
    return [*leaves[:2], state, *leaves[2:]]


def revealed_twice(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    at = next(i for i, leaf in enumerate(leaves) if leaf["type"] == "taggant/revealed/1")
    return [*leaves[:at], leaves[at], leaves[at], *leaves[at + 1 :]]


def other_lanes_first(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    at = next(i for i, leaf in enumerate(leaves) if leaf["type"] == "taggant/revealed/1")
    other = [lane for lane in range(48) if lane not in leaves[at]["lanes"]][:4]
    return [*leaves[:at], {**leaves[at], "lanes": other}, *leaves[at:]]


def other_scores_first(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    at = next(i for i, leaf in enumerate(leaves) if leaf.get("kind") == "scores")
    return [*leaves[:at], {**leaves[at], "sha256": "ab" * 32}, *leaves[at:]]


def other_plan(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    at = next(i for i, leaf in enumerate(leaves) if leaf.get("kind") == "plan")
    return [*leaves[:at], {**leaves[at], "sha256": "ab" * 32}, *leaves[at:]]


def not_revealed(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [leaf for leaf in leaves if leaf["type"] != "taggant/revealed/1"]


def set_field(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(predicate: dict[str, Any]) -> None:
        for name in path[:-1]:
            predicate = predicate[name]
        assert predicate[path[-1]] != to
        predicate[path[-1]] = to

    return change


unsaid = set_field("deviations", to=["x"])


def other_seed(predicate: dict[str, Any]) -> None:
    lane = str(predicate["lanes"][0])
    predicate["seeds"][lane] = "00" * 32


def one_more_green(predicate: dict[str, Any]) -> None:
    test = predicate["tests"]["count"]
    test["green_sum"] = str(int(test["green_sum"]) + 1)


def milder_words(predicate: dict[str, Any]) -> None:
    predicate["statement"][2] = "It says that the suspect was trained on these answers."


def marked_control(files: Files) -> None:
    """A control that shows the key is no control."""
    lines = [json.loads(line) for line in files["outputs.jsonl"].splitlines()]
    files["controls/clean.jsonl"] = "".join(
        json.dumps({"prompt": line["prompt"], "response": line["response"]}) + "\n" for line in lines
    ).encode()


def nested(name: str) -> Callable[[Files], None]:
    return put(name, b"[" * 100_000)


#: Name of each bad bundle: the checks that fail, and the forgery.
BAD: dict[str, tuple[set[str], Forgery]] = {
    "an output edited": ({"E-FILE-02", "E-LINK-02"}, Forgery(after=edit("outputs.jsonl", b"the", b"thy"))),
    "an output appended": ({"E-FILE-02", "E-LINK-02"}, Forgery(after=edit("outputs.jsonl", b"\n", b"\n{}\n"))),
    "a prompt edited": (
        {"E-FILE-02", "E-PLAN-01"},
        Forgery(after=edit("prompts.jsonl", b"number 1.", b"number 9.")),
    ),
    "a file missing": ({"E-FILE-01"}, Forgery(after=drop("plan.dsse.json"))),
    "the manifest missing": ({"E-FILE-01"}, Forgery(after=drop("MANIFEST.json"))),
    "a file of another name": ({"E-FILE-01"}, Forgery(after=put("run.sh", b"exit 1\n"))),
    "an optional file added": ({"E-FILE-02"}, Forgery(after=put("trust/tsa.pem", b"\n"))),
    "a control taken away": ({"E-FILE-02", "E-LINK-02", "E-PLAN-03"}, Forgery(after=drop("controls/clean.jsonl"))),
    "a manifest that lies": (
        {"E-FILE-02", "E-SIGN-01"},
        Forgery(after=edit("MANIFEST.json", b'"size":', b'"size":1')),
    ),
    "a claim edited": ({"E-SIGN-01"}, Forgery(after=payload("claim.dsse.json", b'"roots":1', b'"roots":2'))),
    "a claim by another key": ({"E-SIGN-01"}, Forgery(after=other_key("claim.dsse.json"))),
    "a claim of an unknown version": (
        {"E-SIGN-01"},
        Forgery(after=payload("claim.dsse.json", b"claim:v1", b"claim:v9")),
    ),
    "a claim with white space": ({"E-SIGN-01"}, Forgery(after=edit("claim.dsse.json", b":", b": "))),
    "a claim with a name twice": (
        {"E-SIGN-01"},
        Forgery(after=edit("claim.dsse.json", b"{", b'{"payload":"",')),
    ),
    "a claim nested deep": ({"E-SIGN-01"}, Forgery(after=nested("claim.dsse.json"))),
    "a claim of another key id": (
        {"E-SIGN-01"},
        Forgery(after=envelope("claim.dsse.json", lambda value: value["signatures"][0].update(keyid="00000000"))),
    ),
    "a claim whose second signature of the key is wrong": (
        {"E-SIGN-01"},
        Forgery(
            after=envelope(
                "claim.dsse.json",
                lambda value: value["signatures"].append({**value["signatures"][0], "sig": "A" * 86 + "=="}),
            )
        ),
    ),
    "a plan by another key": ({"E-FILE-02", "E-SIGN-02"}, Forgery(after=other_key("plan.dsse.json"))),
    "scores edited": (
        {"E-FILE-02", "E-SIGN-03"},
        Forgery(after=payload("scores.dsse.json", b'"green":', b'"green":1')),
    ),
    "an opening edited": (
        {"E-FILE-02", "E-SIGN-04"},
        Forgery(after=payload("opening.dsse.json", b"a nonce", b"A nonce")),
    ),
    "a log edited": ({"E-FILE-02", "E-LOG-02"}, Forgery(after=edit("log.jsonl", b"2026-q4", b"2026-q3"))),
    "a log nested deep": ({"E-FILE-02", "E-LOG-02"}, Forgery(after=nested("log.jsonl"))),
    "a head edited": (
        {"E-FILE-02", "E-LOG-01"},
        Forgery(after=edit("checkpoint", b"provider.example/taggant\n", b"provider.example/other\n")),
    ),
    "a proof edited": ({"E-FILE-02", "E-LOG-03"}, Forgery(after=edit("commitment.tlog-proof", b"index 0", b"index 1"))),
    "the activation left out": (
        {"E-ACTIVATE-01"},
        Forgery(files=drop("activation.tlog-proof")),
    ),
    # From here on the forger signs.
    "a lane's count falsified": ({"E-SCORE-02"}, Forgery(statements={"scores": falsified_lane})),
    "lanes chosen by hand": ({"E-LANES-01"}, Forgery(order_of_lanes=first_fleet_lanes)),
    "the randomness of another source": (
        {"E-LANES-01"},
        Forgery(statements={"opening": set_field("randomness", "name", to="a friend")}),
    ),
    "a seed that was not committed to": ({"E-COMMIT-01"}, Forgery(statements={"opening": other_seed})),
    "a key hidden": ({"E-ROOTS-01"}, Forgery(leaves=hidden_root)),
    "a study hidden": ({"E-ROOTS-01"}, Forgery(leaves=other_plan)),
    "one of two scores": ({"E-ORDER-01"}, Forgery(leaves=other_scores_first)),
    "lanes opened by two values": ({"E-LANES-02"}, Forgery(leaves=other_lanes_first)),
    "a plan after its scores": ({"E-ORDER-01"}, Forgery(leaves=swapped(2, 3))),
    "an activation after the plan": ({"E-ORDER-01"}, Forgery(leaves=swapped(1, 2))),
    "a plan that was never logged": ({"E-ORDER-01", "E-ROOTS-01"}, Forgery(leaves=without_kind("plan"))),
    "scores that were never logged": ({"E-ORDER-01"}, Forgery(leaves=without_kind("scores"))),
    "a compromised key": ({"E-STATE-01"}, Forgery(leaves=compromised)),
    "lanes opened twice": ({"E-LANES-02"}, Forgery(leaves=revealed_twice)),
    "lanes opened and not said so": ({"E-LANES-02"}, Forgery(leaves=not_revealed)),
    "a plan from the future": (
        {"E-ORDER-02"},
        Forgery(statements={"plan": set_field("time", to="2999-01-01T00:00:00Z")}),
    ),
    "a claim before its plan": (
        {"E-ORDER-02"},
        Forgery(statements={"claim": set_field("time", to="2001-01-01T00:00:00Z")}),
    ),
    "a level chosen afterwards": ({"E-PLAN-03"}, Forgery(statements={"claim": set_field("level", to="1e-3")})),
    "an answer left out": (
        {"E-PLAN-02"},
        Forgery(
            outputs=lambda records: records[1:],
            deviations=("x",),
            statements={"scores": unsaid},
        ),
    ),
    "an answer to a request that was not planned": (
        {"E-PLAN-02"},
        Forgery(
            outputs=lambda records: [*records, {**records[0], "sample_index": 1}],
            deviations=("x",),
            statements={"scores": unsaid},
        ),
    ),
    "an answer twice": (
        {"E-PLAN-02"},
        Forgery(
            outputs=lambda records: [*records, records[0]],
            deviations=("x",),
            statements={"scores": unsaid},
        ),
    ),
    "an accounting that hides records": (
        {"E-SCORE-01"},
        Forgery(statements={"scores": set_field("outputs", "read", to=59)}),
    ),
    "another tokenizer": ({"E-TOKEN-01"}, Forgery(statements={"scores": set_field("tokenizer", to="00" * 32)})),
    "one more green pair": ({"E-CLAIM-01"}, Forgery(statements={"claim": one_more_green})),
    "a smaller p": ({"E-CLAIM-01"}, Forgery(statements={"claim": set_field("log10_p", to="-300.00")})),
    "another verdict": (
        {"E-CLAIM-01"},
        Forgery(statements={"claim": set_field("verdict", to="no sign of the key")}),
    ),
    "a control's p invented": (
        {"E-CLAIM-02"},
        Forgery(statements={"claim": set_field("controls", "clean", to="-0.99")}),
    ),
    "another rank among decoys": (
        {"E-CLAIM-03"},
        Forgery(statements={"claim": set_field("decoys", "rank", to=500)}),
    ),
    "decoys without end": (
        {"E-CLAIM-03"},
        Forgery(statements={"claim": set_field("decoys", "count", to=10**12)}),
    ),
    "words that say more": ({"E-CLAIM-04"}, Forgery(statements={"claim": milder_words})),
    "a control that is the suspect": (
        {"E-LINK-02"},
        Forgery(files=marked_control),
    ),
    "scores of another plan": ({"E-LINK-01"}, Forgery(statements={"scores": set_field("plan", to="00" * 32)})),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_bundle_fails_its_check(name: str, tmp_path: Path) -> None:
    failing, forgery = BAD[name]
    made = make_study(tmp_path, forgery=forgery)
    code, checks = run(made.path, made.publisher)
    assert {id for id, status in checks.items() if status == "fail"} == failing
    assert {id for id, status in checks.items() if status == "not checked"} == rests_on(failing)
    assert code == 5


def test_there_are_thirty() -> None:
    assert len(BAD) >= 30
    assert {id for failing, _ in BAD.values() for id in failing} | {"E-TIME-01", "E-REF-01"} == {
        check.id for check in CHECKS
    }


# Bundles that are no bundles.


@pytest.fixture
def copy(good: Made, tmp_path: Path) -> Path:
    shutil.copytree(good.path, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_link_is_refused(good: Made, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    (copy / "outputs.jsonl").unlink()
    (copy / "outputs.jsonl").symlink_to(tmp_path / "secret")
    code, checks = run(copy, good.publisher)
    assert (code, checks["E-FILE-01"]) == (5, "fail")
    assert set(checks.values()) == {"fail", "not checked"}


def test_a_folder_in_a_files_place_is_refused(good: Made, copy: Path) -> None:
    (copy / "checkpoint").unlink()
    (copy / "checkpoint").mkdir()
    assert run(copy, good.publisher)[1]["E-FILE-01"] == "fail"


def _tar(path: Path, good: Made, *extra: tarfile.TarInfo) -> Path:
    import io

    with tarfile.open(path, "w") as tar:
        for name, data in good.files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for entry in extra:
            tar.addfile(entry, io.BytesIO(b"x" * entry.size))
    return path


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "trust/../../outside", "checkpoint"])  # noqa: S108
def test_a_tar_of_hostile_names_is_refused(name: str, good: Made, tmp_path: Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = 1
    code, checks = run(_tar(tmp_path / "bundle.tar", good, entry), good.publisher)
    assert (code, checks["E-FILE-01"]) == (5, "fail")
    assert not (tmp_path.parent / "outside").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_tar_of_links_and_devices_is_refused(kind: bytes, good: Made, tmp_path: Path) -> None:
    entry = tarfile.TarInfo("trust/tsa.pem")
    entry.type, entry.linkname = kind, "../../etc/passwd"
    code, checks = run(_tar(tmp_path / "bundle.tar", good, entry), good.publisher)
    assert (code, checks["E-FILE-01"]) == (5, "fail")


def test_a_tar_that_claims_a_terabyte_is_refused(good: Made, tmp_path: Path) -> None:
    path = _tar(tmp_path / "bundle.tar", good)
    entry = tarfile.TarInfo("reference.npz")
    entry.size = 1 << 40
    with open(path, "ab") as file:
        file.seek(0)
        whole = path.read_bytes()
        file.truncate(0)
        file.write(entry.tobuf(tarfile.GNU_FORMAT) + whole)
    code, checks = run(path, good.publisher)
    assert (code, checks["E-FILE-01"]) == (5, "fail")


def test_a_tar_that_was_cut_is_refused(good: Made, tmp_path: Path) -> None:
    path = _tar(tmp_path / "bundle.tar", good)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, checks = run(path, good.publisher)
    assert (code, checks["E-FILE-01"]) == (5, "fail")


def test_another_publisher_fails_every_signature(good: Made, tmp_path: Path) -> None:
    other: NoteSigner = create_note_key(tmp_path / "key", name=good.signer.name)
    code, checks = run(good.path, str(other.verifier()))
    failing = {id for id, status in checks.items() if status == "fail"}
    assert (code, failing) == (5, {"E-SIGN-01", "E-SIGN-02", "E-SIGN-03", "E-SIGN-04", "E-LOG-01"})


@pytest.mark.parametrize("publisher", ["nobody", "", "a+00000000+AAAA"])
def test_without_a_publisher_nothing_is_checked(publisher: str, good: Made) -> None:
    assert run(good.path, publisher) == (6, {})


def test_the_golden_bundle_verifies() -> None:
    examples = Path(__file__).parents[2] / "examples"
    code, checks = run(examples / "bundle", examples / "publisher.pub")
    assert code == 0
    assert {id for id, status in checks.items() if status != "pass"} == {"E-TIME-01", "E-ACTIVATE-01", "E-CLAIM-04"}
    assert set(checks.values()) == {"pass", "caution"}
