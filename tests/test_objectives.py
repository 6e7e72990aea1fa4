"""Objectives weigh, remember and refuse as they promise, and each of them trains."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import worlds

from fdjax import checks, losses, objectives, training
from fdjax.objectives import Objective
from fdjax.types import Batch, Outputs

KEY = jax.random.key(0)
STUDENT = Outputs(jax.random.normal(jax.random.key(1), (4, 3)))
TEACHER = Outputs(jax.random.normal(jax.random.key(2), (4, 3)))


def batch(labels):
    return Batch(jnp.zeros((4, 1, 1, 1)), jnp.asarray(labels, jnp.int32), jnp.arange(4))


LABELLED = batch([0, 1, 2, 0])


def value(objective, examples=LABELLED, student=STUDENT, teacher=TEACHER):
    """Loss of each example at the first step."""
    params, state = objective.init(KEY, examples, student, teacher)
    return objective.loss(params, state, KEY, examples, student, teacher)[0]


def test_cross_entropy_has_the_mean_of_the_labelled_examples():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1.0, 2.0, 3.0]]))
    student = Outputs(jnp.concatenate([logits, logits[:1]]))
    got = value(objectives.cross_entropy(), batch([0, 1, -1, -1]), student)
    np.testing.assert_allclose(got.mean(), -(np.log(0.5) + np.log(0.8)) / 2, rtol=1e-6)
    np.testing.assert_array_equal(got[2:], 0.0)
    everyone = value(objectives.cross_entropy())
    np.testing.assert_allclose(
        everyone, losses.cross_entropy(STUDENT.logits, LABELLED.labels), rtol=1e-6
    )


def test_cross_entropy_without_any_label_is_zero_and_so_is_its_gradient():
    def mean(logits):
        return value(objectives.cross_entropy(), batch([-1] * 4), Outputs(logits)).mean()

    got, gradient = jax.value_and_grad(mean)(STUDENT.logits)
    assert got == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_kd_is_the_loss_of_that_name_and_refuses_unequal_label_spaces():
    want = losses.kd(STUDENT.logits, TEACHER.logits, temperature=2.0)
    np.testing.assert_allclose(value(objectives.kd(temperature=2.0)), want, rtol=1e-6)
    lesson = worlds.lesson(objectives.kd(), signal=Outputs(jnp.zeros((240, 5))))
    with pytest.raises(checks.InputError, match=r"3 classes and the teacher 5; .* `transport`"):
        lesson.fresh()


@pytest.fixture
def unchecked_types():
    """Types as in a user's process: the tests' own checks of them speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("cost", "settings", "message"),
    [
        (jnp.zeros((6, 4)), {}, r"`cost` must have shape \(6, 3\), got \(6, 4\)"),
        (jnp.full((6, 3), jnp.nan), {}, "`cost` must be finite"),
        (jnp.zeros((6, 3)), {"temperature": 0.0}, "`temperature` must be positive"),
        (jnp.zeros((6, 3)), {"epsilon": -0.1}, "`epsilon` must be positive, got -0.1"),
        (jnp.zeros((6, 3)), {"entropy": "none"}, "`entropy` must be one of plain, relative"),
        (jnp.zeros((6, 3)), {"value": "exact"}, "`value` must be one of regularised, sharp"),
        (jnp.zeros((6, 3)), {"tau": 0.0}, "`tau` must be positive, got 0.0"),
    ],
)
def test_transport_refuses_bad_settings_before_the_first_step(
    cost, settings, message, unchecked_types
):
    signal = Outputs(jnp.zeros((240, worlds.TEACHER_CLASSES)))
    with pytest.raises(checks.InputError, match=message):
        worlds.lesson(objectives.transport(cost, **settings), signal=signal).fresh()


def test_one_compiled_step_serves_every_teacher_of_equal_shape():
    traces = []
    network, variables = worlds.student()

    def counted(variables, images):
        traces.append(images.shape)
        return network(variables, images)

    def lesson(cost, signal):
        return worlds.lesson(
            objectives.transport(cost),
            learner=(counted, variables),
            signal=signal,
            optimiser=optax.sgd(0.1),
        )

    good, other = worlds.cost(), worlds.cost()[::-1]
    signal = worlds.teacher_outputs()
    flipped = signal._replace(logits=signal.logits[:, ::-1])
    first, second = lesson(good, signal), lesson(other, flipped)
    starts = [first.fresh(), second.fresh(), first.fresh()]
    traces.clear()
    examples = next(first.batches(0))
    results = [
        first.step(start, examples, teacher)
        for start, teacher in zip(starts, [signal, flipped, flipped], strict=True)
    ]
    assert len(traces) == 1
    # Teacher and cost renumbered alike say the same; one of them alone does not.
    losses_found = [float(found["loss"]) for _, found in results]
    assert losses_found[1] == pytest.approx(losses_found[0], rel=1e-4)
    assert abs(losses_found[2] - losses_found[0]) > 0.1
    np.testing.assert_array_equal(results[1][0].objective_state, other)


def test_weighted_sum_adds_its_terms_by_weight():
    cross_entropy, kd = objectives.cross_entropy(), objectives.kd()
    both = value(objectives.weighted_sum((2.0, cross_entropy), (0.5, kd)))
    np.testing.assert_allclose(both, 2 * value(cross_entropy) + 0.5 * value(kd), rtol=1e-6)
    alone = value(objectives.weighted_sum((1.0, cross_entropy), (0.0, kd)))
    np.testing.assert_array_equal(alone, value(cross_entropy))


def test_weighted_sum_keeps_what_each_term_learns_and_remembers():
    def counting(first):
        """Trains one number and counts its calls."""
        return Objective(
            init=lambda *_: ({"offset": jnp.asarray(first)}, jnp.zeros(())),
            loss=lambda params, calls, key, examples, *_: (
                params["offset"] * jnp.ones(len(examples.labels)),
                calls + 1,
            ),
        )

    both = objectives.weighted_sum((3.0, counting(1.0)), (1.0, counting(10.0)))
    params, state = both.init(KEY, LABELLED, STUDENT, TEACHER)
    for _ in range(2):
        got, state = both.loss(params, state, KEY, LABELLED, STUDENT, TEACHER)
    np.testing.assert_allclose(got, 13.0)
    weights, calls = state
    np.testing.assert_array_equal(weights, [3.0, 1.0])
    assert calls == (2, 2)


def test_weighted_sum_refuses_a_negative_weight_and_no_term():
    with pytest.raises(checks.InputError, match="`weight` must be >= 0, got -1"):
        objectives.weighted_sum((-1.0, objectives.kd()))
    with pytest.raises(checks.InputError, match="at least one pair"):
        objectives.weighted_sum()


def test_create_takes_the_settings_that_belong_to_the_objective():
    kd = objectives.create("kd", temperature=2.0, cost=worlds.cost(), epsilon=0.1)
    np.testing.assert_array_equal(value(kd), value(objectives.kd(temperature=2.0)))


def test_create_refuses_what_it_does_not_know():
    with pytest.raises(checks.InputError, match="`objective` must be one of cross_entropy, kd"):
        objectives.create("distillation")
    with pytest.raises(checks.InputError, match=r"must be one of .*temperature.*'temprature'"):
        objectives.create("kd", temprature=2.0)
    with pytest.raises(checks.InputError, match="the objective `transport` needs `cost`"):
        objectives.create("transport", temperature=2.0)


# Those for one label space or for maps: test_objectives_features, test_contrastive and the tests of
# their losses train them.
ONE_SPACE = {"dkd", "dist", "wkd_logits", "wkd_features", "crd", "crd_queue", "info_nce"} | {
    *("hint", "attention", "similarity", "correlation", "vid", "rkd", "pkt", "abound", "factor"),
    *("fsp", "nst", "kdsvd", "factor_paraphraser"),
}


@pytest.mark.parametrize("name", [name for name in objectives.OBJECTIVES if name not in ONE_SPACE])
def test_every_objective_trains(name):
    signal = worlds.teacher_outputs()
    if name == "kd":  # its teacher must know the task's own labels
        signal = Outputs(signal.logits[:, ::2])
    term = objectives.create(name, cost=worlds.cost(), temperature=1.0, epsilon=1.0)
    # Some teach features only, and pseudo-labels start from nothing: so beside cross-entropy.
    objective = objectives.weighted_sum((1.0, objectives.cross_entropy()), (0.1, term))
    lesson = worlds.lesson(objective, signal=signal, labelled=8)
    start = lesson.fresh()
    before = worlds.leaves(start.variables)
    state, records = training.fit(lesson.step, start, lesson.batches, signal, steps=20, log_every=1)
    assert records[-1]["loss"] < records[0]["loss"]
    after = worlds.leaves(state.variables)
    assert all(np.isfinite(after[path]).all() for path in after)
    assert all((after[path] != before[path]).any() for path in before)
