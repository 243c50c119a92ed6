"""Networks that others make: timm's by name, and a user's own by a Python function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from engine.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalised
from engine.text import first_line


def from_timm(
    name: str,
    classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return a network of timm with fresh weights, which reads plain images.

    Args:
        name: as `timm.create_model` takes it.
        classes: how many classes it tells apart.
        mean: what is subtracted from the images; default: as timm's own weights want it.
        std: what they are then divided by.

    Raises:
        ValueError: timm is not there, or has no such network.
    """
    try:
        import timm
    except Exception as error:
        # A torchvision made for another torch raises a RuntimeError when it is imported.
        raise ValueError(
            f"timm:{name} needs timm, which cannot be imported ({first_line(error)}): "
            "install the extra hdap-tui[timm]"
        ) from error
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    except Exception as error:
        raise ValueError(f"timm makes no network {name!r}: {first_line(error)}") from error
    published: Any = getattr(network, "pretrained_cfg", None) or {}
    return Normalised(
        network,
        mean or published.get("mean", IMAGENET_MEAN),
        std or published.get("std", IMAGENET_STD),
    )


def from_factory(spec: str, classes: int, folder: str | Path | None = None) -> nn.Module:
    """Call `package.module:function` with `classes` and return the network that it makes.

    Args:
        spec: module and function.
        classes: how many classes the network tells apart.
        folder: added to the end of Python's path, and left there: another process that unpickles
            the network needs the module too.

    Raises:
        ValueError: there is no such module or function, or it makes no network.
    """
    module_name, _, function_name = spec.partition(":")
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
    where = f"on Python's path or in {folder}" if folder else "on Python's path"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Somebody's own code: importing it may raise anything.
        raise ValueError(
            f"{spec}: {module_name} cannot be imported ({first_line(error)}); it must lie {where}"
        ) from error
    factory = getattr(module, function_name, None)
    if not callable(factory):
        problem = "is no function" if hasattr(module, function_name) else "is not there"
        raise ValueError(f"{spec}: {function_name} {problem} in {module.__file__}")
    try:
        network = factory(classes=classes)
    except Exception as error:
        raise ValueError(
            f"{spec}: called with classes={classes} it raised {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{spec}: it must return a torch.nn.Module, not {type(network).__name__}")
    return network
