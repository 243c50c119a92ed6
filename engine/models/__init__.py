"""Networks: the built-in ones by name, a user's own, and their trained weights.

    >>> model = load("resnet20", 10, SHIPPED["resnet20-digits"])

Every network reads float32 images (N, C, H, W) between 0 and 1; it normalises them itself. (A
network from an ONNX file reads what the file reads.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.text import first_line

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "NAMES", "NETWORKS", "SHIPPED", "Network", "accept", "build", "image_size", "load",
    "load_weights", "recognise", "title",
]  # fmt: skip

TIMM = "timm:"


@dataclass(frozen=True)
class Network:
    """A built-in network."""

    module: str
    """The module of this package that holds it."""
    kind: str
    """Its class there, called with `classes`, `widths`, `mean` and `std`."""
    size: int
    """Pixels a side of the images that it reads."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What else the class is called with."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How `engine.models.train` trains it where nothing else is said; names as in its `Recipe`."""


_SMALL = {"blocks": (3, 3, 27, 3)}
_PICO = {"widths": (64, 128, 256), "blocks": (2, 2, 8), "patch": 2, "kernel": 3}
_ADAMW = {
    "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "batch": 128, "epochs": 25,
    "warmup_epochs": 2.0, "label_smoothing": 0.1, "bf16": True,
}  # fmt: skip

NETWORKS = {
    "resnet20": Network("resnet", "ResNet", 32, {"blocks": 3}),
    "resnet32": Network("resnet", "ResNet", 32, {"blocks": 5}),
    "resnet44": Network("resnet", "ResNet", 32, {"blocks": 7}),
    "resnet56": Network("resnet", "ResNet", 32, {"blocks": 9}),
    "resnet8": Network("resnet8", "ResNet8", 32),
    "resnet8-40": Network("resnet8", "ResNet8", 32, {"widths": (40, 80, 160), "norms": False}),
    "vgg16": Network("vgg", "VGG", 32),
    "mobilenetv1-cifar": Network("mobilenet", "MobileNet", 32, {"stem_stride": 1}),
    "convnext-pico-cifar": Network("convnext", "ConvNeXt", 32, _PICO, _ADAMW),
    "convnext-pico-timm-cifar": Network("convnext_timm", "ConvNeXt", 32, _PICO, _ADAMW),
    "convnext-tiny-cifar": Network("convnext", "ConvNeXt", 32, {"patch": 2}, _ADAMW),
    "convnext-small-cifar": Network("convnext", "ConvNeXt", 32, {"patch": 2, **_SMALL}, _ADAMW),
    "mobilenetv1": Network("mobilenet", "MobileNet", 224),
    "convnext-tiny": Network("convnext", "ConvNeXt", 224, {}, _ADAMW),
    "convnext-small": Network("convnext", "ConvNeXt", 224, _SMALL, _ADAMW),
    "convnext-tiny-timm": Network("convnext_timm", "ConvNeXt", 224, {}, _ADAMW),
    "convnext-small-timm": Network("convnext_timm", "ConvNeXt", 224, _SMALL, _ADAMW),
    "resnet50": Network("resnet50", "ResNet50", 224),
}
"""The built-in networks; the ending -cifar marks the 32x32 form of one for 224x224."""

NAMES = tuple(NETWORKS)
"""What `build` knows."""

SHIPPED = {"resnet20-digits": Path(__file__).parent / "weights" / "resnet20-digits.safetensors"}
"""Weights that come with the package."""


def build(
    name: str,
    classes: int = 10,
    widths: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return a built-in network with fresh weights.

    Args:
        name: one of `NAMES`.
        classes: how many classes it tells apart.
        widths: channels of the stages; default the published ones.
        mean: what is subtracted from the images (0 to 1), one number a channel.
        std: what they are then divided by. Both default to those of the public weights.

    Raises:
        ValueError: there is no network of that name.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}: choose one of {', '.join(NAMES)}")
    network = NETWORKS[name]
    wishes = {"widths": widths, "mean": mean, "std": std}
    given = {key: tuple(value) for key, value in wishes.items() if value is not None}
    kind = getattr(import_module(f"{__name__}.{network.module}"), network.kind)
    model: nn.Module = kind(classes=classes, **{**network.arguments, **given})
    return model


def load(
    spec: str,
    classes: int,
    weights: str | Path = "",
    example_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    folder: str | Path | None = None,
) -> nn.Module:
    """Return a network in evaluation mode, whoever built it.

    Args:
        spec: a name of `NAMES`; `timm:NAME` (extra `timm`); `package.module:function`, which is
            called with `classes` and returns an `nn.Module`; or the path of an .onnx file.
        classes: how many classes it tells apart.
        weights: a file for :func:`load_weights`; empty: the network stays as it was made.
        example_shape: shape of the images (N, C, H, W) that it must be able to read.
        mean: what a built-in or timm network subtracts from the images; default: as published.
        std: what it then divides them by.
        folder: where to look for a module that is not on Python's path, which it is added to.

    Raises:
        ValueError: there is no such network, its maker fails, the weights belong to another, or
            it does not read such images and tell that many classes apart.
    """
    model: nn.Module
    kind = recognise(spec)
    if kind == "onnx":
        from engine.models.onnx_graph import convert

        if weights:
            raise ValueError(f"{spec} brings its own weights: leave weights empty")
        model = convert(spec, example_shape)
    elif kind == "builtin":
        model = build(spec, classes, mean=mean, std=std)
    else:
        from engine.models import foreign

        if kind == "timm":
            model = foreign.from_timm(spec.removeprefix(TIMM), classes, mean, std)
        else:
            model = foreign.from_factory(spec, classes, folder)
    if weights:
        load_weights(model, weights)
    model.eval()
    if example_shape is not None:
        accept(model, spec, classes, example_shape)
    return model


def recognise(spec: str) -> str:
    """Tell what a network is given by: "builtin", "timm", "factory" or "onnx".

    Raises:
        ValueError: it is none of these.
    """
    if spec.endswith(".onnx"):
        return "onnx"
    if spec.startswith(TIMM) and spec != TIMM:
        return "timm"
    if spec in NETWORKS:
        return "builtin"
    module, colon, function = spec.partition(":")
    if colon and function.isidentifier() and all(p.isidentifier() for p in module.split(".")):
        return "factory"
    raise ValueError(
        f"there is no network {spec!r}: choose one of {', '.join(NAMES)}, or give timm:NAME, "
        "package.module:function or the path of an .onnx file"
    )


def title(spec: str) -> str:
    """Return a network's short name, fit for a file's: what comes after the colon, no suffix."""
    return Path(spec).stem if spec.endswith(".onnx") else spec.rpartition(":")[2]


def image_size(spec: str) -> int | None:
    """Return how many pixels a side the images of a built-in network have, None for any other."""
    return NETWORKS[spec].size if spec in NETWORKS else None


def accept(model: nn.Module, spec: str, classes: int, shape: Sequence[int]) -> None:
    """Refuse images that a network does not read, and a network with other classes.

    Args:
        model: the network, in evaluation mode.
        spec: what it was loaded by, for the sentence.
        classes: how many classes it must tell apart.
        shape: shape of the images (N, C, H, W).

    Raises:
        ValueError: with a sentence.
    """
    import torch

    from engine.models.normalise import Normalise

    images = f"images of {shape[3]}x{shape[2]} pixels and {shape[1]} channels"
    size = image_size(spec)
    if size is not None and tuple(shape[2:]) != (size, size):
        raise ValueError(f"{spec} reads images of {size}x{size} pixels, and these are {images}")
    normalise = getattr(model, "normalise", None)
    if isinstance(normalise, Normalise) and len(normalise.mean) != shape[1]:
        raise ValueError(f"{spec} reads {len(normalise.mean)} channels, and these are {images}")
    try:
        with torch.no_grad():
            out = model(torch.zeros(*shape))
    except Exception as error:
        # Anybody's network: it may raise anything.
        raise ValueError(f"{spec} does not run on {images}: {first_line(error)}") from error
    if not isinstance(out, torch.Tensor) or tuple(out.shape) != (shape[0], classes):
        given = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(
            f"{spec} gives {given} for {shape[0]} {images}: it must give one number for each of "
            f"the {classes} classes, {[shape[0], classes]}"
        )


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Read a checkpoint into `model` and return it: :func:`engine.models.checkpoints.read`.

    Raises:
        ValueError: the file is missing or unreadable, or belongs to another network.
    """
    from engine.models import checkpoints

    return checkpoints.fill(model, checkpoints.read(path), path)
