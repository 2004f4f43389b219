"""The real lab: SmolLM2-135M-Instruct as teacher and base, students by LoRA; on a CUDA GPU where one is at hand.

The teacher and the students' base are one model, so that the references `base` and `teacher` are the same.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from detect.reference import Reference
from detect.study.config import StudyConfig
from detect.study.lab import Lab
from detect.study.outputs import Outputs
from watermark.errors import UsageError
from watermark.green_list import GreenList
from watermark.keys import ScopeKeys
from watermark.precision import fast_dtype
from watermark.tokenizer import Tokenizer, load

__all__ = ["FORMS", "TOPICS", "RealLab", "study_prompts"]

#: What is asked of each topic. Every third one is of code, JSON or a tool call.
FORMS = (
    "Explain {} to a beginner.",
    "Write a short story about {}.",
    "Write a Python function to do with {}, with a docstring and a test.",
    "What should everyone know about {}?",
    "Give me advice about {}.",
    'Answer with a JSON tool call {{"tool": ..., "arguments": ...}} that looks up {}.',
    "Describe {} in detail.",
    "Why does {} matter?",
    "Write a Python class that models {}.",
    "Write a letter to a friend about {}.",
    "How has {} changed over time?",
    "Write a JSON record that describes {}, with ten fields.",
    "List ten questions about {} and answer them.",
    "Write a dialogue between two people about {}.",
    "Write a shell script that prints a report about {}.",
    "What are common mistakes to do with {}?",
    "Compare two views of {}.",
    "Write an SQL schema for an application about {}, with example queries.",
    "Write a poem about {}.",
    "Plan a lesson about {} for children.",
    "Write the unit tests of a small library about {}.",
    "Write a newspaper article about {}.",
    "What will {} be like in fifty years?",
    'Answer with three JSON tool calls {{"tool": ..., "arguments": ...}} that plan an event about {}.',
)

TOPICS = tuple(
    (
        "gardening,volcanoes,the printing press,bicycles,sleep,chess,coral reefs,public libraries,bread baking,"
        "the moon,honey bees,city buses,learning a language,mountain climbing,old maps,jazz music,clean water,"
        "wind power,lighthouses,soap making,the immune system,desert animals,rivers,school lunches,photography,"
        "railways,tea,winter storms,friendship,museums,dinosaurs,video games,recycling,the human heart,pottery,"
        "space travel,farmers' markets,dreams,poetry,earthquakes,running,tropical forests,clocks,family dinners,"
        "whales,electric cars,saving money,castles,puppets,the internet,ancient Rome,walking a dog,cheese,"
        "first aid,bridges,glaciers,comic books,job interviews,origami,solar eclipses,night markets,knitting,"
        "migration of birds,the alphabet,robots,mushrooms,camping,justice,swimming,cathedrals,batteries,laughter,"
        "spices,newspapers,tides,allergies,handwriting,folk tales,insurance,the brain,orchestras,deep sea fish,"
        "tree houses,vaccines,street art,fog,pirates,wool,voting,ice cream,telescopes,toys,rice,patience,"
        "submarines,weddings,dance,caves,radio,kindness,horses,sugar,roads,puzzles,butterflies,islands,markets,"
        "thunder,nurses,paper,spiders,opera,sand,kites,noise,mirrors,salt,autumn,rumours"
    ).split(",")
)


def study_prompts() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the prompts that students learn from and those of the audit, on disjoint topics, each with its kind."""
    rng = random.Random(20261125)  # noqa: S311 - an order, no secret
    topics = list(TOPICS)
    rng.shuffle(topics)
    halves = []
    for chosen in (topics[: len(topics) // 2], topics[len(topics) // 2 :]):
        asked = [
            (form.format(topic), "tool-calls" if "tool call" in form else "code" if place % 3 == 2 else "prose")
            for place, form in enumerate(FORMS)
            for topic in chosen
        ]
        rng.shuffle(asked)
        halves.append(asked)
    return halves[0], halves[1]


def _of_kind(asked: list[tuple[str, str]], kind: str) -> list[tuple[str, str]]:
    return [each for each in asked if kind in ("", each[1])]


class RealLab(Lab):
    """See the module's docstring."""

    def __init__(self, config: StudyConfig, folder: Path) -> None:
        super().__init__(config, folder)
        self._loaded: dict[str, Any] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """SmolLM2's."""
        return load("smollm2")

    def make_text(self) -> dict[str, Any]:
        """Check that there are prompts enough; nothing is trained on text."""
        asked, audit = study_prompts()
        if self.config.answers > len(asked):
            raise UsageError(
                f"answers: the real lab has {len(asked):,} prompts to learn from, got {self.config.answers:,}"
            )
        return {"prompts": len(asked), "audit": len(audit), "tokenizer": self.tokenizer.digest()}

    def make_model(self, which: str) -> dict[str, Any]:
        """Record which model it is: it comes trained."""
        return {"model": "smollm2"}

    def teacher_answers(self, scope: ScopeKeys | None, *, kind: str = "") -> Outputs:
        """Return an answer to each of the first prompts."""
        asked = _of_kind(study_prompts()[0], kind)
        name = "unmarked" if scope is None else f"marked-w{scope.params.window}-{scope.commitments()[0][:12]}"
        name += f"-{kind}" if kind else ""
        seed = 13 if scope is None else int(scope.commitments()[0][:8], 16)
        return self._answers("teacher", asked[: self.config.answers], name, seed=seed, scope=scope)

    def train_student(self, answers: Outputs, *, seed: int, path: Path, base: Path | None = None) -> dict[str, Any]:
        """Fine-tune with LoRA and save the merged model in a folder beside *path*."""
        from detect.study.lora import LoraTraining, train_lora

        model = self._load("base" if base is None else base, keep=False)
        # <|im_end|>, which ends a message, and not <|endoftext|>.
        ends = list(model.end_ids[-1:])
        examples = [
            ([*prompt.tolist(), *response.tolist(), *(ends if ended else [])], len(prompt))
            for prompt, response, ended in zip(answers.prompts, answers.responses, answers.ended, strict=True)
        ]
        tuning = self.config.fine_tuning
        training = LoraTraining(epochs=tuning.epochs, batch=tuning.batch, rate=tuning.rate)
        record = train_lora(model, examples, path.with_suffix(""), training=training, seed=seed)
        return {"tokens": answers.tokens, **record}

    def suspect_outputs(self, model: Path, *, seed: int, kind: str = "") -> Outputs:
        """Return the model's answers to prompts on other topics."""
        return self._suspect(model, seed=seed, scope=None, kind=kind)

    def teacher_relayed(self, scope: ScopeKeys, *, seed: int) -> Outputs:
        """Return the marked teacher's own answers to prompts on other topics."""
        return self._suspect("teacher", seed=seed, scope=scope)

    def read(self, model: Path | str, outputs: Outputs, *, name: str) -> Reference:
        """Read the outputs after their prompts' ids."""
        from detect.teacher_forcing import read_reference

        loaded = self._load(model)
        by_place = replace(loaded, prompt_ids=lambda place: [int(i) for i in outputs.prompts[int(place)]])
        places = [(str(place),) for place in range(len(outputs))]
        return replace(read_reference(by_place, outputs.responses, places, top=self.config.top), name=name)

    def _suspect(self, model: Path | str, *, seed: int, scope: ScopeKeys | None, kind: str = "") -> Outputs:
        audit = _of_kind(study_prompts()[1], kind)
        wanted = min(len(audit), -(-self.config.suspect_tokens * 5 // (4 * self.config.answer_tokens)))
        name = f"suspect-{seed}"
        return self._answers(model, audit[:wanted], name, seed=seed, scope=scope).first_tokens(
            self.config.suspect_tokens
        )

    def _answers(
        self,
        model: Path | str,
        asked: list[tuple[str, str]],
        name: str,
        *,
        seed: int,
        scope: ScopeKeys | None,
    ) -> Outputs:
        from watermark.generation import Sampling, generate

        loaded = self._load(model)
        out = self.folder / f"{name}.jsonl"
        if not out.exists():
            generate(
                loaded,
                [prompt for prompt, _ in asked],
                green_list=None if scope is None else GreenList(scope),
                out=out,
                sampling=Sampling(
                    max_tokens=self.config.answer_tokens,
                    seed=seed,
                    batch_size=256 if loaded.device.type == "cuda" else 40,
                ),
            )
        responses, ended = [], []
        for line in out.read_text(encoding="utf-8").splitlines():
            ids = json.loads(line)["token_ids"]
            over = bool(ids) and ids[-1] in loaded.end_ids
            responses.append(np.array(ids[:-1] if over else ids, dtype=np.uint32))
            ended.append(over)
        return Outputs(
            prompts=[np.array(loaded.prompt_ids(prompt), dtype=np.uint32) for prompt, _ in asked],
            responses=responses,
            ended=np.array(ended, dtype=np.bool_),
            kinds=tuple(kind for _, kind in asked),
        )

    def _load(self, model: Path | str, *, keep: bool = True) -> Any:
        from watermark.models import load_model

        if isinstance(model, Path):
            loaded = load_model(str(model.with_suffix("")), tokenizer="smollm2")
        elif keep and "smollm2" in self._loaded:
            return self._loaded["smollm2"]
        else:
            loaded = load_model("smollm2")
        loaded.model.to(fast_dtype(loaded.device.type))
        if keep and not isinstance(model, Path):
            self._loaded["smollm2"] = loaded
        return loaded
