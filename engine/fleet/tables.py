"""Tables from elsewhere: the same methods on a CSV file as on a fleet.

Latencies: header `device,<measurement>,…`, one row a device, positive numbers, empty where
missing. Series: header `time,value` or `device,time,value`, time ISO 8601 or a number. Every
mistake in a file is a ValueError of one sentence that names line and column.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.fleet.drift import DriftSettings, detect

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LatencyTable:
    """Devices by measurements."""

    devices: tuple[str, ...]
    measurements: tuple[str, ...]
    latencies: NDArray[np.float64]
    """(devices, measurements), NaN where missing."""
    facts: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    """What the devices are, by column; None where a cell is empty."""


@dataclass
class Series:
    """One device's values over time."""

    device: str | None
    """None where the table has no such column."""
    times: list[str | float] = field(default_factory=list)
    """As they stand in the file."""
    values: list[float] = field(default_factory=list)


def read_latencies(
    path: str | Path, facts: Sequence[str] = (), wanted: Sequence[str] | None = None
) -> LatencyTable:
    """Read a table of devices and what was measured on them.

    Args:
        path: the file.
        facts: columns that hold no measurement but what a device is.
        wanted: measurements to read, in this order; other columns are passed over. All of them
            where left out.

    Raises:
        ValueError: the file cannot be read, or is no such table; says where and what to mend.
    """
    rows = _Rows(path)
    header = rows.header
    _check_header(rows, facts, wanted or ())
    if wanted is None:
        wanted = [name for name in header[1:] if name not in facts]
    numbers = [header.index(name, 1) for name in wanted]
    lines: dict[str, int] = {}
    table = []
    told: dict[str, list[str | None]] = {name: [] for name in facts}
    for row in rows:
        device = rows.device(row[0])
        if device in lines:
            raise rows.wrong(
                f"device {shown(device)} was there before, in line {lines[device]}; "
                f"give every device one row"
            )
        lines[device] = rows.line
        table.append(
            [rows.number(row[i], header[i], positive=True) if row[i] else math.nan for i in numbers]
        )
        for name, values in told.items():
            values.append(row[header.index(name)] or None)
    if not table:
        raise rows.wrong("there is no device below the header; add a row for each")
    latencies = np.asarray(table)
    if np.isnan(latencies).all():
        raise rows.wrong("no device has a number; there is nothing to compare")
    return LatencyTable(
        devices=tuple(lines),
        measurements=tuple(wanted),
        latencies=latencies,
        facts={name: tuple(values) for name, values in told.items()},
    )


def _check_header(rows: _Rows, facts: Sequence[str], wanted: Sequence[str]) -> None:
    header = rows.header
    if header[0].lower() != "device" or len(header) < 2:
        raise rows.wrong(
            f"the header is {shown(','.join(header))}, it must be device,<measurement>,…"
        )
    for column, name in enumerate(header[1:], start=1):
        if not name or name in header[:column]:
            fault = "has no name" if not name else f"repeats the name {shown(name)}"
            raise rows.wrong(f"column {column + 1} {fault}; name every measurement once")
    for name in facts:
        if name not in header[1:]:
            raise rows.wrong(f"there is no column {shown(name)} that could be a fact")
    for name in wanted:
        if name not in header[1:]:
            raise rows.wrong(f"there is no column {shown(name)}, which the other table has; add it")
    if set(header[1:]) <= set(facts):
        raise rows.wrong("every column is a fact; there is nothing to compare")


def read_series(path: str | Path, fleet: bool = False) -> list[Series]:
    """Read values over time, of one device or of many, each device's rows in the order of time.

    Args:
        path: the file.
        fleet: whether the devices are one fleet: then the column device and positive values are
            a must.

    Raises:
        ValueError: the file cannot be read, or is no such table; says where and what to mend.
    """
    rows = _Rows(path)
    header = [name.lower() for name in rows.header]
    headers = [*([] if fleet else [["time", "value"]]), ["device", "time", "value"]]
    if header not in headers:
        raise rows.wrong(
            f"the header is {shown(','.join(rows.header))}, "
            f"it must be {' or '.join(map(','.join, headers))}"
        )
    found: dict[str | None, Series] = {}
    latest: dict[str | None, float] = {}
    kind = ""
    for row in rows:
        device = rows.device(row[0]) if len(header) == 3 else None
        time, (own_kind, moment) = rows.time(row[-2])
        if kind and kind != own_kind:
            raise rows.wrong(f"column time changes from {kind} to {own_kind}; use one throughout")
        if moment < latest.get(device, moment):
            raise rows.wrong(f"column time goes back to {shown(row[-2])}; sort the rows by time")
        kind, latest[device] = own_kind, moment
        series = found.setdefault(device, Series(device))
        series.times.append(time)
        series.values.append(rows.number(row[-1], "value", positive=fleet))
    if not found:
        raise rows.wrong("there is no value below the header; add a row for each")
    return list(found.values())


def drift_document(
    series: Sequence[Series], settings: DriftSettings | None = None
) -> dict[str, Any]:
    """Return the changes in each device's series, as plain data for JSON."""
    changes = [
        {
            "device": one.device,
            "index": change.index,
            "time": one.times[change.index],
            "onset_index": change.onset_index,
            "onset_time": one.times[change.onset_index],
            "kind": change.kind,
            "direction": change.direction,
            "size_percent": change.size_percent,
        }
        for one in series
        for change in detect(one.values, settings)
    ]
    return {"schema_version": SCHEMA_VERSION, "changes": changes}


class _Rows:
    """The rows of a CSV file, cells without the spaces around them, and where one is."""

    def __init__(self, path: str | Path) -> None:
        self._name = str(path)
        self.line = 0
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{self._name} is not text in UTF-8; save it as CSV") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a usable file name"
            raise ValueError(f"{self._name} cannot be read: {reason}") from None
        self._cells = self._rows(text)
        self.header = next(self._cells, [])
        if not self.header:
            raise ValueError(f"{self._name} is empty; it needs a header and a row for each entry")

    def _rows(self, text: str) -> Iterator[list[str]]:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            for row in reader:
                self.line = reader.line_num
                if any(cell.strip() for cell in row):
                    yield [cell.strip() for cell in row]
        except csv.Error as error:
            self.line = reader.line_num
            raise self.wrong(f"this is not CSV: {error}") from None

    def __iter__(self) -> Iterator[list[str]]:
        for row in self._cells:
            if len(row) != len(self.header):
                raise self.wrong(
                    f"there are {len(row)} columns where the header has {len(self.header)}"
                )
            yield row

    def wrong(self, what: str) -> ValueError:
        return ValueError(f"{self._name}, line {max(self.line, 1)}: {what}")

    def device(self, cell: str) -> str:
        if not cell:
            raise self.wrong("column device is empty; name the device")
        return cell

    def number(self, cell: str, column: str, positive: bool = False) -> float:
        kind = "a positive number" if positive else "a number"
        try:
            value = math.nan if "_" in cell else float(cell)
        except ValueError:
            value = math.nan
            if cell and positive:
                kind += "; name a column of words as a fact, or leave it out"
        if not math.isfinite(value) or (positive and value <= 0):
            what = shown(cell) if cell else "empty"
            raise self.wrong(f"column {shown(column)} is {what}, it must be {kind}")
        return value

    def time(self, cell: str) -> tuple[str | float, tuple[str, float]]:
        """Return a time as it stands, and its kind and order."""
        try:
            value = float(cell)
            if math.isfinite(value):
                return (int(cell) if cell.lstrip("+-").isdigit() else value), ("numbers", value)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(cell)
        except ValueError:
            raise self.wrong(
                f"column time is {shown(cell)}, it must be ISO 8601 or a number"
            ) from None
        if moment.tzinfo is None:
            # Only the order counts, and it is the same in any one time zone.
            return cell, ("local times", moment.replace(tzinfo=UTC).timestamp())
        return cell, ("times with a zone", moment.timestamp())


def shown(cell: str) -> str:
    """Quote what stands in a file, harmless and short."""
    return repr(cell if len(cell) <= 40 else cell[:40] + "…")
