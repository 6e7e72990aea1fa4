"""Students that train in one program end as each would alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from fdjax import data, objectives, training
from fdjax.checks import InputError

STEPS = 6
PART = worlds.task().train


@functools.cache
def lesson(weight, cost_scale=1.0):
    """With something in every part of the state; weights and costs are numbers of a student."""
    labels = (1.0, objectives.cross_entropy())
    teacher = (weight, objectives.transport(cost_scale * worlds.cost()))
    return worlds.lesson(
        objectives.weighted_sum(labels, teacher),
        signal=worlds.teacher_outputs(),
        labelled=8,
        num_examples=len(PART),
        confidence=0.9,
    )


def batches(seed):
    return lambda start: data.batches(PART, worlds.BATCH, seed=seed, start=start, labelled=8)


def rows(*seeds):
    drawn = [itertools.islice(batches(seed)(0), STEPS) for seed in seeds]
    return np.stack([[batch.indices for batch in one] for one in drawn])


def together(lessons, seeds, **changes):
    settings = {
        "states": [one.fresh() for one in lessons],
        "rows": rows(*seeds),
        "teachers": [one.teacher for one in lessons],
    } | changes
    return training.fit_together(
        lessons[0].step, images=PART.images, labels=PART.labels, **settings
    )


def test_each_student_ends_as_it_does_alone():
    kinds = [(lesson(0.5), 0), (lesson(2.0), 0), (lesson(0.5, 3.0), 1)]
    found = together(*zip(*kinds, strict=True))
    for (one, seed), state in zip(kinds, found, strict=True):
        alone, _ = training.fit(
            kinds[0][0].step, one.fresh(), batches(seed), one.teacher, steps=STEPS
        )
        wanted, state = worlds.leaves(alone), worlds.leaves(state)
        assert wanted.keys() == state.keys()
        for path, leaf in wanted.items():
            np.testing.assert_allclose(state[path], leaf, rtol=2e-4, atol=1e-5, err_msg=path)
    kernels = [state.variables["params"]["head"]["kernel"] for state in found]
    assert all((one != other).any() for one, other in itertools.combinations(kernels, 2))


def test_the_states_handed_in_stay_the_callers():
    states = [lesson(0.5).fresh()]
    together([lesson(0.5)], [0], states=states)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(states))


def test_what_cannot_train_together_is_refused():
    one = lesson(0.5)
    other = one.fresh()._replace(counts=jnp.zeros(3, jnp.int32))
    for changes, message in (
        ({"states": []}, "holds none of the students"),
        ({"teachers": [one.teacher]}, "`teachers` has 1 entries for 2 students"),
        ({"states": [one.fresh(), other]}, "`states` of students .* must have the same shapes"),
        ({"rows": rows(0)}, r"`rows` must have shape \(2, any, any\)"),
    ):
        with pytest.raises(InputError, match=message):
            together([one, one], [0, 1], **changes)


def test_a_student_that_diverges_is_named():
    spoilt = lesson(0.5).fresh()
    spoilt = spoilt._replace(variables=jax.tree.map(lambda leaf: leaf * jnp.nan, spoilt.variables))
    with pytest.raises(InputError, match=r"number 1 of the students diverged: .* after step 6"):
        together([lesson(0.5)] * 2, [0, 0], states=[lesson(0.5).fresh(), spoilt])
