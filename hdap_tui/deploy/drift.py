"""What devices run, against what the store thinks; the store is put right."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine import files
from hdap_tui.deploy.owning import owning
from hdap_tui.errors import UserError
from hdap_tui.fanout import on_each
from hdap_tui.library import check_onnx
from hdap_tui.measuring import Measuring
from hdap_tui.ssh import release
from hdap_tui.ssh.connection import Connection
from hdap_tui.ssh.errors import DeviceError
from hdap_tui.ssh.locks import holder
from hdap_tui.ssh.scripts import ROOT
from hdap_tui.ssh.transfer import download
from hdap_tui.store import devices
from hdap_tui.store import models as table

_MOST_BYTES = 256 << 20
_RATE = 1e6  # bytes a second that a link is trusted to carry

Finding = Literal["as recorded", "nothing deployed", "changed", "unknown model", "unreachable"]


@dataclass(frozen=True)
class Found:
    """What one device was found to run."""

    device: str
    finding: Finding
    runs: str = ""
    """Name or digest of the model."""
    recorded: str = ""
    """What the store thought it runs."""
    previous: str = ""
    """What a roll-back would bring."""
    held: str = ""
    """Who deploys to it now."""
    error: DeviceError | None = None


def check(measuring: Measuring, names: Sequence[str]) -> list[Found]:
    """Ask the devices what they run, and take that over into the store.

    Raises:
        RefusedError: a process deploys to this fleet just now.
    """
    with owning(measuring.settings.state_dir):
        recorded = devices.models_on(measuring.store)
        targets = [measuring.fleet.members[name] for name in names]

        def look(connection: Connection) -> tuple[release.Release, str]:
            links = release.show(connection)
            if links.current and table.by_digest(measuring.store, links.current) is None:
                with contextlib.suppress(DeviceError, UserError, OSError):
                    _fetch(measuring, connection, links.current)
            return links, holder(connection)

        found = {}
        answers = on_each(
            measuring.fleet.pool, targets, look, measuring.context.cancelled,
            on_stage=measuring.fleet.on_stage, doing="looking",
        )  # fmt: skip
        for target, answer in answers:
            store_says = recorded.get(target.name, ("", ""))
            if isinstance(answer, DeviceError):
                found[target.name] = Found(
                    target.name, "unreachable", recorded=_name(measuring, store_says[0]),
                    error=answer,
                )  # fmt: skip
            else:
                found[target.name] = _compared(measuring, target.name, *answer, store_says)
        return [found[name] for name in names if name in found]


def _compared(
    measuring: Measuring,
    device: str,
    links: release.Release,
    held: str,
    recorded: tuple[str, str],
) -> Found:
    store, first = measuring.store, measuring.first_model
    current, previous = links.current or "", links.previous or ""
    thought = recorded[0] or first.digest
    finding: Finding = "as recorded"
    if not current and thought == first.digest:
        finding = "nothing deployed"
    elif current != thought or previous != recorded[1]:
        finding = "changed"
        if current and table.by_digest(store, current) is None:
            finding = "unknown model"
        devices.take_over(store, device, current or first.digest, previous)
    return Found(
        device, finding, _name(measuring, current), _name(measuring, thought),
        _name(measuring, previous), held,
    )  # fmt: skip


def _fetch(measuring: Measuring, connection: Connection, digest: str) -> None:
    """Take a model that only the device has, so that another can be compared with it."""
    limit = _MOST_BYTES
    data = download(connection, f"{ROOT}/models/{digest}.onnx", limit, _MOST_BYTES / _RATE)
    if hashlib.sha256(data).hexdigest() != digest:
        return
    folder = measuring.settings.state_dir / "found"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{digest}.onnx"
    files.write(path, data)
    check_onnx(path, connection.where)
    table.add(
        measuring.store, name=f"found@{digest[:8]}", digest=digest, path=path, kind="model",
        size=len(data),
    )  # fmt: skip


def _name(measuring: Measuring, digest: str) -> str:
    row = table.by_digest(measuring.store, digest) if digest else None
    return (row.name if row else "") or digest[:12]
