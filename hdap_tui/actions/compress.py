"""Start a compression job for the fleet as it is now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.models import NAMES, recognise
from hdap_tui import library
from hdap_tui.actions.jobs import jobs_dir, started
from hdap_tui.config import Settings
from hdap_tui.config.settings import BUILTIN, BUILTIN_WEIGHTS_OF
from hdap_tui.config.source import did_you_mean
from hdap_tui.context import Context, Outcome
from hdap_tui.errors import SettingsError, UserError
from hdap_tui.jobs import control
from hdap_tui.store import clusters, devices, measurements
from hdap_tui.store.database import Store
from hdap_tui.store.facts import common_multiple
from hdap_tui.store.records import ClusterMap

_LEVELS = 32
"""Devices of a cluster whose levels are told one by one."""


def compress(
    context: Context,
    data: str | None = None,
    weights: Path | None = None,
    network: str | None = None,
    evaluations: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    maximum_drop: float | None = None,
    target_speedup: float | None = None,
    target_latency_ms: float | None = None,
    constraint: str | None = None,
    objective: str | None = None,
    per_cluster: str | None = None,
    detach: bool = False,
) -> Outcome:
    """Start a job that searches a smaller network for the fleet as it is now."""
    settings, store = context.settings, context.store
    changes = {
        "network": settings.network if network is None else _network(network),
        "evaluations": evaluations,
        "seed": seed,
        "maximum_drop": maximum_drop,
        "target_speedup": target_speedup,
        "target_latency_ms": target_latency_ms,
        "constraint": constraint,
        "objective": objective,
        "per_cluster": per_cluster,
    }
    devices.sync(store, settings.devices)
    found = _present(clusters.latest(store), {device.name for device in settings.devices})
    if not found.clusters and not found.devices:
        raise UserError('The fleet has not been clustered yet: run "hdap sweep" first.')
    if context.settings.first_model is None:
        raise SettingsError(f"{settings.path}: [[models]] names no model that is no probe.")
    first = context.settings.first_model
    parent = library.ensure(settings, store)[first.name]
    asked = _asked(settings, changes, epochs)
    used = str(weights.absolute()) if weights else str(settings.weights_of(asked.network))
    request: dict[str, Any] = {
        "config": str(settings.path),
        "compression": msgspec.to_builtins(asked.with_threads()),
        "data": _data(settings, data),
        "weights": used,
        # The model in use is the parent only where the job starts from its very weights.
        "parent": parent.digest if used == f"builtin:{first.builtin}" else "",
        "clusters": _aligned(groups(found, _latencies(store, parent.digest)), store),
    }
    _check_files(request)
    return started(context, control.start(jobs_dir(context), "compress", request), detach)


def groups(found: ClusterMap, latencies: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Return the clusters as the search takes them: size, and whom to measure, best first.

    `latencies` of the model in use tell how far each device lies from its representative.

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
        return [_group(0, names, list(found.devices), latencies or {})]
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
        _group(number, _order(found, number, points), members[number], latencies or {})
        for number in heads
    ]


def _group(
    number: int, own: list[str], members: list[str], latencies: Mapping[str, float]
) -> dict[str, Any]:
    """Return a cluster; of a large one, the levels of its devices are some quantiles."""
    level = latencies.get(own[0], math.nan)
    ratios = [latencies[name] / level for name in members if name in latencies]
    ratios = sorted(ratio for ratio in ratios if math.isfinite(ratio))
    if len(ratios) > _LEVELS:
        ratios = [float(q) for q in np.quantile(ratios, (np.arange(_LEVELS) + 0.5) / _LEVELS)]
    return {
        "id": number,
        "size": len(members),
        "devices": own,
        "members": members,
        "levels": ratios,
    }


def _latencies(store: Store, digest: str) -> dict[str, float]:
    """Return the newest latency of a model by device, in milliseconds."""
    names, found = measurements.matrix(store, [digest])
    return {
        name: float(ms)
        for name, ms in zip(names, found[:, 0], strict=True)
        if math.isfinite(ms) and ms > 0
    }


def _order(found: ClusterMap, number: int, points: dict[str, tuple[float, float]]) -> list[str]:
    """Return a cluster's own devices: the representative, then those nearest to it."""
    head = next(c.representative for c in found.clusters if c.id == number)
    own = [d for d, label in zip(found.devices, found.labels, strict=True) if label == number]
    return sorted(own, key=lambda device: math.dist(points[device], points[head]))


def _asked(settings: Settings, changes: Mapping[str, Any], epochs: int | None) -> Any:
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
    if asked.constraint != "accuracy" and not (asked.target_speedup or asked.target_latency_ms):
        raise SettingsError(
            f'The constraint "{asked.constraint}" needs a latency to reach: give --target-speedup '
            "or --target-latency-ms, or set one under [compression]."
        )
    return asked


def _aligned(clusters: list[dict[str, Any]], store: Store) -> list[dict[str, Any]]:
    """Return the clusters with the channel multiple of most of their devices that were probed.

    Else it is that of most of the fleet; where nobody was probed it is missing.
    """
    fleet = common_multiple(store)
    if fleet is None:
        return clusters
    return [{**c, "multiple": common_multiple(store, c["members"]) or fleet} for c in clusters]


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


def _network(named: str) -> str:
    return str(Path(named).expanduser().absolute()) if named.endswith(".onnx") else named


def _check_network(network: str, weights: str) -> None:
    try:
        kind = recognise(network)
    except ValueError as error:
        raise SettingsError(
            f'No network is called "{network}"; {did_you_mean(network, NAMES)} '
            "It may also be timm:NAME, package.module:function or an .onnx file."
        ) from error
    if kind == "onnx" and not Path(network).is_file():
        raise SettingsError(f"--network: there is no file {network}.")
    if kind not in ("builtin", "timm"):
        return
    if not weights:
        raise SettingsError(
            f"{network} comes without trained weights: give --weights, or set compression.weights."
        )
    if weights.startswith(BUILTIN) and weights != BUILTIN_WEIGHTS_OF.get(network):
        raise SettingsError(f"{weights} are not the weights of {network}: give --weights.")


def _check_files(request: dict[str, Any]) -> None:
    """Refuse at once what the job would only find out later."""
    data, weights = str(request["data"]), str(request["weights"])
    if data != "digits":
        path = Path(data)
        if not path.exists():
            raise SettingsError(f"--data: there is no file or folder {path}.")
        if path.is_dir() and not any(path.iterdir()):
            raise SettingsError(f"--data: the folder {path} is empty; it needs images and labels.")
    _check_network(request["compression"]["network"], weights)
    if weights and not weights.startswith(BUILTIN) and not Path(weights).is_file():
        raise SettingsError(f"--weights: there is no file {weights}.")
