"""DKD and DIST against the reference code's numbers, identities and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest

from fdjax import checks, losses
from fdjax.losses.decoupled import dkd
from fdjax.losses.prediction_relations import dist
from fdjax.objectives import predictions
from fdjax.types import Batch, Outputs

KEYS = jax.random.split(jax.random.key(0), 2)
STUDENT, TEACHER = (2 * jax.random.normal(key, (6, 5)) for key in KEYS)
LABELS = jnp.array([0, 3, 1, 1, 4, 2])


def rest_slow(first, *names):
    """One item for every run, the others, which tell hardly more, for the slow ones."""
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in names)]


def agrees(loss, stored):
    """Value and gradient of `loss(student, teacher)` are those stored, in both precisions."""
    sides = [stored["student"].astype(np.float64), stored["teacher"].astype(np.float64)]
    single = [side.astype(np.float32) for side in sides]
    graded = jax.value_and_grad(loss)
    found = jax.jit(lambda *sides: (graded(*sides[:2]), graded(*sides[2:])))(*sides, *single)
    scale = np.abs(stored["grad_student"]).max()
    for (value, gradient), dtype, exact in zip(found, ("f8", "f4"), (1e-9, 1e-5), strict=True):
        assert value.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(value, stored["loss"], rtol=exact)
        np.testing.assert_allclose(gradient, stored["grad_student"], atol=10 * exact * scale)


@pytest.mark.parametrize("name", rest_slow("dkd_cifar", "dkd_imagenet"))
def test_dkd_agrees_with_the_reference_code(name, x64):
    stored = oracle_files.load(f"distill/{name}")
    settings = {"alpha": float(stored["alpha"]), "beta": float(stored["beta"])}
    settings["temperature"] = float(stored["T"])
    labels = jnp.asarray(stored["labels"])
    agrees(lambda s, t: dkd(s, t, labels, **settings).mean(), stored)


def test_dkd_takes_hintons_loss_apart():
    @jax.jit
    def parts(student, teacher):
        sure = jnp.take_along_axis(jax.nn.softmax(teacher / 4.0), LABELS[:, None], axis=1)[:, 0]
        label = dkd(student, teacher, LABELS, alpha=1.0, beta=0.0)
        others = dkd(student, teacher, LABELS, alpha=0.0, beta=1.0)
        return label + (1 - sure) * others, losses.kd(student, teacher, temperature=4.0)

    np.testing.assert_allclose(*parts(STUDENT, TEACHER), rtol=1e-4)


def test_dkd_is_zero_without_label_and_at_the_teacher_and_finite_where_it_is_sure():
    some = LABELS.at[2].set(-1)
    graded = jax.jit(jax.value_and_grad(lambda s, t, y, i: jnp.sum(dkd(s, t, y)[i])))
    value, gradient = graded(STUDENT, TEACHER, some, jnp.array([2]))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)
    assert abs(graded(TEACHER, TEACHER, LABELS, jnp.array([2]))[0]) < 1e-5
    value, gradient = graded(-500 * STUDENT, 500 * TEACHER, LABELS, jnp.array([2]))
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", rest_slow("dist_tau4_b2_g2", "dist_tau1", "dist_4d"))
def test_dist_agrees_with_the_reference_code(name, x64):
    stored = oracle_files.load(f"distill/{name}")
    for key in ("student", "teacher", "grad_student"):  # channels last
        stored[key] = np.moveaxis(stored[key], 1, -1)
    settings = {"beta": float(stored["beta"]), "gamma": float(stored["gamma"])}
    settings["temperature"] = float(stored["tau"])
    agrees(lambda s, t: dist(s, t, **settings), stored)


def test_dist_by_hand():
    student = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]))
    teacher = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]))
    by_image = [
        np.corrcoef(np.exp(s), np.exp(t))[0, 1] for s, t in zip(student, teacher, strict=True)
    ]
    both = jax.jit(lambda s, t: (dist(s, t, gamma=0.0), dist(s, t, beta=0.0)))(student, teacher)
    # Over two examples every class correlates by 1 or -1: the second rises in the student only.
    np.testing.assert_allclose(both, [1 - np.mean(by_image), 2 / 3], rtol=1e-5)


def test_dist_asks_for_no_more_than_a_linear_function_and_is_finite_without_any_spread():
    shrunk = jnp.log(0.3 * jax.nn.softmax(STUDENT) + 0.7 / 5)
    graded = jax.jit(jax.value_and_grad(dist))
    assert graded(shrunk, STUDENT)[0] < 1e-4 < losses.kd(shrunk, STUDENT).mean()
    value, gradient = graded(jnp.broadcast_to(STUDENT[0], STUDENT.shape), TEACHER)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_objectives_mean_over_the_labelled_and_spread_what_is_of_the_batch():
    some = LABELS.at[jnp.array([1, 4])].set(-1)
    batch = Batch(jnp.zeros((6, 1, 1, 1)), some, jnp.arange(6))

    @jax.jit
    def both(student, teacher):
        sides = Outputs(student), Outputs(teacher)
        objectives = predictions.dkd(beta=2.0), predictions.dist(gamma=2.0)
        found = [one.loss((), (), KEYS[0], batch, *sides)[0] for one in objectives]
        wanted = dkd(student, teacher, some, beta=2.0), dist(student, teacher, gamma=2.0)
        return found, wanted

    found, (per_example, whole) = both(STUDENT, TEACHER)
    np.testing.assert_allclose(found[0], 6 / 4 * per_example, rtol=1e-5)
    np.testing.assert_allclose(found[1], np.full(6, whole), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dkd(STUDENT, TEACHER[:, :4], LABELS), "the student has 5 classes and the teacher"),
        (lambda: dkd(STUDENT, TEACHER, LABELS + 1), r"`labels` must lie in \[-1, 4\], got 5"),
        (lambda: dkd(STUDENT[:, :1], TEACHER[:, :1], 0 * LABELS), "two classes or more"),
        (lambda: dkd(STUDENT, TEACHER, LABELS, temperature=0.0), "`temperature` must be positive"),
        (lambda: dkd(STUDENT, TEACHER, LABELS, beta=-1.0), "`beta` must be >= 0"),
        (lambda: dist(STUDENT, TEACHER[:, :4]), "`dist` needs one label space"),
        (lambda: dist(STUDENT[:1], TEACHER[:1]), "got 1 and 5; use larger batches"),
        (lambda: dist(STUDENT, TEACHER, temperature=0.0), "`temperature` must be positive"),
        (lambda: dist(STUDENT, TEACHER, gamma=-1.0), "`gamma` must be >= 0"),
        (lambda: predictions.dkd(alpha=-1.0), "`alpha` must be >= 0"),
        (lambda: predictions.dist(temperature=0.0), "`temperature` must be positive"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(checks.InputError, match=message):
        call()
