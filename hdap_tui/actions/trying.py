"""Show test images to a model on the devices themselves: accuracy, latency and energy there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.latency import Answered, Latency
from hdap_tui import library
from hdap_tui.actions.bench import document, exit_code, model_named
from hdap_tui.context import Context, Outcome, Table
from hdap_tui.errors import SettingsError
from hdap_tui.figures import count
from hdap_tui.jobs.origin import origin
from hdap_tui.measuring import Measuring
from hdap_tui.store import models as table
from hdap_tui.store.records import ModelRow
from hdap_tui.trial import Trial, prepare

ENOUGH = 1000
"""Test images from which on an accuracy is told without a remark."""
LIMIT = 2000
"""Test images that are shown where nothing else is asked for."""
MOST = 50_000
TIME_LIMIT_S = 1800.0
"""Seconds that a device may take where nothing else is asked for."""
_PREPARE_S = 5.0
_KEPT = "device_accuracy"
"""Among a model's metrics: what the devices made of the most test images."""


def try_model(
    context: Context,
    model: str,
    images: str | None = None,
    select: str | None = None,
    limit: int | None = None,
    time_limit: float | None = None,
) -> Outcome:
    """Show test images to a model on the devices: accuracy, latency and energy there."""
    chosen = context.select(select)
    most, seconds = _asked(limit, time_limit)
    settings, reporter = context.settings, context.reporter
    row = model_named(context, library.ensure(settings, context.store), model)
    reporter.started("prepare", weight=_PREPARE_S)
    source = images or origin(settings, row).data
    trial = prepare(settings, row, source, most, context.cancelled)
    reporter.finished("prepare", images=len(trial.images))
    with (
        tempfile.TemporaryDirectory(prefix="images-", dir=settings.state_dir) as folder,
        Measuring(context) as measuring,
    ):
        asked = trial.bench(measuring.bench(), Path(folder), seconds)
        found = measuring.run("bench", {device.name: [row] for device in chosen}, asked)
    order = {device.name: number for number, device in enumerate(chosen)}
    found.sort(key=lambda one: order[one.device])
    fleet = _fleet(trial, found)
    surer = _surer(context, trial, row) if fleet else None
    if fleet and surer is None:
        kept = {"data": trial.data, "images": len(trial.images), **fleet}
        table.set_metrics(context.store, row.digest, {_KEPT: kept})
    return Outcome(
        data={
            "model": row.name,
            "model_digest": row.digest,
            "data": trial.data,
            "images": len(trial.images),
            "test_images": trial.available,
            "accuracy_here": trial.accuracy_here,
            "measurements": [_document(trial, one, row) for one in found],
            "fleet": fleet or None,
        },
        table=Table(
            ("device", "images", "accuracy", "as here", "an image", "p90", "energy", ""),
            tuple(_row(trial, one) for one in found),
            title=f"{row.name} on {len(trial.images)} test images of {trial.data}",
        ),
        text=_sentences(context, trial, row, fleet, surer),
        exit_code=exit_code(found),
    )


def _asked(limit: int | None, time_limit: float | None) -> tuple[int, float]:
    """Return how many images, and seconds a device.

    Raises:
        SettingsError: an option has a value that makes no sense.
    """
    if limit is not None and not 1 <= limit <= MOST:
        raise SettingsError(f"--limit: {limit} is no number of images from 1 to {MOST}.")
    if time_limit is not None and not 1 <= time_limit < 1e6:
        raise SettingsError(f"--time-limit: {time_limit:g} is no number of seconds from 1 on.")
    return limit or LIMIT, time_limit or TIME_LIMIT_S


def _fleet(trial: Trial, found: Sequence[Latency]) -> dict[str, Any]:
    """Return mean and lowest accuracy over the devices; nothing where no device has answered."""
    accuracies = {
        one.device: trial.accuracy(one.answers) for one in found if isinstance(one, Answered)
    }
    if not accuracies:
        return {}
    worst = min(accuracies, key=lambda name: accuracies[name])
    return {
        "devices": len(accuracies),
        "mean_accuracy": sum(accuracies.values()) / len(accuracies),
        "lowest_accuracy": accuracies[worst],
        "lowest_device": worst,
    }


def _surer(context: Context, trial: Trial, row: ModelRow) -> int | None:
    """Return how many images of the same data the kept accuracy is from, where those are more.

    A quick look at a few images is no reason to forget what is known better.
    """
    # Read anew: another command may have kept one while the devices were busy.
    now = table.by_digest(context.store, row.digest)
    before = now.metrics.get(_KEPT) if now else None
    if not before or before["data"] != trial.data or before["images"] <= len(trial.images):
        return None
    return int(before["images"])


def _document(trial: Trial, found: Latency, row: ModelRow) -> dict[str, Any]:
    answers = found.answers if isinstance(found, Answered) else ()
    return {
        **document(found, {row.digest: row.name}),
        "images": len(answers),
        "images_per_inference": found.conditions.get("images"),
        "accuracy": trial.accuracy(answers) if answers else None,
        "agreement": trial.agreement(answers) if answers else None,
        "total_s": found.mean_ms * found.n / 1000,
    }


def _row(trial: Trial, found: Latency) -> tuple[str, ...]:
    if not isinstance(found, Answered):
        return found.device, "", found.error, "", "", "", "", found.detail
    each = int(found.conditions.get("images", found.batch))
    notes = (["emulated"] if found.emulated else []) + list(found.remarks)
    return (
        found.device,
        str(len(found.answers)),
        _per_cent(trial.accuracy(found.answers)),
        _per_cent(trial.agreement(found.answers)),
        f"{found.per_image_ms:.3f} ms",
        f"{found.p90_ms / each:.3f}",
        "" if found.energy_mj is None else f"{found.energy_mj / each:.3g} mJ",
        "; ".join(notes),
    )


def _sentences(
    context: Context, trial: Trial, row: ModelRow, fleet: Mapping[str, Any], surer: int | None
) -> str:
    """Return what it comes to: the fleet's mean and lowest accuracy, and that of this machine."""
    said = []
    if fleet:
        said.append(
            f"{row.name}: {_per_cent(fleet['mean_accuracy'])} of {len(trial.images)} test images "
            f"of {trial.data} right on average over {count(fleet['devices'], 'device')}, "
            f"{_per_cent(trial.accuracy_here)} on this machine; the lowest "
            f"{_per_cent(fleet['lowest_accuracy'])}, on {context.shown(fleet['lowest_device'])}."
        )
    if len(trial.images) == trial.available < ENOUGH:
        said.append(f"{trial.data} has {trial.available} test images; all of them were shown.")
    elif len(trial.images) < ENOUGH:
        said.append(f"Fewer than {ENOUGH} images leave an accuracy uncertain by some points.")
    if surer is not None:
        said.append(f"What {surer} images of {trial.data} brought before stays with the model.")
    return "\n".join(said)


def _per_cent(share: float) -> str:
    return f"{100 * share:.2f} %"
