"""WKD against the reference code's numbers, transport by other means, and bad input."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracle_files
import pytest
import truth
from test_losses_decoupled import agrees, rest_slow

from fdjax import checks, costs, transport
from fdjax.losses.wasserstein import cka_distances, unfinished_cost, wkd_features, wkd_logits
from fdjax.objectives import wasserstein as objectives
from fdjax.types import Batch, Outputs

KEYS = jax.random.split(jax.random.key(0), 3)
STUDENT, TEACHER = (2 * jax.random.normal(key, (6, 5)) for key in KEYS[:2])
LABELS = jnp.array([0, 3, 1, 1, 4, 2])
COST = costs.between_vectors(*[jax.random.normal(KEYS[2], (5, 3))] * 2, centre=False)
MAPS = jax.random.normal(KEYS[0], (3, 4, 4, 2))


def test_costs_agree_with_the_reference_code(x64):
    stored = oracle_files.load("distill/wkd_cost_cka")
    features = jnp.asarray(stored["class_features"], jnp.float64)
    found = jax.jit(lambda x: [cka_distances(x, sharpness=s) for s in (None, 1.0, 2.0)])(features)
    for name, distances in zip(("dist", "dist_sharpen1", "dist_sharpen2"), found, strict=True):
        np.testing.assert_allclose(distances, stored[name], atol=1e-12)
    rows = jnp.asarray(stored["fc_weight"], jnp.float64)
    found = costs.between_vectors(rows, rows, centre=False)
    np.testing.assert_allclose(found, stored["fc_dist"], atol=1e-12)


def test_cka_sees_neither_turns_nor_scale_and_a_constant_class_is_far_from_all():
    features = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    features[1] = 3 * features[0] @ turn + 5
    features[2] = 1.0
    found = cka_distances(jnp.asarray(features))
    np.testing.assert_allclose(found, [[0, 0, 1], [0, 0, 1], [1, 1, 0]], atol=1e-5)


@pytest.mark.parametrize(
    "name", rest_slow("wkdl_T8_g600_cka", "wkdl_T2_g30_fc", "wkdl_T2_g25_kappa2")
)
def test_wkd_logits_agrees_with_the_reference_code(name, x64):
    stored = oracle_files.load(f"distill/{name}")
    labels = jnp.asarray(stored["labels"])
    settings = {
        "gamma": float(stored["gamma"]),
        "temperature": float(stored["T"]),
        "epsilon": float(stored["eps"]),
        "iterations": int(stored["iters"]),
    }

    def loss(student, teacher):
        cost = jnp.asarray(stored["cost"], student.dtype)
        return wkd_logits(student, teacher, labels, cost, **settings).mean()

    agrees(loss, stored)


@pytest.mark.parametrize("name", ["wkd_sinkhorn_10", "wkd_sinkhorn_200"])
def test_iterations_agree_with_the_reference_code(name, x64):
    stored = oracle_files.load(f"distill/{name}")
    cost, student, teacher = (jnp.asarray(stored[key], jnp.float64) for key in ("cost", "w1", "w2"))
    settings = {"epsilon": float(stored["eps"]), "iterations": int(stored["iters"])}
    exists = jnp.ones(student.shape, bool)

    @jax.jit
    @jax.value_and_grad
    def graded(student):
        # The authors' cost has the student's classes as rows; it is symmetric here.
        return unfinished_cost(cost, teacher, student, exists, **settings).sum()

    value, gradient = graded(student)
    np.testing.assert_allclose(value, stored["wasserstein"].sum(), rtol=1e-9)
    scale = np.abs(stored["grad_w1"]).max()
    np.testing.assert_allclose(gradient, stored["grad_w1"], atol=1e-7 * scale)


@pytest.mark.slow
def test_the_finished_cost_is_as_near_as_the_unfinished_plan_allows(x64):
    ten, many = (oracle_files.load(f"distill/wkd_sinkhorn_{n}") for n in (10, 200))
    cost, student, teacher = (jnp.asarray(many[key], jnp.float64) for key in ("cost", "w1", "w2"))
    student, teacher = (mass / mass.sum(axis=1, keepdims=True) for mass in (student, teacher))

    def value(student):
        found = transport.sharp_cost(cost, teacher, student, epsilon=0.05, threshold=1e-8)
        return found.sum(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(student)
    # Mass that has not arrived travels at most the largest cost: 15 % of it after ten iterations,
    # and the cost is off by up to 24 %; 0.02 % after two hundred.
    for stored, off in ((ten, 0.25), (many, 3e-4)):
        np.testing.assert_array_equal(stored["w1"], many["w1"])
        missing = np.abs(stored["row_marginal"] - student).sum(axis=1)
        missing += np.abs(stored["col_marginal"] - teacher).sum(axis=1)
        gap = np.abs(found - stored["wasserstein"])
        assert (gap <= missing * float(cost.max())).all()
        assert off / 2 < (gap / found).max() < off
    # The student's mass sums to one, so that the mean of a row of the gradient says nothing.
    wanted, found = (g - g.mean(axis=1, keepdims=True) for g in (many["grad_w1"], gradient))
    np.testing.assert_allclose(found, wanted, atol=5e-3 * np.abs(wanted).max())


@pytest.mark.slow
def test_with_iterations_unlimited_it_is_the_transport_of_what_is_not_the_label():
    settings = {"gamma": 2.0, "temperature": 3.0, "epsilon": 0.1, "iterations": None}
    found = jax.jit(lambda s, t: wkd_logits(s, t, LABELS, COST, **settings))(STUDENT, TEACHER)
    for i, label in enumerate(LABELS):
        keep = np.arange(5) != int(label)
        source, target = (np.exp(np.asarray(x[i])[keep] / 3) for x in (TEACHER, STUDENT))
        _, sharp, _ = truth.sinkhorn(np.asarray(COST)[keep][:, keep], source, target, 0.1)
        agreement = jax.nn.softmax(TEACHER[i])[label] * jax.nn.log_softmax(STUDENT[i])[label]
        np.testing.assert_allclose(found[i], 2 * sharp - agreement, rtol=1e-3)


def test_near_classes_are_cheaper_and_without_label_there_is_no_loss():
    line = jnp.abs(jnp.arange(5.0)[:, None] - jnp.arange(5.0)) / 4
    teacher = jnp.array([[5.0, 3.0, 0.0, 0.0, 0.0]] * 3)
    student = jnp.array([[5.0, 0.0, 3.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0, 3.0], [5.0, 0, 0, 0, 9]])
    labels = jnp.array([0, 0, -1])

    def value(student):
        found = wkd_logits(student, 30 * teacher, labels, line)
        return found.sum(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(30 * student)
    assert 0 < found[0] < found[1] and found[2] == 0.0
    assert jnp.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[2], 0.0)


@pytest.mark.parametrize("name", rest_slow("wkdf_grid4_uneven", "wkdf_grid1", "wkdf_grid4"))
def test_wkd_features_agrees_with_the_reference_code(name, x64):
    stored = oracle_files.load(f"distill/{name}")
    for key in ("student", "teacher", "grad_student"):  # channels last
        stored[key] = np.moveaxis(stored[key], 1, -1)
    settings = {"mean_weight": float(stored["mean_cov_ratio"]), "grid": int(stored["grid"])}
    agrees(lambda s, t: wkd_features(s, t, **settings).mean(), stored)


def test_wkd_features_matches_no_positions():
    reversed_rows = MAPS.reshape(3, 16, 2)[:, ::-1].reshape(MAPS.shape)
    loss = jax.jit(lambda student: wkd_features(student, MAPS, mean_weight=3.0))
    np.testing.assert_allclose(loss(reversed_rows), 0.0, atol=1e-9)
    np.testing.assert_allclose(loss(MAPS + 2), 24.0, rtol=1e-5)


def test_objectives_carry_the_cost_and_learn_the_way_to_the_teachers_channels():
    some = LABELS[:3].at[1].set(-1)
    batch = Batch(jnp.zeros((3, 1, 1, 1)), some, jnp.arange(3))
    student = Outputs(STUDENT[:3], None, (MAPS, MAPS))
    teacher = Outputs(TEACHER[:3], None, (MAPS, jax.random.normal(KEYS[1], (3, 4, 4, 3))))
    of_logits = objectives.wkd_logits(COST, gamma=4.0)
    params, state = of_logits.init(KEYS[0], batch, student, teacher)

    @jax.jit
    def both(state):
        value, new = of_logits.loss(params, state, KEYS[0], batch, student, teacher)
        return value, new, wkd_logits(student.logits, teacher.logits, some, COST, gamma=4.0)

    value, new, wanted = both(state)
    np.testing.assert_array_equal(new, COST)
    np.testing.assert_allclose(value, 3 / 2 * wanted, rtol=1e-5)
    of_maps = objectives.wkd_features(grid=2)
    params, state = jax.eval_shape(of_maps.init, KEYS[0], batch, student, teacher)
    assert params["kernel"].shape == (1, 1, 2, 3)
    found, _ = jax.eval_shape(of_maps.loss, params, state, KEYS[0], batch, student, teacher)
    assert found.shape == (3,)


BAD = {
    "cost": lambda: wkd_logits(STUDENT, TEACHER, LABELS, COST[:4]),
    "nan": lambda: wkd_logits(STUDENT, TEACHER, LABELS, COST * jnp.nan),
    "two": lambda: wkd_logits(STUDENT[:, :2], TEACHER[:, :2], LABELS % 2, COST[:2, :2]),
    "spaces": lambda: wkd_logits(STUDENT, TEACHER[:, :4], LABELS, COST),
    "labels": lambda: wkd_logits(STUDENT, TEACHER, LABELS + 1, COST),
    "iterations": lambda: wkd_logits(STUDENT, TEACHER, LABELS, COST, iterations=0),
    "epsilon": lambda: wkd_logits(STUDENT, TEACHER, LABELS, COST, epsilon=0.0),
    "channels": lambda: wkd_features(MAPS, MAPS[..., :1]),
    "grid": lambda: wkd_features(MAPS, MAPS, grid=4),
    "vectors": lambda: cka_distances(jnp.ones((3, 1, 4))),
    "square": lambda: objectives.wkd_logits(COST[:4]),
    "layer": lambda: objectives.wkd_features(layer=2).init(
        KEYS[0], None, *[Outputs(STUDENT, None, (MAPS,))] * 2
    ),
    "sharpness": lambda: cka_distances(jnp.ones((3, 2, 4)), sharpness=0.0),
}


@pytest.fixture
def unchecked_types():
    """Types as in a user's process: the tests' own checks of them speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cost", r"`cost` must have shape \(5, 5\)"),
        ("nan", "`cost` must be finite"),
        ("two", "needs three classes or more, got 2; use `kd`"),
        ("spaces", "needs one label space"),
        ("labels", r"`labels` must lie in \[-1, 4\]"),
        ("iterations", "`iterations` must be positive"),
        ("epsilon", "`epsilon` must be positive"),
        ("channels", "got 3 of 2 of the student and 3 of 1 of the teacher"),
        ("grid", "cells of one position on the student's map of 4 x 4"),
        ("vectors", "two vectors of each class or more"),
        ("square", r"`cost` must have shape \(5, 5\)"),
        ("layer", "is to take layer 2, but the student has 1"),
        ("sharpness", "`sharpness` must be positive"),
    ],
)
def test_bad_input_is_refused(case, message, unchecked_types):
    with pytest.raises(checks.InputError, match=message):
        BAD[case]()
