"""The fleet's clusters as they stand, and each device's place among them: one row a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from hdap_tui.store.database import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.fleet.membership import Membership


_TOGETHER = 100
"""Rows written by one statement: twice as fast as one by one."""


def load(store: Store, digests: Sequence[str]) -> Membership | None:
    """Return the clusters as they stand; None where there are none, or of other models."""
    from engine.fleet.membership import Membership, record_type

    with store.read():
        row = store.row("SELECT digests, state FROM cluster_state")
        if row is None or json.loads(row["digests"]) != list(digests):
            return None
        names = {one["id"]: one["name"] for one in store.rows("SELECT id, name FROM devices")}
        ids, records = read(store, record_type(len(digests)))
    try:
        return Membership([names[one] for one in ids], records, json.loads(row["state"]))
    except ValueError:
        return None  # of another version: the clusters are found anew


def next_id(store: Store) -> int:
    """Return the first id of a cluster that was never used."""
    row = store.row("SELECT next_id FROM cluster_state")
    return int(row["next_id"]) if row else 0


def save(store: Store, membership: Membership, digests: Sequence[str]) -> None:
    """Keep the clusters as they stand, in place of what was there."""
    state = json.dumps(membership.to_state())
    with store.write() as connection:
        connection.execute(
            "INSERT OR REPLACE INTO cluster_state VALUES (1, ?, ?, ?)",
            (json.dumps(list(digests)), membership.next_id, state),
        )
        ids = {one["name"]: one["id"] for one in store.rows("SELECT id, name FROM devices")}
        write(store, [ids[name] for name in membership.names], membership.records)


def read(store: Store, record: np.dtype[Any]) -> tuple[list[int], NDArray[Any]]:
    """Return the ids of the devices that have a place, and a record for each.

    Raises:
        ValueError: the records are of another size.
    """
    import numpy as np

    # One column, put together without a look at it: a million rows in less than a second.
    rows = store.connection.execute("SELECT record FROM device_places ORDER BY device_id")
    found = np.frombuffer(bytearray().join(map(itemgetter(0), rows)), _row_type(record))
    return found["device"].tolist(), found["record"]


def write(store: Store, ids: Sequence[int], records: NDArray[Any]) -> None:
    """Keep a record for each device, in place of all that were there."""
    import numpy as np

    rows = np.empty(len(records), _row_type(records.dtype))
    rows["device"], rows["record"] = ids, records
    blobs = rows.view(f"V{rows.dtype.itemsize}").tolist()
    whole = len(ids) - len(ids) % _TOGETHER
    with store.write() as connection:
        connection.execute("DELETE FROM device_places")
        for start, stop, count in ((0, whole, _TOGETHER), (whole, len(ids), 1)):
            connection.executemany(
                f"INSERT INTO device_places VALUES {', '.join(['(?, ?)'] * count)}",
                (
                    _flat(ids[first : first + count], blobs[first : first + count])
                    for first in range(start, stop, count)
                ),
            )


def _flat(ids: Sequence[int], blobs: Sequence[bytes]) -> tuple[int | bytes, ...]:
    return tuple(chain.from_iterable(zip(ids, blobs, strict=True)))


def _row_type(record: np.dtype[Any]) -> np.dtype[Any]:
    """Return what a row holds: the device's id once more, so that one column is all there is."""
    import numpy as np

    return np.dtype([("device", "<i8"), ("record", record)])
