"""Successive elimination on faculties whose order is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import scores, selection
from fdjax.checks import InputError
from fdjax.types import TeacherOutputs

CLASSES, EXAMPLES = 4, 640
LABELS = np.arange(EXAMPLES) % CLASSES
KEY = jax.random.key(0)


def accuracy(outputs, labels, num_classes):
    """Share of examples whose label the teacher, who has the same labels, calls most likely."""
    known = labels >= 0
    return jnp.mean(jnp.argmax(outputs.probabilities, axis=1) == labels, where=known)


def right(share: float, seed: int) -> TeacherOutputs:
    """A teacher of the task's own labels, right in that share of the examples."""
    random = np.random.default_rng(seed)
    wrong = (LABELS + random.integers(1, CLASSES, EXAMPLES)) % CLASSES
    said = np.where(random.uniform(size=EXAMPLES) < share, LABELS, wrong)
    probabilities = 0.9 * np.eye(CLASSES)[said] + 0.1 / CLASSES
    return TeacherOutputs(jnp.asarray(probabilities, jnp.float32), None, None, np.ones(CLASSES))


SHARES = [0.3, 0.45, 0.95, 0.6, 0.25, 0.5, 0.7, 0.4]
FACULTY = [right(share, seed) for seed, share in enumerate(SHARES)]


def test_the_best_is_found_with_a_part_of_the_questions():
    found = selection.eliminate(accuracy, FACULTY, LABELS, CLASSES, key=KEY)
    assert found.decided and found.leaders == (2,)
    assert found.full == len(FACULTY) * EXAMPLES
    assert found.questions < 0.1 * found.full
    assert [one.examples for one in found.rounds] == [16 * 2**n for n in range(len(found.rounds))]
    for one, following in zip(found.rounds, found.rounds[1:], strict=False):
        assert following.teachers == one.kept
    added = np.diff([0, *(one.examples for one in found.rounds)])
    asked = [len(one.teachers) for one in found.rounds]
    assert found.questions == added @ asked


def test_only_what_is_needed_is_asked_and_only_once():
    asked = []

    def ask(positions, rows):
        asked.extend((position, row) for position in positions for row in rows)
        return [
            FACULTY[p]._replace(probabilities=FACULTY[p].probabilities[rows]) for p in positions
        ]

    found = selection.eliminate(accuracy, ask, LABELS, CLASSES, key=KEY, number=len(FACULTY))
    assert len(asked) == len(set(asked)) == found.questions
    known = selection.eliminate(accuracy, FACULTY, LABELS, CLASSES, key=KEY)
    assert found.leaders == known.leaders


def test_equals_are_kept_to_the_end_with_the_scores_of_the_full_pass():
    twins = [FACULTY[2], FACULTY[4], FACULTY[2]]
    found = selection.eliminate(accuracy, twins, LABELS, CLASSES, key=KEY, level=0.99)
    assert not found.decided and found.leaders == (0, 2)
    assert found.rounds[-1].examples == EXAMPLES
    assert found.questions < found.full
    full = selection.score_faculty(accuracy, twins, LABELS, CLASSES)
    np.testing.assert_allclose(found.rounds[-1].scores, full[np.array([0, 2])], rtol=1e-5)


def test_the_best_survives_chance():
    # Close ones: 0.75 beside 0.65, twenty faculties; the best is lost in few of them.
    kept = []
    for seed in range(20):
        close = [right(0.65, 3 * seed), right(0.75, 3 * seed + 1), right(0.65, 3 * seed + 2)]
        found = selection.eliminate(
            accuracy, close, LABELS, CLASSES, key=jax.random.key(seed), level=0.99, first=8
        )
        kept.append(1 in found.leaders)
    assert np.mean(kept) >= 0.9


def test_the_budget_is_kept():
    found = selection.eliminate(accuracy, FACULTY, LABELS, CLASSES, key=KEY, budget=150)
    assert found.questions <= 150 and len(found.rounds) == 1
    assert 2 in found.leaders
    with pytest.raises(InputError, match=r"`budget` of 100 does not suffice .* allow 128 or more"):
        selection.eliminate(accuracy, FACULTY, LABELS, CLASSES, key=KEY, budget=100)


def test_who_has_no_score_is_out():
    spoilt = FACULTY[2]._replace(probabilities=FACULTY[2].probabilities * jnp.nan)
    found = selection.eliminate(accuracy, [*FACULTY[:2], spoilt], LABELS, CLASSES, key=KEY)
    assert found.leaders == (1,)
    with pytest.raises(InputError, match="undefined for all 2 teachers left after 16 examples"):
        selection.eliminate(scores.knn, FACULTY[:2], LABELS, CLASSES, key=KEY)


def test_unlabelled_examples_are_not_asked_about_and_bad_settings_are_refused():
    labels = np.where(np.arange(EXAMPLES) < 100, LABELS, -1)
    found = selection.eliminate(accuracy, FACULTY, labels, CLASSES, key=KEY)
    assert found.full == len(FACULTY) * 100
    with pytest.raises(InputError, match="`first` must be at least 2 examples a class, got 1"):
        selection.eliminate(accuracy, FACULTY, LABELS, CLASSES, key=KEY, first=1)
    with pytest.raises(InputError, match="say their `number`"):
        selection.eliminate(accuracy, lambda p, r: [], LABELS, CLASSES, key=KEY)
    with pytest.raises(InputError, match="there is no teacher"):
        selection.eliminate(accuracy, [], LABELS, CLASSES, key=KEY)
