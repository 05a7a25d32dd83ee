"""Schedules along a cosine: one descent, restarts, and those along a line as well."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch

from thalweg.errors import describe, message
from thalweg.schedules.schedule import Formula, Number, as_float, power

# A period that ends at a whole step restarts there, whatever the logarithm's last bit.
_RESTART_TOLERANCE = 1e-9
# An odd factor that keeps the noise of neighbouring seeds far more steps apart than
# any run has: a generator looks at the low 32 bits of its seed only.
_SEED_STRIDE = 0x7F4A7C15
_SEED_RANGE = 2**63


@final
@dataclass(eq=False, repr=False)
class CosineDecay(Formula):
    """Go down along half a cosine, after a linear warmup if one is asked for.

    ``initial * ((1 - alpha) * (1 + cos(pi * step / decay_steps)) / 2 + alpha)``,
    constant after `decay_steps`. With `warmup_target`, the first `warmup_steps` steps
    lead linearly from `initial_learning_rate` to the target, and the cosine starts
    there.

    Args:
        initial_learning_rate: The learning rate at step 0.
        decay_steps: How many steps the cosine takes; above 0.
        alpha: The end, as a fraction of where the cosine starts.
        name: A label that is kept in the config.
        warmup_target: The learning rate after the warmup; None for no warmup.
        warmup_steps: How many steps the warmup takes; 0 or more.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If `decay_steps` is not above 0 or `warmup_steps` is below 0.

    Example:
        >>> CosineDecay(1.0, decay_steps=10)(10)
        0.0
        >>> CosineDecay(0.0, 10, warmup_target=0.5, warmup_steps=2)(1)
        0.25

    Source: Keras 2.6, ``CosineDecay``, with the warmup of tf_keras 2.21;
    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983.
    """

    initial_learning_rate: Number
    decay_steps: Number
    alpha: Number = 0.0
    name: str | None = None
    warmup_target: Number | None = None
    warmup_steps: Number = 0

    def _rate(self, step: float) -> float:
        start = as_float(self.initial_learning_rate)
        if self.warmup_target is not None:
            target, warmup = as_float(self.warmup_target), as_float(self.warmup_steps)
            if step < warmup:
                return (target - start) * (step / warmup) + start
            start, step = target, step - warmup
        alpha = as_float(self.alpha)
        progress = min(1.0, step / as_float(self.decay_steps))
        return start * ((1.0 - alpha) * _half_cosine(progress) + alpha)


@final
@dataclass(eq=False, repr=False)
class CosineDecayRestarts(Formula):
    """Go down along half a cosine again and again, in periods of growing length.

    Period ``i`` lasts ``first_decay_steps * t_mul ** i`` steps and follows
    ``initial * ((1 - alpha) * m_mul ** i * (1 + cos(pi * t)) / 2 + alpha)``, where
    ``t`` runs from 0 to 1 within the period.

    Args:
        initial_learning_rate: The learning rate at step 0.
        first_decay_steps: The length of the first period; above 0.
        t_mul: How much longer every period is than the one before; above 0.
        m_mul: How much higher every period starts than the one before.
        alpha: The end of a period, as a fraction of `initial_learning_rate`.
        name: A label that is kept in the config.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If `first_decay_steps` or `t_mul` is not above 0; when called with
            a step that periods which shrink (`t_mul` below 1) never reach.

    Example:
        >>> schedule = CosineDecayRestarts(1.0, first_decay_steps=2, m_mul=0.5)
        >>> schedule(1), schedule(2), schedule(4)
        (0.5, 0.5, 0.25)

    Source: Keras 2.6, ``CosineDecayRestarts``; Loshchilov and Hutter 2017,
    https://arxiv.org/abs/1608.03983.
    """

    initial_learning_rate: Number
    first_decay_steps: Number
    t_mul: Number = 2.0
    m_mul: Number = 1.0
    alpha: Number = 0.0
    name: str | None = None

    def _rate(self, step: float) -> float:
        restarts, progress = self._period(step)
        alpha = as_float(self.alpha)
        height = power(as_float(self.m_mul), restarts) * _half_cosine(progress)
        return as_float(self.initial_learning_rate) * ((1.0 - alpha) * height + alpha)

    def _period(self, step: float) -> tuple[int, float]:
        """Return the number of restarts so far, and the way through the period."""
        first, ratio = as_float(self.first_decay_steps), as_float(self.t_mul)
        progress = step / first
        if ratio == 1.0:
            restarts = math.floor(progress + _RESTART_TOLERANCE)
            return restarts, progress - restarts
        remaining = 1.0 - progress * (1.0 - ratio)
        if remaining <= 0.0:
            expected = f"a step below {first / (1.0 - ratio):g}, where the periods end"
            action = "Use t_mul=1.0 or more to have periods for every step."
            where = "CosineDecayRestarts"
            raise ValueError(message(where, expected, f"step {step:g}", action))
        periods = math.log(remaining) / math.log(ratio)
        restarts = math.floor(periods + _RESTART_TOLERANCE)
        length = power(ratio, restarts)
        return restarts, (progress - (1.0 - length) / (1.0 - ratio)) / length


@final
@dataclass(eq=False, repr=False)
class LinearCosineDecay(Formula):
    """Multiply a straight line by a cosine.

    ``initial * ((alpha + 1 - t) * (1 + cos(2 * pi * num_periods * t)) / 2 + beta)``
    with ``t = min(step, decay_steps) / decay_steps``

    Args:
        initial_learning_rate: The learning rate at step 0, but for alpha and beta.
        decay_steps: How many steps the line takes; above 0.
        num_periods: How many periods of the cosine fit into `decay_steps`.
        alpha: Added to the line.
        beta: Added to the product.
        name: A label that is kept in the config.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If `decay_steps` is not above 0.

    Example:
        >>> LinearCosineDecay(1.0, decay_steps=4, num_periods=1, beta=0.0)(4)
        0.0

    Source: Keras 2.6, ``LinearCosineDecay``; Bello et al. 2017,
    https://arxiv.org/abs/1709.07417.
    """

    initial_learning_rate: Number
    decay_steps: Number
    num_periods: Number = 0.5
    alpha: Number = 0.0
    beta: Number = 0.001
    name: str | None = None

    def _rate(self, step: float) -> float:
        progress = min(1.0, step / as_float(self.decay_steps))
        line = as_float(self.alpha) + 1.0 - progress
        wave = _half_cosine(2.0 * as_float(self.num_periods) * progress)
        shape = line * wave + as_float(self.beta)
        return as_float(self.initial_learning_rate) * shape


@final
@dataclass(eq=False, repr=False)
class NoisyLinearCosineDecay(Formula):
    """Multiply a straight line with fading noise by a cosine.

    ``initial * ((alpha + 1 - t + noise) * (1 + cos(2 * pi * num_periods * t)) / 2
    + beta)``, where ``noise`` is normal with the variance
    ``initial_variance / (1 + min(step, decay_steps)) ** variance_decay``

    Keras draws new noise at every call. Here the noise is a function of the seed and
    the step: a resumed run continues as it would have, and replicas agree.

    Args:
        initial_learning_rate: The learning rate at step 0, but for noise and beta.
        decay_steps: How many steps the line takes; above 0.
        initial_variance: The variance of the noise at step 0; 0 or more.
        variance_decay: The exponent with which the variance fades.
        num_periods: How many periods of the cosine fit into `decay_steps`.
        alpha: Added to the line.
        beta: Added to the product.
        name: A label that is kept in the config.
        seed: Selects the noise; None is seed 0 and stays out of the config.

    Raises:
        TypeError: If an argument is no number, or the seed no int.
        ValueError: If `decay_steps` is not above 0, or `initial_variance` below 0.

    Example:
        >>> schedule = NoisyLinearCosineDecay(1.0, decay_steps=4, seed=7)
        >>> schedule(2) == schedule(2), schedule(2) == schedule(3)
        (True, False)

    Source: Keras 2.6, ``NoisyLinearCosineDecay``; Bello et al. 2017,
    https://arxiv.org/abs/1709.07417.
    """

    initial_learning_rate: Number
    decay_steps: Number
    initial_variance: Number = 1.0
    variance_decay: Number = 0.55
    num_periods: Number = 0.5
    alpha: Number = 0.0
    beta: Number = 0.001
    name: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        seed = self.seed
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            where, action = "NoisyLinearCosineDecay: seed", "Pass an int or None."
            raise TypeError(message(where, "an int", describe(seed), action))

    def _rate(self, step: float) -> float:
        decay_steps = as_float(self.decay_steps)
        progress = min(1.0, step / decay_steps)
        line = as_float(self.alpha) + 1.0 - progress + self._noise(step, decay_steps)
        wave = _half_cosine(2.0 * as_float(self.num_periods) * progress)
        shape = line * wave + as_float(self.beta)
        return as_float(self.initial_learning_rate) * shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments by name, without a seed that was not given."""
        config = super().get_config()
        if self.seed is None:
            del config["seed"]
        return config

    def _noise(self, step: float, decay_steps: float) -> float:
        fading = power(1.0 + min(step, decay_steps), as_float(self.variance_decay))
        generator = torch.Generator()
        seed = (self.seed or 0) * _SEED_STRIDE + math.floor(step)
        generator.manual_seed(seed % _SEED_RANGE)
        noise = torch.randn(
            (), generator=generator, dtype=torch.float64, device="cpu"
        ).item()
        return math.sqrt(as_float(self.initial_variance) / fading) * noise


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))
