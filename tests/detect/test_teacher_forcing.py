"""References made by reading, with a small random model, against one forward pass a response."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import corpus_of

from detect.reference import Reference, on_grid
from detect.reference_choice import ReferenceChoice
from watermark.errors import ReferenceMismatchError
from watermark.tokenizer import Tokenizer

torch = pytest.importorskip("torch", reason="needs torch: make test-models installs it")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-models installs it")

from detect.teacher_forcing import read_reference  # noqa: E402
from watermark.models import LanguageModel, load_model  # noqa: E402

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of SmolLM2's vocabulary, saved without a tokenizer."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=49_152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_model(str(folder), tokenizer="smollm2")


def expected(model: LanguageModel, prompt: tuple[str, ...], ids: np.ndarray) -> Any:
    """The probabilities by one unpadded forward pass."""
    context = model.prompt_ids("\n\n".join(prompt)) if prompt else []
    row = torch.tensor([[*context, *ids.tolist()]])
    with torch.inference_mode():
        p = torch.softmax(model.model(input_ids=row).logits[0].float(), dim=-1)
    return p[len(context) - 1 : -1] if context else p[:-1]


def test_probabilities_are_those_of_a_forward_pass(model: LanguageModel, smollm2: Tokenizer) -> None:
    texts = ["A short one.", "A longer answer about volcanoes, 12 of them, and the sea.", "x", ""]
    prompts: list[tuple[str, ...]] = [("Say something.",), ("One.", "Two."), (), ("Nothing?",)]
    responses = [smollm2.encode(text) for text in texts]
    read: list[int] = []
    reference = read_reference(model, responses, prompts, top=5, progress=read.append)
    assert sum(read) == 4
    assert reference.ids.tolist() == [int(i) for ids in responses for i in ids]
    for r, (prompt, ids) in enumerate(zip(prompts, responses, strict=True)):
        at = slice(int(reference.starts[r]), int(reference.starts[r + 1]))
        if not len(ids):
            continue
        p = expected(model, prompt, ids)
        skipped = len(ids) - len(p)
        assert skipped == (0 if prompt else 1)
        assert (reference.said_p[at][:skipped] == 0).all()
        said = p[torch.arange(len(p)), torch.tensor(ids[skipped:].astype(np.int64))].numpy()
        # bfloat16: padding changes the order of sums, by a few parts in 256.
        assert reference.said_p[at][skipped:] == pytest.approx(said, rel=0.1, abs=1e-3)
        assert reference.top_p[at][skipped:] == pytest.approx(torch.topk(p, 5).values.numpy(), rel=0.1, abs=1e-3)


def test_what_is_saved_is_what_was_made(model: LanguageModel, smollm2: Tokenizer, tmp_path: Path) -> None:
    reference = read_reference(model, [smollm2.encode("The same numbers.")], [("Say.",)])
    reference.save(tmp_path / "r.npz")
    loaded = Reference.load(tmp_path / "r.npz")
    for field in ("ids", "starts", "top_ids", "top_p", "said_p"):
        assert (getattr(loaded, field) == getattr(reference, field)).all(), field
    assert (on_grid(loaded.top_p) == loaded.top_p).all()
    assert loaded.tokenizer == smollm2.digest()


def test_a_folder_without_a_tokenizer_is_read_with_the_scopes(folder: Path, smollm2: Tokenizer) -> None:
    corpus = corpus_of([smollm2.encode("An answer of some length.")])
    made = ReferenceChoice(models=(str(folder),)).make(
        corpus, smollm2, window=1, fingerprints=frozenset(), read=lambda file: corpus
    )
    assert made is not None
    assert made.reference.tokenizer == smollm2.digest()
    assert [(each.kind, each.chosen) for each in made.candidates] == [("model", True)]


def test_a_model_of_another_tokenizer_is_refused_before_it_reads(
    folder: Path, smollm2: Tokenizer, tmp_path: Path
) -> None:
    import tokenizers

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    other = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    other.decoder = tokenizers.decoders.ByteLevel()
    other.save(str(tmp_path / "tokenizer.json"))
    corpus = corpus_of([smollm2.encode("An answer of some length.")])
    with pytest.raises(ReferenceMismatchError, match="another tokenizer than the scope's"):
        ReferenceChoice(models=(str(tmp_path),)).make(
            corpus, smollm2, window=1, fingerprints=frozenset(), read=lambda file: corpus
        )
