"""How a teacher that can be run answers a batch of images."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from fdjax import models
from fdjax.faculty import fitting, onnx_files, repository
from fdjax.faculty.cards import ONNX, Card
from fdjax.faculty.repository import Root
from fdjax.types import Variables


class Runner(NamedTuple):
    """A teacher with its weights, ready to answer.

    Attributes:
        answer: From preprocessed images to probabilities and, where known, features.
        class_vectors: Rows of its last layer; None where unknown.
        batch_size: The only number of images that it takes at once; None for any.
    """

    answer: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    class_vectors: np.ndarray | None
    batch_size: int | None


def runner(root: Root, card: Card) -> Runner:
    """Loads a teacher to be run.

    Raises:
        InputError: If its files are damaged or not those of its card, only its outputs are
            known, or the package that runs it is not installed.
    """
    if card.architecture == ONNX:
        ready = onnx_files.network(card, repository.load_onnx(root, card))
        return Runner(ready.answer, None, ready.batch_size)
    card, _, variables = repository.load(root, card.name)
    model, on_device = fitting.network(card), jax.device_put(variables)

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        probabilities, features = _forward(model, on_device, images)
        return np.asarray(probabilities), None if features is None else np.asarray(features)

    return Runner(answer, np.asarray(models.class_vectors(variables)), None)


# The weights are an argument, so teachers of one architecture and number of labels share
# one compiled function: equal modules are equal static arguments.
@functools.partial(jax.jit, static_argnames="model")
def _forward(
    model: nn.Module, variables: Variables, images: Float[Array, "batch height width channels"]
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"] | None]:
    outputs = models.predict(model, variables, images)
    return jax.nn.softmax(outputs.logits), outputs.features
