"""A policy that picks a precision for each layer, and learns by REINFORCE; ask/tell.

REINFORCE: Williams: *Simple statistical gradient-following algorithms for connectionist
reinforcement learning*, Machine Learning 8, 1992. Choosing bits layer by layer with reinforcement
learning and the hardware's own answer: Wang et al.: *HAQ: Hardware-aware automated quantization
with mixed precision*, CVPR 2019.

HAQ walks through the layers with an actor-critic network. Here all layers are picked at once, since
the reward comes once, for the whole network, and a softmax a layer is all there is to learn: what
layers have in common lies in weights on their features, what is a layer's own in free logits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Actions = NDArray[np.int64]

_FURTHEST = 3.0
"""Standard deviations at which an advantage is cut, so that no disaster drowns all else."""


class Controller:
    """Maximises a reward over one action for each layer; owns no loop, so anything can drive it.

        >>> import numpy as np
        >>> best = np.array([0, 1, 1, 0, 1, 0])
        >>> controller = Controller(np.eye(6), actions=2, seed=1)
        >>> for _ in range(60):
        ...     policies = controller.ask(8)
        ...     controller.tell(policies, (policies == best).mean(axis=1))
        >>> bool((controller.likeliest == best).all())
        True

    It pickles, and goes on identically, because the state of the random numbers goes along.

    Args:
        features: what is known of each layer, (layers, features), in any units.
        actions: how many actions there are.
        allowed: which of them each layer can take, (layers, actions) bool; None: all.
        rate: length of a step of the logits.
        memory: how much of the baseline stays from one round to the next, in [0, 1).
        entropy: weight of the policy's entropy at the beginning, which keeps it from settling
            before it has tried much.
        decay: factor of that weight from one round to the next, in (0, 1].
        seed: seed of the random numbers.

    Raises:
        ValueError: an argument makes no sense; the sentence says which.
    """

    def __init__(
        self,
        features: ArrayLike,
        actions: int,
        allowed: ArrayLike | None = None,
        *,
        rate: float = 2.0,
        memory: float = 0.3,
        entropy: float = 0.2,
        decay: float = 0.9,
        seed: int | None = None,
    ) -> None:
        given = np.array(features, dtype=np.float64)
        if given.ndim != 2 or not given.size or not np.isfinite(given).all():
            raise ValueError("features are finite numbers, at least one for each of the layers")
        mask = np.ones((len(given), actions), bool) if allowed is None else np.array(allowed, bool)
        if actions < 1 or mask.shape != (len(given), actions) or not mask.any(axis=1).all():
            raise ValueError("every layer is allowed at least one of the actions")
        if not (0 < rate < math.inf and 0 <= entropy < math.inf):
            raise ValueError("rate is positive and entropy 0 or more")
        if not (0 <= memory < 1 and 0 < decay <= 1):
            raise ValueError("memory lies in [0, 1) and decay in (0, 1]")
        self._features = _standardised(given)
        self._allowed = mask
        self._weights = np.zeros((self._features.shape[1], actions))
        self._free = np.zeros(mask.shape)
        self._rate, self._memory = float(rate), float(memory)
        self._entropy, self._decay = float(entropy), float(decay)
        self._baseline = self._square = 0.0
        self._rounds = 0
        self._random = np.random.Generator(np.random.PCG64(seed))

    def ask(self, count: int) -> Actions:
        """Draw policies, (count, layers), each the numbers of its layers' actions.

        Raises:
            ValueError: the count is none.
        """
        if count < 1:
            raise ValueError(f"at least one policy is asked for, not {count}")
        logits = self._logits()
        # The largest of logits with Gumbel noise is a draw from their softmax.
        noise = self._random.gumbel(size=(count, *logits.shape))
        return np.asarray((logits + noise).argmax(axis=2))

    def tell(self, policies: ArrayLike, rewards: ArrayLike) -> None:
        """Learn from a round of policies (n, layers) and what each was worth (n,).

        They need not be those that were asked for, where something else was carried out. A reward
        that is not finite counts as the round's worst.

        Raises:
            ValueError: a policy takes an action that its layer is not allowed, or the numbers of
                policies and rewards differ.
        """
        taken = np.array(policies, dtype=np.int64)
        told = np.array(rewards, dtype=np.float64)
        layers = np.arange(len(self._allowed))
        if taken.ndim != 2 or taken.shape != (len(told), len(layers)) or not len(taken):
            raise ValueError("one policy of all layers is expected for each reward")
        inside = (taken >= 0) & (taken < self._allowed.shape[1])
        if not (inside.all() and self._allowed[layers, taken].all()):
            raise ValueError("a policy takes an action that its layer is not allowed")
        finite = np.isfinite(told)
        if not finite.any():
            return
        told[~finite] = told[finite].min()
        probabilities = self.probabilities
        # (Williams, eq. 6 and section 6) d ln p(a) / d logit = [a] - p, by reward over baseline
        chosen = np.zeros((len(taken), *self._allowed.shape))
        np.put_along_axis(chosen, taken[:, :, None], 1.0, axis=2)
        slope = np.einsum("n,nla->la", self._advantages(told), chosen - probabilities) / len(told)
        slope += self._entropy * self._decay**self._rounds * _entropy_slope(probabilities)
        self._free += self._rate * slope
        # As long a step for what all layers share as for what one has of its own.
        self._weights += self._rate * self._features.T @ slope / math.sqrt(len(layers))
        self._rounds += 1

    @property
    def probabilities(self) -> Array:
        """How likely each action is now, (layers, actions)."""
        return _softmax(self._logits())

    @property
    def likeliest(self) -> Actions:
        """The likeliest action of each layer, (layers,)."""
        return np.asarray(self._logits().argmax(axis=1))

    @property
    def uncertainty(self) -> float:
        """The mean entropy of its choices as a share of the largest possible; 0 when settled."""
        largest = np.log(self._allowed.sum(axis=1))
        possible = float(largest.sum())
        return float(_entropies(self.probabilities).sum()) / possible if possible else 0.0

    def _logits(self) -> Array:
        logits = self._free + self._features @ self._weights
        return np.asarray(np.where(self._allowed, logits, -np.inf))

    def _advantages(self, rewards: Array) -> Array:
        """Return rewards over the moving baseline, in its moving standard deviations."""
        if not self._rounds:
            self._baseline, self._square = float(rewards.mean()), float(rewards.var())
        over = rewards - self._baseline
        keep = self._memory if self._rounds else 1.0
        self._square = keep * self._square + (1 - keep) * float(np.square(over).mean())
        self._baseline = keep * self._baseline + (1 - keep) * float(rewards.mean())
        if not self._square > 0:
            return np.zeros_like(over)
        return np.clip(over / math.sqrt(self._square), -_FURTHEST, _FURTHEST)


def _standardised(features: Array) -> Array:
    """Return columns of mean 0 and deviation 1 beside a constant, rows of length about 1."""
    deviation = features.std(axis=0)
    columns = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    whole = np.column_stack([np.ones(len(features)), columns])
    return np.asarray(whole / math.sqrt(whole.shape[1]))


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _entropies(probabilities: Array) -> Array:
    """Return each layer's entropy in nats."""
    return np.asarray(-(probabilities * _log(probabilities)).sum(axis=1))


def _entropy_slope(probabilities: Array) -> Array:
    """Return d H / d logit = -p (ln p + H)."""
    entropies = _entropies(probabilities)[:, None]
    return np.asarray(-probabilities * (_log(probabilities) + entropies))


def _log(probabilities: Array) -> Array:
    """Return the logarithm, 0 where a probability is 0: there it is always multiplied by 0."""
    return np.log(np.where(probabilities > 0, probabilities, 1.0))
