"""Who gets the model, in which stages, and how much may go wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hdap_tui.errors import RefusedError, SettingsError, UserError
from hdap_tui.library import interface
from hdap_tui.store import clusters, devices
from hdap_tui.store.records import ModelRow

if TYPE_CHECKING:
    from hdap_tui.config.schema import Deploy
    from hdap_tui.measuring import Measuring

_STAGE = re.compile(r"([1-9][0-9]{0,5}) *(%|per cluster)?")
_FAILURES = re.compile(r"([0-9]{1,6}) *(%)?")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a deployment keeps to from its beginning to its end, interruptions included."""

    stages: tuple[str, ...]
    max_failures: str
    pause_s: float = 0.0
    ask: bool = False
    """Whether the operator is asked between two stages."""

    @classmethod
    def of(
        cls,
        section: Deploy,
        *,
        stages: str | None = None,
        pause: str | None = None,
        max_failures: str | None = None,
    ) -> Self:
        """Take from the settings' [deploy] section what the command line leaves open.

        Raises:
            SettingsError: an option makes no sense.
        """
        words = tuple(w.strip() for w in stages.split(",")) if stages else section.stages
        for word in words:
            _need(_STAGE, word, "--stages", 'as "1 per cluster, 10 %, 100 %" or "1, 5"')
        limit = max_failures if max_failures is not None else section.max_failures
        _need(_FAILURES, limit, "--max-failures", 'a number of devices or "N %" of a stage')
        seconds, ask = section.pause_s, False
        if pause is not None:
            ask = pause == "ask"
            if not ask:
                try:
                    seconds = float(pause)
                except ValueError:
                    seconds = math.nan
                if not 0 <= seconds < math.inf:
                    raise SettingsError(f'--pause: "{pause}" is neither seconds nor "ask".')
        return cls(stages=words, max_failures=limit, pause_s=seconds, ask=ask)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Return what `document` had written."""
        return cls(**{**document, "stages": tuple(document["stages"])})

    @property
    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)

    def too_many(self, failed: int, stage_failed: int, stage_size: int) -> bool:
        """Whether more devices failed than may, in all or in the present stage."""
        found = _need(_FAILURES, self.max_failures, "max_failures", "")
        if found[2]:
            return stage_failed > math.ceil(stage_size * int(found[1]) / 100)
        return failed > int(found[1])


@dataclass(frozen=True)
class Plan:
    """Who gets the model, in which order."""

    model: ModelRow
    stages: tuple[tuple[str, ...], ...]
    before: dict[str, ModelRow]
    """What each device runs now."""
    options: Options

    @property
    def names(self) -> tuple[str, ...]:
        """All devices, in the order of the stages."""
        return tuple(name for stage in self.stages for name in stage)

    @property
    def numbers(self) -> dict[str, int]:
        """The stage of each device, from 1."""
        return {name: i for i, stage in enumerate(self.stages, 1) for name in stage}


def plan(
    measuring: Measuring,
    model: ModelRow,
    names: Sequence[str],
    options: Options | None = None,
) -> Plan:
    """Return the stages: devices of every cluster first, those that are off last.

    Raises:
        RefusedError: it is a probe, or cannot take the place of what the devices run.
        UserError: every device runs the model already, or its file is gone.
    """
    if model.kind == "probe":
        raise RefusedError(f"{model.name} is a probe for measuring, not a model to deploy.")
    check_file(model)
    before = {name: measuring.deployed(name) for name in names}
    for old in {row.digest: row for row in before.values()}.values():
        if interface(Path(old.path)) != interface(Path(model.path)):
            raise RefusedError(
                f"{model.name} cannot take the place of {old.name}: its inputs or outputs are "
                "others."
            )
    todo = [name for name in names if before[name].digest != model.digest]
    if not todo:
        raise UserError(f"{model.name} runs on every one of these devices already.")
    asked = options or Options.of(measuring.settings.deploy)
    found = clusters.latest(measuring.store)
    groups = _groups(todo, dict(zip(found.devices, found.labels, strict=True)))
    heads = {c.representative for c in found.clusters}
    off = {row.name for row in devices.rows(measuring.store) if row.state == "off"}
    for group in groups:
        group.sort(key=lambda name: (name in off, name not in heads))
    return Plan(model, divide(groups, asked.stages), before, asked)


def divide(groups: Sequence[Sequence[str]], stages: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the devices in stages; each group is a cluster, its best device for a start first."""
    order = [name for turn in range(max(map(len, groups))) for group in groups
             for name in group[turn : turn + 1]]  # fmt: skip
    reach, found = 0, []
    for word in (*stages, "100 %"):
        number, unit = _need(_STAGE, word, "deploy.stages", "").groups()
        until = int(number)
        if unit == "%":
            until = math.ceil(len(order) * until / 100)
        elif unit:
            until = sum(min(int(number), len(group)) for group in groups)
        found.append(tuple(order[reach:until]))
        reach = max(reach, min(until, len(order)))
    return tuple(stage for stage in found if stage)


def check_file(model: ModelRow) -> None:
    """Make sure that a model's file is still there.

    Raises:
        UserError: it is not; the sentence says where it was.
    """
    if not Path(model.path).is_file():
        raise UserError(
            f"{model.name} cannot be deployed: its file "
            f"{model.path or 'was never on this machine'}"
            f"{' is gone' if model.path else ''}; put it back, or make it anew."
        )


def _groups(names: Sequence[str], labels: Mapping[str, int]) -> list[list[str]]:
    """Return the devices by cluster; what is like no other, or not clustered, is one group."""
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(labels.get(name, -1), []).append(name)
    return [found[label] for label in sorted(found, key=lambda label: (label < 0, label))]


def _need(pattern: re.Pattern[str], word: str, where: str, what: str) -> re.Match[str]:
    found = pattern.fullmatch(word)
    if found is None:
        raise SettingsError(f'{where}: "{word[:40]}" makes no sense; write {what}.')
    return found
