"""Losses on relations against reference code, values by hand and plain loops over images."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracle_files
import pytest

from fdjax import checks
from fdjax.losses import pairs, relations

# Each program runs a few times on little: compiling it is the cost.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BATCH, WIDTH = 5, 4


def rkd(student, teacher, distance, angle):
    return distance * relations.rkd_distance(student, teacher) + angle * relations.rkd_angle(
        student, teacher
    )


LOSSES = {
    "similarity": relations.similarity,
    "correlation": lambda student, teacher: relations.correlation(student, teacher[:, :WIDTH]),
    "rkd_distance": relations.rkd_distance,
    "rkd_angle": functools.partial(relations.rkd_angle, shortest=1e-3),
    "pkt": relations.pkt,
}
ORDER_FREE = [name for name in LOSSES if name != "correlation"]


def draw(seed, width):
    return np.random.default_rng(seed).normal(size=(BATCH, width)).astype(np.float32)


@functools.cache
def every_loss():
    """`(student, teacher) -> {name: (values, gradient of their sum)}`, compiled once."""

    def evaluate(student, teacher):
        answers = {}
        for name, loss in LOSSES.items():
            value, pull = jax.vjp(lambda own, loss=loss: loss(own, teacher), student)
            answers[name] = value, pull(jnp.ones_like(value))[0]
        return answers

    return compiled(evaluate)


# Reference code

ORACLES = {
    "sp_map": relations.similarity,
    "sp_vec": relations.similarity,
    "cc": relations.correlation,
    "pkt": relations.pkt,
    "rkd_25_50": rkd,
    "rkd_distance": rkd,
    "rkd_angle": rkd,
    "rkd_duplicate_rows": rkd,
}


# Files enough to hold each loss; the others are among the slow tests.
QUICK = ("sp_map", "cc", "pkt", "rkd_duplicate_rows")
REST = tuple(name for name in ORACLES if name not in QUICK)


@functools.cache
def answers(dtype, names):
    """Value and gradient of the inputs of oracle files, all from one program."""
    inputs = {}
    for name in names:
        stored = oracle_files.load(f"distill/{name}")
        weights = [stored[key].astype(dtype) for key in ("w_d", "w_a") if key in stored]
        inputs[name] = [stored[key].astype(dtype) for key in ("student", "teacher")] + weights

    @compiled
    def evaluate(inputs):
        return {
            name: jax.value_and_grad(lambda *given, name=name: ORACLES[name](*given).mean())(*given)
            for name, given in inputs.items()
        }

    return evaluate(inputs)


def agree(name, dtype, tolerance, names):
    stored = oracle_files.load(f"distill/{name}")
    value, gradient = answers(dtype, names)[name]
    assert value.dtype == dtype
    np.testing.assert_allclose(value, stored["loss"], rtol=tolerance)
    want = stored["grad_student"]
    np.testing.assert_allclose(gradient, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("name", QUICK)
def test_values_and_gradients_are_those_of_the_reference_code(name, x64):
    agree(name, np.float64, 1e-12, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_the_other_files_of_the_reference_code(name, x64):
    agree(name, np.float64, 1e-12, REST)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
def test_single_precision_is_near_the_reference_code(name):
    agree(name, np.float32, 1e-5, tuple(ORACLES))


def test_gradients_beside_equal_images_are_those_of_the_reference_code(x64):
    """Those of the equal images themselves are so large there that they hide the others."""
    stored = oracle_files.load("distill/rkd_duplicate_rows")
    others = np.setdiff1d(np.arange(16), [2, 5, 9])
    want = stored["grad_student"][others]
    got = answers(np.float64, QUICK)["rkd_duplicate_rows"][1][others]
    assert np.abs(want).max() < 1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


# Every loss


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_one_an_image(name):
    student, teacher = draw(0, WIDTH), draw(1, 6)
    value, gradient = every_loss()(student, teacher)[name]
    assert value.shape == (BATCH,) and (value > -1e-3).all() and value.mean() > 0
    if name in ORDER_FREE:
        order = np.array([3, 0, 4, 1, 2])
        moved, moved_gradient = every_loss()(student[order], teacher[order])[name]
        np.testing.assert_allclose(moved, value[order], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(moved_gradient, gradient[order], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ORDER_FREE)
def test_a_rotated_teacher_teaches_the_same_relations(name):
    student, teacher = draw(0, WIDTH), draw(1, 6)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0].astype(np.float32)
    value = every_loss()(student, teacher)[name][0]
    turned = every_loss()(student, 2 * teacher @ rotation)[name][0]
    np.testing.assert_allclose(turned, value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ORDER_FREE)
def test_the_teacher_itself_has_no_loss(name):
    student = draw(0, WIDTH)
    value, gradient = every_loss()(student, np.pad(student, ((0, 0), (0, 2))))[name]
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_images_and_images_of_zeros_have_finite_values_and_gradients(name):
    student, teacher = draw(0, WIDTH), draw(1, 6)
    student[1], student[2] = student[0], 0.0
    teacher[3], teacher[4] = teacher[0], 0.0
    for scale in (1.0, 0.0, 1e-20, 1e4):
        for own, given in ((scale * student, teacher), (student, scale * teacher)):
            value, gradient = every_loss()(np.float32(own), np.float32(given))[name]
            assert np.isfinite(value).all() and np.isfinite(gradient).all()
            assert np.abs(gradient).max() < 1e5


# Each loss


def test_similarity_takes_maps_and_features_alike():
    student, teacher = draw(0, WIDTH), draw(1, 6)
    flat = relations.similarity(jnp.asarray(student), jnp.asarray(teacher))
    own = jnp.asarray(student.reshape(BATCH, 2, 2, 1))
    np.testing.assert_allclose(relations.similarity(own, jnp.asarray(teacher)), flat, rtol=1e-6)
    gram = [side @ side.T for side in (student, teacher)]
    own, given = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in gram)
    np.testing.assert_allclose(flat.mean(), ((own - given) ** 2).sum() / BATCH**2, rtol=1e-5)


def test_correlation_gives_each_pair_to_both_of_its_images():
    student = jnp.array([[1.0, 0.0], [2.0, -1.0], [-3.0, 4.0]])
    # |d_0| . |d_1| = 2 and |d_1| . |d_2| = 10; their mean is 6.
    value = relations.correlation(student, jnp.zeros((3, 2)))
    np.testing.assert_allclose(value, [1.5, 9.0, 7.5], rtol=1e-6)


def test_relational_losses_by_loops_over_images():
    student, teacher = (draw(0, WIDTH), draw(1, 6))
    huber = np.vectorize(lambda x: 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5)
    distances, angles = [], []
    for side in (student, teacher):
        distance = np.array([[np.linalg.norm(a - b) for b in side] for a in side])
        distances.append(distance / distance[distance > 0].mean())
        angle = np.zeros((BATCH,) * 3)
        for i, j, k in np.ndindex(angle.shape):
            if i not in (j, k):
                one, other = side[j] - side[i], side[k] - side[i]
                angle[i, j, k] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        angles.append(angle)
    found = every_loss()(student, teacher)
    want = huber(distances[0] - distances[1]).mean(axis=1)
    np.testing.assert_allclose(found["rkd_distance"][0], want, rtol=1e-4)
    want = huber(angles[0] - angles[1]).mean(axis=(1, 2))
    np.testing.assert_allclose(found["rkd_angle"][0], want, rtol=1e-4)


def test_two_images_equal_to_the_student_alone_move_it_gently():
    student, teacher = draw(0, WIDTH), draw(1, 6)
    student[1] = student[0]

    def slope(shortest):
        def loss(own):
            return relations.rkd_angle(own, jnp.asarray(teacher), shortest=shortest).mean()

        return np.abs(compiled(jax.grad(loss))(student)).max()

    assert slope(1e-3) < 1e3 < 1e9 < slope(1e-12)


# Bad input


@pytest.fixture
def unchecked_types():
    """Types as in a user's process: the tests' own checks of them speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


ONE, TWO, MAPS = np.zeros((1, 4)), np.zeros((2, 4)), np.zeros((2, 3, 3, 4))


@pytest.mark.parametrize(
    ("name", "arguments", "settings", "message"),
    [
        (name, (ONE, ONE), {}, rf"`{name}` relates \d images .* has 1; raise the batch size")
        for name in LOSSES
    ]
    + [(name, (TWO, ONE), {}, "student saw 2 images and the teacher 1") for name in LOSSES]
    + [
        (name, (MAPS, TWO), {}, r"features of shape \(batch, features\), .* student have shape")
        for name in LOSSES
        if name != "similarity"
    ]
    + [
        ("rkd_angle", (TWO, TWO), {}, "relates 3 images .* has 2"),
        ("similarity", (np.zeros(2), TWO), {}, "of the student have shape"),
        ("correlation", (TWO, TWO[:, :3]), {}, "got 4 of the student and 3 of the teacher"),
        ("rkd_angle", (np.eye(3),) * 2, {"shortest": 0.0}, "`shortest` must be positive"),
        ("pkt", (TWO, TWO), {"epsilon": -1.0}, "`epsilon` must be positive, got -1"),
    ],
)
def test_bad_input_says_what_mends_it(name, arguments, settings, message, unchecked_types):
    with pytest.raises(checks.InputError, match=message):
        getattr(relations, name)(*arguments, **settings)


def test_inner_products_are_a_product_with_all_its_derivatives():
    """Also the second one and forward mode, against the plain product."""
    rows, weights = jnp.asarray(draw(7, WIDTH)), jnp.asarray(draw(8, BATCH))

    def total(product):
        return lambda rows: jnp.sum(weights * product(rows) ** 2)

    plain, ours = total(lambda rows: rows @ rows.T), total(pairs.inner_products)
    for derivative in (jax.grad, jax.hessian, lambda f: jax.jvp(f, (rows,), (rows**2,))[1]):
        wanted, found = (derivative(function) for function in (plain, ours))
        if callable(wanted):
            wanted, found = compiled(wanted)(rows), compiled(found)(rows)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
