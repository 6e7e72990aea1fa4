"""Scoring a whole faculty gives what scoring its teachers one by one gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_scores import CLASSES, EXAMPLES, black_box, padded, teacher

from fdjax import scores, selection, sharding
from fdjax.checks import InputError
from fdjax.types import TeacherOutputs

LABELS = teacher()[1]


def small(seed: int) -> TeacherOutputs:
    """A teacher of fewer labels and features than `teacher`."""
    outputs, _ = teacher(seed)
    probabilities = jax.nn.softmax(outputs.features[:, :3])
    return TeacherOutputs(
        probabilities, outputs.features[:, :5], outputs.class_vectors[:3, :5], jnp.ones(3, bool)
    )


def test_stack_pads_with_zero_mass():
    faculty = selection.stack([small(0), teacher(1)[0]])
    assert faculty.probabilities.shape == (2, EXAMPLES, 6)
    assert faculty.features.shape == (2, EXAMPLES, 8)
    assert faculty.class_vectors.shape == (2, 6, 8)
    np.testing.assert_array_equal(faculty.class_mask, [[True] * 3 + [False] * 3, [True] * 6])
    np.testing.assert_array_equal(faculty.probabilities[0, :, 3:], 0)
    np.testing.assert_array_equal(faculty.features[0, :, 5:], 0)
    np.testing.assert_array_equal(faculty.class_vectors[0, 3:], 0)
    np.testing.assert_array_equal(faculty.class_vectors[0, :3, :5], small(0).class_vectors)
    np.testing.assert_array_equal(faculty.source_accuracy, np.float32([np.nan, 0.6]))


def test_stack_marks_black_boxes():
    mixed = selection.stack([teacher(0)[0], black_box(teacher(1)[0])])
    assert jnp.isfinite(mixed.features[0]).all() and jnp.isnan(mixed.features[1]).all()
    assert jnp.isnan(mixed.class_vectors[1]).all()
    blind = selection.stack([black_box(teacher(0)[0]), black_box(teacher(1)[0])])
    assert blind.features is None and blind.class_vectors is None
    rows_only = selection.stack([teacher(0)[0]._replace(features=None)])
    assert rows_only.features is None and rows_only.class_vectors.shape == (1, 6, 8)


# Of every kind one or more; that padding moves none of the others is a test of the scores.
KINDS = ("transport", "reference", "leep", "nce", "logme", "hscore", "sfda", "parc", "knn")


LONG = ("logme", "hscore", "sfda", "parc")  # to compile


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
        for name in (*KINDS, "source_accuracy", "size", "random")
    ],
)
def test_faculty_equals_one_by_one(name):
    score_fn = scores.SCORES[name]
    teachers = [teacher(0)[0], small(1), black_box(teacher(2)[0]), padded(teacher(3)[0])]
    expected = jnp.stack([score_fn(one, LABELS, CLASSES) for one in teachers])
    faculty = selection.stack(teachers)
    found = selection.score_faculty(score_fn, faculty, LABELS, CLASSES)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The black box alone is without a score of features; teacher 1 says nothing of itself.
    of_features = ("logme", "hscore", "sfda", "parc", "knn")
    missing = {key: [2] for key in of_features} | {"source_accuracy": [1], "size": [1]}
    assert np.flatnonzero(np.isnan(found)).tolist() == missing.get(name, [])


@pytest.mark.slow
def test_batches_and_devices_change_nothing():
    faculty = selection.stack([teacher(seed)[0] for seed in range(5)])
    score = functools.partial(selection.score_faculty, scores.leep, faculty, LABELS, CLASSES)
    expected = score()
    assert jax.device_count() == 4
    mesh = sharding.device_mesh()
    np.testing.assert_allclose(score(batch_size=2), expected, atol=1e-6)
    np.testing.assert_allclose(score(mesh=mesh), expected, atol=1e-6)
    np.testing.assert_allclose(score(mesh=mesh, batch_size=1), expected, atol=1e-6)
    solved = functools.partial(scores.transport, level="task", epsilon=0.1)
    one = selection.score_faculty(solved, faculty, LABELS, CLASSES)
    spread = selection.score_faculty(solved, faculty, LABELS, CLASSES, mesh=mesh)
    np.testing.assert_allclose(spread, one, atol=1e-5)


def test_a_second_call_does_not_trace_again():
    traced = []

    def score(outputs, labels, num_classes):
        traced.append(num_classes)
        return outputs.probabilities[labels, 0].sum()

    faculty = selection.stack([teacher(0)[0], teacher(1)[0]])
    first = selection.score_faculty(score, faculty, LABELS, CLASSES)
    second = selection.score_faculty(score, faculty, LABELS, CLASSES)
    np.testing.assert_array_equal(first, second)
    assert traced == [CLASSES]


def test_unlabelled_examples_take_no_part():
    teachers = [teacher(0)[0], teacher(1)[0]]
    labels = np.array(LABELS)
    labels[30:] = -1
    kept = [
        one._replace(probabilities=one.probabilities[:30], features=one.features[:30])
        for one in teachers
    ]
    for score_fn in (scores.transport, scores.leep):
        found = selection.score_faculty(score_fn, selection.stack(teachers), labels, CLASSES)
        expected = selection.score_faculty(score_fn, selection.stack(kept), LABELS[:30], CLASSES)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_value_may_stand_for_all_teachers():
    faculty = selection.stack([teacher(0)[0], teacher(1)[0]])
    shared = faculty._replace(class_mask=jnp.ones(6, bool), num_parameters=100.0)
    np.testing.assert_allclose(
        selection.score_faculty(scores.size, shared, LABELS, CLASSES), np.log([100, 100]), rtol=1e-6
    )
    np.testing.assert_allclose(
        selection.score_faculty(scores.transport, shared, LABELS, CLASSES),
        selection.score_faculty(scores.transport, faculty, LABELS, CLASSES),
    )


def test_bad_faculties_and_labels_are_refused():
    shorter = teacher(0)[0]
    shorter = shorter._replace(
        probabilities=shorter.probabilities[:7], features=shorter.features[:7]
    )
    with pytest.raises(
        InputError, match=r"`teachers\[1\]` has outputs of 7 examples, but .* of 40"
    ):
        selection.stack([teacher(0)[0], shorter])
    with pytest.raises(InputError, match="`teachers` is empty"):
        selection.stack([])
    uneven = teacher(0)[0]._replace(class_vectors=jnp.ones((6, 7)))
    with pytest.raises(InputError, match=r"`teachers\[0\].class_vectors` must have shape \(6, 8\)"):
        selection.stack([uneven])
    faculty = selection.stack([teacher(0)[0]])
    with pytest.raises(InputError, match="`labels` has no example of class 3"):
        selection.score_faculty(scores.leep, faculty, LABELS, CLASSES + 1)
    with pytest.raises(InputError, match=r"`labels` must lie in \[-1, 1\]"):
        selection.score_faculty(scores.leep, faculty, LABELS, 2)
    with pytest.raises(
        InputError, match=r"`faculty.probabilities` must have shape \(any, 9, any\)"
    ):
        selection.score_faculty(scores.leep, faculty, LABELS[:9], CLASSES)
    with pytest.raises(InputError, match="`batch_size` must be positive"):
        selection.score_faculty(scores.leep, faculty, LABELS, CLASSES, batch_size=0)


def test_rank_is_best_first_and_keeps_ties():
    values = jnp.array([0.1, 0.7, 0.7, -jnp.inf, 0.9])
    assert selection.rank(values, list("abcde")) == ("e", "b", "c", "a", "d")
    with pytest.raises(InputError, match=r"NaN for 2 of 3 teachers \(a, c\); leave them out"):
        selection.rank(np.array([np.nan, 1.0, np.nan]), list("abc"))
    with pytest.raises(InputError, match=r"`scores` must have shape \(2\), got \(3,\)"):
        selection.rank(np.arange(3.0), list("ab"))


def test_mixture_by_hand():
    weights = selection.mixture(jnp.array([0.0, jnp.log(3.0), -jnp.inf]), temperature=1.0)
    np.testing.assert_allclose(weights, [0.25, 0.75, 0.0], rtol=1e-6)
    sharp = jax.jit(functools.partial(selection.mixture, temperature=1e-3))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(sharp, [0.0, 1.0], atol=1e-6)
    with pytest.raises(InputError, match="`temperature` must be positive"):
        selection.mixture(jnp.ones(2), temperature=0.0)
    with pytest.raises(InputError, match="`scores` holds NaN"):
        selection.mixture(jnp.array([jnp.nan, 1.0]), temperature=1.0)
