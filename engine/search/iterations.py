"""Finished outer iterations as they are kept in a search's folder, and whose folder it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.compress import checkpoint
from engine.compress.designs import Design
from engine.compress.groups import Group
from engine.compress.prune import narrow, prune
from engine.search.measurements import Cluster
from engine.search.settings import Settings
from engine.search.space import Widths

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.data import Dataset


@dataclass(frozen=True)
class Iteration:
    """One outer iteration: what was chosen, by what, and what fine-tuning made of it."""

    design: Design
    """Against the network at its start."""
    accuracy: float
    """After fine-tuning, on the selection split."""
    test_accuracy: float
    """The same on the test split: reported, and nothing is chosen by it."""
    macs: int
    """Multiply-accumulates of its network for one image."""
    accuracy_kept: float
    """Before fine-tuning, on training images, relative to the start of the iteration."""
    predicted_ms: Mapping[str, float]
    """By cluster."""
    predicted_original_ms: Mapping[str, float]
    """The same of the original network."""
    measured_ms: Mapping[str, float]
    """By cluster, for those that measured the design."""
    measured_original_ms: Mapping[str, float]
    """The same of the original network."""
    predicted_speedup: float
    """Latency of the fleet, as the objective has it: the original's by the design's."""
    measured_speedup: float | None
    """The same as measured; None where a cluster has not measured both."""
    asked: tuple[tuple[Widths, ...], ...]
    """What had been asked to be measured by its end, call by call."""
    surrogates: Mapping[str, Any]
    """What the surrogates were worth, by cluster."""
    goal: float | None
    """Latency to reach, relative to the original network; None where there is none."""

    def figures(self) -> dict[str, Any]:
        """Return its latencies for JSON; predicted and measured ones never share a key."""
        found: dict[str, Any] = {"speedup": self.speedup}
        if self.goal is not None:
            found["target_speedup"] = 1 / self.goal
            found["target_reached"] = 1 / self.speedup <= self.goal
        found |= {
            "predicted_ms_before": dict(self.predicted_original_ms),
            "predicted_ms_after": dict(self.predicted_ms),
            "predicted_speedup": self.predicted_speedup,
            "surrogates": dict(self.surrogates),
        }
        if self.measured_speedup is not None:
            found |= {
                "measured_ms_before": dict(self.measured_original_ms),
                "measured_ms_after": dict(self.measured_ms),
                "measured_speedup": self.measured_speedup,
            }
        return found

    @property
    def speedup(self) -> float:
        """As measured, else as predicted."""
        return self.predicted_speedup if self.measured_speedup is None else self.measured_speedup

    def point(self) -> dict[str, Any]:
        """Return where it lies between accuracy and latency, for JSON."""
        return {
            "macs": self.macs,
            "selection_accuracy": self.accuracy,
            "test_accuracy": self.test_accuracy,
            "predicted_speedup": self.predicted_speedup,
            "measured_speedup": self.measured_speedup,
        }

    def to_state(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return {**asdict(self), "design": self.design.to_json()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Iteration:
        """Return what `to_state` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            values = {field.name: state[field.name] for field in fields(cls)}
            values["design"] = Design.from_json(values["design"])
            values["asked"] = tuple(
                tuple(tuple(int(w) for w in widths) for widths in call) for call in values["asked"]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an outer iteration of a search: {error} is missing") from error
        return cls(**values)


def read(path: Path) -> tuple[Iteration, dict[str, Tensor]]:
    """Return what a file of an outer iteration holds: it, and its network's tensors.

    Raises:
        ValueError: it is no such file.
    """
    tensors, state = checkpoint.load(path)
    return Iteration.from_state(state), tensors["network"]


def rebuild(path: Path, network: nn.Module, groups: Sequence[Group]) -> tuple[Iteration, nn.Module]:
    """Return an outer iteration and the network at its end.

    Args:
        path: the file where it is kept.
        network: the network at its start.
        groups: the dependency groups of that.

    Raises:
        ValueError: it is no such file, or another network's.
    """
    iteration, tensors = read(path)
    pruned = prune(network, groups, iteration.design)
    pruned.load_state_dict(tensors)
    return iteration, pruned.eval()


def stages(
    network: nn.Module, groups: Sequence[Group], folder: Path
) -> Iterator[tuple[Iteration, nn.Module]]:
    """Yield each finished outer iteration of a search's folder, and the network at its end.

    Args:
        network: the original.
        groups: its dependency groups.
        folder: where the search was kept.
    """
    number = 1
    while (path := folder / f"iteration-{number}.safetensors").exists():
        iteration, network = rebuild(path, network, groups)
        groups = narrow(groups, iteration.design)
        yield iteration, network
        number += 1


def claim(
    folder: Path,
    network: nn.Module,
    dataset: Dataset,
    clusters: Sequence[Cluster],
    settings: Settings,
) -> None:
    """Write down whose folder it is, or check that it is this search's.

    Raises:
        ValueError: it belongs to another search; the sentence says what differs.
    """
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    images = hashlib.sha256()
    for part in (dataset.train_labels, dataset.selection_labels, dataset.train_images[:1]):
        images.update(part.tobytes())
    mine = {
        "network": digest.hexdigest(),
        "dataset": images.hexdigest(),
        "clusters": [[c.id, c.size, list(c.devices), c.multiple] for c in clusters],
        **json.loads(settings.to_json()),
    }
    path = folder / "search.json"
    if not path.exists():
        path.write_text(json.dumps(mine, indent=1), encoding="utf-8")
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        theirs = {}  # cut off while it was written: nothing else is there yet
        path.write_text(json.dumps(mine, indent=1), encoding="utf-8")
        return
    different = [name for name in mine if theirs.get(name) != mine[name]]
    if different:
        raise ValueError(
            f"{folder}: the folder belongs to a search with another {different[0]}: "
            "give another folder, or the same settings"
        )
