"""What is known of a model in readable lines, for the command line and the dashboard alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hdap_tui.figures import count
from hdap_tui.names import cluster_letter

_SEARCHED = (
    "outer_iterations", "front", "designs_measured", "speedup", "target_speedup", "target_reached",
    "predicted_ms_before", "predicted_ms_after", "predicted_speedup", "surrogates",
    "measured_ms_before", "measured_ms_after", "stopped",
)  # fmt: skip
"""Figures of a search, which once stood among those of the finished model."""
_WIDTHS = {"widths_before", "widths_after"}
"""Hundreds of numbers that the design's line sums up."""
_SHORT = 6
"""Entries of a list that are shown; all of them are in the JSON."""
_SPLITS = {"selection", "test"}


def tidy(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's metrics with its search's own under "search", as older ones have them not.

    >>> tidy({"speedup": 1.4, "target_speedup": 1.5, "target_reached": False,
    ...       "measured_speedup": 1.6, "predicted_speedup": 1.3})["target_reached"]
    True
    """
    if "search" in metrics or "predicted_speedup" not in metrics:
        return dict(metrics)
    search = {key: metrics[key] for key in _SEARCHED if key in metrics}
    if "measured_ms_after" in search and "speedup" in search:
        search["measured_speedup"] = search["speedup"]
    found = {key: value for key, value in metrics.items() if key not in _SEARCHED}
    return {**found, **aim(search, found.get("measured_speedup")), "search": search}


def aim(search: Mapping[str, Any], measured: float | None) -> dict[str, Any]:
    """Return the speed-up that a search was to reach and whether the finished model does.

    Args:
        search: its figures; nothing is returned where it had no such aim.
        measured: speed-up of the model; None: not measured, and the search's own word counts.
    """
    wanted = search.get("target_speedup")
    if wanted is None:
        return {}
    reached = search.get("target_reached") if measured is None else measured >= wanted
    return {"target_speedup": wanted, "target_reached": reached}


def missed(metrics: Mapping[str, Any]) -> str:
    """Say that a model is slower than it was to be; empty where it is not."""
    known = tidy(metrics)
    if known.get("target_reached", True):
        return ""
    wanted, asked = known["target_speedup"], known.get("target_latency_ms")
    found = known.get("measured_speedup")
    if asked is None:
        return f"the target of {wanted:.3g}x was not reached"
    best = "" if found is None else f": it is {asked * wanted / found:.3g} ms"
    return f"the target of {asked:g} ms was not reached{best}"


def model_lines(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return all that is known of a model as labels and what they stand for, a line each."""
    known = tidy(metrics)
    found: list[tuple[str, str]] = []
    for key, value in known.items():
        label = key.replace("_", " ")
        match key, value:
            case "recipe", Mapping():
                found += _recipe(value)
            case "search", Mapping():
                found += [("search", _search(value)), *_surrogates(value.get("surrogates"))]
            case "decision", [*ones]:
                found += [(label, _text(_get(one, "reason") or one)) for one in ones]
            case "design", Mapping():
                found.append((label, _design(value, known.get("widths_before"))))
            case "layer_precisions", Mapping():
                kinds = Counter(map(str, value.values()))
                each = (f"{kind} for {n}" for kind, n in kinds.most_common())
                found.append((label, f"{', '.join(each)} of {count(len(value), 'layer')}"))
            case "target_speedup", _:
                reached = missed(known) or "reached"
                found.append(("target", f"{_speedup(value)}, {reached}"))
            case "target_reached", _:
                pass
            case "surrogates", _:
                found += _surrogates(value)
            case _ if key not in _WIDTHS:
                found.append((label, _said(key, value)))
    return [(label, text) for label, text in found if text]


def _recipe(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a line for what a recipe is about, one for each step, and one for what trains."""
    size = recipe.get("maximum_bytes")
    head = [
        recipe.get("name"),
        _text(recipe.get("network", "")),
        f"data {recipe['data']}" if recipe.get("data") else "",
        f"seed {recipe['seed']}" if "seed" in recipe else "",
        f"at most {size} bytes" if size else "",
    ]
    found = [("recipe", ", ".join(str(part) for part in head if part))]
    for number, step in enumerate(recipe.get("steps", ()), 1):
        own = {key: value for key, value in step.items() if key != "method"}
        found.append((f"  step {number}", ", ".join(filter(None, (step["method"], _pairs(own))))))
    if recipe.get("finetune"):
        found.append(("  training", _pairs(recipe["finetune"])))
    if recipe.get("compression"):
        found.append(("  searching", _pairs(recipe["compression"])))
    return found


def _search(search: Mapping[str, Any]) -> str:
    parts = [
        f"{search[key]:.2f}x {words}"
        for key, words in (
            ("predicted_speedup", "predicted by the surrogates"),
            ("measured_speedup", "measured, in float"),
        )
        if search.get(key) is not None
    ]
    for key, thing in (("outer_iterations", "outer iteration"), ("designs_measured", "design")):
        if key in search:
            after = " measured" if thing == "design" else ""
            parts.append(f"{count(search[key], thing)}{after}")
    if search.get("stopped"):
        parts.append(f"ended: {search['stopped']}")
    return ", ".join(parts)


def _surrogates(surrogates: Any) -> list[tuple[str, str]]:
    if not isinstance(surrogates, Mapping):
        return []
    found = []
    for cluster, one in surrogates.items():
        letter = cluster_letter(int(cluster)) if str(cluster).isdecimal() else str(cluster)
        kind = _get(one, "kind") or one
        parts = [_text(kind)]
        if _get(one, "samples") is not None:
            parts.append(count(one["samples"], "sample"))
        error = _get(_get(_get(one, "errors"), kind), "mape")
        if error is not None:
            parts.append(f"error {error:.2g} %")
        found.append((f"surrogate {letter}", ", ".join(parts)))
    return found


def _design(design: Mapping[str, Any], before: Any) -> str:
    kept = [len(channels) for channels in design.get("kept", ())]
    if not kept:
        return "no channel was removed"
    of = f" of {sum(before)}" if isinstance(before, list | tuple) and before else ""
    return f"{sum(kept)}{of} channels kept in {count(len(kept), 'group')}"


def _said(key: str, value: Any) -> str:
    """Return anything else: figures as such, of what is long only how much it is."""
    if "accuracy" in key and isinstance(value, float) and 0 <= value <= 1:
        return f"{100 * value:.2f} %"
    if isinstance(value, float) and key.endswith("speedup"):
        return f"{_speedup(value)}{' on the representatives' if key.startswith('measured') else ''}"
    if isinstance(value, Mapping):
        if "accuracy" in key and set(value) <= _SPLITS:
            return ", ".join(f"{name} {_said(key, one)}" for name, one in value.items())
        if key.endswith("speedups"):
            return ", ".join(f"{name} {_speedup(one)}" for name, one in value.items())
        return _pairs(value)
    return _text(value)


def _pairs(values: Mapping[str, Any]) -> str:
    """Return "key value" for everything that is known."""
    return ", ".join(
        f"{str(key).replace('_', ' ')} {_text(value)}"
        for key, value in values.items()
        if value is not None and value != ""
    )


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case Mapping():
            return f"({count(len(value), 'figure')})"
        case list() | tuple() if any(isinstance(one, Mapping | list | tuple) for one in value):
            return f"({count(len(value), 'figure')})"
        case list() | tuple():
            more = f" and {len(value) - _SHORT} more" if len(value) > _SHORT else ""
            return ", ".join(_text(one) for one in value[:_SHORT]) + more
        case _:
            return str(value)


def _speedup(value: Any) -> str:
    return f"{value:.2f}x" if isinstance(value, int | float) else "not measured"


def _get(value: Any, key: Any) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None
