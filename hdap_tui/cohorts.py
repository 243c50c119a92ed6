"""What the devices of a cluster have in common that the others have not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from hdap_tui.fact_names import BY_NAME, Fact, shown
from hdap_tui.text import clean

_TELLING = (
    "power_mode", "governor", "cpu_model", "board", "onnxruntime", "cores_usable", "memory_mb",
    "os", "kernel",
)  # fmt: skip
"""Facts that may explain a speed, the likeliest first."""
_FEW = 0.1
"""Share of the other devices that may have the same value."""


def with_facts(
    notes: Mapping[int, str],
    names: Sequence[str],
    labels: Sequence[int],
    known: Mapping[str, Mapping[str, Fact]],
) -> dict[int, str]:
    """Return what tells each cluster apart, with a fact that only its devices share, if any."""
    told = dict(notes)
    for cluster in sorted({label for label in labels if label >= 0}):
        own = [name for name, label in zip(names, labels, strict=True) if label == cluster]
        others = [name for name, label in zip(names, labels, strict=True) if label != cluster]
        fact = shared_fact(own, others, known)
        if fact:
            told[cluster] = "; ".join(filter(None, (told.get(cluster, ""), fact)))
    return told


def shared_fact(
    own: Collection[str], others: Collection[str], known: Mapping[str, Mapping[str, Fact]]
) -> str:
    """Return in words the first fact that all of some devices share and hardly any other has."""
    if len(own) < 2 or not others:
        return ""
    for name in _TELLING:
        values = [known.get(device, {}).get(name) for device in own]
        if values[0] is None or any(value != values[0] for value in values):
            continue
        elsewhere = [known.get(device, {}).get(name) for device in others]
        if None not in elsewhere and elsewhere.count(values[0]) <= _FEW * len(elsewhere):
            return f"{BY_NAME[name].title} {clean(shown(name, values[0]), 40)}"
    return ""
