"""The two sparsifiers of *Only Train Once*: DHSPG and HESSO, as what follows the optimiser's step.

A channel is chosen, brought to zero while the network learns, and stays exactly zero from then on.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.compress.channels import Channels
from engine.compress.groups import Group, to_json
from engine.compress.recipe import Recipe
from engine.compress.sparsity import Sparsity, select
from engine.compress.updates import Update


class Sparsifier(Update):
    """Trains to sparsity: which channels are to go, which are zero, and when.

    Args:
        groups: the groups that can be made sparse.
        sparsity: how.

    Raises:
        ValueError: the sparsity names a group that is not among them.
    """

    state: tuple[str, ...] = ("dead", "redundant", "projected")
    """Names of the tensors that a resumed run needs."""

    def __init__(self, groups: Sequence[Group], sparsity: Sparsity) -> None:
        super().__init__()
        self.groups, self.sparsity = tuple(groups), sparsity
        self._budgets = sparsity.pools(groups)

    @property
    def fingerprint(self) -> str:
        """Tells apart other groups and other budgets."""
        return json.dumps(asdict(self.sparsity), sort_keys=True) + to_json(self.groups)

    def begin(self, model: nn.Module, recipe: Recipe, batches: int) -> None:
        """Set up; no channel is chosen yet.

        Raises:
            ValueError: the budget is due before the warm-up has ended.
        """
        super().begin(model, recipe, batches)
        self._due = max(1, math.ceil(self.sparsity.until * recipe.epochs - 1e-9))
        self.start = round(self.sparsity.warmup * recipe.epochs * batches)
        self.end = self._due * batches
        if self.end <= self.start:
            raise ValueError(
                f"{self.end} batches until the budget is due leave none after {self.start} of "
                "warm-up: train longer, or warm up less"
            )
        self.channels = Channels(model, self.groups)
        firsts = [0]
        for group in self.groups:
            firsts.append(firsts[-1] + group.channels)
        device = self.channels.device
        self._pools = [
            torch.cat([torch.arange(firsts[g], firsts[g + 1]) for g in pool]).to(device)
            for pool, _ in self._budgets
        ]
        self.dead = torch.zeros(self.channels.count, dtype=torch.bool, device=device)
        self.redundant = self.dead.clone()
        self.projected = torch.zeros((), dtype=torch.int64, device=device)

    def step(self, at: int, rate: float) -> None:
        """Step as the optimiser does, bring redundant channels nearer, keep zeros zero."""
        sparsifying = self.start <= at < self.end
        before = [w.clone() for w in self.channels.weights()] if sparsifying else []
        super().step(at, rate)
        with torch.no_grad():
            if sparsifying:
                self.shrink(at, rate, before)
            self.channels.zero(self.dead)

    @abstractmethod
    def shrink(self, at: int, rate: float, before: list[Tensor]) -> None:
        """Bring redundant channels nearer to zero, after the optimiser's step from `before`."""

    @abstractmethod
    def sentence(self) -> str:
        """Tell how the channels went."""

    def settled(self, epochs: int) -> bool:
        """Tell whether the budget is met after so many epochs."""
        return epochs >= self._due

    def scores(self) -> dict[str, float]:
        """Return the share of channels that are not zero."""
        return {"channels": 1 - float(self.dead.float().mean())}

    def alive(self) -> list[tuple[int, ...]]:
        """Return the channels of each group that are not zero."""
        parts = torch.split((~self.dead).cpu(), [group.channels for group in self.groups])
        return [tuple(part.nonzero().flatten().tolist()) for part in parts]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimiser's state and which channels are chosen and gone."""
        return {**super().tensors(), "sparsity": {name: getattr(self, name) for name in self.state}}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go back to a state that `tensors` returned."""
        super().restore(tensors)
        for name in self.state:
            setattr(self, name, tensors["sparsity"][name].to(self.channels.device, copy=True))

    def direction(self, before: Sequence[Tensor], rate: float) -> list[Tensor]:
        """Return d, the optimiser's direction: what it took off the weights, over the rate."""
        weights = self.channels.weights()
        return [(x - now) / rate for x, now in zip(before, weights, strict=True)]

    def choose(self, scores: Tensor, count: Callable[[int, int], int]) -> Tensor:
        """Return the channels, booleans (N,), that the budgets do not keep.

        `count(channels, kept)` says how many channels of a pool stay.
        """
        known = scores.masked_fill(self.dead, -math.inf).double().cpu()
        parts = [p.numpy() for p in torch.split(known, [g.channels for g in self.groups])]
        goes = torch.zeros(self.channels.count, dtype=torch.bool)
        for (pool, kept), places in zip(self._budgets, self._pools, strict=True):
            stays = select(
                [parts[g] for g in pool], count(len(places), kept), self.sparsity.multiple
            )
            goes[places.cpu()] = ~torch.cat([torch.from_numpy(part) for part in stays])
        return goes.to(self.channels.device)


class DHSPG(Sparsifier):
    """Dual half-space projected gradient (OTOv2, ICLR 2023; the half-space: OTO, NeurIPS 2021).

    Redundant channels are chosen once; from then on, with d the optimiser's direction, each step is

        z_g = x_g - rate (d_g + lambda_g x_g / |x_g|),  and z_g = 0 where <z_g, x_g> < eps |x_g|^2

    for them, and a plain step for all others.
    """

    state = (*Sparsifier.state, "quotas", "norm")

    def begin(self, model: nn.Module, recipe: Recipe, batches: int) -> None:
        """Set up; what the penalty is follows from the learning rates to come."""
        super().begin(model, recipe, batches)
        sgd = recipe.optimizer == "sgd"
        self.amplify = self.sparsity.amplify or (2.0 if sgd else 20.0)
        self.cap = self.sparsity.cap or (10.0 if sgd else 1000.0)
        self.project = self.start + int(self.sparsity.half_space * (self.end - self.start))
        rates = (self._planned(at) for at in range(self.start, self.end))
        self._length = math.fsum(rates)
        self.quotas = torch.zeros(len(self._pools), dtype=torch.int64, device=self.channels.device)
        self.norm = torch.zeros((), device=self.channels.device)

    def shrink(self, at: int, rate: float, before: list[Tensor]) -> None:
        """Penalise redundant channels, then project them as far as the budgets allow."""
        x, d = self.channels, self.direction(before, rate)
        norms, along = x.dot(before, before).sqrt(), x.dot(before, d)
        lengths = x.dot(d, d).sqrt()
        if at == self.start:
            self._part(norms, along, lengths)
        penalty = adapted(along, norms, lengths, self._penalty(at, rate), self.amplify, self.cap)
        # Once a pool has lost all that it is to lose, nothing of it is penalised any more.
        left = torch.empty_like(self.dead)
        for places, quota in zip(self._pools, self.quotas, strict=True):
            left[places] = quota > self.dead[places].sum()
        x.subtract(before, rate * penalty / (norms + 1e-8) * (self.redundant & left))
        if at >= self.project:
            turned = x.dot(x.weights(), before)
            self._end(turned < self.sparsity.epsilon * norms**2, turned / norms**2)
        if at == self.end - 1:
            self.projected = self.dead.sum()
            self._end(torch.ones_like(self.dead), x.dot(x.weights(), x.weights()).sqrt() / x.sizes)

    def sentence(self) -> str:
        """Tell how many channels each projection brought."""
        gone, projected = int(self.dead.sum()), int(self.projected)
        return (
            f"{gone} of {self.channels.count} channels are zero: the half-space projection brought "
            f"{projected}, the closing one {gone - projected}"
        )

    def _part(self, norms: Tensor, along: Tensor, lengths: Tensor) -> None:
        """Choose the redundant channels, once: those of highest saliency.

        It is 1/2 cos(x, d) + 1/2 / (|x| / size + 1e-6), each normalised over all channels.
        """
        cosine = along / (norms * lengths).clamp_min(1e-8)
        small = 1 / (norms / self.channels.sizes + 1e-6)
        saliency = 0.5 * functional.normalize(cosine, dim=0)
        saliency += 0.5 * functional.normalize(small, dim=0)
        # With a multiple, more candidates than go would leave a group between two multiples.
        more = self.sparsity.tolerance if self.sparsity.multiple == 1 else 0.0
        self.redundant = self.choose(-saliency, lambda channels, kept: kept - int(more * channels))
        goes = self.choose(-saliency, lambda _, kept: kept)
        self.quotas = torch.stack([goes[places].sum() for places in self._pools])
        self.norm = norms[self.redundant].mean() if self.redundant.any() else norms.mean()

    def _penalty(self, at: int, rate: float) -> Tensor:
        """Return lambda."""
        if self.sparsity.penalty is not None:
            return torch.full_like(self.norm, self.sparsity.penalty)
        # A run that was rolled back goes on with lower rates than planned.
        length = self._length * rate / self._planned(at)
        return self.sparsity.strength * self.norm / length

    def _planned(self, at: int) -> float:
        epoch, batch = divmod(at, self.batches)
        return self.recipe.rate(epoch, batch / self.batches)

    def _end(self, candidates: Tensor, values: Tensor) -> None:
        """Set redundant candidates to zero, lowest values first, as far as the budgets allow."""
        candidates = candidates & self.redundant & ~self.dead
        values = values.masked_fill(~candidates, math.inf)
        for places, quota in zip(self._pools, self.quotas, strict=True):
            # Ranks, since asking for a number would make a GPU wait.
            ranks = values[places].argsort(stable=True).argsort()
            allowed = ranks < quota - self.dead[places].sum()
            self.dead[places] |= candidates[places] & allowed


def adapted(
    along: Tensor, norms: Tensor, lengths: Tensor, penalty: Tensor, amplify: float, cap: float
) -> Tensor:
    """Return lambda of each channel (N,), raised where descent would make the channel grow.

    Where <x, d> < 0: lambda_g = amplify * lower, clipped to [lambda, cap lambda], and the middle of
    lower and upper where that is upper or more; lower = -<x, d> / |x| is what keeps the norm from
    growing, upper = -|d|^2 |x| / <x, d> what still descends (OTOv2, ICLR 2023, lambda's interval;
    the clipping is the released code's).

    Args:
        along: <x, d> of each channel (N,), d the direction that is taken off.
        norms: |x| of each (N,).
        lengths: |d| of each (N,).
        penalty: lambda.
        amplify: how many times the lower bound.
        cap: how many times lambda at most.
    """
    lower = -along / norms
    upper = -(lengths**2) * norms / along
    raised = torch.minimum(torch.maximum(amplify * lower, penalty), cap * penalty)
    raised = torch.where(raised >= upper, (lower + upper) / 2, raised)
    return torch.where(along < 0, raised, penalty)


class HESSO(Sparsifier):
    """Hybrid efficient structured sparse optimiser (arXiv 2409.09085).

    No penalty and no half-spaces: period by period, the channels that matter least are shrunk
    until they are exactly zero.
    """

    def begin(self, model: nn.Module, recipe: Recipe, batches: int) -> None:
        """Set up the periods.

        Raises:
            ValueError: there are fewer batches than periods.
        """
        super().begin(model, recipe, batches)
        self.length = (self.end - self.start) // self.sparsity.periods
        if not self.length:
            raise ValueError(
                f"{self.sparsity.periods} periods need as many batches, and between warm-up and "
                f"budget there are {self.end - self.start}"
            )

    def shrink(self, at: int, rate: float, before: list[Tensor]) -> None:
        """Choose the redundant channels where a period begins; multiply them by what is left."""
        period, t = divmod(at - self.start, self.length)
        if period >= self.sparsity.periods:
            return
        if t == 0:
            self.redundant = self._choose(period, before, self.direction(before, rate))
        left = (self.length - t - 1) / (self.length - t)
        self.channels.scale(torch.where(self.redundant, left, 1.0))
        if t == self.length - 1:
            self.dead |= self.redundant

    def sentence(self) -> str:
        """Tell how many channels were shrunk, and how fast."""
        return (
            f"{int(self.dead.sum())} of {self.channels.count} channels are zero, shrunk in "
            f"{self.sparsity.periods} periods of {self.length} batches"
        )

    def _choose(self, period: int, before: list[Tensor], d: list[Tensor]) -> Tensor:
        """Choose by the mean of five importances, each normalised over all channels."""
        x, periods = self.channels, self.sparsity.periods
        norms, along = x.dot(before, before).sqrt(), x.dot(before, d)
        cosine = along / (norms * x.dot(d, d).sqrt()).clamp_min(1e-8)
        scores = torch.stack((norms, norms / x.sizes, cosine + 1, along.abs(), 0.5 * along**2))
        importance = functional.normalize(scores, dim=1).mean(0)

        def kept(channels: int, kept: int) -> int:
            if period == periods - 1:
                return kept
            return channels - (channels - kept) // periods * (period + 1)

        return self.choose(importance, kept) & ~self.dead
