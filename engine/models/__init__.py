"""Networks: the built-in ones by name, and their trained weights.

    >>> model = build("resnet20", classes=10)
    >>> model = load_weights(model, SHIPPED["resnet20-digits"])

Every network reads float32 images (N, C, H, W) between 0 and 1; it normalises them itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

RESNET_BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}
"""Blocks a stage of each built-in ResNet."""

NAMES = tuple(RESNET_BLOCKS)
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
        widths: channels of the three stages; default 16, 32, 64.
        mean: what is subtracted from the images (0 to 1), one number a channel.
        std: what they are then divided by. Both default to ImageNet's.

    Raises:
        ValueError: there is no network of that name.
    """
    from engine.models import resnet

    if name not in RESNET_BLOCKS:
        raise ValueError(f"there is no network {name!r}: choose one of {', '.join(NAMES)}")
    return resnet.ResNet(
        RESNET_BLOCKS[name],
        classes,
        widths or (16, 32, 64),
        mean or resnet.IMAGENET_MEAN,
        std or resnet.IMAGENET_STD,
    )


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Read a safetensors file into `model` and return it.

    What a public checkpoint does not have (the normalisation, the fixed shortcuts) keeps its
    value; everything else must be there and fit.

    Raises:
        ValueError: the file is missing or unreadable, or belongs to another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name not in own:
            raise ValueError(f"{path}: the network has no {name}: the weights are another's")
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} is {list(tensor.shape)} in the file and "
                f"{list(own[name].shape)} in the network: the weights are another's"
            )
    optional = (".shortcut.weight", "normalise.mean", "normalise.std", ".num_batches_tracked")
    missing = [n for n in own if n not in tensors and not n.endswith(optional)]
    if missing:
        raise ValueError(f"{path}: {missing[0]} is missing from the file")
    model.load_state_dict(tensors, strict=False)
    return model
