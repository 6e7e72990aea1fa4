"""A tiny task, its teacher and its student, which tests of several rooms share.

The teacher tells six patterns apart; the task is to tell three pairs of them apart, with few
labels. Arrays are made once and are read-only by custom: no test may donate them.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fdjax import costs, data, metrics, models, objectives, training
from fdjax.types import Batch, Outputs

TEACHER_CLASSES, CLASSES, SHOTS, BATCH = 6, 3, 4, 16


@functools.cache
def source_task():
    """Six patterns of 4x4 pixels, preprocessed; all labelled."""
    raw = data.synthetic(
        num_classes=TEACHER_CLASSES, height=4, width=4, train_per_class=40, noise=0.15, seed=1
    )
    preprocessing = data.native_preprocessing(raw)
    parts = [
        data.Split(data.preprocess(part.images, preprocessing), part.labels)
        for part in (raw.train, raw.test)
    ]
    return data.Task("source", *parts, raw.class_names)


@functools.cache
def task():
    """Which pair is it? Few labels of each pair, the other images unlabelled."""
    source = source_task()
    parts = [data.Split(part.images, part.labels // 2) for part in (source.train, source.test)]
    pairs = data.Task("pairs", *parts, ("pair_0", "pair_1", "pair_2"))
    return data.few_shot(pairs, SHOTS, seed=0)


@functools.cache
def student(name="mlp", **options):
    """A network for the task, in training, and its fresh variables."""
    options = options or {"widths": (8,)}
    model = models.create(name, CLASSES, **options)
    return models.trainable(model), models.initialise(model, jax.random.key(0), (4, 4, 1))


@functools.cache
def teacher():
    """A network trained on the source task, outside training, and its variables."""
    model = models.create("mlp", TEACHER_CLASSES, widths=(16,))
    variables = models.initialise(model, jax.random.key(1), (4, 4, 1))
    taught = lesson(
        objectives.cross_entropy(),
        learner=(models.trainable(model), variables),
        part=source_task().train,
        optimiser=optax.adam(0.03),
    )
    state, _ = training.fit(taught.step, taught.fresh(), taught.batches, None, steps=200)
    return models.frozen(model), state.variables


@functools.cache
def teacher_outputs():
    """What the teacher says of the task's train images."""
    network, variables = teacher()
    return jax.jit(network)(variables, task().train.images)


@functools.cache
def cost():
    """Price from each of the six patterns to each pair, from the few labels."""
    probabilities = jax.nn.softmax(teacher_outputs().logits)
    return costs.from_predictions(probabilities, jnp.asarray(task().train.labels), CLASSES)


def accuracy_on_test_images(variables):
    """Accuracy of the student with these variables."""
    outputs, _ = student()[0](variables, jnp.asarray(task().test.images))
    return float(metrics.accuracy(outputs.logits, jnp.asarray(task().test.labels)))


class Lesson(NamedTuple):
    """All that `fit` wants: `fit(step, fresh(), batches, teacher, steps=...)`.

    `init()` is the state as `init_state` gives it; `fresh()` is a quick copy of it.
    """

    step: training.Step
    init: Callable[[], training.TrainState]
    fresh: Callable[[], training.TrainState]
    batches: Callable[[int], Iterator[Batch]]
    teacher: Any


def lesson(
    objective,
    *,
    learner=None,
    signal: Outputs | None = None,
    part=None,
    labelled=None,
    optimiser=None,
    num_examples=0,
    **settings,
):
    """A learner's training, by default the student's on the task's train images.

    `signal` is what a teacher says of these images. Settings are those of `make_step`.
    """
    network, variables = learner or student()
    part = part or task().train
    optimiser = optimiser or optax.adam(0.03)
    teach = training.no_teacher if signal is None else training.observed

    def batches(start):
        return data.batches(part, BATCH, seed=0, start=start, labelled=labelled)

    def init():
        return training.init_state(
            jax.random.key(2),
            variables,
            network,
            teach,
            objective,
            optimiser,
            next(batches(0)),
            signal,
            num_examples=num_examples,
        )

    first = functools.cache(init)

    def fresh():
        return jax.tree.map(jnp.copy, first())

    step = training.make_step(network, teach, objective, optimiser, **settings)
    return Lesson(step, init, fresh, batches, signal)


def leaves(tree):
    """Arrays of a tree by path, on the host; random keys as their data."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found[jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def assert_same(one, other):
    """The same trees, bit for bit."""
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path, strict=True)
