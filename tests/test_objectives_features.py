"""Objectives on maps and features learn, take the layers they are told, refuse what cannot fit."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import worlds

from fdjax import checks, models, objectives, training
from fdjax.losses import flow, maps, relations
from fdjax.objectives import features, layers, presets, staged
from fdjax.types import Batch, Outputs

# Each program runs a few times on little: compiling it is the cost.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)
EXAMPLES = 6
BATCH = Batch(jnp.zeros((EXAMPLES, 1, 1, 1)), jnp.array([0, 1, 2, 0, 1, -1]), jnp.arange(EXAMPLES))


def outputs(seed, shapes, width):
    """As of a network with maps of these shapes, after a ReLU."""
    rng = np.random.default_rng(seed)
    hidden = (np.maximum(rng.normal(size=(EXAMPLES, *shape)), 0) for shape in shapes)
    vectors = rng.normal(size=(EXAMPLES, 3)), rng.normal(size=(EXAMPLES, width))
    return Outputs(*(jnp.float32(v) for v in vectors), tuple(map(jnp.float32, hidden)))


# Stem first; the twin has the student's channels.
STUDENT = outputs(0, [(8, 8, 3), (8, 8, 4), (4, 4, 6), (2, 2, 5)], 5)
TEACHER = outputs(1, [(8, 8, 4), (4, 4, 4), (4, 4, 6), (4, 4, 8)], 8)
TWIN = outputs(2, [(8, 8, 3), (8, 8, 4), (4, 4, 6), (2, 2, 5)], 5)


def first_params(objective, seed, teacher):
    """Arrays like those that an objective learns, drawn without compiling its own draw."""
    shapes = jax.eval_shape(lambda: objective.init(KEY, BATCH, STUDENT, teacher)[0])
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.float32(rng.uniform(-0.4, 0.6, leaf.shape)), shapes)


@functools.cache
def paraphraser():
    return jax.tree.map(jnp.asarray, first_params(staged.factor_paraphraser(), 0, TEACHER))


LEARNERS = {
    "hint": features.hint,
    "correlation": features.correlation,
    "vid": features.vid,
    "abound": staged.abound,
    "factor_paraphraser": staged.factor_paraphraser,
    "factor": lambda: staged.factor(paraphraser()),
}


@functools.cache
def lessons():
    """Losses by name before and after some steps of each objective, and the gradients."""
    made = {name: create() for name, create in LEARNERS.items()}
    trained = {
        name: (first_params(objective, 1, TEACHER), STUDENT) for name, objective in made.items()
    }

    @compiled
    def slopes(trained, teacher):
        found = {}
        for name, objective in made.items():
            state = paraphraser()["encoder"] if name == "factor" else ()

            def mean(trained, objective=objective, state=state):
                params, student = trained
                value, _ = objective.loss(params, state, KEY, BATCH, student, teacher)
                return value.mean(), value

            found[name] = jax.grad(mean, has_aux=True)(trained[name])
        return found

    history = []
    for _ in range(4):
        history.append(jax.device_get(slopes(trained, TEACHER)))
        gradients = {name: gradient for name, (gradient, _) in history[-1].items()}
        trained = jax.tree.map(lambda x, g: x - np.float32(0.003) * np.sign(g), trained, gradients)
    return history


@pytest.mark.parametrize("name", LEARNERS)
def test_objectives_train_what_they_learn_and_the_student(name):
    ((params, student), first), (_, last) = lessons()[0][name], lessons()[-1][name]
    assert first.shape == (EXAMPLES,) and np.isfinite(first).all()
    assert last.mean() < first.mean()
    for leaf in jax.tree.leaves(params):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
    moves = max(np.abs(leaf).max() for leaf in jax.tree.leaves(student))
    assert (moves > 0) == (name != "factor_paraphraser")
    np.testing.assert_array_equal(student.logits, 0.0)


def value(objective, student=STUDENT, teacher=TEACHER):
    """Loss of each example at the first step."""
    params, state = objective.init(KEY, BATCH, student, teacher)
    return objective.loss(params, state, KEY, BATCH, student, teacher)[0]


def agree(*pairs):
    """Each pair of functions of student and teacher is equal."""
    both = compiled(lambda *sides: [[each(*sides) for each in pair] for pair in pairs])
    for got, want in both(STUDENT, TWIN):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def of(objective):
    return functools.partial(value, objective)


def test_default_layers_are_those_of_the_comparison():
    def middle(loss):
        return lambda own, given: sum(map(loss, own.hidden[1:], given.hidden[1:]))

    def ends(own, given):
        pairs = ((own.hidden[at], given.hidden[at]) for at in (0, -1))
        return sum(maps.attention(*pair) for pair in pairs)

    agree(
        (of(features.attention()), middle(maps.attention)),
        (of(features.attention(layers=(0, -1))), ends),
        (of(features.nst()), middle(maps.nst)),
        (
            of(features.similarity()),
            lambda own, given: relations.similarity(own.hidden[3], given.hidden[3]),
        ),
        (
            of(features.kdsvd()),
            lambda own, given: flow.kdsvd(own.hidden[1:], given.hidden[1:]),
        ),
        (of(staged.fsp()), lambda own, given: flow.fsp(own.hidden, given.hidden)),
        (of(staged.abound()), lambda own, given: maps.abound(own.hidden[1:], given.hidden[1:])),
    )


def test_weights_weigh_and_a_term_of_weight_zero_is_left_out():
    rkd, pkt, labels_only = features.rkd, features.pkt(), presets.PRESETS["fsp"]
    parts = (
        of(rkd(distance_weight=2.0, angle_weight=0.0)),
        of(rkd(distance_weight=0.0, angle_weight=3.0)),
    )
    terms = ((0.5, objectives.cross_entropy()), (0.25, objectives.kd()), (2.0, pkt))
    agree(
        (
            of(rkd(distance_weight=2.0, angle_weight=3.0)),
            lambda *sides: sum(part(*sides) for part in parts),
        ),
        (
            of(presets.combined(pkt, presets.Weights(0.5, 0.25, 2.0))),
            lambda *sides: sum(weight * value(term, *sides) for weight, term in terms),
        ),
        (of(presets.combined(None, labels_only)), of(objectives.cross_entropy())),
    )


@pytest.mark.parametrize(
    ("own", "wanted"), [((8, 6), (4, 3)), ((4, 3), (8, 6)), ((7, 5), (3, 5)), ((4, 4), (4, 4))]
)
def test_regressors_bring_maps_to_the_teachers_shape(own, wanted):
    def shape():
        one, other = jnp.zeros((2, *own, 3)), jnp.zeros((2, *wanted, 5))
        return layers.apply_regressor(layers.regressor(KEY, one, other), one, other)

    assert jax.eval_shape(shape).shape == (2, *wanted, 5)


def test_a_doubling_regressor_places_each_position_in_the_middle_of_its_own_four():
    """As a transposed convolution of size 4, stride 2 and padding 1 does."""
    student, teacher = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1].set(1.0), jnp.zeros((1, 6, 6, 1))
    layer = {"kernel": jnp.ones((4, 4, 1, 1)), "scale": jnp.ones(1), "offset": jnp.zeros(1)}
    got = compiled(layers.apply_regressor)(layer, student, teacher)
    high = np.zeros((6, 6), bool)
    high[1:5, 1:5] = True
    np.testing.assert_array_equal(np.asarray(got[0, ..., 0] > 0), high)


def test_every_method_has_a_preset():
    learners = set(LEARNERS) - {"factor_paraphraser"}
    others = {"attention", "similarity", "rkd", "pkt", "nst", "kdsvd", "fsp", "kd", "crd"}
    assert learners | others <= set(presets.PRESETS)
    assert set(staged.FIRST_STAGES) == {"abound", "factor", "fsp"}


def test_a_first_stage_decays_all_weights_but_those_of_the_head():
    optimiser = staged.except_head(optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0)))
    trained = {"conv": {"kernel": np.ones(2)}, "head": {"kernel": np.ones(2)}}, [np.ones(2)]

    @compiled
    def change(trained):
        gradients = jax.tree.map(jnp.zeros_like, trained)
        return optimiser.update(gradients, optimiser.init(trained), trained)[0]

    params, connectors = change(trained)
    np.testing.assert_allclose(params["conv"]["kernel"], -0.5)
    np.testing.assert_array_equal(params["head"]["kernel"], 0.0)
    np.testing.assert_allclose(connectors[0], -0.5)


# First stages, through the step that experiments use


@functools.cache
def teacher_signal():
    """What an untrained convolutional teacher says of the task's images."""
    model = models.create("convnet", worlds.CLASSES, widths=(6,), dense=4)
    variables = models.initialise(model, jax.random.key(3), (4, 4, 1))
    return jax.jit(models.frozen(model))(variables, worlds.task().train.images)


def student():
    return worlds.student("convnet", widths=(4,), dense=4)


def run(objective, steps, *, learner, optimiser):
    lesson = worlds.lesson(objective, learner=learner, signal=teacher_signal(), optimiser=optimiser)
    return training.fit(
        lesson.step, lesson.fresh(), lesson.batches, lesson.teacher, steps=steps, log_every=1
    )


@pytest.mark.slow
def test_factor_transfer_in_two_stages():
    nobody = staged.bystander(worlds.CLASSES), staged.NOTHING
    first = staged.factor_paraphraser()
    state, records = run(first, 30, learner=nobody, optimiser=optax.adam(0.03))
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]
    second = presets.combined(staged.factor(state.objective_params), presets.PRESETS["factor"])
    before = worlds.leaves(state.objective_params["encoder"])
    state, records = run(second, 30, learner=student(), optimiser=optax.adam(0.03))
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]
    carried = state.objective_state[1][1]
    for path, leaf in worlds.leaves(carried).items():
        np.testing.assert_array_equal(leaf, before[path])


@pytest.mark.slow
def test_a_first_stage_moves_all_of_the_student_but_its_head():
    optimiser = staged.except_head(optax.adamw(0.03, weight_decay=0.1))
    state, records = run(staged.abound(layers=(0,)), 10, learner=student(), optimiser=optimiser)
    assert records[-1]["loss"] < records[0]["loss"]
    before, after = student()[1]["params"], state.variables["params"]
    worlds.assert_same(before["head"], after["head"])
    assert np.abs(before["conv_0"]["kernel"] - after["conv_0"]["kernel"]).max() > 0.01


# Bad input


@pytest.fixture
def unchecked_types():
    """Types as in a user's process: the tests' own checks of them speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


BLIND = Outputs(TEACHER.logits)
ONE_MAP = TEACHER._replace(hidden=TEACHER.hidden[:1])
SINGLE = jax.tree.map(lambda leaf: leaf[:1], STUDENT)


@pytest.mark.parametrize(
    ("create", "student", "teacher", "message"),
    [
        (features.hint, STUDENT, BLIND, "`hint` needs maps between the stages of the teacher"),
        (features.hint, BLIND, TEACHER, "needs maps between the stages of the student"),
        (features.hint, STUDENT, ONE_MAP, "take layer 2, but the teacher has 1 layers; .* -1 to 0"),
        (lambda: features.hint(layer=-5), STUDENT, TEACHER, "from -4 to 3"),
        (lambda: features.hint(layer=0), TWIN._replace(hidden=TWIN.hidden[3:]), TEACHER, "2x2 to"),
        (features.attention, STUDENT, ONE_MAP, "as many layers .* at least 1, got 3 and 0"),
        (features.vid, STUDENT, BLIND, "`vid` needs maps"),
        (
            features.kdsvd,
            STUDENT,
            TEACHER,
            "in pair 2 of layers the student has 5 and the teacher 8",
        ),
        (lambda: features.kdsvd(layers=(1,)), STUDENT, TWIN, "at least 2, got 1 and 1"),
        (staged.fsp, STUDENT, TEACHER, "in pair 0 of layers the student has 3 and the teacher 4"),
        (features.correlation, STUDENT, BLIND, "needs features of the teacher"),
        (features.rkd, SINGLE, SINGLE, "relates 2 images of a batch .* has 1"),
        (features.pkt, SINGLE, SINGLE, "raise the batch size"),
        (features.similarity, SINGLE, SINGLE, "raise the batch size"),
        (staged.abound, STUDENT, BLIND, "`abound` needs maps"),
        (staged.factor_paraphraser, STUDENT, BLIND, "`factor_paraphraser` needs maps .* teacher"),
        (
            lambda: staged.factor_paraphraser(share=0.01),
            STUDENT,
            TEACHER,
            "none of the teacher's 8",
        ),
        (lambda: staged.factor(paraphraser()), STUDENT, TWIN, "maps with 8 channels, .* have 5"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_before_the_first_step(
    create, student, teacher, message, unchecked_types
):
    with pytest.raises(checks.InputError, match=message):
        jax.eval_shape(lambda: value(create(), student, teacher))


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: features.kdsvd(count=0), "`count` must be positive"),
        (lambda: features.correlation(embedding_size=0), "`embedding_size` must be positive"),
        (lambda: features.rkd(distance_weight=-1.0), "`distance_weight` must be >= 0, got -1"),
        (lambda: features.rkd(distance_weight=0.0, angle_weight=0.0), "got two zeros"),
        (lambda: features.rkd(shortest=0.0), "`shortest` must be positive"),
        (lambda: staged.abound(margin=0.0), "`margin` must be positive"),
        (lambda: staged.factor_paraphraser(share=1.5), r"`share` must lie in \(0, 1\], got 1.5"),
        (lambda: staged.factor({}), "`paraphraser` must be the objective's parameters"),
        (lambda: staged.bystander(0), "`num_classes` must be positive"),
        (
            lambda: staged.except_head(optax.sgd(0.1)).init(({"conv": jnp.zeros(1)}, ())),
            "params/head as it is, but the student has none",
        ),
        (lambda: presets.combined(None, presets.PRESETS["hint"]), "no method for it to weigh"),
        (
            lambda: presets.combined(features.pkt(), presets.Weights(1.0, -1.0, 0.0)),
            "`alpha` must be >= 0",
        ),
    ],
)
def test_bad_settings_say_what_mends_them(create, message):
    with pytest.raises(checks.InputError, match=message):
        create()
