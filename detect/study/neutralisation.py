"""Taking a watermark away at inference: the shift that training made, averaged after each window, is subtracted.

Pan et al., "Can LLM watermarks robustly prevent unauthorized knowledge distillation?" (arXiv 2502.11598, section 4.2,
watermark neutralisation): the attacker, who has the model before and after training, averages ln p_after - ln p_before
over all contexts that end in a window of n ids, n = 0, 1, 2, and takes the averages from the trained model's logits. Of
several widths each window's average counts by how often the window was seen: here by c / (c + 20) of what the wider
ones left, the rest going to the narrower.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from detect.study.outputs import Outputs

if TYPE_CHECKING:
    from detect.study.transformer import TrainedModel

__all__ = ["Shift"]

Ids = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.float32]

#: Windows of two ids seen less often are left to the narrower ones (and would not fit the memory).
_RARE = 40

#: A window seen so often shares evenly with the narrower ones.
_HALF = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """The average shift after windows of 0, 1 and 2 ids."""

    everywhere: Rows
    """(V,)."""
    after_one: Rows
    """(V, V), by the last id; rows of ids never seen are 0."""
    times_one: npt.NDArray[np.float32]
    """(V,)."""
    after_two: dict[tuple[int, int], tuple[float, Rows]]
    """For each frequent pair of ids how often it was seen and the mean, (V,)."""

    @classmethod
    def between(cls, before: TrainedModel, after: TrainedModel, learned: Outputs) -> Shift:
        """Estimate the shift on the text that was learned."""
        from detect.study.transformer import log_ratios

        vocabulary = after.shape.vocabulary
        one = np.zeros((vocabulary, vocabulary), dtype=np.float32)
        times = np.zeros(vocabulary, dtype=np.float32)
        pairs: dict[tuple[int, int], int] = defaultdict(int)
        for ids in learned.responses:
            for pair in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
                pairs[pair] += 1
        two = {pair: np.zeros(vocabulary, dtype=np.float32) for pair, count in pairs.items() if count >= _RARE}
        for ids, ratio in log_ratios(before, after, learned):
            last = ids.astype(np.int64)
            np.add.at(one, last, ratio)
            np.add.at(times, last, 1.0)
            for t, pair in enumerate(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True), start=1):
                if pair in two:
                    two[pair] += ratio[t]
        return cls(
            everywhere=(one.sum(axis=0) / max(float(times.sum()), 1.0)).astype(np.float32),
            after_one=(one / np.maximum(times, 1.0)[:, None]).astype(np.float32),
            times_one=times,
            after_two={pair: (float(pairs[pair]), total / np.float32(pairs[pair])) for pair, total in two.items()},
        )

    def take_away(self, logits: Rows, said: Ids) -> None:
        """Subtract the shift from the logits that follow the answers so far, in place.

        Args:
            logits: (B, V).
            said: (B, t).
        """
        if not said.shape[1]:
            logits -= self.everywhere
            return
        last = said[:, -1].astype(np.int64)
        share = (self.times_one[last] / (self.times_one[last] + _HALF))[:, None]
        shift = share * self.after_one[last] + (1 - share) * self.everywhere
        if said.shape[1] > 1:
            for b, pair in enumerate(zip(said[:, -2].tolist(), said[:, -1].tolist(), strict=True)):
                if pair in self.after_two:
                    times, mean = self.after_two[pair]
                    wide = times / (times + _HALF)
                    shift[b] = wide * mean + (1 - wide) * shift[b]
        logits -= shift
