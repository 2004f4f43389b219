"""Studies for the evidence tests: a small honest one, and forgers that hold the publisher's key."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import detect.evidence.study as steps
from detect.evidence.bundle import write_bundle
from detect.evidence.envelope import Statement
from detect.evidence.predicates import Claim
from detect.evidence.strict import from_json, to_json
from detect.evidence.study import ControlFiles, Study
from detect.reference import Reference
from watermark.activation import activate_scope, commit
from watermark.checkpoint import Checkpoint, LogProof
from watermark.commitment_log import CommitmentLog, Leaf, read_entries, tree_of_entries
from watermark.keyring import Keyring, create_key_file
from watermark.keys import ScopeKeys
from watermark.prf import LANES
from watermark.signed_note import NoteSigner, create_note_key
from watermark.tokenizer import Tokenizer, load

#: Words that are one token each behind a space, in the shipped tokenizer.
WORDS = """the of and to in is that it was for on are as with his they at be this have from or one had by word but not
what all were we when your can said there use an each which she do how their if will up other about out many
then them these so some her would make like him into time has look two more write go see number no way could
people my than first water been call who oil its now find long down day did get come made may part over new
sound take only little work know place year live me back give most very after thing our just name good
sentence man think say great where help through much before line right too mean old any same tell boy follow
came want show also around form three small set put end does another well large must big even such because
turn here why ask went men read need land different home us move try kind hand picture again change off play
spell air away animal house point page letter mother answer found study still learn should world
""".split()

Change = Callable[[dict[str, Any]], None]
Files = dict[str, bytes]


@dataclass
class Forgery:
    """What a forger does differently at each step; nothing for an honest study."""

    statements: dict[str, Change] = field(default_factory=dict)
    """By kind: changes a predicate before it is signed."""
    config: Change = lambda config: None
    outputs: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda records: records
    order_of_lanes: Callable[..., list[int]] | None = None
    leaves: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None
    """Changes the log that goes into the bundle, which is signed anew."""
    files: Callable[[Files], None] = lambda files: None
    """Changes files before the manifest is made and the claim signed."""
    after: Callable[[Files], None] = lambda files: None
    """Changes files after it: what somebody without the publisher's key can do."""
    deviations: tuple[str, ...] = ()


@dataclass
class Made:
    """A study's bundle and what made it."""

    path: Path
    publisher: Path
    files: Files
    keyring: Path
    log: Path
    signer: NoteSigner
    folder: Path


class ForgingStudy(Study):
    def __init__(self, folder: Path, log: CommitmentLog, forgery: Forgery) -> None:
        super().__init__(folder, log)
        self.forgery = forgery
        self.files: Files = {}

    def _sign(self, statement: Statement, signer: NoteSigner, *, plan: str | None) -> str:
        change = self.forgery.statements.get(statement.kind)
        if change is not None:
            predicate = json.loads(json.dumps(dict(statement.predicate)))
            change(predicate)
            statement = Statement(kind=statement.kind, subject=statement.subject, predicate=predicate)
        return super()._sign(statement, signer, plan=plan)

    def _bundle(self, out: Path, files: Files, claim: Claim, signer: NoteSigner) -> None:
        if self.forgery.leaves is not None:
            relog(files, self.forgery.leaves, signer)
        self.forgery.files(files)
        change = self.forgery.statements.get("claim")
        if change is not None:
            predicate = json.loads(json.dumps(to_json(claim)))
            change(predicate)
            claim = from_json(Claim, predicate, what="claim")
        super()._bundle(out.with_name("honest"), files, claim, signer)
        self.forgery.after(files)
        self.files = files
        write_bundle(out, files)


def relog(files: Files, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], signer: NoteSigner) -> None:
    """Put another log into a bundle, with a head and proofs that fit it."""
    values = change([dict(leaf.value) for leaf in read_entries(files["log.jsonl"])])
    content = b"".join(json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n" for value in values)
    leaves = read_entries(content)
    tree = tree_of_entries(leaves)
    note = Checkpoint(signer.name, len(leaves), tree.root()).sign(signer)
    files["log.jsonl"], files["checkpoint"] = content, note.encode()
    for name, kind in (("commitment", "taggant/commitment/1"), ("activation", "taggant/activation/1")):
        found: list[Leaf] = [leaf for leaf in leaves if leaf.type == kind]
        if found and f"{name}.tlog-proof" in files:
            at = found[0].index
            proof = LogProof(index=at, path=tuple(tree.inclusion(at)), note=note, leaf=leaves[at].data)
            files[f"{name}.tlog-proof"] = proof.text().encode()


def answers(
    keys: ScopeKeys | None, tokenizer: Tokenizer, *, count: int, length: int, seed: int, bias: float = 3.0
) -> list[str]:
    """Sentences of common words, each next word drawn with the green ones favoured as a marked student would."""
    from watermark import kernels

    rng = np.random.default_rng(seed)
    ids = np.array([tokenizer.encode(f" {word}")[0] for word in WORDS], dtype=np.uint32)
    said = []
    for _ in range(count):
        chosen = [int(rng.integers(len(ids)))]
        for _ in range(length - 1):
            weights = np.ones(len(ids))
            if keys is not None:
                window = ids[chosen[-1:]][None, :]
                lane = kernels.lanes(window)
                if lane[0] < keys.params.fleet_lanes:
                    seeds = kernels.seeds(keys.lane_words(), window, lane)
                    places = np.zeros(len(ids), dtype=np.int64)
                    weights[kernels.green(seeds, keys.params.bounds()[lane], places, ids)] = np.exp(bias)
            chosen.append(int(rng.choice(len(ids), p=weights / weights.sum())))
        said.append(" " + " ".join(WORDS[i] for i in chosen))
    return said


def reference_of(
    texts: list[str], keys: ScopeKeys | None, tokenizer: Tokenizer, path: Path, *, bias: float = 3.0
) -> Path:
    """A model of the words: any as likely as another, or with *keys* the green ones likelier."""
    from watermark import kernels

    ids = np.array([tokenizer.encode(f" {word}")[0] for word in WORDS], dtype=np.uint32)
    responses = [tokenizer.encode(text) for text in texts]
    said = np.concatenate(responses)
    starts = np.concatenate([[0], np.cumsum([len(response) for response in responses])])
    p = np.ones((len(said), len(ids)))
    if keys is not None:
        windows = np.ascontiguousarray(np.concatenate([said[:1], said[:-1]])[:, None])
        lanes = kernels.lanes(windows)
        seeds, bounds = kernels.seeds(keys.lane_words(), windows, lanes), keys.params.bounds()[lanes]
        every = np.tile(ids, len(said))
        of = np.repeat(np.arange(len(said)), len(ids))
        p[kernels.green(seeds, bounds, of, every).reshape(p.shape)] = np.exp(bias)
    p /= p.sum(axis=1, keepdims=True)
    number = {int(i): place for place, i in enumerate(ids)}
    at = np.array([number[int(i)] for i in said])
    Reference(
        name="words",
        tokenizer=tokenizer.digest(),
        ids=said,
        starts=starts,
        top_ids=np.tile(ids, (len(said), 1)),
        top_p=p.astype(np.float32),
        said_p=p[np.arange(len(said)), at].astype(np.float32),
    ).save(path)
    return path


def make_study(
    folder: Path,
    *,
    forgery: Forgery | None = None,
    marked: bool = True,
    out: str = "bundle",
    responses: int = 60,
    reference: str | None = None,
) -> Made:
    """Make a whole study: key, log, activation, plan, outputs, scores, opening, bundle. Takes about a second.

    With a *reference* ("base", or "marked": one that knows the key) its test is the centred one.
    """
    forgery = forgery or Forgery()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load("smollm2")
    signer = create_note_key(folder / "publisher.key", name="provider.example/taggant")
    (folder / "publisher.pub").write_text(f"{signer.verifier()}\n", encoding="utf-8")
    keyring = folder / "keyring.json"
    create_key_file(
        keyring,
        scope="2026-q4",
        window=1,
        delta=3.0,
        fleet_k=64,
        account_lanes=16,
        tokenizer=tokenizer,
        root_file=_root(folder),
        state="pending",
    )
    log = folder / "log"
    commit(Keyring.load(keyring), "2026-q4", log=log, signer=signer)
    activate_scope(
        keyring,
        "2026-q4",
        value="round 42 of a beacon",
        log=log,
        key=folder / "publisher.key",
        beacon="a beacon",
        round=42,
        auditor=None,
    )
    keys = Keyring.load(keyring).scope()
    prompts = [f"Say something about number {i}." for i in range(responses)]
    texts = answers(keys if marked else None, tokenizer, count=responses, length=60, seed=1)
    records = [
        {"prompt_index": i, "sample_index": 0, "prompt": prompts[i], "response": text} for i, text in enumerate(texts)
    ]
    clean = [
        {"prompt": prompt, "response": text}
        for prompt, text in zip(prompts, answers(None, tokenizer, count=responses, length=60, seed=2), strict=True)
    ]
    outputs, control = folder / "outputs.jsonl", folder / "clean.jsonl"
    _write(outputs, forgery.outputs(records))
    _write(control, clean)
    used = None
    if reference is not None:
        seen = keys if reference == "marked" else None
        said = [json.loads(line)["response"] for line in outputs.read_text(encoding="utf-8").splitlines()]
        used = reference_of(said, seen, tokenizer, folder / "reference.npz")
        of_control = reference_of([r["response"] for r in clean], None, tokenizer, folder / "clean.npz")
    study = ForgingStudy(folder / "study", CommitmentLog(log), forgery)
    config: dict[str, Any] = {
        "title": "A study of a test",
        "suspect": {"endpoint": "http://suspect.example/v1", "model": "suspect", "released": None},
        "hypotheses": {"null": "independent of the key", "alternative": "depends on the key"},
        "samples_per_prompt": 1,
        "sampling": {"temperature": 1.0, "max_tokens": 60},
        "stopping": {"rule": "fixed", "planned_responses": responses, "live_lanes": []},
        "prompt_policy": "own",
        "exclusions": [],
        "tests": ["count"],
        "reference": None,
        "level": "1e-6",
        "lanes_to_open": 12,
        "lane_choice": {"kind": "nonce", "name": "the auditor", "round": None},
        "controls": [{"name": "clean", "kind": "other", "text": "drawn without the key"}],
        "deviations": [],
    }
    if used is not None:
        config |= {"tests": ["centred"], "reference": "a model of the words"}
    forgery.config(config)
    study.plan(config, prompts, keys=keys, signer=signer)
    study.score(
        outputs,
        keys=keys,
        tokenizer=tokenizer,
        signer=signer,
        reference=used,
        controls=(
            {"clean": ControlFiles(outputs=control, reference=None if used is None else of_control)}
            if config["controls"]
            else {}
        ),
        deviations=forgery.deviations,
    )
    honest = steps.order_of_lanes
    steps.order_of_lanes = forgery.order_of_lanes or honest
    try:
        study.open(keyring, signer=signer, value="a nonce of the auditor's")
    finally:
        steps.order_of_lanes = honest
    study.create(folder / out, tokenizer=tokenizer, signer=signer)
    return Made(
        path=folder / out,
        publisher=folder / "publisher.pub",
        files=study.files,
        keyring=keyring,
        log=log,
        signer=signer,
        folder=folder,
    )


def first_fleet_lanes(tested: np.ndarray, *, scores: str, value: str) -> list[int]:
    """Lanes chosen by hand."""
    return [lane for lane in range(LANES) if tested[lane]]


def _root(folder: Path) -> Path:
    path = folder / "root"
    path.write_bytes(bytes(range(32)))
    return path


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
