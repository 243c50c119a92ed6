"""Which steps a recipe may have, in which order, and what each may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import asdict

from hdap_tui.config import schema
from hdap_tui.config.locate import KeyPath
from hdap_tui.config.source import Source

QUANTIZING = frozenset({"dynamic", "static", "precision"})
"""Methods that end in a network of which no channel, weight or epoch can be changed any more."""
PRUNING = frozenset({"search", "uniform", "dhspg", "hesso"})
"""Methods that remove channels."""
TRAINING = frozenset({"finetune", "dhspg", "hesso"})
"""Methods that take a learning rate and epochs."""

_TUNING = {"epochs", "lr", "optimizer"}
KEYS: dict[str, set[str]] = {
    "search": set(),
    "uniform": {"kept", "multiple", "measure"},
    "dhspg": {"kept", "multiple", *_TUNING},
    "hesso": {"kept", "multiple", *_TUNING},
    "unstructured": {"kept", "measure", "scope"},
    "finetune": _TUNING,
    "dynamic": {"operators", "take"},
    "static": {"maximum_drop", "calibration", "take"},
    "precision": {"maximum_drop", "calibration", "precisions", "rounds", "take"},
}
"""What each method takes."""
_MEASURES: dict[str, tuple[str, ...]] = {"uniform": ("l1", "l2"), "unstructured": ("l1", "random")}


def check(recipes: Mapping[str, schema.Recipe], source: Source) -> None:
    """Refuse recipes that nobody could carry out.

    Raises:
        SettingsError: the first that cannot be done, with its place and what to do.
    """
    for name, recipe in recipes.items():
        path = ("recipes", name)
        if not recipe.steps:
            raise source.error(path, f"has no steps; write them as [[recipes.{name}.steps]].")
        before: list[str] = []
        for number, step in enumerate(recipe.steps):
            place = (*path, "steps", number)
            _check_keys(step, place, source)
            _check_order(step.method, before, place, source)
            before.append(step.method)


def _check_keys(step: schema.RecipeStep, path: KeyPath, source: Source) -> None:
    method, known = step.method, KEYS[step.method]
    given = {key for key, value in asdict(step).items() if key != "method" and value is not None}
    for key in sorted(given - known):
        takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
        raise source.error((*path, key), f'is nothing that the method "{method}" takes; {takes}.')
    if "kept" in known and step.kept is None:
        raise source.error((*path, "method"), f'is "{method}", which needs the key "kept".')
    if step.kept is not None and not 0 < step.kept < 1:
        raise source.error(
            (*path, "kept"), f"is {step.kept:g}; it must lie between 0 and 1, and be neither."
        )
    measures = _MEASURES.get(method, ())
    if step.measure is not None and step.measure not in measures:
        known_ones = " or ".join(f'"{name}"' for name in measures)
        raise source.error(
            (*path, "measure"), f'is "{step.measure}"; the method "{method}" takes {known_ones}.'
        )
    for key in ("operators", "precisions"):
        if getattr(step, key) == ():
            raise source.error((*path, key), "is empty; leave it out for what is usual.")
    if step.precisions is not None:
        _check_precisions(step.precisions, (*path, "precisions"), source)


def _check_precisions(precisions: Sequence[str], path: KeyPath, source: Source) -> None:
    """Refuse what the search for precisions refuses, which is often a job's last step."""
    given = ", ".join(f'"{name}"' for name in precisions)
    twice = next((name for name in precisions if precisions.count(name) > 1), "")
    if twice:
        raise source.error(path, f'is {given}; "{twice}" may stand there only once.')
    if "fp32" not in precisions or len(precisions) == 1:
        raise source.error(path, f'is {given}; it must be "fp32" and at least one other.')


def _check_order(method: str, before: list[str], path: KeyPath, source: Source) -> None:
    place = (*path, "method")
    quantized = [name for name in before if name in QUANTIZING]
    if quantized:
        raise source.error(
            place,
            f'is "{method}" after "{quantized[0]}": a quantized network can be neither pruned nor '
            "trained nor quantized again; quantization comes last.",
        )
    if method in PRUNING and "unstructured" in before:
        raise source.error(
            place,
            f'is "{method}" after "unstructured": training for it would fill the zeros again; '
            'remove channels first, and let "unstructured" follow.',
        )
    if method == "search" and set(before) & PRUNING:
        raise source.error(
            place,
            f'is "search" after "{next(m for m in before if m in PRUNING)}": it would be compared '
            "with a network that no device runs; search first.",
        )
