"""Which devices behave alike, and what has drifted: of the fleet, or of a table from elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hdap_tui import library
from hdap_tui.actions.past import Moment, moment_of
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import SettingsError
from hdap_tui.figures import ms
from hdap_tui.names import cluster_letter
from hdap_tui.store import clusters as kept
from hdap_tui.store import devices
from hdap_tui.store.records import ClusterMap, DeviceRow


def clusters(
    context: Context,
    input: Path | None = None,
    eps_percent: float | None = None,
    min_samples: int | None = None,
    facts: str | None = None,
    assign: Path | None = None,
    anew: bool = False,
    at: str | None = None,
) -> Outcome:
    """Show the clusters of the fleet, or of a table of devices and latencies."""
    if input is not None and at is not None:
        raise SettingsError("--at is about the fleet: leave out --input.")
    if input is not None:
        return _of_table(input, eps_percent, min_samples, facts, assign)
    if facts is not None or assign is not None:
        raise SettingsError("--facts and --assign are about a table: name it with --input.")
    if at is not None:
        if anew or eps_percent is not None or min_samples is not None:
            raise SettingsError("--at shows what was found then: leave the other options out.")
        moment = moment_of(context, at)
        return _shown(context, kept.at(context.store, moment.utc), moment)
    found = kept.latest(context.store)
    if anew or eps_percent is not None or min_samples is not None:
        from hdap_tui.clustering import cluster_fleet

        models = library.ensure(context.settings, context.store)
        probes = [models[probe.name] for probe in context.settings.probes]
        try:
            found = cluster_fleet(
                context.settings, context.store, probes,
                eps_percent=eps_percent, min_samples=min_samples,
            )  # fmt: skip
        except ValueError as error:
            raise SettingsError(str(error)) from error
    return _shown(context, found)


def _shown(context: Context, found: ClusterMap, moment: Moment | None = None) -> Outcome:
    document = _document(found, context)
    said = ""
    if moment is not None:
        document, said = {**document, "as_of": moment.document}, f"{moment.sentence}\n"
    if not found.devices:
        return Outcome(data=document, text=f'{said}Not clustered yet; "hdap sweep" does.')
    noise = [d for d, label in zip(found.devices, found.labels, strict=True) if label < 0]
    rows = [
        (cluster_letter(c.id), str(c.size), context.shown(c.representative), c.note)
        for c in found.clusters
    ]
    if noise:
        rows.append(("noise", str(len(noise)), "", ", ".join(map(context.shown, noise))))
    return Outcome(
        data=document,
        table=Table(("cluster", "devices", "representative", ""), tuple(rows)),
        text=f"{said}{_figures(document)}, {found.at[:19]} UTC",
    )


def _of_table(
    path: Path,
    eps_percent: float | None,
    min_samples: int | None,
    facts: str | None,
    assign: Path | None,
) -> Outcome:
    from engine.fleet.documents import clusters_document
    from engine.fleet.tables import read_latencies

    columns = tuple(name.strip() for name in facts.split(",")) if facts else ()
    try:
        table = read_latencies(path, columns)
        later = None if assign is None else read_latencies(assign, wanted=table.measurements)
        document = clusters_document(table, eps_percent, min_samples, later)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    labels = document["labels"]
    noise = sum(label < 0 for label in labels.values())
    rows = [
        (cluster_letter(c["id"]), str(c["size"]), str(c["representative"]), str(c["note"]))
        for c in document["clusters"]
    ]
    if noise:
        rows.append(("noise", str(noise), "", ""))
    rows += [
        (cluster_letter(label) if label >= 0 else "noise", "", name, "assigned")
        for name, label in document.get("assigned", {}).items()
    ]
    return Outcome(
        data=document,
        table=Table(("cluster", "devices", "representative", ""), tuple(rows)),
        text=_figures(document),
    )


def _figures(document: dict[str, Any]) -> str:
    """Return in a line by which rule it was clustered, and how good that is."""
    from engine.fleet.quality import UNSTABLE

    parts = [f"eps {document['eps_percent']:.1f} %, min_samples {document['min_samples']}"]
    if document["silhouette"] is not None:
        parts.append(f"silhouette {document['silhouette']:.2f}")
    if document["apart_percent"] is not None:
        parts.append(f"nearest two {document['apart_percent']:.0f} % apart")
    stability = {c["id"]: c["stability"] for c in document["clusters"]}
    unsure = [one for one, value in stability.items() if value is not None and value < UNSTABLE]
    if unsure:
        parts.append(f"unstable: {', '.join(map(cluster_letter, unsure))}")
    return ", ".join(parts)


def drift(context: Context, input: Path | None = None, fleet: bool = False) -> Outcome:
    """Show how far each device has drifted, or the changes in a table of time and value.

    `fleet` watches the devices of the table as one fleet, round by round, as the live one is.
    """
    if fleet and input is None:
        raise SettingsError("--fleet is about a table: name it with --input.")
    if input is not None:
        from engine.fleet.series import fleet_document
        from engine.fleet.tables import drift_document, read_series

        try:
            series = read_series(input, fleet)
            document = fleet_document(series) if fleet else drift_document(series)
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
            "state": _watched(r),
        }
        for r in rows
    ]
    return Outcome(
        data={"devices": data},
        table=Table(
            ("device", "state", "baseline", "now", "change"),
            tuple(
                (
                    f"{r.name}{' (emulated)' if r.emulated else ''}",
                    _watched(r),
                    ms(r.baseline_ms),
                    ms(r.latency_ms),
                    "" if r.change_percent is None else f"{r.change_percent:+.1f} %",
                )
                for r in rows
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
        "noise": sum(label < 0 for label in found.labels) / max(len(found.labels), 1),
        "silhouette": found.silhouette,
        "apart_percent": found.apart_percent,
        "models": list(found.models),
        "clusters": [asdict(cluster) for cluster in found.clusters],
        "labels": dict(zip(found.devices, found.labels, strict=True)),
        "emulated": emulated,
    }


def _changes(document: dict[str, Any]) -> Table:
    rows = tuple(
        (
            str(c.get("subject") or c["device"] or ""),
            str(c["onset_time"]),
            str(c["time"]),
            f"{c['kind']} {c['direction']}",
            "" if c["size_percent"] is None else f"{c['size_percent']:+.1f} %",
        )
        for c in document["changes"]
    )
    return Table(("device", "began", "noticed", "kind", "size"), rows)


def _watched(row: DeviceRow) -> str:
    """Say how a device's latency is watched: that there is none, or how its alert stands."""
    if row.alert or row.watched == "no data":
        return row.standing
    return "learning" if row.baseline_ms is None else "ok"
