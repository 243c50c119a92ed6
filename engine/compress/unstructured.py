"""Unstructured pruning: single weights of convolutions and linear layers become zero.

The file gets smaller on its way to a device, because zeros compress. Nothing gets faster: dense
kernels, which are the only ones that ONNX Runtime has, multiply by zero as slowly as by any other
number. For speed see :mod:`engine.compress.prune`.

    >>> sparse = prune_weights(model, 0.5, scope="global")
    >>> finetune(sparse, dataset, Recipe(keep_zeros=True))

The pruning itself is `torch.nn.utils.prune`. Magnitude as the measure: Han, Pool, Tran, Dally:
*Learning both weights and connections for efficient neural networks*, NeurIPS 2015, who prune layer
by layer; one threshold for all layers: Frankle, Carbin: *The lottery ticket hypothesis*, ICLR 2019,
section 4; chance as the baseline that any measure has to beat: Blalock, Gonzalez Ortiz, Frankle,
Guttag: *What is the state of neural network pruning?*, MLSys 2020.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import prune

Measure = Literal["l1", "random"]
Scope = Literal["layer", "global"]

_MEASURES = {"l1": prune.L1Unstructured, "random": prune.RandomUnstructured}


def prune_weights(
    model: nn.Module,
    share: float,
    measure: Measure = "l1",
    scope: Scope = "layer",
    seed: int = 0,
) -> nn.Module:
    """Return a copy in which a share of the weights of convolutions and linear layers is zero.

    Biases, batch norms and all other parameters stay as they are. Weights that are zero already
    count, so that a network can be pruned in steps with training in between. The copy carries no
    masks.

    Args:
        model: the network; it is left as it was.
        share: of the weights, 0 up to but not 1; rounded to whole weights, and exact then.
        measure: "l1": the smallest by magnitude go; "random": any.
        scope: "layer": every layer loses this share; "global": all layers together do, and what
            is small in one layer is compared with what is small in another.
        seed: of the random choice.

    Raises:
        ValueError: the share is none, the network has no such layer, or it carries masks of
            `torch.nn.utils.prune` already.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of weights to prune must be from 0 to below 1, not {share}")
    refuse_masks(model)
    sparse = copy.deepcopy(model)
    found = layers(sparse)
    if not found:
        raise ValueError("the network has no convolution and no linear layer to prune")
    parts = [found] if scope == "global" else [{name: layer} for name, layer in found.items()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in parts:
            _prune(list(part.values()), share, _MEASURES[measure])
    remove_masks(sparse)
    return sparse


def zeros(model: nn.Module) -> dict[str, float]:
    """Return, for each convolution and linear layer, the share of its weights that is zero."""
    return {
        name: 1 - int(layer.weight.detach().count_nonzero()) / layer.weight.numel()
        for name, layer in layers(model).items()
    }


def remove_masks(model: nn.Module) -> None:
    """Make the masks of `torch.nn.utils.prune` permanent, in place.

    A network that carries them has each weight twice, and so has its file.
    """
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


def refuse_masks(model: nn.Module) -> None:
    """Refuse a network that carries masks of `torch.nn.utils.prune`.

    Raises:
        ValueError: it does; the sentence names the layer.
    """
    for name, module in model.named_modules():
        if any(isinstance(h, prune.BasePruningMethod) for h in module._forward_pre_hooks.values()):
            raise ValueError(
                f"{name or 'the network'} still carries pruning masks, which double the file: "
                "call engine.compress.unstructured.remove_masks first"
            )


def layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers by name; of those that share one weight the first."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            if id(module.weight) not in seen:
                found[name] = module
            seen.add(id(module.weight))
    return found


def _prune(layers: list[Any], share: float, method: Any) -> None:
    weights = [layer.weight for layer in layers]
    gone = sum(w.numel() - int(w.detach().count_nonzero()) for w in weights)
    more = round(share * sum(w.numel() for w in weights)) - gone
    if more <= 0:
        return
    for layer in layers:
        # Zeros are pruned already: chance must not hit them a second time.
        mask = (layer.weight.detach() != 0).to(layer.weight.dtype)
        prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]
    places = [(layer, "weight") for layer in layers]
    prune.global_unstructured(places, pruning_method=method, amount=more)
