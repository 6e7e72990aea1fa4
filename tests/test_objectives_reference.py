"""Reference transport as an objective: what it reads, whom it trusts, and that it teaches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

from fdjax import belief, checks, costs, losses, objectives, training
from fdjax.trust import Trust
from fdjax.types import Batch, Outputs

KEYS = jax.random.split(jax.random.key(0), 5)
ROWS = jnp.array([7, 2, 5, 0])
BATCH = Batch(jnp.zeros((4, 1, 1, 1)), jnp.full(4, -1), ROWS)
STUDENT = Outputs(jax.random.normal(KEYS[0], (4, 3)))
TEACHER = Outputs(2 * jax.random.normal(KEYS[1], (4, 6)))
COST = 3 * jax.random.uniform(KEYS[2], (6, 3))
BELIEFS = jax.nn.log_softmax(jax.random.normal(KEYS[3], (8, 3)))
PRIOR = jnp.log(jnp.array([0.5, 0.3, 0.2]))


def value(objective, student=STUDENT, teacher=TEACHER, batch=BATCH):
    """Loss of each example at the first step."""
    params, state = objective.init(KEYS[4], batch, student, teacher)
    return objective.loss(params, state, KEYS[4], batch, student, teacher)[0]


def test_by_default_it_is_the_loss_of_that_name():
    settings = {"temperature": 2.0, "epsilon": 0.5, "form": "sharp", "gate": "power", "level": 2.0}
    found = value(objectives.reference(COST, **settings))
    wanted = losses.reference(STUDENT.logits, TEACHER.logits, COST, **settings)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_labelled_images_are_taught_if_asked_and_the_mean_is_over_those_taught():
    some = BATCH._replace(labels=jnp.array([0, -1, 2, -1]))
    everything = value(objectives.reference(COST))
    found = value(objectives.reference(COST), batch=some)
    np.testing.assert_allclose(found, 2 * everything * jnp.array([0, 1, 0, 1]), rtol=1e-6)
    found = value(objectives.reference(COST, labelled=True), batch=some)
    np.testing.assert_allclose(found, everything, rtol=1e-6)
    nobody = BATCH._replace(labels=jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(value(objectives.reference(COST), batch=nobody), 0.0)


def test_beliefs_are_those_of_the_batch_and_trust_weighs_them():
    trust = Trust(jnp.array(0.5), jnp.array([2.0]), jnp.array(1.0))
    objective = objectives.reference(
        COST, log_beliefs=BELIEFS, trust=trust, log_prior=PRIOR, form="soft"
    )
    against = jnp.broadcast_to(PRIOR, (4, 3))
    update = belief.log_update(against, jax.nn.softmax(TEACHER.logits), COST)
    wanted = jax.nn.softmax(0.5 * BELIEFS[ROWS] + 2.0 * update)
    expected = -jnp.sum(wanted * jax.nn.log_softmax(STUDENT.logits), axis=1)
    np.testing.assert_allclose(value(objective), expected, rtol=1e-5)


def test_teachers_stand_side_by_side_and_a_silent_one_says_nothing():
    costs_of_both = jnp.stack([COST, COST[::-1]])
    both = Outputs(jnp.concatenate([TEACHER.logits, TEACHER.logits[:, ::-1]], axis=1))
    one = value(objectives.reference(COST, form="soft"))
    # Renumbered labels with a cost renumbered alike: the same evidence, heard twice.
    twice = belief.pooled_target(
        STUDENT.logits,
        jnp.stack([belief.log_update(STUDENT.logits, jax.nn.softmax(TEACHER.logits), COST)] * 2),
        jnp.ones(2),
    )
    found = value(objectives.reference(costs_of_both, form="soft"), teacher=both)
    np.testing.assert_allclose(found, losses.gated(STUDENT.logits, twice, form="soft"), rtol=1e-5)
    silent = Outputs(both.logits.at[:, 6:].set(-jnp.inf))
    found = value(objectives.reference(costs_of_both, form="soft"), teacher=silent)
    np.testing.assert_allclose(found, one, rtol=1e-5)


def test_without_trust_there_is_the_belief_or_nothing():
    trust = Trust(jnp.array(1.0), jnp.zeros(1), jnp.zeros(()))
    belief_alone = value(objectives.reference(COST, trust=trust))
    np.testing.assert_allclose(
        belief_alone, losses.gated(STUDENT.logits, jax.nn.softmax(STUDENT.logits)), rtol=1e-5
    )
    objective = objectives.reference(COST, trust=trust, only_trusted=True)
    found, gradient = jax.value_and_grad(lambda z: value(objective, Outputs(z)).sum())(
        STUDENT.logits
    )
    assert found == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_an_annealed_target_is_soft_at_first_and_hard_in_the_end():
    objective = objectives.reference(COST, log_beliefs=BELIEFS, annealed=4.0)
    params, state = objective.init(KEYS[4], BATCH, STUDENT, TEACHER)
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0):
        found, state = objective.loss(params, state, KEYS[4], BATCH, STUDENT, TEACHER)
        update = belief.log_update(BELIEFS[ROWS], jax.nn.softmax(TEACHER.logits), COST)
        wanted = losses.annealed(jax.nn.softmax(BELIEFS[ROWS] + update), progress)
        expected = -jnp.sum(wanted * jax.nn.log_softmax(STUDENT.logits), axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_term_fades_as_the_student_overtakes_the_target():
    some = BATCH._replace(labels=jnp.array([0, -1, 2, -1]))
    plain, fading = (
        objectives.reference(COST, log_beliefs=BELIEFS, fading=fading) for fading in (False, True)
    )
    update = belief.log_update(BELIEFS[ROWS], jax.nn.softmax(TEACHER.logits), COST)
    target = jax.nn.softmax(BELIEFS[ROWS] + update)
    at_labels = -jnp.log(target)[jnp.array([0, 2]), jnp.array([0, 2])].sum()
    params, state = fading.init(KEYS[4], some, STUDENT, TEACHER)
    past = jnp.zeros(2)
    # It knows nothing, then the first label nearly and the second quite, and then nothing again.
    for said in (jnp.zeros(3), jnp.array([5.0, 0.0, 0.0]), jnp.zeros(3)):
        student = Outputs(jnp.stack([said, STUDENT.logits[1], said[::-1], STUDENT.logits[3]]))
        surprise = -jax.nn.log_softmax(student.logits)[jnp.array([0, 2]), jnp.array([0, 2])].sum()
        past = 0.9 * past + jnp.stack([surprise, at_labels])
        found, state = fading.loss(params, state, KEYS[4], some, student, TEACHER)
        whole = value(plain, student, batch=some)
        np.testing.assert_allclose(found, jnp.minimum(past[0] / past[1], 1) * whole, rtol=1e-4)
    # Without a label there is nothing to be surprised at.
    fresh = value(fading)
    np.testing.assert_allclose(fresh, value(plain), rtol=1e-5)


@functools.cache
def cross_fitted_beliefs():
    """Log-probabilities by distance to the class means, no labelled image being in its own."""
    images = np.asarray(worlds.task().train.images).reshape(240, -1)
    labels = np.asarray(worlds.task().train.labels)
    known = np.flatnonzero(labels >= 0)
    rows = np.zeros((240, worlds.CLASSES))
    for row in range(240):
        others = known[known != row]
        centres = [images[others[labels[others] == c]].mean(axis=0) for c in range(worlds.CLASSES)]
        rows[row] = [-np.sum((images[row] - centre) ** 2) for centre in centres]
    return jax.nn.log_softmax(jnp.asarray(rows, jnp.float32))


def trusted(probabilities, **settings):
    labels = jnp.asarray(worlds.task().train.labels)
    return objectives.trusted_reference(probabilities, labels, cross_fitted_beliefs(), **settings)


def state_of(objective, logits):
    student = Outputs(jnp.zeros((4, worlds.CLASSES)))
    return objective.init(KEYS[4], BATCH, student, Outputs(logits[:4]))[1]


def test_trust_follows_from_the_labels():
    good = jax.nn.softmax(worlds.teacher_outputs().logits)
    useless = good[jax.random.permutation(KEYS[0], 240)]
    both = jnp.stack([good, useless])
    logits = jnp.log(jnp.concatenate([good, useless], axis=1))
    state = state_of(trusted(both, penalty=2.0), logits)
    assert state.trust.teachers[0] > 10 * state.trust.teachers[1]
    assert state.trust.gain > 1.0 and state.weight == 1.0
    labels = jnp.asarray(worlds.task().train.labels)
    wanted = costs.from_predictions(good, labels, 3) + costs.log_prior(labels, 3)
    np.testing.assert_allclose(state.cost[0], wanted, rtol=1e-5)
    nobody = state_of(trusted(useless[None], only_trusted=True), jnp.log(useless))
    assert nobody.weight == 0.0 and nobody.trust.teachers[0] == 0.0


def test_parts_can_be_switched_off():
    good = jax.nn.softmax(worlds.teacher_outputs().logits)
    logits = jnp.log(good)
    equal = state_of(trusted(good[None], fitted=False), logits)
    assert float(equal.trust.belief) == 1.0 and equal.trust.teachers.tolist() == [1.0]
    own = state_of(trusted(good[None], own=True), logits)
    assert own.log_beliefs is None
    assert own.trust == state_of(trusted(good[None]), logits).trust


def test_a_trusted_teacher_helps_and_one_step_serves_all():
    signal = worlds.teacher_outputs()
    good = trusted(jax.nn.softmax(signal.logits)[None], penalty=2.0)
    useless = signal._replace(logits=signal.logits[jax.random.permutation(KEYS[0], 240)])
    other = trusted(jax.nn.softmax(useless.logits)[None], penalty=2.0)
    traces = []
    network, variables = worlds.student()

    def counted(variables, images):
        traces.append(images.shape)
        return network(variables, images)

    def lesson(term, signal):
        return worlds.lesson(
            objectives.weighted_sum((1.0, objectives.cross_entropy()), (1.0, term)),
            learner=(counted, variables),
            signal=signal,
            labelled=8,
            optimiser=optax.adam(0.02),
        )

    first, second = lesson(good, signal), lesson(other, useless)
    starts = [first.fresh(), second.fresh()]
    traces.clear()
    accuracy = []
    for start, teacher in zip(starts, [signal, useless], strict=True):
        state, _ = training.fit(first.step, start, first.batches, teacher, steps=60)
        accuracy.append(worlds.accuracy_on_test_images(state.variables))
    assert len(traces) == 1
    assert accuracy[0] >= accuracy[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objectives.reference(COST * jnp.nan), "`cost` must be finite"),
        (lambda: objectives.reference(COST, epsilon=0.0), "`epsilon` must be positive"),
        (lambda: objectives.reference(COST, annealed=-1.0), "`annealed` must be >= 0"),
        (lambda: objectives.reference(COST, temperature=0.0), "`temperature` must be positive"),
        (
            lambda: value(objectives.reference(COST[:5])),
            r"`teacher.logits` must have shape \(any, 5\), got \(4, 6\)",
        ),
        (
            lambda: objectives.reference(
                COST, trust=Trust(jnp.ones(()), jnp.ones(2), jnp.ones(()))
            ),
            r"`trust.teachers` must have shape \(1\), got \(2,\)",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(checks.InputError, match=message):
        call()
