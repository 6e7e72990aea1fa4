"""The confidence at which an example rests: a number, on a schedule, or adapting itself."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks

Value = Float[Array, ""]


class Threshold(NamedTuple):
    """A confidence in [0, 1] that may change from step to step.

    Attributes:
        first: At the first step.
        after: `(value, step, wrong, share) -> value` of the next step, from that of this one,
            the number of steps done with this one, and the shares of the candidates that were
            wrong, and that took part.
    """

    first: float
    after: Callable[[Value, Int[Array, ""], Value, Value], Value]


def threshold(confidence: float | Threshold) -> Threshold:
    """A number as a threshold; a threshold as it is."""
    return confidence if isinstance(confidence, Threshold) else fixed(confidence)


def fixed(value: float) -> Threshold:
    """The same at every step.

    Raises:
        InputError: If it lies outside [0, 1].
    """
    checks.in_range("confidence", value, 0.0, 1.0)
    return Threshold(value, lambda now, step, wrong, share: now)


def annealed(start: float, end: float, steps: int) -> Threshold:
    """On a straight line from `start` to `end`, which it reaches after `steps` and keeps.

    Raises:
        InputError: If an end lies outside [0, 1] or `steps` is not positive.
    """
    checks.in_range("start", start, 0.0, 1.0)
    checks.in_range("end", end, 0.0, 1.0)
    checks.positive("steps", steps)
    return Threshold(
        start,
        lambda now, step, wrong, share: start + (end - start) * jnp.minimum(step / steps, 1.0),
    )


def by_error(start: float, decay: float = 0.99) -> Threshold:
    """Falls with the learner's errors: a running mean of the share of wrong candidates.

    Args:
        start: At the first step, in [0, 1].
        decay: Of the running mean, in [0, 1).

    Raises:
        InputError: If a number is out of range.

    References:
        Our reconstruction, after the adaptive threshold of self-regulatory networks.
    """
    checks.in_range("start", start, 0.0, 1.0)
    checks.require(0.0 <= decay < 1.0, f"`decay` must lie in [0, 1), got {decay}.")
    return Threshold(start, lambda now, step, wrong, share: decay * now + (1.0 - decay) * wrong)


def by_share(target: float, start: float = 0.9, rate: float = 0.5) -> Threshold:
    """Moves until a wanted share of the candidates takes part, as far as it can.

    Those that are wrong take part at any threshold, so a smaller share than theirs is out of
    reach. The step is on the scale of log-odds: what tells confident examples apart lies close
    to one.

    Args:
        target: Share of the candidates, in (0, 1).
        start: At the first step, in (0, 1).
        rate: Log-odds that a step moves for each unit by which the share is off, > 0.

    Raises:
        InputError: If a number is out of range.
    """
    for name, value in (("target", target), ("start", start)):
        checks.require(0.0 < value < 1.0, f"`{name}` must lie in (0, 1), got {value}.")
    checks.positive("rate", rate)

    def after(now: Value, step: Int[Array, ""], wrong: Value, share: Value) -> Value:
        odds = jnp.log(now) - jnp.log1p(-now) + rate * (target - share)
        # From where it could not come back within a run: float32 holds no odds beyond 16.
        return jax.nn.sigmoid(jnp.clip(odds, -12.0, 12.0))

    return Threshold(start, after)
