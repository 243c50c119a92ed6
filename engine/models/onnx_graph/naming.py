"""Names for layers, from what exporters call their weights and nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

_PARAMETER = re.compile(
    r"[./_](weights?|kernel|bias|gamma|beta|scale|slope|w_0|W|B)(:\d+)?$", re.IGNORECASE
)
_TENSORFLOW = re.compile(r"/(ReadVariableOp|Conv2D|depthwise|MatMul|BiasAdd|FusedBatchNormV3)\b.*$")
_GENERATED = re.compile(
    r"^(onnx::.*|val_\d+|const.*|_v_\d+|[a-z]{0,2}_?\d+|.*__\d+)$", re.IGNORECASE
)
_LONGEST, _DEEPEST = 120, 8


def layer_name(weight: str, node: str, operator: str) -> str:
    """Return a dotted name for a layer.

    Args:
        weight: the name of its weights in the file: "layer1.0.conv1.weight".
        node: the node's name, which torch's older exporter makes of the layer's place:
            "/layer1/layer1.0/conv1/Conv".
        operator: its kind, for where neither tells anything.
    """
    stem = _TENSORFLOW.sub("", _PARAMETER.sub("", weight))
    if not stem or _GENERATED.match(weight):
        stem = _place(node, operator)
    if not stem or _GENERATED.match(stem):
        stem = operator.lower()
    parts = [re.sub(r"\W+", "_", part).strip("_") for part in stem[-_LONGEST:].split(".")]
    return ".".join([part for part in parts if part][-_DEEPEST:]) or operator.lower()


def _place(node: str, operator: str) -> str:
    """Read "/layer1/layer1.0/conv1/Conv" as "layer1.0.conv1"."""
    parts = [part for part in node.split("/") if part]
    if parts and re.fullmatch(rf"{operator}(_\d+)?", parts[-1]):
        parts.pop()
    pairs = zip(parts, [*parts[1:], ""], strict=False)
    return ".".join(part for part, following in pairs if not following.startswith(f"{part}."))


def unused(name: str, taken: Iterable[str]) -> str:
    """Return the name, changed where it is a layer's already or lies within or around one's."""
    layers = set(taken)
    name = ".".join(f"{part}_" if _reserved(part) else part for part in name.split("."))
    found, number = name, 1
    while not _free(found, layers):
        number += 1
        found = f"{name.replace('.', '_')}_{number}"
    return found


def _free(name: str, layers: set[str]) -> bool:
    parts = name.split(".")
    around = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return not around & layers and not any(layer.startswith(f"{name}.") for layer in layers)


def _reserved(part: str) -> bool:
    return hasattr(nn.Module, part) or part in _OWN


_OWN = {"training", "steps", "input", "output", "values", "attach", *vars(nn.Module())}
