"""The facts that may explain why the devices of a cluster are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hdap_tui.fact_names import BY_NAME, Fact, shown
from hdap_tui.text import clean

_TELLING = (
    "power_mode", "governor", "cpu_model", "board", "onnxruntime", "cores_usable", "memory_mb",
    "os", "kernel",
)  # fmt: skip
"""Facts that may explain a speed, the likeliest first."""


def telling_facts(
    names: Sequence[str], known: Mapping[str, Mapping[str, Fact]]
) -> dict[str, list[str | None]]:
    """Return by a fact's title its value on each device in words, None where nobody knows it."""
    return {
        BY_NAME[fact].title: [_words(fact, known.get(name, {}).get(fact)) for name in names]
        for fact in _TELLING
    }


def _words(name: str, value: Fact | None) -> str | None:
    return None if value is None else clean(shown(name, value), 40)
