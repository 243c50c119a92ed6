"""What a network's layers cost at any widths, as plain arrays.

One forward pass tells each layer's kernel and positions; the dependency groups tell which widths
its weights follow. From then on thousands of designs are priced at once, without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.compress.groups import Group

Array = NDArray[np.float64]

BLOCK = 16
"""Channels that convolutions are taken to work on at once where nobody knows: with AVX-512."""
_BYTES = 4.0


@dataclass(frozen=True, eq=False)
class Geometry:
    """L layers with weights (convolutions, linear layers) of a network with G groups."""

    layers: tuple[str, ...]
    channels: Array
    """(G,) width of each group in the network as it was traced."""
    makes: Array
    """(L, G) output channels that come from one channel of a group."""
    makes_fixed: Array
    """(L,) output channels that no group can take away."""
    reads: Array
    """(L, G) the same for the input channels that one output channel reads."""
    reads_fixed: Array
    kernel: Array
    """(L,) weights between one input and one output channel (9 for 3x3)."""
    positions: Array
    """(L,) positions of the output (height times width)."""
    positions_in: Array
    depthwise: NDArray[np.bool_]

    def widths(self, designs: ArrayLike) -> tuple[Array, Array]:
        """Return output and input channels, each (n, L), of designs (n, G) of kept channels."""
        kept = np.atleast_2d(np.asarray(designs, dtype=np.float64))
        return kept @ self.makes.T + self.makes_fixed, kept @ self.reads.T + self.reads_fixed

    def macs(self, designs: ArrayLike, pad: int = 1) -> Array:
        """Return multiply-accumulates (n, L) for one input, widths rounded up to `pad`."""
        out, read = self.widths(designs)
        if pad > 1:
            out = np.ceil(out / pad) * pad
            read = np.where(self.depthwise, read, np.ceil(read / pad) * pad)
        return np.asarray(out * read * (self.kernel * self.positions))

    def traffic(self, designs: ArrayLike) -> Array:
        """Return bytes (n, L) of weights, inputs and outputs for one input, as float32."""
        out, read = self.widths(designs)
        inputs = np.where(self.depthwise, out, read)
        moved = out * read * self.kernel + inputs * self.positions_in + out * self.positions
        return np.asarray(_BYTES * moved)

    def features(self, designs: ArrayLike, multiple: int = 1) -> Array:
        """Return what latency hangs on, (n, F), on devices that are fast at multiples of that.

        Each layer is in one of three states: blocked, blocked with an input narrower than a block,
        or off the fast path. Per layer: MACs at padded widths and bytes moved, each under its
        state; the states themselves; inputs that must be put into the other order; plain MACs.
        Per group: the share of channels that stay. Over the whole network: the sums of these, and
        logarithms of MACs and bytes.

        Args:
            designs: kept channels (n, G).
            multiple: channels of a block; 1, for not known, stands for blocks of `BLOCK`.
        """
        return np.concatenate(self._blocks(designs, multiple), axis=1)

    @cached_property
    def weights(self) -> Array:
        """How much each feature counts, (F,): the blocks of `features` count alike, however
        many layers the network has, and the few sums are not lost among them."""
        sizes = [block.shape[1] for block in self._blocks(self.channels)]
        return np.concatenate([np.full(size, size**-0.5) for size in sizes])

    def _blocks(self, designs: ArrayLike, multiple: int = 1) -> list[Array]:
        block = multiple if multiple > 1 else BLOCK
        kept = np.atleast_2d(np.asarray(designs, dtype=np.float64))
        out, read = self.widths(kept)
        # ONNX Runtime's blocked convolutions need both widths in fours, an input narrower than
        # a block excepted; a layer outside them can cost twice what the unpruned one does.
        slow = (out % 4 != 0) | ((read % 4 != 0) & (read >= block))
        narrow = ~slow & (read < block) & ~self.depthwise
        fast = ~slow & ~narrow
        per_channel = read * (self.kernel * self.positions) / self._all_macs
        plain, full = out * per_channel, np.ceil(out / block) * block * per_channel
        padded = full * np.where(self.depthwise, 1.0, np.ceil(read / block) * block / read)
        inputs = np.where(self.depthwise, out, read)
        coming, going = inputs * self.positions_in, out * self.positions
        moved = (out * read * self.kernel + coming + going) * (_BYTES / self._all_traffic)
        coming *= _BYTES / self._all_traffic
        # What a layer reads comes from the one before it, nearly always.
        before = np.concatenate([np.ones((len(kept), 1), dtype=bool), slow[:, :-1]], axis=1)
        layers = [
            *(padded * fast, full * narrow, plain * slow),
            *(moved * fast, moved * narrow, moved * slow),
            *(slow * 1.0, narrow * 1.0),
            *(coming * (fast & before), coming * (slow & ~before)),
        ]
        sums = [each.sum(axis=1, keepdims=True) for each in (*layers, plain)]
        totals = (plain, padded, moved)
        logs = [np.log(each.sum(axis=1, keepdims=True)) for each in totals]
        return [*layers, plain, kept / self.channels, *sums, *logs]

    @cached_property
    def _all_macs(self) -> float:
        return float(self.macs(self.channels).sum())

    @cached_property
    def _all_traffic(self) -> float:
        return float(self.traffic(self.channels).sum())


def measure_geometry(model: nn.Module, groups: Sequence[Group], example: Tensor) -> Geometry:
    """Run the network once and note the shape of every layer with weights.

    Args:
        model: the network that the groups were traced from; it is left as it was.
        groups: its dependency groups.
        example: an input, any batch size.

    Raises:
        ValueError: no convolution or linear layer took part.
    """
    seen = _shapes(model, example)
    if not seen:
        raise ValueError("the network has no convolution and no linear layer")
    size = (len(seen), len(groups))
    makes, reads = np.zeros(size), np.zeros(size)
    makes_fixed, reads_fixed = np.zeros(size[0]), np.zeros(size[0])
    where: dict[str, list[int]] = {}
    rows = []
    for i, (name, module, positions_in, positions) in enumerate(seen):
        where.setdefault(f"{name}.weight", []).append(i)  # a shared layer runs more than once
        shape = cast("Tensor", module.weight).shape
        swap = bool(getattr(module, "transposed", False))
        makes_fixed[i], reads_fixed[i] = shape[int(swap)], shape[1 - int(swap)]
        grouped = getattr(module, "groups", 1)
        rows.append((float(np.prod(shape[2:])), positions, positions_in, grouped > 1, swap))
    for g, group in enumerate(groups):
        for cut in group.slices:
            entries = sum(len(index) for index in cut.index)
            for layer in where.get(cut.tensor, ()):
                made = (cut.axis == 0) != rows[layer][4]
                (makes if made else reads)[layer, g] += entries / group.channels
                (makes_fixed if made else reads_fixed)[layer] -= entries
    kernels, ran, came, grouped_, _ = (np.array(column) for column in zip(*rows, strict=True))
    return Geometry(
        layers=tuple(name for name, *_ in seen),
        channels=np.array([group.channels for group in groups], dtype=np.float64),
        makes=makes,
        makes_fixed=makes_fixed,
        reads=reads,
        reads_fixed=reads_fixed,
        kernel=kernels,
        positions=ran,
        positions_in=came,
        depthwise=grouped_,
    )


def _shapes(model: nn.Module, example: Tensor) -> list[tuple[str, nn.Module, float, float]]:
    """Return (name, layer, input positions, output positions) in the order of execution."""
    import torch
    from torch import nn

    seen: list[tuple[str, nn.Module, float, float]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            linear = isinstance(module, nn.Linear)
            before, after = (
                float(np.prod(t.shape[1:-1] if linear else t.shape[2:]))
                for t in (inputs[0], output)
            )
            seen.append((name, module, before, after))

        return hook

    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return seen
