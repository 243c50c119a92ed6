"""The fleet's mean latency from few devices: of the fleet, or of a table from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import SettingsError
from hdap_tui.figures import count, ms
from hdap_tui.names import cluster_letter
from hdap_tui.store import devices


def estimate(context: Context, input: Path | None = None, within: float | None = None) -> Outcome:
    """Estimate a fleet's mean latency from the devices that were measured last."""
    if within is not None and not (math.isfinite(within) and within > 0):
        raise SettingsError(f"--within must be a number above 0, it is {within:g}.")
    if input is not None:
        return _of_table(input, within)
    from engine.fleet.estimate import document
    from hdap_tui.estimating import latest_round

    devices.sync(context.store, context.settings.devices)
    found = document(latest_round(context.store).estimate(), () if within is None else (within,))
    emulated = sum(device.emulated for device in context.settings.devices)
    return Outcome(
        data={**found, "emulated": emulated},
        table=strata_table(found),
        text=sentence(found, "The fleet", emulated),
    )


def strata_table(found: Mapping[str, Any]) -> Table:
    """Return the strata of an estimate for people."""
    rows = tuple(
        (
            cluster_letter(one["id"]) if one["id"] >= 0 else "noise",
            str(one["devices"]),
            str(one["measured"]),
            ms(one["mean_ms"]),
            ms(one["deviation_ms"]),
        )
        for one in found["strata"]
    )
    return Table(("cluster", "devices", "measured", "mean", "deviation"), rows)


def sentence(found: Mapping[str, Any], what: str, emulated: int = 0) -> str:
    """Return an estimate in words."""
    text = (
        f"{what}: {found['mean_ms']:.3f} ms on average, {found['low_ms']:.3f} to "
        f"{found['high_ms']:.3f} (95 %, ± {found['within_percent']:.1f} %), from "
        f"{found['measured']} of {found['devices']} devices"
    )
    text += f", {emulated} of them emulated." if emulated else "."
    if found["high_ms"] == found["low_ms"]:
        text += " Every device was measured; how well a measurement repeats is not known."
    if found["covered"] < 1:
        share = 100 * (1 - found["covered"])
        text += f" Nothing was measured in clusters with {share:.0f} % of them."
    for needed in found["needed"]:
        text += f" For ± {needed['within_percent']:g} %: {count(needed['devices'], 'device')} ("
        text += ", ".join(
            f"{count} of {cluster_letter(int(one)) if int(one) >= 0 else 'the noise'}"
            for one, count in needed["allocation"].items()
        )
        text += ")."
    return text


def _of_table(path: Path, within: float | None) -> Outcome:
    from engine.fleet.documents import estimate_document
    from engine.fleet.tables import read_latencies

    try:
        table = read_latencies(path)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    try:
        found = estimate_document(table, within)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}.") from error
    rows = tuple(
        (
            one["measurement"],
            ms(one["mean_ms"]),
            ms(one["low_ms"]),
            ms(one["high_ms"]),
            f"{one['measured']} of {one['devices']}",
            *(str(needed["devices"]) for needed in one["needed"]),
        )
        for one in found["estimates"]
    )
    left_out = [
        f"{one['measurement']}: nothing was measured in clusters with "
        f"{100 * (1 - one['covered']):.0f} % of the devices."
        for one in found["estimates"]
        if one["covered"] < 1
    ]
    columns = ["measurement", "mean", "low", "high", "measured"]
    if within is not None:
        columns.append(f"for ± {within:g} %")
    return Outcome(data=found, table=Table(tuple(columns), rows), text="\n".join(left_out))
