"""Teachers that are run inside the training step, on the very images that the student sees."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from experiments import _task
from fdjax import checks, data, faculty, models, training
from fdjax.data import preprocessing
from fdjax.faculty.cards import preprocessing_of
from fdjax.types import Batch, Outputs, Variables


class Live(NamedTuple):
    """What differs between teachers of one architecture: arguments of the compiled step.

    Attributes:
        variables: Of the network.
        mean: What is subtracted from each channel of an image.
        std: What each channel is divided by.
    """

    variables: Variables
    mean: Any
    std: Any


class Build(NamedTuple):
    """What teachers of one compiled step have in common.

    Attributes:
        model: The network, with as many labels as the widest teacher has.
        image_shape: Height, width and channels of what it reads.
        features: Width to which its features are padded; None if they are not shown.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]
    features: int | None


def load(root: str, name: str, purpose: str) -> tuple[faculty.Card, Variables]:
    """A teacher with its weights.

    Args:
        root: Folder of the faculty.
        name: Of the teacher.
        purpose: What it is wanted for, for the message.

    Raises:
        InputError: If only its outputs are known, or its files are broken.
    """
    card = next(card for card in faculty.cards(root) if card.name == name)
    checks.require(
        card.preprocessing is not None,
        f"teacher {name!r} is known only by its outputs and cannot be run, which {purpose} needs; "
        "name a teacher whose weights the faculty has.",
    )
    card, _, variables = faculty.load(root, name)
    return card, variables


def teachers(
    root: str,
    seen: _task.Observed,
    names: Sequence[str],
    native: data.Preprocessing,
    *,
    labels: Sequence[str] = (),
) -> tuple[training.Teach, tuple[Live, ...]]:
    """Teachers who speak as `_task.teaching` lets their kept outputs speak, but live.

    Args:
        root: Folder of the faculty.
        seen: What its teachers said of the unchanged images, to whose sizes these are padded.
        names: Of the teachers; the logits of several stand side by side.
        native: How the student's images were preprocessed.
        labels: If given, the only labels that are heard, in this order.

    Returns:
        `teach`, the same function for all teachers of one architecture, and its `teacher`.

    Raises:
        InputError: If only the outputs of a teacher are known.
    """
    builds, lives = [], []
    for name in names:
        card, variables = load(root, name, "--augmentation")
        given = preprocessing_of(card)
        width = seen.outputs.probabilities.shape[-1]
        if labels:
            variables = _with_labels(variables, [card.class_names.index(one) for one in labels])
            width = len(labels)
        variables = _padded(variables, width)
        features = None if seen.outputs.features is None else seen.outputs.features.shape[-1]
        builds.append(
            Build(
                models.create(card.architecture, width, **card.options),
                (given.height, given.width, given.channels),
                features,
            )
        )
        mean, std = np.asarray(given.mean, np.float32), np.asarray(given.std, np.float32)
        lives.append(Live(variables, mean, std))
    return _teach(tuple(builds), native), tuple(lives)


@functools.lru_cache(maxsize=64)
def _teach(builds: tuple[Build, ...], native: data.Preprocessing) -> training.Teach:
    """Forward passes on a batch; cached, because a step is compiled for each function object."""

    def teach(lives: tuple[Live, ...], batch: Batch) -> Outputs:
        raw = preprocessing.brightness(batch.images, native)
        answers = [_answer(build, live, raw) for build, live in zip(builds, lives, strict=True)]
        if len(answers) == 1:
            return answers[0]
        return Outputs(jnp.concatenate([answer.logits for answer in answers], axis=1))

    return teach


def _answer(build: Build, live: Live, raw: Array) -> Outputs:
    images = (preprocessing.fit_shape(raw, build.image_shape) - live.mean) / live.std
    outputs = models.predict(build.model, live.variables, images)
    features = outputs.features
    if build.features is None or features is None:
        features = None
    else:
        features = jnp.pad(features, ((0, 0), (0, build.features - features.shape[1])))
    return Outputs(jax.nn.log_softmax(outputs.logits), features)


def _with_head(variables: Variables, kernel: np.ndarray, bias: np.ndarray) -> Variables:
    params = variables["params"] | {"head": {"kernel": kernel, "bias": bias}}
    return variables | {"params": params}


def _with_labels(variables: Variables, chosen: Sequence[int]) -> Variables:
    """The network with some of its labels."""
    head = variables["params"]["head"]
    return _with_head(variables, head["kernel"][:, chosen], head["bias"][chosen])


def _padded(variables: Variables, labels: int) -> Variables:
    """The network with more labels, which it never gives any mass."""
    head = variables["params"]["head"]
    more = (0, labels - len(head["bias"]))
    kernel = np.pad(head["kernel"], ((0, 0), more))
    return _with_head(variables, kernel, np.pad(head["bias"], more, constant_values=-np.inf))
