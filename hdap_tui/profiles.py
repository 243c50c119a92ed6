"""Models side by side: what each is worth and costs on paper, and what it takes on a device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hdap_tui.store import latest
from hdap_tui.store.database import Store
from hdap_tui.store.latest import Timed
from hdap_tui.store.records import ModelRow

SPARSE = 0.2
"""Share of zeros among the weights from which on a model counts as sparse; rounding to int8 alone
makes a few per cent."""


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """One model."""

    model: ModelRow
    timed: Timed | None = None
    """On the device of the comparison; None where it was not measured there."""
    fleet_ms: float | None = None
    """Mean of its newest medians over the devices that measured all of the models."""
    on_front: bool = False
    """No other model is as accurate and faster, or as fast and more accurate."""
    remark: str = ""

    @property
    def accuracy(self) -> float | None:
        """Share of test images that it classifies rightly; None where nobody knows."""
        value = self.model.metrics.get("test_accuracy")
        return value if isinstance(value, float) and math.isfinite(value) else None

    @property
    def paper(self) -> Mapping[str, Any]:
        """What was counted in its file (see `engine.compress.profile.Profile`); empty before."""
        found = self.model.metrics.get("profile")
        return found if isinstance(found, Mapping) else {}

    @property
    def zeros(self) -> float:
        """Share of its parameters that are zero."""
        parameters = self.paper.get("parameters")
        return 1 - self.paper["nonzeros"] / parameters if parameters else 0.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several models, on one device."""

    device: str = ""
    """Empty where none of them was measured anywhere."""
    emulated: bool = False
    devices: int = 0
    """How many devices the means over the fleet are of."""
    rows: tuple[Profiled, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the models that were not measured on the device."""
        return tuple(row.model.name for row in self.rows if row.timed is None)


def compare(store: Store, models: Sequence[ModelRow], device: str = "") -> Comparison:
    """Return models with what was measured of them last.

    Args:
        models: in the order in which they are to be shown.
        device: where the latency is from; without it, the device on which most of them were
            measured.
    """
    digests = [model.digest for model in models]
    with store.read():
        device = device or latest.most_measured(store, digests)
        timed = latest.on_device(store, device, digests)
        devices, means = latest.fleet_means(store, digests)
    rows = [
        Profiled(model=m, timed=timed.get(m.digest), fleet_ms=means.get(m.digest)) for m in models
    ]
    return Comparison(
        device=device,
        emulated=any(found.emulated for found in timed.values()),
        devices=devices,
        rows=marked(rows),
    )


def marked(rows: Sequence[Profiled]) -> tuple[Profiled, ...]:
    """Return models with what there is to say of each beside the others."""
    return tuple(
        replace(
            row,
            on_front=_point(row) is not None and not any(_dominates(other, row) for other in rows),
            remark=_sparse(row, rows),
        )
        for row in rows
    )


def _point(row: Profiled) -> tuple[float, float] | None:
    """Return latency and accuracy, where both are known."""
    if row.timed is None or row.accuracy is None:
        return None
    return row.timed.median_ms, row.accuracy


def _dominates(other: Profiled, row: Profiled) -> bool:
    """Say whether another model is at least as good in both, and better in one."""
    theirs, own = _point(other), _point(row)
    if theirs is None or own is None or theirs == own:
        return False
    return theirs[0] <= own[0] and theirs[1] >= own[1]


def _sparse(row: Profiled, rows: Sequence[Profiled]) -> str:
    """Return what the zeros of a sparse model bring; empty for others."""
    if row.zeros < SPARSE:
        return ""
    said = f"{row.zeros:.0%} of its weights are zero, by which dense kernels gain nothing"
    alike = next((one for one in rows if _as_slow(one, row)), None)
    return f"{said}: it takes as long as {alike.model.name}" if alike else said


def _as_slow(dense: Profiled, sparse: Profiled) -> bool:
    """Say whether a dense model of the same shape takes as long, within the intervals."""
    first, second = dense.timed, sparse.timed
    alike = all(dense.paper.get(name) == sparse.paper[name] for name in ("parameters", "macs"))
    if not alike or dense.zeros >= SPARSE or first is None or second is None:
        return False
    return first.overlaps(second)
