"""Trained weights from files, under the names that public checkpoints give them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_PICKLED = (".pth", ".pt", ".th")
_WRAPPINGS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the weights."""


def read(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of torch's own format (.pth, .pt, .th).

    Of the latter nothing is unpickled but tensors and plain containers.

    Raises:
        ValueError: the file is missing or unreadable, or holds something else.
    """
    if Path(path).suffix in _PICKLED:
        return _unpickled(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error


def _unpickled(path: str | Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds more than weights, and loading it could run any code: "
            "save its state_dict as safetensors"
        ) from error
    except Exception as error:
        # The reader meets any bytes, and may stumble over them in any way.
        raise ValueError(f"{path}: not a readable file of weights: {error!r}") from error
    for key in _WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: holds no weights by name")
    if not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path}: holds more than weights: save its state_dict alone")
    return dict(content)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Put the tensors of a checkpoint into `model` and return it.

    Names that public checkpoints use in place of the network's (its `public_names`) are
    translated, and shapes that differ by axes of length 1 are alike. What a public checkpoint
    does not have (the normalisation, the network's `fixed_names`) keeps its value; everything
    else must be there and fit.

    Raises:
        ValueError: the tensors belong to another network; `path` is for the sentence.
    """
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    for public, tensor in tensors.items():
        name = public if public in own else _translate(model, public)
        if name not in own:
            raise ValueError(f"{path}: the network has no {public}: the weights are another's")
        if _significant(own[name]) != _significant(tensor):
            raise ValueError(
                f"{path}: {public} is {list(tensor.shape)} in the file and "
                f"{list(own[name].shape)} in the network: the weights are another's"
            )
        found[name] = tensor.reshape(own[name].shape)
    optional = (
        "normalise.mean", "normalise.std", ".num_batches_tracked",
        *getattr(model, "fixed_names", ()),
    )  # fmt: skip
    missing = [n for n in own if n not in found and not n.endswith(optional)]
    if missing:
        raise ValueError(f"{path}: {missing[0]} is missing from the file")
    model.load_state_dict(found, strict=False)
    return model


def _translate(model: nn.Module, name: str) -> str:
    """Return the network's own name of a tensor; `module.` is what data parallelism adds."""
    name = name.removeprefix("module.")
    for pattern, own in getattr(model, "public_names", ()):
        name = re.sub(pattern, own, name)
    return name


def _significant(tensor: Tensor) -> list[int]:
    return [length for length in tensor.shape if length != 1]
