"""The marker of this process, for engines that build their processors themselves, from a name or from nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from watermark.marker import Marker
from watermark.self_test import check_marker
from watermark.serving import ServingConfig
from watermark.tokenizer import load

__all__ = ["process_marker"]


@cache
def process_marker(configuration: str | None = None, *, vocabulary: int) -> Marker:
    """Return the process's marker for a configuration file, after its self-test. It takes up changes of the key file.

    Args:
        configuration: the file's name; None: what the environment says (`watermark.serving`).
        vocabulary: the width of the model's logits.

    Raises:
        KeyringError: the key file is missing, unsafe or malformed, or no scope may mark and the policy is "required".
        TokenizerError: the tokenizer that the configuration names is not the scope's.
        UsageError: the configuration is malformed.
        TaggantError: a row is not biased as the keyed function says.
    """
    marker = _marker(configuration)
    check_marker(marker, vocabulary=vocabulary)
    return marker


@cache
def _marker(configuration: str | None) -> Marker:
    config = ServingConfig.from_environment() if configuration is None else ServingConfig.load(Path(configuration))
    marker = Marker(config)
    if config.tokenizer is not None:
        tokenizer = load(config.tokenizer)
        marker.check_tokenizer(tokenizer.digest(), tokenizer.name)
    marker.watch()
    return marker
