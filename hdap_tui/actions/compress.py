"""Start a compression job for the fleet as it is now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.models import NAMES, recognise
from hdap_tui import library
from hdap_tui.actions.jobs import jobs_dir, started
from hdap_tui.config import Settings
from hdap_tui.config.schema import Compression
from hdap_tui.config.settings import BUILTIN, BUILTIN_WEIGHTS_OF
from hdap_tui.config.source import did_you_mean
from hdap_tui.context import Context, Outcome
from hdap_tui.errors import SettingsError
from hdap_tui.jobs import control, fleet
from hdap_tui.jobs.steps import plain, searching
from hdap_tui.store.records import ModelRow

_USUAL: Mapping[str, Any] = {"steps": ({"method": "search"},)}
"""What is done without a recipe, but for the quantization."""
_OF_SEARCHES = (
    "evaluations", "maximum_drop", "target_speedup", "target_latency_ms", "constraint",
    "per_cluster",
)  # fmt: skip
"""Options that only a search looks at."""


def compress(
    context: Context,
    recipe: str | None = None,
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
    decision: int | None = None,
) -> Outcome:
    """Start a job that makes a smaller network for the fleet as it is now.

    `decision` is the number of the policy's decision that it follows from.
    """
    settings = context.settings
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
    chosen = {} if recipe is None else {"recipe": _recipe(settings, recipe)}
    asked = _asked(settings, changes, epochs)
    if any(step["method"] == "search" for step in chosen.get("recipe", _USUAL)["steps"]):
        _check_search(asked)
    else:
        _refuse(_OF_SEARCHES, changes, f'the recipe "{recipe}" has no search, which alone takes it')
    used = str(weights.absolute()) if weights else str(settings.weights_of(asked.network))
    named = images(settings, data)
    check_data(named)
    _check_network(asked.network, used)
    if used and not used.startswith(BUILTIN) and not Path(used).is_file():
        raise SettingsError(f"--weights: there is no file {used}.")
    found = fleet.latest(settings, context.store)
    parent = in_use(context)  # may have to be written, which takes ten seconds
    builtin = settings.model(parent.name).builtin
    request: dict[str, Any] = {
        "config": str(settings.path),
        "compression": msgspec.to_builtins(asked.with_threads()),
        "data": named,
        "weights": used,
        # The model in use is the parent only where the job starts from its very weights.
        "parent": parent.digest if used == f"builtin:{builtin}" else "",
        "clusters": fleet.clusters(found, context.store, parent.digest),
        **chosen,
        **({} if decision is None else {"decision": decision}),
    }
    return started(context, control.start(jobs_dir(context), "compress", request), detach)


def in_use(context: Context) -> ModelRow:
    """Return the model that the settings name for the devices.

    Raises:
        SettingsError: they name none.
    """
    settings = context.settings
    if settings.first_model is None:
        raise SettingsError(f"{settings.path}: [[models]] names no model that is no probe.")
    return library.ensure(settings, context.store)[settings.first_model.name]


def images(settings: Settings, named: str | None) -> str:
    """Return the images that an option names, or those of the settings."""
    if named is None:
        return str(settings.data)
    return named if named == "digits" else str(Path(named).expanduser().absolute())


def check_data(data: str) -> None:
    """Refuse at once what a job would only find out later.

    Raises:
        SettingsError: there are no such images.
    """
    path = Path(data)
    if data == "digits":
        return
    if not path.exists():
        raise SettingsError(f"--data: there is no file or folder {path}.")
    if path.is_dir() and not any(path.iterdir()):
        raise SettingsError(f"--data: the folder {path} is empty; it needs images and labels.")


def _recipe(settings: Settings, name: str) -> dict[str, Any]:
    """Return a recipe for a job's request."""
    found = settings.recipe(name)
    return {
        "name": name,
        "maximum_bytes": found.maximum_bytes,
        "steps": [plain(step) for step in found.steps],
    }


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
    return asked


def _check_search(asked: Compression) -> None:
    """Refuse what a search could not do.

    Raises:
        SettingsError: the sentence says which setting it is.
    """
    if asked.constraint != "accuracy" and not (asked.target_speedup or asked.target_latency_ms):
        raise SettingsError(
            f'The constraint "{asked.constraint}" needs a latency to reach: give --target-speedup '
            "or --target-latency-ms, or set one under [compression]."
        )
    try:
        searching(asked.with_threads(), 1.0)
    except ValueError as error:
        raise SettingsError(f"This cannot be searched: {error}.") from error


def _refuse(names: Collection[str], changes: Mapping[str, Any], why: str) -> None:
    """Refuse options that would do nothing.

    Raises:
        SettingsError: one of them was given.
    """
    for name in names:
        if changes[name] is not None:
            raise SettingsError(f"--{name.replace('_', '-')}: {why}.")


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
