"""Rivals of transport as objectives: what they learn, remember and refuse, and that they train."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import worlds

from fdjax import checks, losses, objectives, training
from fdjax.types import Batch, Outputs

KEY = jax.random.key(0)
LABELS = jnp.array([0, 1, 2, 0, 1, -1, -1, -1])
BATCH = Batch(jnp.zeros((8, 1, 1, 1)), LABELS, jnp.arange(8))
DRAWS = np.random.default_rng(0).normal(size=(4, 8, 6)).astype(np.float32)
STUDENT = Outputs(jnp.asarray(2 * DRAWS[0, :, :3]), jnp.asarray(0.2 * DRAWS[1, :, :4] + 1))
TEACHER = Outputs(jnp.asarray(2 * DRAWS[2, :, :5]), jnp.asarray(DRAWS[3]))
COST = jnp.abs(jnp.asarray(DRAWS[0, :5, :3]))
CENTRES = jnp.asarray(DRAWS[1, :3])

RIVALS = {
    "projected_kl": {"cost": COST},
    "uld": {},
    "extra_head": {},
    "feature_matching": {},
    "refilled_relations": {},
    "refilled_classifier": {"centres": CENTRES},
    "gkd_classifier": {"centres": CENTRES},
    "pseudo_labels": {"threshold": 0.5},
}


def start(objective, student=STUDENT, teacher=TEACHER):
    """Parameters and state before the first step."""
    return objective.init(KEY, BATCH, student, teacher)


def value(objective, student=STUDENT, teacher=TEACHER, batch=BATCH):
    """Loss of each example at the first step."""

    @jax.jit
    def first(batch, student, teacher):
        params, state = objective.init(KEY, batch, student, teacher)
        return objective.loss(params, state, KEY, batch, student, teacher)[0]

    return first(batch, student, teacher)


@jax.jit
def wanted():
    """What the losses of the same names give."""
    student, teacher = STUDENT, TEACHER
    relations = losses.refilled_relations(student.features, teacher.features, LABELS)
    return {
        "projected_kl": losses.projected_kl(student.logits, teacher.logits, COST),
        "uld": losses.uld(student.logits, teacher.logits),
        # A relation belongs to the batch: each of its examples carries the whole.
        "refilled_relations": jnp.full(8, relations),
        "refilled_classifier": losses.refilled_classifier(
            student.logits, teacher.features, LABELS, CENTRES
        ),
        "gkd_classifier": losses.gkd_classifier(
            student.logits, teacher.features, teacher.logits, LABELS, CENTRES
        ),
    }


def test_objectives_are_the_losses_of_their_names():
    for name, want in wanted().items():
        got = value(objectives.create(name, **RIVALS[name]))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-8, err_msg=name)
        assert (want > 0).all()


def test_the_extra_head_is_learned_and_the_students_own_is_left_alone():
    objective = objectives.extra_head(temperature=2.0)
    params, state = start(objective)
    head_logits = STUDENT.features @ params["kernel"] + params["bias"]
    assert head_logits.shape == TEACHER.logits.shape
    want = losses.extra_head(head_logits, TEACHER.logits, temperature=2.0)

    def mean(params, student):
        return objective.loss(params, state, KEY, BATCH, student, TEACHER)[0].mean()

    got, (learned, student) = jax.value_and_grad(mean, argnums=(0, 1))(params, STUDENT)
    np.testing.assert_allclose(got, want.mean(), rtol=1e-5)
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(learned))
    np.testing.assert_array_equal(student.logits, 0.0)
    assert (student.features != 0).any()


def test_feature_matching_projects_the_side_it_is_told_to():
    shapes = {"student": (4, 6), "teacher": (6, 4)}
    for projector, shape in shapes.items():
        objective = objectives.feature_matching(projector=projector)
        params, _ = start(objective)
        assert params["kernel"].shape == shape
        own, given = STUDENT.features, TEACHER.features
        if projector == "student":
            own = own @ params["kernel"] + params["bias"]
        else:
            given = given @ params["kernel"] + params["bias"]
        np.testing.assert_allclose(
            value(objective), ((own - given) ** 2).sum(axis=1), rtol=1e-4, err_msg=projector
        )


def test_padded_teacher_features_never_move_the_student():
    padded = TEACHER._replace(features=jnp.pad(TEACHER.features, ((0, 0), (0, 3))))
    objective = objectives.feature_matching()
    params, state = start(objective, teacher=padded)

    def mean(params):
        return objective.loss(params, state, KEY, BATCH, STUDENT, padded)[0].mean()

    gradient = jax.grad(mean)(params)
    for tree in (params, gradient):
        np.testing.assert_array_equal(tree["kernel"][:, 6:], 0.0)
        np.testing.assert_array_equal(tree["bias"][6:], 0.0)
    assert (np.asarray(gradient["kernel"])[:, :6] != 0).any()


def test_pseudo_labels_have_the_mean_of_the_unlabelled_images():
    got = value(objectives.pseudo_labels(threshold=0.5))
    single = losses.pseudo_labels(STUDENT.logits, threshold=0.5)
    np.testing.assert_array_equal(got[:5], 0.0)
    np.testing.assert_allclose(got.mean(), single[5:].mean(), rtol=1e-6)
    assert got.mean() > 0
    everyone = BATCH._replace(labels=jnp.zeros(8, jnp.int32))
    np.testing.assert_array_equal(value(objectives.pseudo_labels(), batch=everyone), 0.0)


@pytest.mark.parametrize("name", RIVALS)
def test_unlabelled_images_teach_where_no_label_is_needed(name):
    objective = objectives.create(name, **RIVALS[name])
    unlabelled = BATCH._replace(labels=jnp.full(8, -1))
    got = value(objective, batch=unlabelled)
    assert got.shape == (8,) and jnp.isfinite(got).all()
    needs_labels = name in ("refilled_relations", "refilled_classifier", "gkd_classifier")
    assert needs_labels == bool((got == 0.0).all())


def test_classifiers_teach_unlabelled_images_beside_labelled_ones():
    for name in ("refilled_classifier", "gkd_classifier"):
        assert (value(objectives.create(name, centres=CENTRES))[5:] > 0).all()


def test_fixed_arrays_lie_in_the_state():
    np.testing.assert_array_equal(start(objectives.projected_kl(COST))[1], COST)
    for make in (objectives.refilled_classifier, objectives.gkd_classifier):
        np.testing.assert_array_equal(start(make(CENTRES))[1], CENTRES)
        assert start(make())[1] is None


@pytest.mark.parametrize("name", ["extra_head", "feature_matching", "refilled_relations"])
def test_a_student_without_features_is_refused_before_the_first_step(name):
    with pytest.raises(checks.InputError, match=f"`{name}` needs features of the student, but"):
        value(objectives.create(name), student=STUDENT._replace(features=None))


@pytest.mark.parametrize(
    "name", ["feature_matching", "refilled_relations", "refilled_classifier", "gkd_classifier"]
)
def test_a_teacher_without_features_is_refused_before_the_first_step(name):
    signal = Outputs(jnp.zeros((240, worlds.TEACHER_CLASSES)))
    with pytest.raises(checks.InputError, match=f"`{name}` needs features of the teacher, but"):
        worlds.lesson(objectives.create(name), signal=signal).fresh()


@pytest.mark.parametrize("name", ["uld", "extra_head", "gkd_classifier"])
def test_a_missing_teacher_is_refused_before_the_first_step(name):
    with pytest.raises(checks.InputError, match=f"`{name}` needs a teacher of two classes or more"):
        value(objectives.create(name), teacher=TEACHER._replace(logits=jnp.zeros((8, 1))))


@pytest.fixture
def unchecked_types():
    """Types as in a user's process: the tests' own checks of them speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("projected_kl", {"cost": jnp.full((5, 3), jnp.nan)}, "`cost` must be finite"),
        ("projected_kl", {"cost": COST, "epsilon": 0.0}, "`epsilon` must be positive, got 0"),
        ("projected_kl", {"cost": COST, "temperature": 0.0}, "`temperature` must be positive"),
        ("uld", {"temperature": 0.0}, "`temperature` must be positive"),
        ("extra_head", {"temperature": 0.0}, "`temperature` must be positive"),
        ("feature_matching", {"projector": "both"}, "`projector` must be one of student, teacher"),
        (
            "refilled_relations",
            {"comparison": "pairs"},
            "`comparison` must be one of tuples, triplets",
        ),
        ("refilled_relations", {"temperature": 0.0}, "`temperature` must be positive"),
        ("refilled_relations", {"margin": 0.0}, "`margin` must be positive"),
        ("refilled_classifier", {"centres": CENTRES / 0}, "`centres` must be finite"),
        ("refilled_classifier", {"temperature": 0.0}, "`temperature` must be positive"),
        ("gkd_classifier", {"temperature": 0.0}, "`temperature` must be positive"),
        ("pseudo_labels", {"threshold": -0.1}, r"`threshold` must lie in \[0.0, 1.0\]"),
    ],
)
def test_bad_settings_are_refused_when_the_objective_is_made(
    name, settings, message, unchecked_types
):
    with pytest.raises(checks.InputError, match=message):
        objectives.create(name, **settings)


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_lowers_its_loss(name):
    signal = worlds.teacher_outputs()
    settings = {"projected_kl": {"cost": worlds.cost()}, "pseudo_labels": {"threshold": 0.4}}
    objective = objectives.create(name, **settings.get(name, {}))
    rate = {"refilled_relations": 30.0, "feature_matching": 0.01}.get(name, 0.1)
    lesson = worlds.lesson(objective, signal=signal, labelled=8, optimiser=optax.sgd(rate))
    before = lesson.fresh()
    batch = jax.tree.map(jnp.asarray, next(lesson.batches(0)))

    def loss(state):
        outputs, _ = worlds.student()[0](state.variables, batch.images)
        seen = training.observed(signal, batch)
        return objective.loss(
            state.objective_params, state.objective_state, KEY, batch, outputs, seen
        )[0].mean()

    first = jax.jit(loss)(before)
    assert first > 0
    state = before
    for _ in range(5):
        state, _ = lesson.step(state, batch, signal)
    last = jax.jit(loss)(state)
    assert last < 0.99 * first
    assert all(np.isfinite(leaf).all() for leaf in worlds.leaves(state).values())
