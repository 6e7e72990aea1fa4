"""What frozen features are worth: a linear classifier trained on them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fdjax import checks

_TOLERANCE = 1e-4


@partial(jax.jit, static_argnums=2)
def fit(
    features: Float[Array, "examples features"],
    labels: Int[Array, " examples"],
    num_classes: int,
    decay: float,
) -> tuple[Float[Array, "features classes"], Float[Array, " classes"], Array]:
    """Multinomial logistic regression: kernel, bias, and the norm of the gradient at the end.

    The optimum is unique but for a shift of the biases, so no seed and no schedule plays a part.

    Args:
        features: Of the training images.
        labels: Of these.
        num_classes: Of the task.
        decay: Weight of half the squared kernel beside the mean cross-entropy, > 0.
    """

    def loss(params: Any) -> Array:
        kernel, bias = params
        surprise = optax.softmax_cross_entropy_with_integer_labels(features @ kernel + bias, labels)
        return surprise.mean() + 0.5 * decay * jnp.sum(kernel**2)

    solver = optax.lbfgs()
    graded = optax.value_and_grad_from_state(loss)

    def go_on(carry: Any) -> Array:
        _, _, size, step = carry
        return (step < 500) & (size > _TOLERANCE)

    def step(carry: Any) -> Any:
        params, state, _, number = carry
        value, gradient = graded(params, state=state)
        updates, state = solver.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        params = optax.apply_updates(params, updates)
        size = optax.tree_utils.tree_norm(optax.tree_utils.tree_get(state, "grad"))
        return params, state, size, number + 1

    params = jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes)
    first = params, solver.init(params), jnp.asarray(jnp.inf), 0
    (kernel, bias), _, size, _ = jax.lax.while_loop(go_on, step, first)
    return kernel, bias, size


def accuracy(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    *,
    decay: float = 1e-3,
) -> float:
    """Accuracy on test features of a linear classifier trained on others.

    Features are standardised by the training ones; one that never changes is left out.

    Args:
        train: Features and labels.
        test: Features and labels.
        num_classes: Of the task.
        decay: As for `fit`, for standardised features.

    Raises:
        InputError: If the features hold NaN or infinity.
    """
    checks.finite("the features of the probe", train[0])
    mean, std = train[0].mean(axis=0), train[0].std(axis=0)
    scale = np.where(std > 1e-6, 1 / np.maximum(std, 1e-6), 0.0)
    kernel, bias, _ = fit(
        jnp.asarray((train[0] - mean) * scale, jnp.float32),
        jnp.asarray(train[1]),
        num_classes,
        decay,
    )
    logits = ((test[0] - mean) * scale) @ np.asarray(kernel) + np.asarray(bias)
    return float((logits.argmax(axis=1) == test[1]).mean())
