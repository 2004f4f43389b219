"""The planner's part of a plan, as a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

from watermark.errors import InputError, printable

__all__ = ["TEMPLATE", "read_plan_file"]

#: What `taggant evidence plan --template` prints.
TEMPLATE: Final = """\
title = "Was model X trained on our answers of 2026-q4?"
samples_per_prompt = 1
prompt_policy = "own"                   # windows left out: own or marked (taggant detect model --help)
tests = ["quasi-score", "centred"]      # or ["count"], which needs no reference
reference = "model X's public base"     # in words; leave it out with ["count"]
level = "1e-6"
lanes_to_open = 16                      # at most half of the fleet lanes; z falls as the root of their share
exclusions = ["answers not longer than the window"]

[suspect]
endpoint = "https://suspect.example/v1"
model = "x-large"
released = "2027-01-15"                 # may be left out

[hypotheses]
null = "the outputs are independent of the key"
alternative = "the outputs depend on the key, as those of a student of our answers would"

[sampling]
temperature = 1.0
max_tokens = 256

[stopping]
rule = "fixed"                          # fixed, key-free, or e-process with live_lanes = [...]
planned_responses = 400

[lane_choice]
kind = "nonce"                          # of an auditor; or "beacon" with round = N
name = "the auditor"

[[controls]]
name = "clean-twin"
kind = "clean-twin"                     # base, clean-twin, human or other
text = "trained like the suspect on answers without the mark"
"""

_DEFAULTS: Final[dict[str, Any]] = {"reference": None, "exclusions": [], "deviations": [], "controls": []}


def read_plan_file(path: Path) -> dict[str, Any]:
    """Return the fields of a plan that its author gives, with what may be left out filled in.

    Raises:
        InputError: it cannot be read or is no TOML.
    """
    try:
        with open(path, "rb") as file:
            given = tomllib.load(file)
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{printable(path)}: expected TOML: {printable(error)}") from None
    config: dict[str, Any] = {**_DEFAULTS, **given}
    for table, defaults in (
        ("suspect", {"released": None}),
        ("stopping", {"live_lanes": []}),
        ("lane_choice", {"round": None}),
    ):
        if isinstance(config.get(table), dict):
            config[table] = {**defaults, **config[table]}
    if isinstance(config.get("suspect"), dict) and config["suspect"]["released"] is not None:
        config["suspect"]["released"] = str(config["suspect"]["released"])
    return config
