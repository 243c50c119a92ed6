"""States of a fleet's monitor that earlier versions kept, as this version keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.fleet.cohorts import Cohorts
from engine.fleet.crowds import Crowd
from engine.fleet.limits import DriftSettings
from engine.fleet.migration import Homes
from engine.fleet.pooled import Noise


def of_version_1(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state of version 1 with its baselines, and what was not watched then as new.

    Raises:
        KeyError: something is missing.
    """
    fleet = state["fleet"]
    return {
        "version": 2,
        "round": state["round"],
        "first": state["first"],
        "noise": Noise(state["sigma"], int(state["sigma_samples"])).to_state(),
        "devices": {name: _chart(chart) for name, chart in state["devices"].items()},
        "clusters": {label: _chart(chart) for label, chart in state["clusters"].items()},
        "fleet": None if fleet is None else _chart(fleet),
        "cohorts": Cohorts(DriftSettings()).to_state(),
        "crowd": Crowd().to_state(),
        "homes": Homes().to_state(),
    }


def _chart(chart: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chart that knows no size of a change that is not over."""
    return {**chart, "monitor": {"size": 0.0, **chart["monitor"]}}
