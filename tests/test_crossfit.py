"""Cross-fitted beliefs: who trains whom, and that no label judges itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

from fdjax import checks, crossfit, models

MODEL = models.create("mlp", worlds.CLASSES, widths=(8,))
STUDENT, NETWORK = models.trainable(MODEL), models.frozen(MODEL)
OPTIMISER = optax.adam(0.03)


def start(key):
    return models.initialise(MODEL, key, (4, 4, 1))


@functools.cache
def beliefs(at_once=1):
    """Beliefs on the tiny task."""
    return crossfit.log_beliefs(
        jax.random.key(0),
        STUDENT,
        NETWORK,
        start,
        OPTIMISER,
        jnp.asarray(worlds.task().train.images),
        jnp.asarray(worlds.task().train.labels),
        folds=4,
        steps=60,
        batch_size=8,
        at_once=at_once,
    )


def test_folds_spread_every_class_evenly():
    labels = np.array([0, 0, 0, 0, 1, -1, 1, 1, 1, 2, 2])
    fold = crossfit.folds_of(labels, 4)
    assert fold[5] == -1
    assert sorted(fold[:4]) == sorted(fold[[4, 6, 7, 8]]) == [0, 1, 2, 3]
    assert len(set(fold[9:])) == 2


def test_beliefs_are_distributions_that_know_something():
    found = beliefs()
    assert found.shape == (240, worlds.CLASSES)
    np.testing.assert_allclose(jnp.exp(found).sum(axis=1), 1.0, rtol=1e-5)
    unlabelled = worlds.task().train.labels < 0
    guess = np.asarray(found.argmax(axis=1))
    assert len(set(guess[unlabelled])) == worlds.CLASSES
    known = ~unlabelled
    assert (guess[known] == worlds.task().train.labels[known]).mean() > 0.5


def test_students_side_by_side_say_the_same():
    np.testing.assert_allclose(beliefs(), beliefs(at_once=4), atol=1e-3)


def test_no_label_has_a_part_in_its_own_belief():
    images = jnp.asarray(worlds.task().train.images)
    labels = jnp.asarray(worlds.task().train.labels)
    known = np.flatnonzero(np.asarray(labels) >= 0)
    folds = crossfit.folds_of(labels, 4)[known]
    keys = jax.random.split(jax.random.key(0), 4)

    def members(of_labels):
        # Below the public function: another label would give other folds.
        return crossfit._train_and_predict(
            *(STUDENT, NETWORK, start, OPTIMISER, (60, 8, 1), keys, images),
            *(jnp.asarray(known), of_labels, jnp.asarray(folds)),
        )

    base = members(labels[known])
    flipped = members(labels[known].at[0].add(1) % worlds.CLASSES)
    np.testing.assert_array_equal(base[folds[0]], flipped[folds[0]])
    assert (base[(folds[0] + 1) % 4] != flipped[(folds[0] + 1) % 4]).any()


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([0, 0, 1, -1], {}, "class 1 has one labelled example"),
        ([0, 0, 1, 1], {"folds": 1}, "`folds` must be at least 2"),
        ([0, 0, 1, 1], {"steps": 0}, "`steps` must be positive"),
        ([-1, -1, -1, -1], {}, "`labels` names no class"),
    ],
)
def test_bad_input_is_refused(labels, settings, message):
    images = jnp.zeros((4, 4, 4, 1))
    with pytest.raises(checks.InputError, match=message):
        crossfit.log_beliefs(
            jax.random.key(0),
            STUDENT,
            NETWORK,
            start,
            OPTIMISER,
            images,
            jnp.asarray(labels),
            **settings,
        )
