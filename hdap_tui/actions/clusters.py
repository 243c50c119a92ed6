"""Which devices behave alike, and what has drifted: of the fleet, or of a table from elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hdap_tui import library
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import SettingsError
from hdap_tui.names import cluster_letter
from hdap_tui.store import clusters as table
from hdap_tui.store import devices
from hdap_tui.store.records import ClusterMap


def clusters(
    context: Context, input: Path | None = None, eps_percent: float | None = None
) -> Outcome:
    """Show the clusters of the fleet, or of a table of devices and latencies."""
    if input is not None:
        from engine.fleet.tables import clusters_document, read_latencies

        try:
            document = clusters_document(read_latencies(input), eps_percent=eps_percent)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        return Outcome(data=document, table=_table_of(document))
    found = table.latest(context.store)
    if eps_percent is not None:
        from hdap_tui.clustering import cluster_fleet

        models = library.ensure(context.settings, context.store)
        probes = [models[probe.name] for probe in context.settings.probes]
        found = cluster_fleet(context.settings, context.store, probes, eps_percent=eps_percent)
    if not found.devices:
        return Outcome(data=_document(found, context), text='Not clustered yet; "hdap sweep" does.')
    noise = [d for d, label in zip(found.devices, found.labels, strict=True) if label < 0]
    rows = [
        (cluster_letter(c.id), str(c.size), context.shown(c.representative), c.note)
        for c in found.clusters
    ]
    if noise:
        rows.append(("noise", str(len(noise)), "", ", ".join(map(context.shown, noise))))
    return Outcome(
        data=_document(found, context),
        table=Table(("cluster", "devices", "representative", ""), tuple(rows)),
        text=f"eps {found.eps_percent:.1f} %, min_samples {found.min_samples}, {found.at[:19]}",
    )


def drift(context: Context, input: Path | None = None) -> Outcome:
    """Show how far each device has drifted, or the changes in a table of time and value."""
    if input is not None:
        from engine.fleet.tables import drift_document, read_series

        try:
            document = drift_document(read_series(input))
        except ValueError as error:
            raise SettingsError(str(error)) from error
        return Outcome(data=document, table=_changes(document))
    devices.sync(context.store, context.settings.devices)
    rows = devices.rows(context.store)
    data = [
        {
            "device": r.name,
            "emulated": r.emulated,
            "model": r.model,
            "baseline_ms": r.baseline_ms,
            "latency_ms": r.latency_ms,
            "change_percent": r.change_percent,
            "state": "learning" if r.baseline_ms is None else (r.alert or "ok"),
        }
        for r in rows
    ]
    return Outcome(
        data={"devices": data},
        table=Table(
            ("device", "state", "baseline", "now", "change"),
            tuple(
                (
                    f"{d['device']}{' (emulated)' if d['emulated'] else ''}",
                    str(d["state"]),
                    _ms(d["baseline_ms"]),
                    _ms(d["latency_ms"]),
                    "" if d["change_percent"] is None else f"{d['change_percent']:+.1f} %",
                )
                for d in data
            ),
        ),
    )


def _document(found: ClusterMap, context: Context) -> dict[str, Any]:
    emulated = sorted(device.name for device in context.settings.devices if device.emulated)
    return {
        "at": found.at,
        "eps": found.eps,
        "eps_percent": found.eps_percent,
        "min_samples": found.min_samples,
        "models": list(found.models),
        "clusters": [asdict(cluster) for cluster in found.clusters],
        "labels": dict(zip(found.devices, found.labels, strict=True)),
        "emulated": emulated,
    }


def _table_of(document: dict[str, Any]) -> Table:
    labels = document["labels"]
    noise = sum(label < 0 for label in labels.values())
    rows = [(str(c["id"]), str(c["size"]), str(c["representative"])) for c in document["clusters"]]
    if noise:
        rows.append(("noise", str(noise), ""))
    title = f"eps {document['eps_percent']:.1f} %, min_samples {document['min_samples']}"
    return Table(("cluster", "devices", "representative"), tuple(rows), title=title)


def _changes(document: dict[str, Any]) -> Table:
    rows = tuple(
        (
            str(c["device"] or ""),
            str(c["onset_time"]),
            str(c["time"]),
            f"{c['kind']} {c['direction']}",
            "" if c["size_percent"] is None else f"{c['size_percent']:+.1f} %",
        )
        for c in document["changes"]
    )
    return Table(("device", "began", "noticed", "kind", "size"), rows)


def _ms(value: Any) -> str:
    return "" if value is None else f"{value:.3f} ms"
