"""A study, step by step, in a folder of its own: plan, score, open, and the bundle.

Each step signs a statement with the publisher's key and fixes its digest in the commitment log, so that the log's order
is the order of the steps: commitment, activation, plan, scores, opening. A step that was done is never done again with
other contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detect.evidence.accounting import departures
from detect.evidence.bundle import CLAIM, MANIFEST, OUTPUTS, manifest_bytes, write_bundle
from detect.evidence.canonical import canonical, sha256_hex
from detect.evidence.envelope import Envelope, Statement, sign_statement
from detect.evidence.lanes import OpenedLanes, lanes_tested, order_of_lanes
from detect.evidence.predicates import (
    Claim,
    Decoys,
    Effect,
    Opening,
    Outputs,
    Plan,
    Randomness,
    ReferenceFile,
    Scores,
    log10_text,
    predicate_of,
    statement_of,
)
from detect.evidence.scoring import Evidence, evidence_of, lane_scores, public_tests
from detect.evidence.strict import from_json
from detect.evidence.words import claim_in_words
from detect.mark import GreenListMark, Mark
from detect.reference import Reference
from detect.reference_check import reference_sees_key
from detect.tally import PromptPolicy
from watermark import __version__
from watermark.commitment_log import (
    ACTIVATION,
    COMMITMENT,
    ENVELOPE,
    REVEALED,
    CommitmentLog,
    Leaf,
    envelope_leaf,
    now,
    params_from_json,
    revealed_leaf,
)
from watermark.errors import InputError, ReferenceMismatchError, UsageError, printable
from watermark.keyring import Keyring
from watermark.keys import NO_ACTIVATION, ScopeKeys
from watermark.life_cycle import check_lanes_to_reveal, reveal, update_key_file
from watermark.signed_note import NoteSigner, NoteVerifier
from watermark.tokenizer import Tokenizer
from watermark.whole_file import write_whole

__all__ = [
    "DECOYS",
    "ControlFiles",
    "Study",
    "activation_of",
    "cautions_of",
    "check_reference",
    "plans_in",
    "revealed_before",
]

#: Decoy keys of a claim.
DECOYS = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFiles:
    """A control's texts, and their reference where the tests want one."""

    outputs: Path
    reference: Path | None


class Study:
    """A study's folder.

    Args:
        folder: made by `plan`.
        log: the publisher's commitment log.
    """

    def __init__(self, folder: Path, log: CommitmentLog) -> None:
        self.folder = folder
        self.log = log

    def __repr__(self) -> str:
        return f"Study({str(self.folder)!r})"

    def plan(
        self, config: Mapping[str, Any], prompts: list[str], *, keys: ScopeKeys, signer: NoteSigner
    ) -> tuple[Plan, str]:
        """Sign the plan, before anything is collected.

        Args:
            config: the fields of `Plan` that are the planner's: all but scope, fingerprint, commitment, delta,
                prompts and time.
            prompts: what will be asked.
            keys: the scope.
            signer: the publisher's key.

        Returns:
            The plan and the digest of its envelope.

        Raises:
            UsageError: there is a plan already, the scope is not in the log, or the plan can't be carried out.
            InputError: a field of *config* is not as it should be.
        """
        if (self.folder / "plan.dsse.json").exists():
            raise UsageError(
                f"{printable(self.folder)}: has a plan already; a plan is never changed. Begin another folder"
            )
        committed = self.log.commitment(keys.name, keys.fingerprint)
        if committed.value["commitments"] != keys.commitments():
            raise UsageError(f"scope {keys.name}: the log commits to other seeds than this key file's")
        lines = b"".join(canonical({"prompt": prompt}) + b"\n" for prompt in prompts)
        plan = from_json(
            Plan,
            {
                **config,
                "scope": keys.name,
                "fingerprint": keys.fingerprint,
                "commitment": committed.hash,
                "delta": keys.delta,
                "prompts": {"count": len(prompts), "sha256": sha256_hex(lines)},
                "time": now(),
            },
            what="plan",
        )
        live = plan.stopping.live_lanes
        tested = lanes_tested(keys.params, revealed=keys.revealed, live=live)
        if plan.lanes_to_open > int(tested.sum()):
            raise UsageError(
                f"lanes_to_open: {plan.lanes_to_open}, and only {int(tested.sum())} lanes are left to open"
            )
        # Any lanes will do for the check of their number.
        some = [lane for lane in range(keys.params.fleet_lanes) if tested[lane]][: plan.lanes_to_open]
        check_lanes_to_reveal(some, fleet_lanes=keys.params.fleet_lanes, revealed=keys.revealed)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "prompts.jsonl", lines, what="the prompts")
        digest = self._sign(statement_of(plan, {"prompts.jsonl": sha256_hex(lines)}), signer, plan=None)
        return plan, digest

    def score(
        self,
        outputs: Path,
        *,
        keys: ScopeKeys,
        tokenizer: Tokenizer,
        signer: NoteSigner,
        reference: Path | None = None,
        controls: Mapping[str, ControlFiles] | None = None,
        deviations: tuple[str, ...] = (),
    ) -> Scores:
        """Score all lanes of the outputs, and sign the integers.

        Raises:
            UsageError: it was done, a file is missing, or the outputs are not what was planned and no deviation says
                why.
            InputError: a record is malformed.
            ReferenceMismatchError: the reference is of other text.
        """
        plan, plan_digest = self.signed("plan", signer.verifier())
        if (self.folder / "scores.dsse.json").exists():
            raise UsageError(f"{printable(self.folder)}: is scored already; scores are signed once")
        if keys.name != plan.scope or keys.fingerprint != plan.fingerprint:
            raise UsageError(f"the plan is of scope {plan.scope}: give its key file")
        controls = dict(controls or {})
        planned = {control.name for control in plan.controls}
        if planned != set(controls):
            raise UsageError(f"controls planned: {', '.join(sorted(planned)) or 'none'}; give each and no other")
        if (reference is None) != (plan.reference is None):
            raise UsageError("reference: give one where the plan names one, and only there")
        data = _read(outputs)
        wrong = departures(data, _read(self.folder / "prompts.jsonl"), plan)
        if wrong and not deviations:
            raise UsageError(
                f"{printable(outputs)}: not what was planned: {'; '.join(wrong)}. Say why with --deviation, or collect "
                "what is missing"
            )
        tested = lanes_tested(keys.params, revealed=keys.revealed, live=plan.stopping.live_lanes)
        mark = GreenListMark(keys)
        write_whole(self.folder / OUTPUTS, data, what="the outputs")
        subject = {OUTPUTS: sha256_hex(data)}
        said = None
        if reference is not None:
            copied = _read(reference)
            write_whole(self.folder / "reference.npz", copied, what="the reference")
            said = ReferenceFile(name=Reference.load(self.folder / "reference.npz").name, sha256=sha256_hex(copied))
            subject["reference.npz"] = said.sha256
        evidence = self.evidence(OUTPUTS, "reference.npz", plan, keys.params, tokenizer)
        check_reference(evidence, mark)
        scored_controls = {}
        for name, files in sorted(controls.items()):
            (self.folder / "controls").mkdir(exist_ok=True)
            for path, suffix in ((files.outputs, "jsonl"), (files.reference, "npz")):
                if path is not None:
                    content = _read(path)
                    write_whole(self.folder / f"controls/{name}.{suffix}", content, what="a control")
                    subject[f"controls/{name}.{suffix}"] = sha256_hex(content)
            control = self.evidence(f"controls/{name}.jsonl", f"controls/{name}.npz", plan, keys.params, tokenizer)
            scored_controls[name] = lane_scores(control, mark, tested)
        scores = Scores(
            plan=plan_digest,
            outputs=outputs_of(evidence, subject[OUTPUTS]),
            reference=said,
            tokenizer=tokenizer.digest(),
            lanes=lane_scores(evidence, mark, tested),
            controls=scored_controls,
            deviations=(*deviations, *wrong),
            software=f"taggant {__version__}",
            time=now(),
        )
        self._sign(statement_of(scores, subject), signer, plan=plan_digest)
        return scores

    def open(self, keyring: Path, *, signer: NoteSigner, value: str) -> Opening:
        """Open the lanes that *value* chooses: reveal them in the log and in the key file, and sign their seeds.

        Done again with the same value it goes on where it was cut off.

        Args:
            keyring: the key file, which is changed.
            signer: the publisher's key.
            value: the beacon's or the auditor's, drawn after the scores were signed.

        Raises:
            UsageError: the plan names other lanes, or lanes were opened already.
        """
        plan, plan_digest = self.signed("plan", signer.verifier())
        _, scores_digest = self.signed("scores", signer.verifier())
        if (self.folder / "opening.dsse.json").exists():
            done, _ = self.signed("opening", signer.verifier())
            if done.randomness.value != value:
                raise UsageError(
                    f"{printable(self.folder)}: its lanes were opened by another value; they are opened once"
                )
            opened: Opening = done
            return opened
        keys = Keyring.load(keyring).scope(plan.scope)
        leaves = self.log.entries()
        tested = lanes_tested(
            keys.params, revealed=revealed_before(leaves, plan.scope, scores_digest), live=plan.stopping.live_lanes
        )
        choice = plan.lane_choice
        randomness = Randomness(kind=choice.kind, name=choice.name, round=choice.round, value=value)
        lanes = sorted(order_of_lanes(tested, scores=scores_digest, value=value)[: plan.lanes_to_open])
        # The log first: lanes whose seeds may be out must never be forgotten.
        since = [leaf.value["lanes"] for leaf in leaves[_index_of(leaves, scores_digest) :] if leaf.type == REVEALED]
        if lanes not in since:
            if since:
                raise UsageError(
                    f"{printable(self.log.folder)}: lanes were opened after these scores by another value; they are "
                    "opened once"
                )
            self.log.append(revealed_leaf(keys, lanes), signer)
        if not {*lanes} <= {*keys.revealed}:
            update_key_file(keyring, lambda old: reveal(old, plan.scope, lanes))
        opening = Opening(
            scores=scores_digest,
            randomness=randomness,
            lanes=tuple(lanes),
            seeds={str(lane): keys.lane_seed(lane).reveal().hex() for lane in lanes},
            time=now(),
        )
        self._sign(statement_of(opening, {}), signer, plan=plan_digest)
        return opening

    def create(self, out: Path, *, tokenizer: Tokenizer, signer: NoteSigner, published: bool = False) -> Claim:
        """Make the claim from the opened lanes, and write the bundle.

        Raises:
            UsageError: a step is missing, or *out* exists.
        """
        verifier = signer.verifier()
        (plan, plan_digest), (scores, scores_digest) = self.signed("plan", verifier), self.signed("scores", verifier)
        opening, opening_digest = self.signed("opening", verifier)
        leaves = self.log.entries()
        committed = next(leaf for leaf in leaves if leaf.hash == plan.commitment)
        activated = activation_of(leaves, committed)
        params = params_from_json(committed.value["params"])
        mark = OpenedLanes(
            plan.scope,
            params,
            activation=NO_ACTIVATION if activated is None else activation_bytes(activated),
            seeds={lane: bytes.fromhex(opening.seeds[str(lane)]) for lane in opening.lanes},
            delta=plan.delta,
        )
        roots, plans = sum(leaf.type == COMMITMENT for leaf in leaves), plans_in(leaves)
        level = plan.log10_level
        evidence = self.evidence(OUTPUTS, "reference.npz", plan, params, tokenizer)
        found = public_tests(evidence, mark, tried=roots * plans, log10_level=level, decoys=DECOYS)
        controls = {}
        for name in sorted(scores.controls):
            control = self.evidence(f"controls/{name}.jsonl", f"controls/{name}.npz", plan, params, tokenizer)
            result = public_tests(control, mark, tried=1, log10_level=level, decoys=1)
            controls[name] = log10_text(result.log10_p)
        files = self._files()
        files["log.jsonl"] = b"".join(leaf.data + b"\n" for leaf in leaves)
        files["checkpoint"] = self.log.checkpoint().encode()
        files["commitment.tlog-proof"] = self.log.prove(committed.index).text().encode()
        if activated is not None:
            files["activation.tlog-proof"] = self.log.prove(activated.index).text().encode()
        files["trust/publisher.pub"] = f"{verifier}\n".encode()
        tokens = self.log.timestamps()
        for size, (head, token) in tokens.items():
            files[f"timestamps/{size}.checkpoint"], files[f"timestamps/{size}.tsr"] = head, token
        cautions = cautions_of(activated, timestamped=bool(tokens), published=published)
        claim = Claim(
            plan=plan_digest,
            scores=scores_digest,
            opening=opening_digest,
            roots=roots,
            plans=plans,
            level=plan.level,
            tests=found.tests,
            log10_p=log10_text(found.log10_p),
            verdict=found.verdict.value,
            effect=effect_of(found.effect),
            decoys=Decoys(seed=0, count=found.decoys, rank=found.rank),
            controls=controls,
            statement=claim_in_words(
                plan,
                scores,
                verdict=found.verdict,
                log10_p=log10_text(found.log10_p),
                cautions=cautions,
                roots=roots,
                plans=plans,
            ),
            time=now(),
        )
        self._bundle(out, files, claim, signer)
        return claim

    def signed(self, kind: str, verifier: NoteVerifier) -> tuple[Any, str]:
        """Return a step's predicate and the digest of its envelope, verified.

        Raises:
            UsageError: the step was not done yet.
            VerificationError: the file is not this publisher's.
        """
        path = self.folder / f"{kind}.dsse.json"
        if not path.exists():
            command = {"plan": "plan", "scores": "score", "opening": "open"}[kind]
            raise UsageError(f"{printable(self.folder)}: no {path.name} yet: taggant evidence {command}")
        data = _read(path)
        envelope = Envelope.parse(data, what=path.name)
        envelope.verify(verifier)
        return predicate_of(Statement.parse(envelope.payload, kind=kind)), sha256_hex(data)

    def evidence(self, outputs: str, reference: str, plan: Plan, params: Any, tokenizer: Tokenizer) -> Evidence:
        """Read, tokenise and weigh one of the folder's files of outputs."""
        path = self.folder / reference
        read = Reference.load(path) if plan.reference is not None else None
        with open(self.folder / outputs, "rb") as stream:
            return evidence_of(
                stream,
                tokenizer,
                params=params,
                tests=plan.tests,
                policy=PromptPolicy(plan.prompt_policy),
                reference=read,
            )

    def _sign(self, statement: Statement, signer: NoteSigner, *, plan: str | None) -> str:
        """Sign a step of the study of *plan* (None: the plan itself), fix it in the log, and write it."""
        envelope = sign_statement(statement, [signer])
        digest = envelope.digest()
        self.log.append(envelope_leaf(statement.kind, digest, plan=plan), signer)
        write_whole(self.folder / f"{statement.kind}.dsse.json", envelope.to_bytes(), what=f"the {statement.kind}")
        return digest

    def _bundle(self, out: Path, files: dict[str, bytes], claim: Claim, signer: NoteSigner) -> None:
        """Sign the claim over the manifest of the other files, and write them all."""
        files[MANIFEST] = manifest_bytes(files)
        statement = statement_of(claim, {MANIFEST: sha256_hex(files[MANIFEST])})
        files[CLAIM] = sign_statement(statement, [signer]).to_bytes()
        write_bundle(out, files)

    def _files(self) -> dict[str, bytes]:
        names = [
            "plan.dsse.json",
            "scores.dsse.json",
            "opening.dsse.json",
            "prompts.jsonl",
            OUTPUTS,
            *(["reference.npz"] if (self.folder / "reference.npz").exists() else []),
            *(f"controls/{path.name}" for path in sorted((self.folder / "controls").glob("*"))),
        ]
        return {name: _read(self.folder / name) for name in names}


def check_reference(evidence: Evidence, mark: Mark) -> None:
    """Refuse a reference that depends on the key.

    Raises:
        ReferenceMismatchError: it does.
    """
    if evidence.reference is None:
        return
    check = reference_sees_key(evidence.tally, evidence.reference, mark)
    if check is not None and check.sees_key:
        raise ReferenceMismatchError(
            f"reference {printable(evidence.reference.name)}: depends on the key (z = {check.z:.1f}); take the "
            "suspect's public base, a clean twin or the unmarked teacher"
        )


def control_files(given: Sequence[str]) -> dict[str, ControlFiles]:
    """Return controls given as NAME=FILE or NAME=FILE,REFERENCE.npz.

    Raises:
        UsageError: one is not of this form.
    """
    found = {}
    for each in given:
        name, equals, files = each.partition("=")
        outputs, comma, reference = files.partition(",")
        if not name or not equals or not outputs or name in found:
            raise UsageError(f"--control {printable(each)!r}: expected NAME=FILE or NAME=FILE,REFERENCE.npz, each once")
        found[name] = ControlFiles(outputs=Path(outputs), reference=Path(reference) if comma else None)
    return found


def outputs_of(evidence: Evidence, digest: str) -> Outputs:
    """Return the accounting of outputs."""
    accounting = evidence.corpus.accounting
    return Outputs(
        sha256=digest,
        read=accounting.read,
        scored=accounting.scored,
        excluded=dict(sorted(accounting.excluded.items())),
        malformed=accounting.malformed,
        tokens=evidence.corpus.tokens,
        positions=evidence.tally.scored,
    )


def effect_of(effect: Any) -> Effect | None:
    """Return the effect size as a claim says it."""
    if effect is None:
        return None
    return Effect(tau=f"{effect.tau:.3f}", low=f"{effect.low:.3f}", high=f"{effect.high:.3f}")


def activation_of(leaves: list[Leaf], committed: Leaf) -> Leaf | None:
    """Return the first activation of a commitment, if it brought randomness."""
    for leaf in leaves:
        if leaf.type == ACTIVATION and leaf.value["commitment"] == committed.hash:
            return leaf if leaf.value["activation"] is not None else None
    return None


def plans_in(leaves: list[Leaf]) -> int:
    """Return how many studies were begun in a log."""
    return sum(leaf.type == ENVELOPE and leaf.value["kind"] == "plan" for leaf in leaves)


def activation_bytes(leaf: Leaf) -> bytes:
    """Return the 32 bytes of an activation leaf."""
    return bytes.fromhex(leaf.value["activation"])


def revealed_before(leaves: list[Leaf], scope: str, scores: str) -> set[int]:
    """Return the lanes of a scope that were revealed before its scores were logged."""
    before = leaves[: _index_of(leaves, scores)]
    return {
        lane
        for leaf in before
        if leaf.type == REVEALED and leaf.value["scope"] == scope
        for lane in leaf.value["lanes"]
    }


def cautions_of(activated: Leaf | None, *, timestamped: bool, published: bool) -> tuple[str, ...]:
    """Return what a study does not show."""
    return (
        *(
            ["the key's randomness: no public randomness went into it after it was committed to"]
            if activated is None
            else []
        ),
        *([] if timestamped else ["when the log was written: no external timestamp stands over it"]),
        *(
            ["anything about a real suspect: this key is published, so that anyone could mark with it"]
            if published
            else []
        ),
    )


def _index_of(leaves: list[Leaf], digest: str) -> int:
    for leaf in leaves:
        if leaf.type == ENVELOPE and leaf.value["sha256"] == digest:
            return leaf.index
    raise UsageError("the log holds no leaf of these scores: it is another log, or was cut")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from None
