"""Answers to prompts as token ids: what a teacher serves, what a student learns, what a suspect says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from watermark.errors import InputError

__all__ = ["Outputs"]

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """R answers, of N ids together."""

    prompts: list[Ids]
    """The ids before each answer, uint32."""
    responses: list[Ids]
    """The ids of each answer, uint32, without the id that ends a document."""
    ended: npt.NDArray[np.bool_]
    """Whether the answer ended by itself, (R,)."""
    kinds: tuple[str, ...]
    """The kind of text that each prompt is of."""

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def tokens(self) -> int:
        """N."""
        return sum(len(ids) for ids in self.responses)

    def take(self, chosen: Sequence[int] | npt.NDArray[np.int64]) -> Outputs:
        """Return the answers at the places *chosen*, in that order."""
        places = [int(i) for i in chosen]
        return Outputs(
            prompts=[self.prompts[i] for i in places],
            responses=[self.responses[i] for i in places],
            ended=self.ended[places],
            kinds=tuple(self.kinds[i] for i in places),
        )

    def first_tokens(self, tokens: int) -> Outputs:
        """Return the shortest run of answers from the first on that has *tokens* ids or more; all, if none has."""
        reached = np.cumsum([len(ids) for ids in self.responses])
        return self.take(np.arange(min(len(self), int(np.searchsorted(reached, tokens)) + 1)))

    def save(self, path: Path) -> None:
        """Write an ``.npz`` of plain arrays, whole or not at all: ids, starts, prompts, prompt_starts, ended, kinds."""
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            np.savez_compressed(
                file,
                ids=_joined(self.responses),
                starts=_starts(self.responses),
                prompts=_joined(self.prompts),
                prompt_starts=_starts(self.prompts),
                ended=self.ended,
                kinds=np.array(self.kinds, dtype=np.str_),
            )
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Outputs:
        """Read what `save` wrote.

        Raises:
            InputError: missing, or not such a file.
        """
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                return cls(
                    prompts=_split(file["prompts"], file["prompt_starts"]),
                    responses=_split(file["ids"], file["starts"]),
                    ended=file["ended"],
                    kinds=tuple(str(kind) for kind in file["kinds"]),
                )
        except (OSError, KeyError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not a study's answers ({type(error).__name__}): run the study again") from None


def _joined(parts: list[Ids]) -> Ids:
    return np.concatenate(parts).astype(np.uint32) if parts else np.zeros(0, dtype=np.uint32)


def _starts(parts: list[Ids]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)


def _split(ids: Ids, starts: npt.NDArray[np.int64]) -> list[Ids]:
    return [np.ascontiguousarray(ids[a:b], dtype=np.uint32) for a, b in pairwise(starts.tolist())]
