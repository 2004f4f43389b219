"""Prompts made from templates, for an audit without prompts of its own. They hold no model's text, marked or not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Final

from watermark.errors import UsageError, printable

__all__ = ["DOMAINS", "made_prompts"]

_TOPICS: Final = (
    "tides, bread, chess, bees, glaciers, violins, bridges, soil, lighthouses, coffee, comets, canals, gardens, maps, "
    "clocks, paper, rivers, kites, salt, trains, mushrooms, sailing, whales, ink, deserts, cheese, radio, owls, "
    "volcanoes, libraries, windmills, pottery, markets, forests, bicycles, lenses, harbours, honey, tunnels, snow"
).split(", ")
_READERS: Final = ("a curious child", "a new colleague", "a sceptical friend", "a travelling visitor", "a busy reader")
_STRUCTURES: Final = (
    "a binary heap, a bounded queue, a trie, a ring buffer, an LRU cache, a sparse matrix, an interval set, a rope, "
    "a bloom filter, a union-find, a priority scheduler, a rate limiter, a diff of two lists, a CSV reader, "
    "a retrying HTTP client, a state machine, a topological sort, a tokenizer for arithmetic, an event bus, a plugin "
    "registry"
).split(", ")
_LANGUAGES: Final = ("Python", "TypeScript", "Go", "Rust", "Java")
_TOOLS: Final = (
    "search_flights(origin, destination, date), read_file(path), run_tests(pattern), get_weather(city, day), "
    "query_orders(customer, since), create_ticket(title, body), list_events(calendar, week), translate(text, language)"
).split("), ")

_TEMPLATES: Final[Mapping[str, tuple[str, tuple[tuple[str, ...], ...]]]] = {
    "prose": (
        "{0} about {1} for {2}.",
        (
            (
                "Write a short essay",
                "Tell a story",
                "Give practical advice",
                "Explain the history and the present",
                "Write a letter",
                "Compare two views",
            ),
            tuple(_TOPICS),
            _READERS,
        ),
    ),
    "code": (
        "{0} {1} in {2}, with comments and a usage example.",
        (
            ("Implement", "Write tests for", "Refactor and document", "Explain and then implement"),
            tuple(_STRUCTURES),
            _LANGUAGES,
        ),
    ),
    "tool-use": (
        "You can call {1}). {0} {2}, and say which calls you make with which arguments, step by step, as JSON.",
        (
            ("Plan a task", "Solve a customer's problem", "Recover from a failed call", "Answer a question"),
            tuple(tool.rstrip(")") for tool in _TOOLS),
            tuple(f"that has to do with {topic}" for topic in _TOPICS),
        ),
    ),
}

#: Domains that prompts can be made for.
DOMAINS: Final = tuple(_TEMPLATES)


def made_prompts(domain: str, count: int, *, seed: int = 0) -> list[str]:
    """Return *count* different prompts of a domain, the same for the same seed.

    Raises:
        UsageError: an unknown domain, or more than its templates give.
    """
    if domain not in _TEMPLATES:
        raise UsageError(f"domain: expected one of {', '.join(DOMAINS)}, got {printable(domain, 40)!r}")
    template, parts = _TEMPLATES[domain]
    every = [template.format(*chosen) for chosen in itertools.product(*parts)]
    if not 1 <= count <= len(every):
        raise UsageError(
            f"expected 1 to {len(every):,} prompts of {domain}, got {count:,}: --samples asks each several times"
        )
    random.Random(seed).shuffle(every)  # noqa: S311 - nothing secret
    return every[:count]
