"""Initialising, running and reading a network, as pure functions of its variables."""

import functools
import math
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from fdjax import checks
from fdjax.types import Network, Outputs, TrainableNetwork, Variables

Images = Float[Array | np.ndarray, "batch height width channels"]


def initialise(model: nn.Module, key: PRNGKeyArray, image_shape: tuple[int, int, int]) -> Variables:
    """Fresh variables of a network.

    Args:
        model: From `create`.
        key: Randomness of the weights.
        image_shape: Height, width and channels of the images.

    Returns:
        Collections "params" and, for a network with batch normalisation, "batch_stats".

    Raises:
        InputError: If `image_shape` is not three positive sizes.
    """
    checks.shape("image_shape", image_shape, (3,))
    checks.positive("image_shape", image_shape)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    # Only the weights are computed, each by itself: one compilation for each shape of weights,
    # shared by all networks, where `jit` would compile anew for each number of classes.
    return dict(model.lazy_init(key, images, train=False))


def predict(model: nn.Module, variables: Variables, images: Images) -> Outputs:
    """What the network says of images, outside training.

    Args:
        model: From `create`.
        variables: Its variables.
        images: Preprocessed images.

    Returns:
        Logits in float32, features and hidden maps; the same on every call, and for an
        image the same in every batch.
    """
    return cast(Outputs, model.apply(variables, jnp.asarray(images), train=False))


def frozen(model: nn.Module) -> Network:
    """The network as a plain function `(variables, images) -> Outputs`, outside training."""
    return functools.partial(predict, model)


def trainable(model: nn.Module) -> TrainableNetwork:
    """The network as a plain function `(variables, images) -> (Outputs, variables)`, in training.

    The returned variables have running statistics moved by this batch; a network
    without such statistics returns its variables as they came.
    """

    def run(variables: Variables, images: Images) -> tuple[Outputs, Variables]:
        outputs, moved = model.apply(
            variables, jnp.asarray(images), train=True, mutable=["batch_stats"]
        )
        return outputs, {**variables, **moved}

    return run


def class_vectors(variables: Variables) -> Float[Array, "classes features"]:
    """One vector of feature space for each class: the rows of the last layer.

    Args:
        variables: Variables of a network of this package (its last layer is "head").

    Raises:
        InputError: If there is no such layer.
    """
    head = variables.get("params", {}).get("head", {})
    checks.require(
        "kernel" in head,
        "the variables have no last layer params/head/kernel, so they are not of a network of "
        "fdjax.models; initialise them with `models.initialise`.",
    )
    return jnp.asarray(head["kernel"]).T


def with_new_head(variables: Variables, num_classes: int, key: PRNGKeyArray) -> Variables:
    """Variables of a trained network with a fresh last layer for other classes.

    Args:
        variables: Variables of a network of this package (its last layer is "head").
        num_classes: Labels that the new last layer tells apart, >= 1.
        key: Randomness of its weights.

    Returns:
        Variables for `create` with the same architecture and options and `num_classes`; all
        arrays but those of the last layer are the old ones.

    Raises:
        InputError: If there is no such layer, or `num_classes` is not positive.
    """
    checks.positive("num_classes", num_classes)
    features = jax.ShapeDtypeStruct((1, class_vectors(variables).shape[1]), jnp.float32)
    head = nn.Dense(num_classes).lazy_init(key, features)["params"]
    return {**variables, "params": {**variables["params"], "head": head}}


def num_parameters(variables: Variables) -> int:
    """Trained numbers of a network; running statistics do not count."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
