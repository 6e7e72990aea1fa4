"""Softmax regression of the labels on a teacher's features, fitted to its end."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax.scores._labelled import HIGHEST

Features: TypeAlias = Float[Array, "examples features"]
Member: TypeAlias = Float[Array, "examples num_classes"]
Logits: TypeAlias = Float[Array, "examples num_classes"]
Layer: TypeAlias = tuple[Float[Array, "features num_classes"], Float[Array, " num_classes"]]
"""Weights and biases of a linear layer."""

# Newton's method takes about a dozen steps, of about six inner steps each.
NEWTON_STEPS = 30
INNER_STEPS = 40
INNER_TOLERANCE = 0.2
LENGTHS = (1.0, 2.0, 0.5, 0.25, 0.125, 0.0625)


class _State(NamedTuple):
    layer: Layer
    value: Float[Array, ""]
    gain: Float[Array, ""]
    steps: Int[Array, ""]


def logits(layer: Layer, features: Features, member: Member) -> Logits:
    """Logits of the layer; those of classes without an example are minus infinity."""
    values = jnp.matmul(features, layer[0], precision=HIGHEST) + layer[1]
    return jnp.where(member.any(axis=0), values, -jnp.inf)


def cross_entropy(values: Logits, member: Member) -> Float[Array, ""]:
    """Mean surprise at the labels, in nats; rows of zeros in `member` are unlabelled."""
    logarithms = jnp.where(member > 0, jax.nn.log_softmax(values), 0.0)
    return -jnp.sum(logarithms) / jnp.maximum(jnp.sum(member), 1.0)


def curvature(
    values: Logits, features: Features, member: Member
) -> tuple[Float[Array, "features num_classes"], Float[Array, " num_classes"]]:
    """Diagonal of the second derivative of the mean cross-entropy, by weights and biases."""
    probabilities = jax.nn.softmax(values)
    share = member.sum(axis=1, keepdims=True) / jnp.maximum(jnp.sum(member), 1.0)
    variance = share * probabilities * (1 - probabilities)
    weights = jnp.matmul(features.T**2, variance, precision=HIGHEST)
    return weights, variance.sum(axis=0)


def _objective(
    values: Logits, weights: Float[Array, "features num_classes"], member: Member, decay: Array
) -> Float[Array, ""]:
    return cross_entropy(values, member) + decay / 2 * jnp.sum(weights**2)


def _gradient(layer: Layer, features: Features, member: Member, decay: Array) -> Layer:
    def value(layer: Layer) -> Float[Array, ""]:
        return _objective(logits(layer, features, member), layer[0], member, decay)

    return jax.grad(value)(layer)


@jax.custom_jvp
def fit(features: Features, member: Member, decay: Float[Array, ""]) -> Layer:
    """The layer of least cross-entropy plus decay / 2 times the sum of squared weights.

    Newton's method with conjugate gradients for its steps. Derivatives are those of the
    optimum, by the implicit function theorem.

    Args:
        features: One row an example; their mean is best zero.
        member: One-hot classes; rows of zeros are unlabelled and take no part.
        decay: Penalty of the squared weights, > 0; biases have none.

    Returns:
        The layer, as far as its type can tell.
    """

    def newton_step(state: _State) -> _State:
        slope, second = jax.linearize(
            lambda layer: _gradient(layer, features, member, decay), state.layer
        )
        now = logits(state.layer, features, member)
        weights, biases = curvature(now, features, member)
        # Where every example is surely of a class or surely not, none is left.
        biases = jnp.maximum(biases, jnp.finfo(biases.dtype).eps)

        def precondition(layer: Layer) -> Layer:
            return layer[0] / (weights + decay), layer[1] / biases

        move, _ = jax.scipy.sparse.linalg.cg(
            second, slope, tol=INNER_TOLERANCE, maxiter=INNER_STEPS, M=precondition
        )
        gain = jnp.sum(slope[0] * move[0]) + jnp.sum(slope[1] * move[1])
        # Far from the optimum a full step may lead up; the best of a few lengths does not. Near
        # it they differ by less than their rounding, and the full step is the right one.
        change = jnp.matmul(features, move[0], precision=HIGHEST) + move[1]

        def at(length: Float[Array, ""]) -> Float[Array, ""]:
            weights = state.layer[0] - length * move[0]
            return _objective(now - length * change, weights, member, decay)

        lengths = jnp.asarray(LENGTHS, now.dtype)
        tried = jax.lax.map(at, lengths)
        best = jnp.argmin(tried.at[0].add(-8 * jnp.finfo(tried.dtype).eps * state.value))
        layer = jax.tree.map(lambda old, step: old - lengths[best] * step, state.layer, move)
        return _State(layer, tried[best], gain, state.steps + 1)

    def unfinished(state: _State) -> Array:
        # The logarithms that make the value are rounded as numbers near one are.
        enough = jnp.finfo(state.gain.dtype).eps * jnp.maximum(state.value, 0.05)
        return (state.gain > enough) & (state.steps < NEWTON_STEPS)

    one = jnp.ones((), decay.dtype)
    start = (
        jnp.zeros((features.shape[1], member.shape[1]), decay.dtype),
        jnp.zeros(member.shape[1], decay.dtype),
    )
    state = _State(start, one, one, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, newton_step, state).layer


@fit.defjvp
def _of_the_optimum(primals: Any, tangents: Any) -> Any:
    """The gradient stays zero: what the inputs change in it, the layer takes back."""
    layer = fit(*primals)
    _, change = jax.jvp(lambda *inputs: _gradient(layer, *inputs), primals, tangents)
    _, second = jax.linearize(lambda layer: _gradient(layer, *primals), layer)

    def solve(second: Any, right: Layer) -> Layer:
        return jax.scipy.sparse.linalg.cg(second, right, tol=1e-7, maxiter=10 * INNER_STEPS)[0]

    # `cg` on its own, where `change` is a tangent, could not be transposed.
    move = jax.lax.custom_linear_solve(second, change, solve, symmetric=True)
    return layer, jax.tree.map(jnp.negative, move)
