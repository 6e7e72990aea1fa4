"""An ensemble's loss is the sum over its teachers, each with arrays of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checks, objectives
from fdjax.types import Batch, Outputs

KEYS = jax.random.split(jax.random.key(0), 12)
BATCH = Batch(jnp.zeros((5, 1, 1, 1)), jnp.arange(5) % 3, jnp.arange(5))


def outputs(number, features, maps):
    """Random outputs of one network."""
    keys = jax.random.split(KEYS[number], 2 + len(maps))
    hidden = tuple(
        jax.random.normal(key, (5, 2, 2, width)) for key, width in zip(keys[2:], maps, strict=True)
    )
    return Outputs(
        jax.random.normal(keys[0], (5, 3)), jax.random.normal(keys[1], (5, features)), hidden
    )


STUDENT = outputs(0, 4, (2, 3))
TEACHERS = (outputs(1, 6, (2, 3)), outputs(2, 4, (5, 7)))
PARTS = tuple(map(objectives.part_of, TEACHERS))


def value(objective, teacher):
    """Loss and state after it."""
    begun = objective.init(KEYS[3], BATCH, STUDENT, teacher)
    return jax.jit(objective.loss)(*begun, KEYS[4], BATCH, STUDENT, teacher)


def test_outputs_side_by_side_come_apart_again():
    found = objectives.ensembles.apart(objectives.side_by_side(TEACHERS), PARTS)
    jax.tree.map(np.testing.assert_array_equal, found, list(TEACHERS))
    blind = [each._replace(features=None) for each in TEACHERS]
    assert objectives.side_by_side([blind[0], TEACHERS[1]]).features is None
    assert objectives.side_by_side(blind).logits.shape == (5, 6)


def test_the_loss_is_the_sum_over_teachers():
    together = objectives.side_by_side(TEACHERS)
    for objective in (objectives.kd(), objectives.attention(), objectives.similarity()):
        wanted = sum(value(objective, each)[0] for each in TEACHERS)
        found, _ = value(objectives.ensemble(objective, PARTS), together)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_each_teacher_has_a_bank_and_heads_of_its_own():
    objective = objectives.ensemble(objectives.crd(np.arange(5) % 3, negatives=3), PARTS)
    together = objectives.side_by_side(TEACHERS)
    params, _ = objective.init(KEYS[3], BATCH, STUDENT, together)
    assert [each["teacher"]["kernel"].shape for each in params] == [(6, 128), (4, 128)]
    assert (params[0]["student"]["kernel"] != params[1]["student"]["kernel"]).any()
    found, states = value(objective, together)
    assert np.isfinite(found).all() and len(states) == 2
    assert (states[0].banks.student != states[1].banks.student).any()


def test_wrong_parts_are_refused():
    with pytest.raises(checks.InputError, match="at least one teacher"):
        objectives.ensemble(objectives.kd(), [])
    objective = objectives.ensemble(objectives.kd(), PARTS[:1])
    with pytest.raises(checks.InputError, match="parts add up to"):
        objective.init(KEYS[3], BATCH, STUDENT, objectives.side_by_side(TEACHERS))


@pytest.mark.parametrize("unseen", ["wait", "noise"])
def test_what_only_remembers_at_first_says_so_in_every_sum(unseen):
    bank = objectives.crd(np.arange(5) % 3, negatives=3, unseen=unseen)
    sums = (
        objectives.ensemble(bank, PARTS),
        objectives.weighted_sum((1.0, objectives.kd()), (0.5, bank)),
        objectives.combined(bank, objectives.Weights(1.0, 1.0, 0.8)),
    )
    assert all(each.listens == (unseen == "wait") for each in (bank, *sums))
    assert not objectives.combined(bank, objectives.Weights(1.0, 1.0, 0.0)).listens
