"""What a model was trained on, and how those images were split: as the job that made it says."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from hdap_tui.config import Settings
from hdap_tui.errors import UserError
from hdap_tui.jobs.folder import JobFolder
from hdap_tui.store.records import ModelRow


@dataclass(frozen=True)
class Origin:
    """Where a model's images came from."""

    data: str
    """As `engine.data.load` takes it."""
    seed: int
    """By which they were split: with another, the model may have learnt test images."""
    classes: int


def origin(settings: Settings, model: ModelRow) -> Origin:
    """Return a model's origin; the settings' where no job made it, or its folder is gone."""
    usual = settings.compression
    if model.job:
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
            request = JobFolder(settings.state_dir / "jobs" / model.job).request
            own = request["compression"]
            return Origin(str(request["data"]), int(own["seed"]), int(own["classes"]))
    return Origin(str(settings.data), usual.seed, usual.classes)
