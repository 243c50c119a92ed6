"""What a batch's gradients do to the weights: the base optimiser, and its state as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from engine.compress.padding import Zeros
from engine.compress.recipe import Recipe
from engine.compress.unstructured import layers

_BETA2 = 0.999  # AdamW's (arXiv 1711.05101)
_BUFFERS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")


class Update:
    """Owns the optimiser's step; here, there is nothing beside it.

    A method of training that does more to the weights than its optimiser derives from this. Before
    `begin` it is plain data, so that it reaches other processes.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, zeros: Sequence[Zeros] = ()) -> None:
        """Hold some entries at zero, whatever the gradients say."""
        self._zeros = tuple(zeros)

    @property
    def fingerprint(self) -> str:
        """Tells apart updates that must not go on with each other's checkpoints."""
        return ""

    def begin(self, model: nn.Module, recipe: Recipe, batches: int) -> None:
        """Set up for a network, on the device where it will learn, and `batches` an epoch."""
        self.model, self.recipe, self.batches = model, recipe, batches
        self._held = list(self._masks())
        learnt = [p for p in model.parameters() if p.requires_grad]
        if recipe.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(
                learnt,
                lr=recipe.lr,
                betas=(recipe.momentum, _BETA2),
                weight_decay=recipe.weight_decay,
            )
        else:
            self.optimizer = torch.optim.SGD(
                learnt,
                lr=recipe.lr,
                momentum=recipe.momentum,
                nesterov=recipe.nesterov,
                weight_decay=recipe.weight_decay,
            )

    def step(self, at: int, rate: float) -> None:
        """Change the weights by the gradients of batch `at`, counted from 0 over all epochs."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for parameter, zero in self._held:
                parameter.masked_fill_(zero, 0.0)

    def _masks(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield the parameters that have entries to hold at zero, and where these are."""
        if self.recipe.keep_zeros:
            for layer in layers(self.model).values():
                yield layer.weight, layer.weight.detach() == 0
        parameters = dict(self.model.named_parameters())
        for name in dict.fromkeys(zero.tensor for zero in self._zeros if zero.tensor in parameters):
            mask = torch.zeros_like(parameters[name], dtype=torch.bool)
            for zero in self._zeros:
                if zero.tensor == name:
                    entries = torch.tensor(zero.entries, device=mask.device)
                    mask.index_fill_(zero.axis, entries, True)
            yield parameters[name], mask

    def settled(self, epochs: int) -> bool:
        """Tell whether the network may be what comes of the run after so many epochs."""
        return True

    def scores(self) -> dict[str, float]:
        """Points for curves, after an epoch."""
        return {}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the state, the optimiser's by the parameters' names."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            for key in _BUFFERS:
                if state.get(key) is not None:
                    found.setdefault(key, {})[name] = state[key]
        return found

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go back to a state that `tensors` returned."""
        self.optimizer.state.clear()
        for name, parameter in self.model.named_parameters():
            for key in _BUFFERS:
                if name not in tensors.get(key, {}):
                    continue
                saved = tensors[key][name]
                # Laid out in memory like the parameter, as the optimizer itself would.
                like = torch.empty_like(parameter if key != "step" else saved)
                self.optimizer.state[parameter][key] = like.copy_(saved).detach()
