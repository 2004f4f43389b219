"""A study's tokenizer: a byte-level BPE trained on its text, with one special id that ends a document."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from watermark.errors import MissingExtraError
from watermark.tokenizer import Tokenizer, load

__all__ = ["END", "train_vocabulary"]

END: Final = "<|end|>"


def train_vocabulary(texts: Iterable[str], *, size: int, path: Path) -> Tokenizer:
    """Train a byte-level BPE of *size* ids, write it to *path* (a tokenizer.json) and load it.

    Args:
        texts: what it is trained on, in an order that is always the same.
        size: ids in all, the 256 bytes and the special id included.
        path: where the tokenizer.json goes.

    Raises:
        MissingExtraError: the `tokenizers` library is not installed.
    """
    try:
        from tokenizers import Tokenizer as Trained
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise MissingExtraError("training a vocabulary needs tokenizers: pip install 'taggant[tokenizers]'") from None
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    trained.save(str(path))
    return load(path)
