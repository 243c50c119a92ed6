"""What of a network may be pruned at all: traced, and tried before anything is accepted.

>>> found = prunable(model, example)
>>> found.groups, found.whole
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.compress.groups import Group, StaysWhole, check, faults, trace

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Prunable:
    """A network's dependency groups that prune rightly, and what stays whole."""

    groups: tuple[Group, ...]
    whole: dict[str, str] = field(default_factory=dict)
    """Why, for each layer whose channels stay; what the network gives always stays."""

    @property
    def sentence(self) -> str:
        """What stays whole, in one sentence; empty where nothing does."""
        if not self.whole:
            return ""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.whole.items():
            reasons.setdefault(reason, []).append(name)
        parts = (f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
        return f"these keep all their channels: {'; '.join(parts)}"


def prunable(
    model: nn.Module, example: Tensor, ignored: Iterable[str] = (), tolerance: float = 1e-4
) -> Prunable:
    """Trace a network and leave out every group that would prune wrongly.

    Args:
        model: the network; it is left as it was.
        example: images that it reads, two at least.
        ignored: names of layers whose groups shall be left whole.
        tolerance: by how much pruned and masked outputs may differ, of the largest.

    Raises:
        ValueError: no group is left, or those that are left prune wrongly together.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StaysWhole)
        traced = trace(model, example, ignored)
    notes = [one.message for one in caught if isinstance(one.message, StaysWhole)]
    whole = {note.layer: note.reason for note in notes}
    wrong = faults(model, traced, example, tolerance)
    groups = tuple(group for group in traced if group.name not in wrong)
    if not groups:
        name, reason = next(iter(wrong.items()))
        raise ValueError(f"the network has no layer that can be pruned safely: {name}: {reason}")
    if wrong:
        check(model, groups, example, tolerance)
    whole |= wrong
    return Prunable(groups, whole)
