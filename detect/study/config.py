"""What a study does: a TOML file, read strictly."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, get_type_hints

from watermark.errors import InputError, UsageError, printable

__all__ = ["ARMS", "DOMAINS", "LABS", "REFERENCES", "StudyConfig", "load_config", "shipped_configs", "with_workers"]

LABS: Final = ("tiny", "small", "real")

#: Who a reference is made from: the students' base before any training on answers; a student trained alike on unmarked
#: answers; the teacher without its mark.
REFERENCES: Final = ("base", "twin", "teacher")

#: Arms whose students are trained and asked in one kind of text alone.
DOMAINS: Final = ("code", "tool-calls")

#: Further students and suspects: trained on answers half of whose spans an unmarked model wrote anew; with the shift
#: that training made taken away at inference (Pan et al., arXiv 2502.11598); trained once more on unmarked answers; no
#: student at all but the marked teacher itself; one with a vocabulary of its own; and those of `DOMAINS`.
ARMS: Final = ("paraphrase", "neutralised", "second-fine-tune", "relay", "cross-tokenizer", *DOMAINS)

_FOLDER = Path(__file__).with_name("configs")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """How many characters of each kind of text are looked for, and the vocabulary's size."""

    code: int = 20_000_000
    prose: int = 13_000_000
    boilerplate: int = 3_000_000
    tool_calls: int = 0
    vocabulary: int = 4096

    def characters(self) -> dict[str, int]:
        """Return how many are wanted of each of `detect.study.text.KINDS`."""
        return {
            "code": self.code,
            "prose": self.prose,
            "boilerplate": self.boilerplate,
            "tool-calls": self.tool_calls,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How models are trained; each lab has its own defaults in its shipped file."""

    epochs: float = 1.0
    batch: int = 16
    """Sequences a step."""
    rate: float = 3e-3
    """Largest learning rate."""
    length: int = 192
    """Ids a sequence of text; answers keep their own length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeConfig:
    """Size of the `small` lab's transformers."""

    width: int = 192
    hidden: int = 512
    layers: int = 4
    heads: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """Everything that decides what a study finds, but for the machine and the packages it runs with."""

    name: str
    lab: str
    """``tiny`` (n-grams), ``small`` (transformers from scratch) or ``real`` (SmolLM2-135M and LoRA)."""
    windows: tuple[int, ...] = (1, 2)
    doses: tuple[float, ...] = (0.02, 0.1, 1.0)
    """Marked shares of a student's training answers. Students at dose 0 are always made: see `clean_seeds`."""
    keys: tuple[int, ...] = (1, 2, 3)
    """Numbers of the keys (`detect.study.keys`)."""
    seeds: tuple[int, ...] = (1,)
    """A student is trained for each, of each cell."""
    clean_seeds: tuple[int, ...] = (101, 102)
    """Seeds of the students at dose 0: clean twins, and null controls for every key."""
    delta: float = 2.0
    gamma_256: int = 64
    answers: int = 3600
    """Answers that each student is trained on."""
    answer_tokens: int = 160
    """Most ids of an answer."""
    prompt_tokens: int = 16
    """Ids of a prompt."""
    suspect_tokens: int = 200_000
    """Ids that each student is made to say."""
    references: tuple[str, ...] = REFERENCES
    tests: tuple[str, ...] = ()
    """Of `detect.family.FAMILY`; by default all. The count test is always made."""
    prefixes: tuple[int, ...] = (10_000, 20_000, 50_000, 100_000)
    """Numbers of suspect tokens at which the tests are made, beside all of them."""
    decoys: int = 99
    top: int = 32
    """Likeliest tokens kept of a reference at each position."""
    arms: tuple[str, ...] = ()
    """Of `ARMS`: further students and suspects, of the first key and each window, at `arm_dose`."""
    arm_dose: float = 1.0
    workers: int = 2
    """Processes, of one thread each. Changes nothing in the results but rounding."""
    text: TextConfig = field(default_factory=TextConfig)
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    pretraining: TrainingConfig = field(default_factory=TrainingConfig)
    fine_tuning: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        _check(bool(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", self.name)), "name", "1 to 64 letters, digits, '.', '_', '-'")
        _check(self.lab in LABS, "lab", " or ".join(LABS))
        _check(bool(self.windows) and all(1 <= h <= 8 for h in self.windows), "windows", "widths from 1 to 8")
        _check(all(0 < dose <= 1 for dose in self.doses), "doses", "shares above 0 and up to 1, e.g. 0.1")
        _check(bool(self.keys) and all(0 <= key < 2**64 for key in self.keys), "keys", "numbers of keys, e.g. [1, 2]")
        for name in ("windows", "doses", "keys", "seeds", "clean_seeds", "references", "tests", "prefixes", "arms"):
            values = getattr(self, name)
            _check(len(set(values)) == len(values), name, "each value once")
        _check(bool(self.seeds) and all(seed >= 0 for seed in self.seeds), "seeds", "one or more, not negative")
        _check(len(self.clean_seeds) >= 2, "clean_seeds", "two or more: one student is the other's twin")
        _check(not set(self.seeds) & set(self.clean_seeds), "clean_seeds", "other seeds than `seeds`")
        _check(0 <= self.delta <= 50, "delta", "0 to 50 logits")
        _check(1 <= self.gamma_256 <= 255, "gamma_256", "1 to 255")
        for name in ("answers", "answer_tokens", "prompt_tokens", "suspect_tokens", "top", "workers"):
            _check(getattr(self, name) >= 1, name, "1 or more")
        _check(self.decoys >= 0, "decoys", "0 or more")
        _check(all(n >= 1 for n in self.prefixes), "prefixes", "numbers of tokens")
        for name, known in (("references", REFERENCES), ("arms", ARMS)):
            for value in getattr(self, name):
                _check(value in known, name, "of " + ", ".join(known), value)
        _check(0 < self.arm_dose <= 1, "arm_dose", "a share above 0 and up to 1")
        # These two go on from the plain student of that dose.
        starting = {"neutralised", "second-fine-tune"} & set(self.arms)
        _check(not starting or self.arm_dose in self.doses, "arm_dose", "one of the doses")
        called = "tool-calls" not in self.arms or self.lab == "real" or self.text.tool_calls > 0
        _check(called, "text.tool_calls", "characters of tool calls, since the arm 'tool-calls' is wanted")

    def digest(self) -> str:
        """Return the hexadecimal SHA-256 of what decides the results.

        The number of workers is not in it, nor are the arms, which add students and change no other.
        """
        described = {key: value for key, value in asdict(self).items() if key not in ("workers", "arms")}
        if not self.text.tool_calls:  # Studies from before there were any keep their digest.
            del described["text"]["tool_calls"]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def shipped_configs() -> tuple[str, ...]:
    """Return the names of the studies that come with Taggant."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_config(source: str | Path) -> StudyConfig:
    """Read a study's file, or a shipped one by its name.

    Raises:
        UsageError: there is no such file, or no such shipped study.
        InputError: the file is not TOML, or says what no study knows.
    """
    shipped = _FOLDER / f"{source}.toml"
    path = shipped if str(source) in shipped_configs() else Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"study {printable(source)!r}: expected a TOML file or one of {', '.join(shipped_configs())} "
            f"({type(error).__name__})"
        ) from None
    try:
        described = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{printable(path)}: not TOML: {printable(error)}") from None
    try:
        config: StudyConfig = _read(StudyConfig, described, "")
    except UsageError as error:
        raise InputError(f"{printable(path)}: {error}") from None
    return config


def with_workers(config: StudyConfig, workers: int | None) -> StudyConfig:
    """Return the study with another number of processes; the same if None."""
    return config if workers is None else replace(config, workers=workers)


def _check(holds: bool, name: str, expected: str, got: object = None) -> None:
    if not holds:
        raise UsageError(f"{name}: expected {expected}" + ("" if got is None else f", got {printable(repr(got))}"))


def _read(kind: type[Any], described: Mapping[str, Any], within: str) -> Any:
    """Return a dataclass from a table: unknown keys and values of other types are refused."""
    known = {member.name: member for member in fields(kind)}
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in described.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(known)
            raise UsageError(f"unknown key {printable(within + key)!r}; {hint}")
        values[key] = _value(types[key], value, within + key)
    missing = {"name", "lab"} - values.keys() if kind is StudyConfig else set()
    if missing:
        raise UsageError(f"expected the key {min(missing)!r}")
    return kind(**values)


def _value(wanted: Any, value: Any, key: str) -> Any:
    if hasattr(wanted, "__dataclass_fields__"):
        if not isinstance(value, dict):
            raise UsageError(f"{key}: expected a table")
        return _read(wanted, value, key + ".")
    if getattr(wanted, "__origin__", None) is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{key}: expected a list, got {printable(repr(value))}")
        return tuple(_value(wanted.__args__[0], item, key) for item in value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise UsageError(f"{key}: expected {wanted.__name__}, got {printable(repr(value))}")
    return value
