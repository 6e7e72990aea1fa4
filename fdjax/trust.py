"""How much a student should trust its own belief and each teacher, from its few labels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks

# Bisections of a weight and rounds through all weights: more change no digit that matters.
_HALVINGS, _ROUNDS = 16, 24
# A class to which a belief gives less than this (in nats) counts as if it gave this.
_FLOOR = -30.0


class Trust(NamedTuple):
    """Weights of a logarithmic pool of the student's belief and its teachers' evidence.

    Attributes:
        belief: Exponent of the student's own belief, >= 0; below one where it is overconfident.
        teachers: Exponent of each teacher's evidence, >= 0; zero where it is not trusted.
        gain: Penalised log-likelihood of the labels by which the pool beats the belief, in nats.
    """

    belief: Float[Array, "*batch"]
    teachers: Float[Array, "*batch teachers"]
    gain: Float[Array, "*batch"]


def fit(
    log_beliefs: Float[Array, "examples classes"],
    log_updates: Float[Array, "teachers examples classes"],
    labels: Int[Array, " examples"],
    *,
    penalty: float | Float[Array, ""] = 4.0,
    largest: float = 3.0,
) -> Trust:
    """Trust that makes the labels most likely, every teacher being useless until proven useful.

    Maximises  sum_i log softmax(b log q_i + sum_k w_k log u_ki)[y_i] - penalty sum_k w_k  over
    b, w in [0, `largest`]. The penalty is a prior of mean 1 / penalty on each weight: a teacher
    whose evidence does not gain `penalty` nats per unit of weight gets the weight zero exactly,
    and the more labels, the less the penalty counts. The problem is concave; it is solved one
    weight at a time.

    Both inputs must not have seen the label they judge: beliefs from students of other folds,
    updates from `costs.leave_one_out_predictor` (its logarithm less that of the prior).

    Args:
        log_beliefs: Student's log-probabilities of each example, not trained on it.
        log_updates: Evidence of each teacher, as in `belief.pooled_target`; zero says nothing.
        labels: Class of each example; unlabelled examples (-1) take no part.
        penalty: Nats that a unit of trust in a teacher costs, >= 0.
        largest: Upper bound of every exponent, > 0.

    Returns:
        The trust. A pure function for `jit` and `vmap`.

    Raises:
        InputError: If a shape does not fit, a label is out of range, `largest` is not positive or
            `penalty` is negative.
    """
    checks.positive("largest", largest)
    if checks.is_concrete(penalty):
        checks.require(float(penalty) >= 0, f"`penalty` must be >= 0, got {penalty}.")
    examples, classes = log_beliefs.shape
    checks.shape("log_updates", log_updates, (None, examples, classes))
    checks.labels("labels", labels, classes, unlabelled=True)
    labelled = (labels >= 0).astype(log_beliefs.dtype)
    member = jax.nn.one_hot(labels, classes, dtype=log_beliefs.dtype)
    voices = jnp.concatenate([jax.nn.log_softmax(log_beliefs)[None], log_updates])
    # Zero times minus infinity would be NaN.
    voices = jnp.maximum(voices, _FLOOR) * labelled[:, None]
    price = jnp.full(len(voices), penalty, log_beliefs.dtype).at[0].set(0.0)

    def value(weights: Float[Array, " voices"]) -> Float[Array, ""]:
        logits = jnp.tensordot(weights, voices, 1)
        return jnp.sum(jax.nn.log_softmax(logits) * member) - jnp.sum(price * weights)

    def improve(index: Int[Array, ""], weights: Float[Array, " voices"]) -> Array:
        """The best weight of one voice, the others as they are."""
        voice = voices[index]
        rest = jnp.tensordot(weights.at[index].set(0.0), voices, 1)
        told = jnp.sum(voice * member)

        def rising(weight: Float[Array, ""]) -> Array:
            guess = jax.nn.softmax(rest + weight * voice) * labelled[:, None]
            return told - jnp.sum(guess * voice) - price[index] > 0

        def halve(_: Int[Array, ""], ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = (ends[0] + ends[1]) / 2
            up = rising(middle)
            return jnp.where(up, middle, ends[0]), jnp.where(up, ends[1], middle)

        zero, bound = jnp.zeros_like(told), jnp.full_like(told, largest)
        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (zero, bound))
        best = jnp.where(rising(bound), bound, (low + high) / 2)
        return weights.at[index].set(jnp.where(rising(zero), best, 0.0))

    def climb(weights: Float[Array, " voices"], voices_in_play: int) -> Float[Array, " voices"]:
        def sweep(_: Int[Array, ""], found: Array) -> Array:
            return jax.lax.fori_loop(0, voices_in_play, improve, found)

        return jax.lax.fori_loop(0, _ROUNDS, sweep, weights)

    alone = climb(jnp.zeros_like(price), 1)
    pooled = climb(alone, len(voices))
    gain = jnp.maximum(value(pooled) - value(alone), 0.0)
    return Trust(pooled[0], pooled[1:], gain)
