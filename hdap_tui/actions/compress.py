"""Start a compression job for the fleet as it is now."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from engine.models import NAMES
from hdap_tui import library
from hdap_tui.actions.jobs import jobs_dir, started
from hdap_tui.config import Settings
from hdap_tui.config.schema import Compression
from hdap_tui.config.source import did_you_mean
from hdap_tui.context import Context, Outcome
from hdap_tui.errors import SettingsError, UserError
from hdap_tui.jobs import control
from hdap_tui.store import clusters, devices
from hdap_tui.store.database import Store
from hdap_tui.store.facts import common_multiple
from hdap_tui.store.records import ClusterMap


def compress(
    context: Context,
    data: str | None = None,
    weights: Path | None = None,
    network: str | None = None,
    evaluations: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    detach: bool = False,
) -> Outcome:
    """Start a job that searches a smaller network for the fleet as it is now."""
    settings, store = context.settings, context.store
    devices.sync(store, settings.devices)
    found = _present(clusters.latest(store), {device.name for device in settings.devices})
    if not found.clusters and not found.devices:
        raise UserError('The fleet has not been clustered yet: run "hdap sweep" first.')
    if context.settings.first_model is None:
        raise SettingsError(f"{settings.path}: [[models]] names no model that is no probe.")
    first = context.settings.first_model
    parent = library.ensure(settings, store)[first.name]
    asked = _aligned(_asked(settings, network, evaluations, epochs, seed), store)
    used = str(weights.absolute()) if weights else str(settings.weights)
    request: dict[str, Any] = {
        "config": str(settings.path),
        "compression": msgspec.to_builtins(asked),
        "data": _data(settings, data),
        "weights": used,
        # The model in use is the parent only where the job starts from its very weights.
        "parent": parent.digest if used == f"builtin:{first.builtin}" else "",
        "clusters": groups(found),
    }
    _check_files(request)
    return started(context, control.start(jobs_dir(context), "compress", request), detach)


def groups(found: ClusterMap) -> list[dict[str, Any]]:
    """Return the clusters as the search takes them: size, and whom to measure, best first.

    A noise device counts with the cluster of its nearest neighbour on the map, since it will run
    the model too. Where there is no cluster at all the fleet is one.
    """
    points = {
        device: point
        for device, point in zip(found.devices, found.points, strict=True)
        if all(math.isfinite(value) for value in point)
    }
    label = dict(zip(found.devices, found.labels, strict=True))
    heads = {cluster.id: cluster.representative for cluster in found.clusters}
    if not heads:
        names = list(points) or list(found.devices)
        return [{"id": 0, "size": len(found.devices), "devices": names}]
    members: dict[int, list[str]] = {number: [] for number in heads}
    for device in found.devices:
        number = label[device]
        if number < 0 and device in points:
            number = min(
                (math.dist(points[device], points[other]), label[other])
                for other in points
                if label[other] >= 0
            )[1]
        members[max(number, 0)].append(device)
    return [
        {"id": number, "size": len(members[number]), "devices": _order(found, number, points)}
        for number in heads
    ]


def _order(found: ClusterMap, number: int, points: dict[str, tuple[float, float]]) -> list[str]:
    """Return a cluster's own devices: the representative, then those nearest to it."""
    head = next(c.representative for c in found.clusters if c.id == number)
    own = [d for d, label in zip(found.devices, found.labels, strict=True) if label == number]
    return sorted(own, key=lambda device: math.dist(points[device], points[head]))


def _asked(
    settings: Settings,
    network: str | None,
    evaluations: int | None,
    epochs: int | None,
    seed: int | None,
) -> Any:
    changes = {"network": network, "evaluations": evaluations, "seed": seed}
    asked = msgspec.structs.replace(
        settings.compression, **{k: v for k, v in changes.items() if v is not None}
    )
    if epochs is not None:
        finetune = msgspec.structs.replace(asked.finetune, epochs=epochs)
        asked = msgspec.structs.replace(asked, finetune=finetune)
    # Options from the command line have been checked by nobody yet.
    try:
        msgspec.convert(msgspec.to_builtins(asked), type(asked))
    except msgspec.ValidationError as error:
        raise SettingsError(f"This cannot be searched: {error}.") from error
    if asked.network not in NAMES:
        known = did_you_mean(asked.network, NAMES)
        raise SettingsError(f'No network is called "{asked.network}"; {known}')
    return asked


def _aligned(asked: Compression, store: Store) -> Compression:
    """Return it with the channel multiple of most devices, where the settings leave it to them."""
    if asked.channel_multiple:
        return asked
    return msgspec.structs.replace(asked, channel_multiple=common_multiple(store))


def _present(found: ClusterMap, names: set[str]) -> ClusterMap:
    """Return the clustering without devices that the settings no longer name."""
    kept = [n for n, device in enumerate(found.devices) if device in names]
    heads = {found.labels[n] for n in kept}
    return replace(
        found,
        devices=tuple(found.devices[n] for n in kept),
        labels=tuple(found.labels[n] for n in kept),
        points=tuple(found.points[n] for n in kept),
        clusters=tuple(
            c if c.representative in names else replace(c, representative=_any(found, kept, c.id))
            for c in found.clusters
            if c.id in heads
        ),
    )


def _any(found: ClusterMap, kept: list[int], cluster: int) -> str:
    return next(found.devices[n] for n in kept if found.labels[n] == cluster)


def _data(settings: Settings, named: str | None) -> str:
    if named is None:
        return str(settings.data)
    return named if named == "digits" else str(Path(named).expanduser().absolute())


def _check_files(request: dict[str, Any]) -> None:
    """Refuse at once what the job would only find out later."""
    data, weights = str(request["data"]), str(request["weights"])
    if data != "digits":
        path = Path(data)
        if not path.exists():
            raise SettingsError(f"--data: there is no file or folder {path}.")
        if path.is_dir() and not any(path.iterdir()):
            raise SettingsError(f"--data: the folder {path} is empty; it needs images and labels.")
    if not weights.startswith("builtin:") and not Path(weights).is_file():
        raise SettingsError(f"--weights: there is no file {weights}.")
