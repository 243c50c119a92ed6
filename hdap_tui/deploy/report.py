"""What came of a deployment, and how it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.latency import Comparison, FleetComparison, Latency
from hdap_tui.figures import count
from hdap_tui.ssh.errors import DeviceError, ErrorKind
from hdap_tui.store.records import DeploymentRow


@dataclass
class Report:
    """What came of a deployment."""

    row: DeploymentRow
    result: FleetComparison | None
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    latencies: dict[str, tuple[Latency, Latency]] = field(default_factory=dict)
    """Old and new of each device."""
    errors: dict[str, DeviceError] = field(default_factory=dict)
    taken_back: list[str] = field(default_factory=list)
    """Devices that run their old model again."""
    stopped: str = ""
    """Why the later stages were left out."""

    def so_far(self, names: Sequence[str]) -> str:
        """Return in a sentence what a stage brought to its devices."""
        gains = [self.comparisons[name].speedup for name in names if name in self.comparisons]
        failed = sum(name in self.errors for name in names)
        said = f"the stage before: {count(len(names), 'device')}, {failed} failed"
        return f"{said}, speed-up {min(gains):.2f}x to {max(gains):.2f}x" if gains else said


def verdict_of(report: Report, name: str) -> str:
    """Return what was measured on a device; empty where nothing was."""
    found = report.comparisons.get(name)
    return found.verdict if found else ""


def brief(latency: Latency) -> dict[str, Any]:
    """Return what a comparison needs, to be written down."""
    wanted = ("device", "model", "median_ms", "block_medians_ms", "emulated")
    return {name: value for name, value in asdict(latency).items() if name in wanted}


def latency(document: dict[str, Any]) -> Latency:
    """Return what `brief` had written."""
    return Latency(**{**document, "block_medians_ms": tuple(document["block_medians_ms"])})


def kind(word: str) -> ErrorKind:
    """Return the class of a failure from its name."""
    with suppress(ValueError):
        return ErrorKind(word)
    return ErrorKind.FAILED
