"""Teachers of different sizes in buckets, batches by memory, and teachers whose outputs are bad."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_scores import CLASSES, EXAMPLES, black_box, padded, teacher
from test_selection import LABELS, small

from fdjax import scores, selection
from fdjax.checks import InputError
from fdjax.selection import memory
from fdjax.types import TeacherOutputs


def wide(seed: int, labels: int) -> TeacherOutputs:
    """A black box of many labels."""
    logits = jnp.asarray(np.random.default_rng(seed).normal(size=(EXAMPLES, labels)), jnp.float32)
    return TeacherOutputs(jax.nn.softmax(logits), None, None, jnp.ones(labels, bool))


def test_buckets_hold_teachers_of_like_sizes():
    teachers = [teacher(0)[0], wide(0, 1000), small(1), teacher(2)[0], wide(1, 9)]
    buckets = selection.bucket(teachers)
    assert buckets.positions == ((2,), (0, 3), (4,), (1,))
    # Padded to the largest of a bucket, not to a power of two.
    assert [part.probabilities.shape[2] for part in buckets.faculties] == [3, 6, 9, 1000]
    assert buckets.faculties[3].features is None


def test_scores_in_buckets_are_those_of_one_stack_in_the_given_order():
    teachers = [teacher(0)[0], wide(0, 1000), small(1), teacher(2)[0], black_box(teacher(3)[0])]
    wanted = selection.score_faculty(scores.leep, selection.stack(teachers), LABELS, CLASSES)
    for faculty in (teachers, selection.bucket(teachers)):
        found = selection.score_faculty(scores.leep, faculty, LABELS, CLASSES)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    of_features = selection.score_faculty(scores.knn, teachers, LABELS, CLASSES)
    assert np.isnan(of_features).tolist() == [False, True, False, False, True]


def test_a_bucket_is_compiled_once():
    traced = []

    def score(outputs, labels, num_classes):
        traced.append(outputs.probabilities.shape)
        return outputs.probabilities[jnp.arange(len(labels)), labels].mean()

    teachers = [small(0), teacher(1)[0], small(2), wide(0, 300), teacher(3)[0]]
    for _ in range(2):
        found = selection.score_faculty(score, teachers, LABELS, CLASSES)
    assert traced == [(EXAMPLES, 3), (EXAMPLES, 6), (EXAMPLES, 300)]
    rows = np.arange(EXAMPLES)
    wanted = [np.asarray(one.probabilities)[rows, LABELS].mean() for one in teachers]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_unequal_numbers_of_examples_are_refused_before_any_compute():
    shorter = small(1)._replace(probabilities=jnp.ones((7, 3)) / 3, features=None)
    with pytest.raises(InputError, match=r"`teachers\[2\]` has outputs of 7 examples"):
        selection.score_faculty(scores.leep, [teacher(0)[0], wide(0, 99), shorter], LABELS, CLASSES)


def test_peak_counts_what_is_alive_at_once():
    def function(x):
        square = x @ x.T  # 100 x 100
        row = square.sum(axis=0)
        again = row[:, None] * row  # 100 x 100, after the first is gone
        return again.sum()

    program = jax.make_jaxpr(function)(jnp.zeros((100, 3), jnp.float32)).jaxpr
    assert 4 * 100 * 100 <= memory.peak_bytes(program) < 1.5 * 4 * 100 * 100

    def looped(x):
        return jax.lax.map(lambda row: function(row[:, None] * x), x).sum()

    program = jax.make_jaxpr(looped)(jnp.zeros((100, 100), jnp.float32)).jaxpr
    assert 4 * 100 * 100 <= memory.peak_bytes(program) < 5 * 4 * 100 * 100


def test_batches_bound_memory_and_are_equal_where_possible():
    def program(examples):
        return jax.make_jaxpr(lambda x: (x @ x.T).max())(jnp.zeros((examples, 2))).jaxpr

    # 4 MB a teacher: eight in 32 MiB; twenty go in batches of five, seventeen of eight.
    assert memory.batch_size(program(1000), 20) == 5
    assert memory.batch_size(program(1000), 17) == 8
    assert memory.batch_size(program(5000), 1000) == 1, "at least one, however large"
    assert memory.batch_size(program(10), 1000) == 1000


BAD = {
    "NaN": (lambda p: p.at[3, 1].set(jnp.nan), r"1 examples are NaN or infinite \(first: 3\)"),
    "infinite": (lambda p: p.at[3:5, 1].set(jnp.inf), "2 examples are NaN or infinite"),
    "logits": (lambda p: jnp.log(p), "a probability of example 0 is negative"),
    "percent": (lambda p: 100 * p, r"do not sum to one \(example 0: 100\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_teacher_of_a_thousand_spoils_no_other(kind):
    spoil, reason = BAD[kind]
    teachers = [wide(seed, 6) for seed in range(20)] * 50
    teachers[700] = teachers[700]._replace(probabilities=spoil(teachers[700].probabilities))
    faculty = selection.stack(teachers)
    for score_fn in (scores.leep, scores.random):
        found = np.asarray(selection.score_faculty(score_fn, faculty, LABELS, CLASSES))
        assert np.flatnonzero(np.isnan(found)).tolist() == [700]
        np.testing.assert_array_equal(found[701:720], found[1:20])
    names = [f"t{place}" for place in range(1000)]
    leep = selection.score_faculty(scores.leep, faculty, LABELS, CLASSES)
    with pytest.raises(InputError, match=r"NaN for 1 of 1000 teachers \(t700\)"):
        selection.rank(leep, names)
    ranking = selection.rank(leep, names, undefined="last")
    assert ranking[-1] == "t700" and set(ranking) == set(names)
    (position, words), *others = selection.faults(faculty).items()
    assert position == 700 and not others
    assert re.search(reason, words)


def test_a_bad_teacher_does_not_reach_the_others_through_a_common_solver():
    teachers = [teacher(seed)[0] for seed in range(3)]
    spoilt = teachers[1]._replace(probabilities=teachers[1].probabilities.at[0, 0].set(jnp.nan))

    def task_level(outputs, labels, num_classes):
        return scores.transport(outputs, labels, num_classes, level="task")

    good = selection.score_faculty(task_level, teachers, LABELS, CLASSES)
    found = selection.score_faculty(task_level, [teachers[0], spoilt, teachers[2]], LABELS, CLASSES)
    assert np.isnan(found).tolist() == [False, True, False]
    np.testing.assert_allclose(found[::2], good[::2], atol=1e-5)


def test_partly_known_features_are_a_fault_and_none_are_not():
    partly = teacher(0)[0]
    partly = partly._replace(features=partly.features.at[4, 2].set(jnp.nan))
    faculty = selection.stack([teacher(1)[0], black_box(teacher(2)[0]), partly, padded(small(3))])
    assert selection.faults(faculty) == {2: "features hold NaN or infinity (first in example 4)"}
    found = selection.score_faculty(scores.knn, faculty, LABELS, CLASSES)
    assert np.isnan(found).tolist() == [False, True, True, False]
    predictions = selection.score_faculty(scores.leep, faculty, LABELS, CLASSES)
    assert np.isfinite(predictions).all()


# That the other scores say NaN is a test of the scores; these see no features at all.
NOT_OF_FEATURES = {"transport", "reference", "leep", "nce", "pactran", "pactran_gamma"}
CONSTANT_TOO = NOT_OF_FEATURES | {"logme", "knn"}
ALWAYS = {"source_accuracy", "size", "random"}


@pytest.mark.slow
@pytest.mark.parametrize("name", scores.SCORES)
def test_degenerate_tasks_give_numbers_or_nan_never_an_error(name):
    one, _ = teacher(0)
    nothing = one._replace(features=one.features[:, :0], class_vectors=one.class_vectors[:, :0])
    constant = one._replace(features=jnp.ones_like(one.features))
    found = selection.score_faculty(scores.SCORES[name], [one, nothing, constant], LABELS, CLASSES)
    wanted = [True, name in NOT_OF_FEATURES | ALWAYS, name in CONSTANT_TOO | ALWAYS]
    assert np.isfinite(found).tolist() == wanted


def test_tasks_without_enough_examples_are_refused():
    faculty = [teacher(0)[0]]
    single = np.full(EXAMPLES, -1)
    single[5] = 0
    with pytest.raises(InputError, match="`labels` has no example of class 1"):
        selection.score_faculty(scores.leep, faculty, single, CLASSES)
    with pytest.raises(InputError, match="`k` must be at least 1 and below the 1 examples"):
        selection.score_faculty(scores.knn, faculty, single, 1)
    np.testing.assert_allclose(selection.score_faculty(scores.leep, faculty, single, 1), [0.0])
