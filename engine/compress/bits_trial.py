"""What was measured of a mixture of precisions, what it is worth, and the file that keeps it.

A measurement is a line of JSON, on the disk before it is used, keyed by the precisions asked for;
what is there is never measured again. So a search that was stopped anywhere takes the same way
again, and a copy of the file is all that another one needs to take it too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine import files
from engine.compress.mixtures import Policy, Precision, check_precisions


@dataclass(frozen=True)
class Trial:
    """One network that was measured."""

    policy: Policy
    """The precision that each layer is executed in, in the order of the file."""
    accuracy: float
    """Share of the images, 0 to 1."""
    latency_ms: float
    bytes: int
    """Size of its file."""
    digest: str
    """SHA-256 of its file, lower-case hex."""


@dataclass(frozen=True)
class Reward:
    """What a network is worth beside the float one, which is worth 0.

    Each weight says how much a saving counts: at a weight of 1, half the latency is worth ln 2. It
    is the weighted product of MnasNet (Tan et al.: *MnasNet: Platform-aware neural architecture
    search for mobile*, CVPR 2019) in logarithms.
    """

    latency: float = 1.0
    """Weight of ln(float milliseconds / milliseconds)."""
    bytes: float = 0.0
    """Weight of ln(float bytes / bytes)."""
    accuracy: float = 0.05
    """What a percentage point of accuracy is worth."""
    maximum_drop: float = 1.0
    """Percentage points of accuracy that may be lost; what loses more is always worth less than
    the float network."""
    penalty: float = 0.1
    """What each point beyond that costs."""

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: something does not; the sentence says what.
        """
        for name in ("latency", "bytes", "accuracy", "maximum_drop"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"the reward's {name} is 0 or more, not {value}")
        if not 0 < self.penalty < math.inf:
            raise ValueError(f"the reward's penalty is above 0, not {self.penalty}")
        if not (self.latency or self.bytes):
            raise ValueError("the reward counts neither latency nor bytes, so nothing can be won")

    def of(self, trial: Trial, whole: Trial) -> float:
        """Return what a network is worth; `whole` is the float one."""
        drop = 100 * (whole.accuracy - trial.accuracy)
        value = (
            self.latency * math.log(whole.latency_ms / trial.latency_ms)
            + self.bytes * math.log(whole.bytes / trial.bytes)
            - self.accuracy * drop
        )
        beyond = drop - self.maximum_drop
        # Accuracies are counts over the number of images: their difference is rounded.
        return min(value, 0.0) - self.penalty * beyond if beyond > 1e-9 else value


class Record:
    """The file of measurements.

    Args:
        path: the file; None keeps them in memory only.
        of: tells what is measured from anything else.

    Raises:
        ValueError: the file is of something else, or a line, other than a last one that was cut
            off, is no measurement.
    """

    def __init__(self, path: Path | None, of: str) -> None:
        self._path = path
        self._trials: dict[Policy, Trial | None] = {}
        self._errors: dict[tuple[Precision, ...], list[list[float]]] = {}
        lines = files.lines(path) if path is not None else []
        for number, line in enumerate(lines, 1):
            try:
                data = json.loads(line)
                if number > 1:
                    self._read(data)
                    continue
                known = data["of"]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not a measurement: remove the line, or the file"
                ) from error
            if known != of:
                raise ValueError(
                    f"{path}: measured of another network, other images, or by another version of "
                    "ONNX Runtime: remove it to begin anew"
                )
        if not lines:
            self._append({"of": of})

    def __len__(self) -> int:
        """Return how many mixtures are known, those that cannot be had among them."""
        return len(self._trials)

    def has(self, policy: Policy) -> bool:
        """Tell whether it is known what comes of a mixture."""
        return policy in self._trials

    def trial(self, policy: Policy) -> Trial | None:
        """Return what was measured; None where the mixture cannot be had."""
        return self._trials[policy]

    def add(self, policy: Policy, trial: Trial | None) -> None:
        """Save what came of a mixture; it is on the disk when this returns."""
        self._keep(policy, trial)
        self._append({"asked": policy, "trial": None if trial is None else asdict(trial)})

    def errors(self, actions: Sequence[Precision]) -> list[list[float]] | None:
        """Return the layers' errors with these precisions; None where they are not known."""
        return self._errors.get(tuple(actions))

    def add_errors(self, actions: Sequence[Precision], errors: list[list[float]]) -> None:
        """Save the layers' errors, (layers, actions)."""
        self._errors[tuple(actions)] = errors
        self._append({"actions": list(actions), "errors": errors})

    def _keep(self, policy: Policy, trial: Trial | None) -> None:
        self._trials[policy] = trial
        if trial is not None:
            self._trials[trial.policy] = trial

    def _append(self, line: Any) -> None:
        if self._path is not None:
            files.append(self._path, [line])

    def _read(self, data: Any) -> None:
        if "errors" in data:
            self._errors[_policy(data["actions"])] = data["errors"]
            return
        found = data["trial"]
        trial = None
        if found is not None:
            trial = Trial(**{**found, "policy": _policy(found["policy"])})
            if not (0 <= trial.accuracy <= 1 and trial.latency_ms > 0 and trial.bytes > 0):
                raise ValueError("a share, and two positive numbers")
        self._keep(_policy(data["asked"]), trial)


def _policy(precisions: Sequence[Precision]) -> Policy:
    check_precisions(precisions)
    return tuple(precisions)
