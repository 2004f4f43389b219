"""Verification of a bundle by a stranger: offline, from the publisher's public key alone.

Everything that the claim rests on is reckoned again: signatures, digests, the log's tree, the commitments from the
opened seeds, the choice of lanes, the tokens, the pairs, the integers of each opened lane, p, and decoy keys. Nothing
in the bundle is run, extracted or written. A check that meets something unforeseen fails; it never stops the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from detect.evidence.accounting import departures
from detect.evidence.bundle import MANIFEST, OUTPUTS, Bundle
from detect.evidence.canonical import sha256_hex
from detect.evidence.checks import CHECKS, CheckResult, Status
from detect.evidence.envelope import Envelope, Statement
from detect.evidence.lanes import OpenedLanes, lanes_tested, order_of_lanes
from detect.evidence.predicates import Claim, Effect, LaneScore, Opening, Plan, Scores, log10_text, moment, predicate_of
from detect.evidence.scoring import Evidence, PublicTests, evidence_of, lane_scores, public_tests
from detect.evidence.study import (
    activation_bytes,
    activation_of,
    cautions_of,
    check_reference,
    effect_of,
    outputs_of,
    plans_in,
    revealed_before,
)
from detect.evidence.words import claim_in_words
from detect.reference import Reference
from detect.tally import PromptPolicy
from detect.verdict import Verdict
from watermark.checkpoint import Checkpoint, LogProof
from watermark.commitment_log import (
    COMMITMENT,
    ENVELOPE,
    REVEALED,
    STATE,
    Leaf,
    params_from_json,
    read_entries,
    tree_of_entries,
)
from watermark.errors import InputError, KeyringError, TaggantError, TokenizerError, UncheckableError, printable
from watermark.keys import NO_ACTIVATION, commitment
from watermark.signed_note import NoteVerifier
from watermark.tokenizer import Tokenizer, load_for

__all__ = ["Verification", "open_and_verify", "verify_bundle"]

#: Clocks differ by as much.
_FUTURE: Final = timedelta(hours=1)

#: A control at this p or below is told as a failure.
_CONTROL_LOG10: Final = -3.0

#: Decoys of a claim at most.
_MOST_DECOYS: Final = 10_000

#: Verify a token over some bytes; return the time, or raise.
TimestampVerifier = Callable[[bytes, bytes], datetime]


class _Failed(Exception):  # noqa: N818 (an outcome)
    """A check's finding that fails it."""


class _Caution(Exception):  # noqa: N818
    """A check's finding that is no failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What became of each check."""

    results: tuple[CheckResult, ...]
    plan: Plan | None
    scores: Scores | None
    opening: Opening | None
    claim: Claim | None
    found: PublicTests | None
    """Of the opened lanes, as they were reckoned again."""
    evidence: Evidence | None
    """The outputs, tokenised and weighed again."""
    mark: OpenedLanes | None
    """The opened lanes, whose seeds fit what was committed to."""
    head: Checkpoint | None
    """The log's signed head."""
    manifest: str | None
    """Digest of MANIFEST.json."""
    unable: str | None
    """Why something could not be checked at all; the exit code is then 6 unless a check failed."""

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(result for result in self.results if result.status is Status.FAILED)

    @property
    def cautions(self) -> tuple[CheckResult, ...]:
        """The cautions."""
        return tuple(result for result in self.results if result.status is Status.CAUTION)

    @property
    def summary(self) -> str:
        """How many checks passed and failed."""
        passed = sum(result.status is Status.PASSED for result in self.results)
        cautions = len(self.cautions)
        return (
            f"{passed} of {len(self.results)} checks passed, {len(self.failed)} failed, "
            f"{cautions} caution{'' if cautions == 1 else 's'}"
        )

    @property
    def exit_code(self) -> int:
        """0, 5 where a check failed, 6 where something could not be checked."""
        return 5 if self.failed else 6 if self.unable is not None else 0


def verify_bundle(
    bundle: Bundle | str,
    publisher: NoteVerifier,
    *,
    tokenizer: str | None = None,
    decoys: int = 200,
    timestamps: TimestampVerifier | None = None,
    on_check: Callable[[CheckResult], None] = lambda result: None,
) -> Verification:
    """Make every check of a bundle.

    Args:
        bundle: an open bundle, or what was wrong with it (then E-FILE-01 fails).
        publisher: the key that the reader trusts, from elsewhere than the bundle.
        tokenizer: name or file of the tokenizer, where it is not one that is at hand.
        decoys: decoy keys to draw; each further one costs time.
        timestamps: verifies an RFC 3161 token over some bytes against the roots that the reader trusts.
        on_check: told of each check as it is made.
    """
    run = _Run(bundle, publisher, tokenizer, decoys, timestamps)
    results: dict[str, CheckResult] = {}
    for check in CHECKS:
        blocked = [each for each in check.rests_on if results[each].status in (Status.FAILED, Status.NOT_CHECKED)]
        if blocked:
            status, detail = Status.NOT_CHECKED, f"rests on {', '.join(blocked)}"
        else:
            status, detail = run.make(check.id)
        results[check.id] = CheckResult(check=check, status=status, detail=detail)
        on_check(results[check.id])
    return Verification(
        results=tuple(results.values()),
        plan=getattr(run, "plan", None),
        scores=getattr(run, "scores", None),
        opening=getattr(run, "opening", None),
        claim=getattr(run, "claim", None),
        found=getattr(run, "found", None),
        evidence=getattr(run, "evidence", None),
        mark=getattr(run, "mark", None),
        head=getattr(run, "head", None),
        manifest=getattr(run, "manifest", None),
        unable=run.unable,
    )


def open_and_verify(
    path: Path, publisher: str, *, tokenizer: str | None, decoys: int, tsa_root: Path | None
) -> Verification:
    """Open a bundle and make every check; a bundle that can't be opened fails its first.

    Args:
        path: of the bundle.
        publisher: the key, or the file that holds it.
        tokenizer: see `verify_bundle`.
        decoys: see `verify_bundle`.
        tsa_root: PEM file of the roots of a timestamp's authority.

    Raises:
        UncheckableError: the publisher's key is none: nothing can be checked.
    """
    try:
        verifier = NoteVerifier.load(publisher)
    except KeyringError as error:
        raise UncheckableError(f"--publisher: {error}") from None
    timestamps = None
    if tsa_root is not None:
        from watermark.timestamp import TimestampRoots

        timestamps = TimestampRoots.load(tsa_root).verify
    try:
        bundle: Bundle | str = Bundle.open(path)
    except InputError as error:
        bundle = str(error)
    return verify_bundle(bundle, verifier, tokenizer=tokenizer, decoys=decoys, timestamps=timestamps)


class _Run:
    """The checks' shared state; each method `e_file_01` and so on makes the check of that name.

    What a check finds is set as it passes, and used by those alone that rest on it.
    """

    plan: Plan
    scores: Scores
    opening: Opening
    claim: Claim
    found: PublicTests
    manifest: str
    head: Checkpoint
    leaves: list[Leaf]
    places: dict[str, int]
    mark: OpenedLanes
    tokenizer: Tokenizer
    evidence: Evidence
    controls: dict[str, Evidence]

    def __init__(
        self,
        bundle: Bundle | str,
        publisher: NoteVerifier,
        tokenizer: str | None,
        decoys: int,
        timestamps: TimestampVerifier | None,
    ) -> None:
        self._given = bundle
        self.publisher = publisher
        self.spec = tokenizer
        self.decoys = decoys
        self.timestamps = timestamps
        self.unable: str | None = None
        self.subjects: dict[str, dict[str, str]] = {}
        self.digests: dict[str, str] = {}

    def make(self, id: str) -> tuple[Status, str]:
        """Make one check."""
        try:
            detail = getattr(self, id.lower().replace("-", "_"))()
        except _Caution as caution:
            return Status.CAUTION, str(caution)
        except (_Failed, TaggantError) as error:
            return Status.FAILED, printable(error, 600)
        except Exception as error:
            # Hostile input that nobody foresaw: the check has failed, and its data is not shown.
            return Status.FAILED, f"could not be made: {type(error).__name__}"
        return Status.PASSED, detail or ""

    @property
    def bundle(self) -> Bundle:
        if isinstance(self._given, str):
            raise _Failed(self._given)
        return self._given

    def e_file_01(self) -> str:
        return f"{len(self.bundle.sizes)} files"

    def e_file_02(self) -> str:
        self.bundle.check_manifest()
        return f"{sum(self.bundle.sizes.values()):,} bytes"

    def e_sign_01(self) -> str:
        self.claim = self._signed("claim")
        self.manifest = sha256_hex(self.bundle.read(MANIFEST))
        if self.subjects["claim"] != {MANIFEST: self.manifest}:
            raise _Failed("the claim is over another manifest")
        return self._by()

    def e_sign_02(self) -> str:
        self.plan = self._signed("plan")
        return self._by()

    def e_sign_03(self) -> str:
        self.scores = self._signed("scores")
        return self._by()

    def e_sign_04(self) -> str:
        self.opening = self._signed("opening")
        return self._by()

    def e_link_01(self) -> str:
        plan, scores, opening = (self.digests[kind] for kind in ("plan", "scores", "opening"))
        if self.claim.plan != plan or self.claim.scores != scores or self.claim.opening != opening:
            raise _Failed("the claim is of other statements")
        if self.scores.plan != plan or self.opening.scores != scores:
            raise _Failed("the scores are of another plan, or the opening of other scores")
        if self.subjects["opening"]:
            raise _Failed("the opening is about files")
        return "4 statements"

    def e_link_02(self) -> str:
        said = self.subjects["scores"]
        scored = {
            name for name in self.bundle.sizes if name in (OUTPUTS, "reference.npz") or name.startswith("controls/")
        }
        for name in sorted({*said, *scored}):
            if name not in scored or said.get(name) != sha256_hex(self.bundle.read(name)):
                raise _Failed(f"{printable(name)} is not the one that was scored")
        if self.scores.outputs.sha256 != said[OUTPUTS]:
            raise _Failed("the scores' accounting is of other outputs")
        return f"{len(said)} files"

    def e_log_01(self) -> str:
        self.head = Checkpoint.open(self.bundle.read("checkpoint").decode(), [self.publisher])
        return f"{printable(self.head.origin)}, {self.head.size} entries"

    def e_log_02(self) -> str:
        self.leaves = read_entries(self.bundle.read("log.jsonl"))
        if len(self.leaves) != self.head.size or tree_of_entries(self.leaves).root() != self.head.root:
            raise _Failed("the entries give another root than the signed head has")
        return f"root {self.head.root.hex()[:16]}…"

    def e_log_03(self) -> str:
        names = ["commitment.tlog-proof"] + ["activation.tlog-proof"] * ("activation.tlog-proof" in self.bundle)
        for name in names:
            proof = LogProof.parse(self.bundle.read(name).decode())
            if proof.verify([self.publisher]) != self.head or proof.leaf != self.leaves[proof.index].data:
                raise _Failed(f"{name}: of another head or another entry")
        return f"{len(names)} paths"

    def e_order_01(self) -> str:
        places = {"commitment": self._committed().index}
        activated = activation_of(self.leaves, self._committed())
        if activated is not None:
            places["activation"] = activated.index
        for kind in ("plan", "scores", "opening"):
            at = [
                leaf.index
                for leaf in self.leaves
                if leaf.type == ENVELOPE and leaf.value["sha256"] == self.digests[kind] and leaf.value["kind"] == kind
            ]
            if not at:
                raise _Failed(f"the {kind} is not in the log")
            places[kind] = at[0]
            of_plan = [
                leaf
                for leaf in self.leaves
                if leaf.type == ENVELOPE and leaf.value["kind"] == kind and leaf.value["plan"] == self.digests["plan"]
            ]
            if kind != "plan" and [leaf.index for leaf in of_plan] != at[:1]:
                raise _Failed(f"the log has {len(of_plan)} {kind} of this plan: whoever has several can choose")
        order = list(places.values())
        if order != sorted(order):
            raise _Failed("the log has them in the order " + ", ".join(sorted(places, key=lambda kind: places[kind])))
        self.places = places
        return ", ".join(f"{kind} {place}" for kind, place in places.items())

    def e_order_02(self) -> str:
        times = [self.plan.time, self.scores.time, self.opening.time, self.claim.time]
        logged = [leaf.value["time"] for leaf in self.leaves]
        latest = datetime.now(UTC) + _FUTURE
        if any(moment(time) > latest for time in (*times, *logged)):
            raise _Failed("a time lies in the future")
        if times != sorted(times) or logged != sorted(logged):
            raise _Failed("times run backwards")
        released = self.plan.suspect.released
        if released is not None and not self._committed().value["time"] < released:
            raise _Caution(f"the key was committed to after the suspect was released ({printable(released, 40)})")
        return f"{times[0]} to {times[-1]}"

    def e_time_01(self) -> str:
        sizes = self.bundle.timestamps()
        if not sizes:
            raise _Caution("none: the log's times are the publisher's word")
        tree, found = tree_of_entries(self.leaves), []
        for size in sizes:
            note = self.bundle.read(f"timestamps/{size}.checkpoint")
            head = Checkpoint.open(note.decode(), [self.publisher])
            if head.size != size or size > tree.size or head.root != tree.root(size):
                raise _Failed(f"the head of size {size} is not one of this log")
            if self.timestamps is not None:
                when = self.timestamps(self.bundle.read(f"timestamps/{size}.tsr"), note)
                found.append(f"{size} entries by {when:%Y-%m-%dT%H:%M:%SZ}")
        if self.timestamps is None:
            raise _Caution(f"{len(sizes)}, and no root of their authority was given to check them by: --tsa-root")
        return "; ".join(found)

    def e_state_01(self) -> str:
        for leaf in self.leaves[: self.places["scores"]]:
            if leaf.type == STATE and leaf.value["scope"] == self.plan.scope and leaf.value["state"] != "retired":
                raise _Failed(f"{leaf.value['state']} on {leaf.value['time']}")
        return ""

    def e_activate_01(self) -> str:
        activated = activation_of(self.leaves, self._committed())
        if ("activation.tlog-proof" in self.bundle) != (activated is not None):
            raise _Failed("the bundle's path to the activation and the log don't agree")
        if activated is None:
            raise _Caution("none: whoever made the key may have tried keys until one fitted")
        source = activated.value["source"]
        of = f"{source['kind']} of {printable(source['name'], 60)}"
        return of if source["round"] is None else f"{of}, round {source['round']}"

    def e_commit_01(self) -> str:
        committed = self._committed()
        params = params_from_json(committed.value["params"])
        if params.fingerprint() != committed.value["fingerprint"] or self.plan.fingerprint != params.fingerprint():
            raise _Failed("the parameters have another fingerprint")
        if committed.value["scope"] != self.plan.scope:
            raise _Failed("the commitment is of another scope")
        for lane in self.opening.lanes:
            seed = bytes.fromhex(self.opening.seeds[str(lane)])
            if (
                commitment(self.plan.scope, self.plan.fingerprint, "lane", seed, lane=lane)
                != committed.value["commitments"][lane]
            ):
                raise _Failed(f"lane {lane}: the seed is another than the one committed to")
        activated = activation_of(self.leaves, committed)
        self.mark = OpenedLanes(
            self.plan.scope,
            params,
            activation=NO_ACTIVATION if activated is None else activation_bytes(activated),
            seeds={lane: bytes.fromhex(self.opening.seeds[str(lane)]) for lane in self.opening.lanes},
            delta=self.plan.delta,
        )
        return f"{len(self.opening.lanes)} lanes"

    def e_roots_01(self) -> str:
        roots = sum(leaf.type == COMMITMENT for leaf in self.leaves)
        plans = plans_in(self.leaves)
        if (self.claim.roots, self.claim.plans) != (roots, plans):
            said = f"{self.claim.roots} and {self.claim.plans}"
            raise _Failed(f"the log has {roots} keys and {plans} plans, the claim counts {said}")
        return f"{roots} keys, {plans} plans"

    def e_lanes_01(self) -> str:
        tested = self._tested()
        scores, value = self.digests["scores"], self.opening.randomness.value
        chosen = sorted(order_of_lanes(tested, scores=scores, value=value)[: self.plan.lanes_to_open])
        if list(self.opening.lanes) != chosen:
            raise _Failed(f"chosen are {chosen}, opened {list(self.opening.lanes)}")
        said, choice = self.opening.randomness, self.plan.lane_choice
        if (said.kind, said.name, said.round) != (choice.kind, choice.name, choice.round):
            raise _Failed("the randomness is of another source than the plan names")
        if [score.tested for score in self.scores.lanes] != [bool(each) for each in tested]:
            raise _Failed("the scores leave out other lanes than the plan and the log do")
        return f"{said.kind} of {printable(said.name, 60)}: {printable(said.value, 80)}"

    def e_lanes_02(self) -> str:
        params = params_from_json(self._committed().value["params"])
        revealed = [
            leaf.value["lanes"]
            for leaf in self.leaves[: self.places["opening"]]
            if leaf.type == REVEALED and leaf.value["scope"] == self.plan.scope
        ]
        if not revealed or revealed[-1] != list(self.opening.lanes):
            raise _Failed("the log does not say that these lanes were opened")
        since = [leaf for leaf in self.leaves if leaf.type == REVEALED and leaf.value["scope"] == self.plan.scope]
        if sum(self.places["scores"] < leaf.index < self.places["opening"] for leaf in since) != 1:
            raise _Failed("lanes were opened more than once, or not at all, between the scores and the opening")
        every = [lane for lanes in revealed for lane in lanes]
        if len(set(every)) != len(every) or len(every) > params.fleet_lanes // 2:
            raise _Failed("a lane was opened twice, or more than half of them in all")
        return f"{len(every)} of {params.fleet_lanes} lanes in all"

    def e_plan_01(self) -> str:
        digest = sha256_hex(self.bundle.read("prompts.jsonl"))
        if digest != self.plan.prompts.sha256 or self.subjects["plan"] != {"prompts.jsonl": digest}:
            raise _Failed("prompts.jsonl is another")
        return f"{self.plan.prompts.count:,} prompts"

    def e_plan_02(self) -> str:
        wrong = departures(self.bundle.read(OUTPUTS), self.bundle.read("prompts.jsonl"), self.plan)
        unsaid = [each for each in wrong if each not in self.scores.deviations]
        if unsaid:
            raise _Failed("; ".join(unsaid))
        if self.scores.deviations:
            raise _Caution("departures that the publisher gives: " + "; ".join(self.scores.deviations))
        return f"{self.plan.stopping.planned_responses:,} requests"

    def e_plan_03(self) -> str:
        if tuple(sorted(self.claim.tests)) != tuple(sorted(self.plan.tests)):
            raise _Failed("the claim has other tests than the plan")
        if self.claim.level != self.plan.level:
            raise _Failed("the claim has another level than the plan")
        planned = {control.name for control in self.plan.controls}
        if not planned == set(self.scores.controls) == set(self.claim.controls) == set(self.bundle.controls()):
            raise _Failed("controls planned, scored and claimed are not the same")
        if (self.plan.reference is None) != ("reference.npz" not in self.bundle):
            raise _Failed("the plan names a reference and there is none, or the other way round")
        return ", ".join(self.plan.tests)

    def e_token_01(self) -> str:
        committed = self._committed()
        digest = params_from_json(committed.value["params"]).tokenizer
        if self.scores.tokenizer != digest:
            raise _Failed("the scores were made with another tokenizer than the key's")
        try:
            self.tokenizer = load_for([(self.plan.scope, digest)], spec=self.spec)
        except TokenizerError as error:
            self.unable = f"the tokenizer is not at hand: {error}"
            raise _Failed(self.unable) from None
        return printable(self.tokenizer.name)

    def e_score_01(self) -> str:
        self.evidence = self._evidence(OUTPUTS, "reference.npz")
        found = outputs_of(self.evidence, sha256_hex(self.bundle.read(OUTPUTS)))
        if found != self.scores.outputs:
            raise _Failed(f"reckoned again: {found}")
        return (
            f"{found.read:,} read = {found.scored:,} scored + {sum(found.excluded.values()):,} excluded + "
            f"{found.malformed:,} malformed"
        )

    def e_ref_01(self) -> str:
        if self.plan.reference is None:
            return "none is used"
        check_reference(self.evidence, self.mark)
        said = self.scores.reference
        if said is None or said.sha256 != sha256_hex(self.bundle.read("reference.npz")):
            raise _Failed("the scores name another reference")
        return printable(said.name)

    def e_score_02(self) -> str:
        self.controls = {
            name: self._evidence(f"controls/{name}.jsonl", f"controls/{name}.npz") for name in self.bundle.controls()
        }
        for name, evidence in (("outputs", self.evidence), *self.controls.items()):
            said = self.scores.lanes if name == "outputs" else self.scores.controls[name]
            again = lane_scores(evidence, self.mark, self.mark.is_open)
            for lane in self.opening.lanes:
                if _integers(said[lane]) != _integers(again[lane]):
                    raise _Failed(
                        f"{name}, lane {lane}: signed {_integers(said[lane])}, found {_integers(again[lane])}"
                    )
        return f"{len(self.opening.lanes)} lanes, {1 + len(self.controls)} texts"

    def e_claim_01(self) -> str:
        found = self.found = public_tests(
            self.evidence,
            self.mark,
            tried=self.claim.roots * self.claim.plans,
            log10_level=self.plan.log10_level,
            decoys=self.decoys,
            decoy_seed=1,
        )
        for name, test in found.tests.items():
            if _differ(test.log10_p, self.claim.tests[name].log10_p) or (
                (test.pairs, test.sum, test.green_sum)
                != (self.claim.tests[name].pairs, self.claim.tests[name].sum, self.claim.tests[name].green_sum)
            ):
                raise _Failed(f"{name}: claimed {self.claim.tests[name]}, found {test}")
        if _differ(log10_text(found.log10_p), self.claim.log10_p):
            raise _Failed(f"p: claimed 10^{self.claim.log10_p}, found 10^{log10_text(found.log10_p)}")
        if self.claim.verdict != found.verdict.value:
            raise _Failed(f"verdict: claimed {printable(self.claim.verdict, 40)!r}, found {found.verdict.value!r}")
        if _effects_differ(self.claim.effect, effect_of(found.effect)):
            raise _Failed(f"effect: claimed {self.claim.effect}, found {effect_of(found.effect)}")
        return f"p <= 10^{self.claim.log10_p}: {self.claim.verdict}"

    def e_claim_02(self) -> str:
        shows = []
        for name, evidence in self.controls.items():
            again = public_tests(evidence, self.mark, tried=1, log10_level=self.plan.log10_level, decoys=1)
            if _differ(log10_text(again.log10_p), self.claim.controls[name]):
                raise _Failed(f"{name}: claimed 10^{self.claim.controls[name]}, found 10^{log10_text(again.log10_p)}")
            if again.log10_p <= _CONTROL_LOG10:
                shows.append(f"{name} shows the key too: p = 10^{log10_text(again.log10_p)}")
        if shows:
            raise _Failed("; ".join(shows))
        if not self.controls:
            raise _Caution("no control was planned")
        return "; ".join(f"{name}: p = 10^{self.claim.controls[name]}" for name in self.controls)

    def e_claim_03(self) -> str:
        said, first = self.claim.decoys, self.found
        if not 1 <= said.count <= _MOST_DECOYS or not 1 <= said.rank <= said.count + 1:
            raise _Failed(f"expected a rank among 1 to {_MOST_DECOYS:,} decoys")
        again = public_tests(
            self.evidence, self.mark, tried=1, log10_level=0.0, decoys=said.count, decoy_seed=said.seed
        )
        if again.rank != said.rank:
            raise _Failed(f"claimed {said.rank} of {said.count + 1}, found {again.rank}")
        if first.verdict is Verdict.DEPENDS and first.rank > 1:
            raise _Failed(f"{first.rank - 1} of {first.decoys} decoy keys do as well as the key")
        return f"rank {said.rank} of {said.count + 1} as claimed, {first.rank} of {first.decoys + 1} among others"

    def e_claim_04(self) -> str:
        activated = activation_of(self.leaves, self._committed())
        published = any("this key is published" in sentence for sentence in self.claim.statement)
        cautions = cautions_of(activated, timestamped=bool(self.bundle.timestamps()), published=published)
        words = claim_in_words(
            self.plan,
            self.scores,
            verdict=self.found.verdict,
            log10_p=self.claim.log10_p,
            cautions=cautions,
            roots=self.claim.roots,
            plans=self.claim.plans,
        )
        if self.claim.statement != words:
            raise _Failed("the statement is in other words")
        if published:
            raise _Caution("the key is published: anyone could mark with it, so this is an example and no evidence")
        return ""

    def _signed(self, kind: str) -> Any:
        data = self.bundle.read(f"{kind}.dsse.json")
        envelope = Envelope.parse(data, what=f"{kind}.dsse.json")
        envelope.verify(self.publisher)
        statement = Statement.parse(envelope.payload, kind=kind)
        self.digests[kind] = sha256_hex(data)
        self.subjects[kind] = dict(statement.subject)
        return predicate_of(statement)

    def _by(self) -> str:
        return f"{self.publisher.name}+{self.publisher.key_id.hex()}"

    def _committed(self) -> Leaf:
        for leaf in self.leaves:
            if leaf.type == COMMITMENT and leaf.hash == self.plan.commitment:
                return leaf
        raise _Failed("the plan's commitment is not in the log")

    def _tested(self) -> Any:
        return lanes_tested(
            params_from_json(self._committed().value["params"]),
            revealed=revealed_before(self.leaves, self.plan.scope, self.digests["scores"]),
            live=self.plan.stopping.live_lanes,
        )

    def _evidence(self, outputs: str, reference: str) -> Evidence:
        read = None
        if self.plan.reference is not None:
            read = Reference.read(self.bundle.stream(reference), name=reference)
        return evidence_of(
            self.bundle.stream(outputs),
            self.tokenizer,
            params=params_from_json(self._committed().value["params"]),
            tests=self.plan.tests,
            policy=PromptPolicy(self.plan.prompt_policy),
            reference=read,
        )


def _integers(score: LaneScore) -> tuple[Any, ...]:
    return (
        score.pairs,
        score.green,
        {name: (w.pairs, w.sum, w.green_sum, w.square_sum) for name, w in score.weighted.items()},
    )


def _differ(found: str, claimed: str) -> bool:
    """Return whether two log10 p differ by more than the last digit: machines' logarithms differ in the last bits."""
    return abs(float(found) - float(claimed)) > 0.0101


def _effects_differ(claimed: Effect | None, found: Effect | None) -> bool:
    if claimed is None or found is None:
        return claimed is not found
    pairs = ((claimed.tau, found.tau), (claimed.low, found.low), (claimed.high, found.high))
    return any(not abs(float(one) - float(other)) < 0.0011 for one, other in pairs)
