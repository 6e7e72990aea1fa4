"""Losses on maps against reference code, closed forms, finite differences and a slow NumPy form."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracle_files
import pytest

from fdjax import checks
from fdjax.losses import flow, maps, pairs

# Each program runs a few times on little: compiling it is the cost.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BATCH = 4
# Students of an image's own: what the others of the batch are changes nothing.
LOSSES = {
    "hint": maps.hint,
    "attention": maps.attention,
    "factor": maps.factor,
    "nst": maps.nst,
    "abound": lambda student, teacher: maps.abound([student], [teacher]),
    "vid": lambda student, teacher: maps.vid(student, teacher, KERNELS, jnp.ones(3)),
    "fsp": lambda student, teacher: flow.fsp(both(student), both(teacher)),
    "kdsvd": lambda student, teacher: flow.kdsvd(both(student), both(teacher)),
}
KERNELS = [jnp.array([[1.0, 0.5, -1.0], [0.2, 1.0, 0.3], [-0.4, 0.1, 1.0]])] * 2


def both(array):
    """Two layers of one array of maps; the second has more channels than positions."""
    second = array[:, ::2, ::2]
    return [array, jnp.concatenate([second, second[..., ::-1] ** 2], axis=-1)]


def draw(seed, *shape, dtype=np.float32):
    """Maps as after a ReLU, or nearly so."""
    values = np.random.default_rng(seed).normal(size=(BATCH, *shape)) + 0.5
    return np.asarray(values, dtype)


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


def last(array):
    """Channels last."""
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def one(loss, **settings):
    return lambda student, teacher: loss(student[0], teacher[0], **settings)


def layerwise(loss):
    return lambda student, teacher: sum(map(loss, student, teacher))


ORACLES = {
    "hint": one(maps.hint),
    "at_same": layerwise(maps.attention),
    "at_pool_student": one(maps.attention),
    "at_pool_teacher": one(maps.attention),
    "at_pool_uneven": one(maps.attention),
    "ft_same": one(maps.factor),
    "ft_pool": one(maps.factor),
    "ft_p2_2": one(maps.factor, exponent=2),
    "nst_same": one(maps.nst),
    "nst_pool": one(maps.nst),
    "nst_dead_channel": one(maps.nst),
    "ab": maps.abound,
    "fsp": flow.fsp,
    "kdsvd": flow.kdsvd,
    "vid_same": maps.vid,
    "vid_pool_student": maps.vid,
    "vid_pool_teacher": maps.vid,
}


def side(stored, name, dtype):
    """One side's maps, as a list of layers."""
    keys = [key for key in sorted(stored) if key == name or key[:-1] == f"{name}_"]
    return [last(stored[key]).astype(dtype) for key in keys]


# The hardest file of each loss; the others are among the slow tests.
QUICK = ("hint", "at_pool_uneven", "ft_p2_2", "nst_dead_channel", "ab", "fsp", "kdsvd")
QUICK += ("vid_pool_student",)
REST = tuple(name for name in ORACLES if name not in QUICK)


@functools.cache
def answers(dtype, names):
    """Value and gradients of the inputs of oracle files, all from one program."""
    inputs = {}
    for name in names:
        stored = oracle_files.load(f"distill/{name}")
        learned = ()
        if name.startswith("vid"):
            learned = [stored[f"w{i}"].T.astype(dtype) for i in range(3)]
            learned = learned, stored["log_scale"].astype(dtype)
        inputs[name] = (side(stored, "student", dtype), learned), side(stored, "teacher", dtype)

    @compiled
    def evaluate(inputs):
        found = {}
        for name, (trained, teacher) in inputs.items():

            def mean(trained, name=name, teacher=teacher):
                student, learned = trained
                if learned:
                    return maps.vid(*student, *teacher, *learned).mean()
                return ORACLES[name](student, teacher).mean()

            found[name] = jax.value_and_grad(mean)(trained)
        return found

    return evaluate(inputs)


def agree(name, dtype, tolerance, names):
    stored = oracle_files.load(f"distill/{name}")
    value, (student, learned) = answers(dtype, names)[name]
    assert value.dtype == dtype
    np.testing.assert_allclose(value, stored["loss"], rtol=tolerance)
    expected = side(stored, "grad_student", dtype)
    if learned:
        student = [*student, *learned[0], learned[1]]
        expected += [stored[f"grad_w{i}"].T for i in range(3)] + [stored["grad_log_scale"]]
    for got, want in zip(student, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


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


# Every loss


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_has_the_same_loss_in_every_batch(name):
    student, teacher = draw(0, 4, 4, 3), draw(1, 4, 4, 3)
    value, gradient = every_loss()(student, teacher)[name]
    order = np.array([2, 0, 3, 0])
    moved, moved_gradient = every_loss()(student[order], teacher[order])[name]
    assert value.shape == (BATCH,) and (value > 0).all()
    np.testing.assert_allclose(moved, value[order], rtol=1e-5)
    np.testing.assert_allclose(moved_gradient, gradient[order], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "vid"])
def test_the_teacher_itself_has_no_loss(name):
    teacher = draw(1, 4, 4, 3)
    if name == "abound":
        teacher = np.where(teacher > 0, teacher + 1, teacher - 1)
    value, gradient = every_loss()(teacher, teacher)[name]
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    if name != "factor":  # the slope of |x| at zero is the sign of its rounding
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_dead_images_and_channels_have_finite_values_and_gradients(name):
    student, teacher = draw(0, 4, 4, 3), draw(1, 4, 4, 3)
    student[0], student[1:3, ..., 1], teacher[2:] = 0.0, 0.0, 0.0
    student[3] = 1.0  # one direction only, and positions that are all equal
    for scale in (1.0, 1e-20, 1e4):
        for own, given in ((scale * student, teacher), (student, scale * teacher)):
            value, gradient = every_loss()(np.float32(own), np.float32(given))[name]
            assert np.isfinite(value).all() and np.isfinite(gradient).all()
            assert scale != 1 or np.abs(gradient).max() < 1e3


# Each loss


def test_hint_is_the_mean_squared_difference():
    student = jnp.array([[[[1.0, 2.0]]], [[[0.0, 0.0]]]])
    np.testing.assert_allclose(maps.hint(student, 0 * student), [2.5, 0.0])


def test_attention_does_not_see_scale_or_the_order_of_channels():
    student, teacher = draw(0, 4, 4, 3), draw(1, 4, 4, 3)
    base = every_loss()(student, teacher)["attention"][0]
    np.testing.assert_allclose(
        every_loss()(3 * student[..., ::-1], 5 * teacher)["attention"][0], base, rtol=1e-5
    )


def test_boundaries_by_hand():
    student = jnp.array([-2.0, 0.0, 0.5, 3.0, 0.5]).reshape(1, 1, 1, 5)
    teacher = jnp.array([-0.1, 0.0, -5.0, 0.1, 0.1]).reshape(1, 1, 1, 5)
    # Off by 1, off by 1.5, and on by too little by 0.5.
    lack = 1.0**2 + 1.5**2 + 0.5**2
    np.testing.assert_allclose(maps.abound([student], [teacher]), [0.003 * lack], rtol=1e-6)
    twice = maps.abound([student, student], [teacher, teacher], margin=1.0)
    np.testing.assert_allclose(twice, [1.5 * 0.003 * lack], rtol=1e-6)
    # Only where the teacher is above zero counts: after its ReLU all is the same.
    rectified = maps.abound([student], [jax.nn.relu(teacher)])
    np.testing.assert_allclose(rectified, [0.003 * lack], rtol=1e-6)


def test_vid_is_least_where_the_variance_is_that_of_the_errors():
    student, teacher = jnp.asarray(draw(0, 4, 4, 3)), jnp.asarray(draw(1, 4, 4, 3))
    identity = [jnp.eye(3)]

    def loss(log_scale):
        return maps.vid(student, teacher, identity, log_scale).mean()

    variance = np.mean((student - teacher) ** 2, axis=(0, 1, 2))
    gradient = compiled(jax.grad(loss))(jnp.log(jnp.expm1(variance - 1e-5)))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_windows_cover_all_positions_as_adaptive_pooling_has_them():
    positions = np.arange(49.0, dtype=np.float32).reshape(1, 7, 7, 1)
    got = pairs.pooled(jnp.asarray(positions), (3, 2))
    spans = [(0, 3), (2, 5), (4, 7)], [(0, 4), (3, 7)]
    for i, rows in enumerate(spans[0]):
        for j, columns in enumerate(spans[1]):
            window = positions[0, slice(*rows), slice(*columns)]
            np.testing.assert_allclose(got[0, i, j, 0], window.mean(), rtol=1e-6)
    halved = pairs.pooled(jnp.asarray(positions[:, :6, :4]), (3, 2))
    tiles = positions[0, :6, :4, 0].reshape(3, 2, 2, 2)
    np.testing.assert_allclose(halved[0, ..., 0], tiles.mean(axis=(1, 3)), rtol=1e-6)


# Singular vectors


def slow_kdsvd(student, teacher, count):
    """By NumPy's singular value decomposition, one image at a time."""
    total = np.zeros(len(student[0]))
    for image in range(len(total)):
        before = None
        for own, given in zip(student, teacher, strict=True):
            rows = [np.asarray(m[image], np.float64).reshape(-1, m.shape[-1]) for m in (own, given)]
            _, values, wanted = np.linalg.svd(rows[1], full_matrices=False)
            wanted = wanted[:count] * np.where(wanted[:count].sum(axis=1) < 0, -1, 1)[:, None]
            vectors = np.linalg.svd(rows[0], full_matrices=False)[2][: count + 3]
            cosine = vectors @ wanted.T
            nearest = np.abs(cosine).argmax(axis=0)
            sign = np.sign(cosine[nearest, np.arange(count)])[:, None]
            scale = (values[:count] / np.linalg.norm(values[:count]))[:, None]
            after = scale * sign * vectors[nearest], scale * wanted
            if before is not None:
                relations = [
                    np.exp(-((b[:, :, None] - a[:, None]) ** 2) / 8)
                    for a, b in zip(before, after, strict=True)
                ]
                total[image] += ((relations[0] - relations[1]) ** 2).sum()
            before = after
    return total


def test_kdsvd_of_several_vectors_and_its_gradient(x64):
    """More positions than channels, then fewer; maps of either sign."""
    shapes = (3, 3, 4), (2, 2, 7)
    student = [jnp.asarray(draw(i, *shape, dtype=np.float64)) for i, shape in enumerate(shapes)]
    teacher = [jnp.asarray(draw(5 + i, *shape, dtype=np.float64)) for i, shape in enumerate(shapes)]

    def loss(*sides):
        value = flow.kdsvd(*sides, count=2)
        return value.sum(), value

    both_sides = compiled(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, value), gradients = both_sides(student, teacher)
    np.testing.assert_allclose(value, slow_kdsvd(student, teacher, 2), rtol=1e-9)
    for which, gradient in enumerate(gradients):
        for layer in range(2):
            direction = np.random.default_rng(layer).normal(size=gradient[layer].shape)

            def moved(by, which=which, layer=layer, direction=direction):
                arguments = [[*student], [*teacher]]
                arguments[which][layer] = arguments[which][layer] + by * direction
                return slow_kdsvd(*arguments, 2).sum()

            slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
            np.testing.assert_allclose(np.vdot(gradient[layer], direction), slope, rtol=1e-6)


def test_directions_of_equal_weight_have_a_zero_derivative_between_them():
    rows = jnp.asarray(np.diag([2.0, 2.0, 1.0])[None], jnp.float32)
    change = np.zeros((1, 3, 3), np.float32)
    change[0, 0, 1], change[0, 0, 2] = 1.0, 1.0

    def loss(rows):
        return flow.leading_directions(rows, 1)

    derivative = compiled(lambda rows, change: jax.jvp(loss, (rows,), (change,)))
    (direction, value), (moved, grown) = derivative(rows, change)
    leading = int(np.abs(direction[0, :, 0]).argmax())
    np.testing.assert_allclose(value, 2.0, rtol=1e-6)
    np.testing.assert_allclose(grown, 0.0, atol=1e-6)
    # Nothing towards the other one; towards the third 2 * 1 / (4 - 1) if the change meets it.
    np.testing.assert_allclose(moved[0, :2, 0], 0.0, atol=1e-6)
    np.testing.assert_allclose(np.abs(moved[0, 2, 0]), [2 / 3, 0.0][leading], atol=1e-6)


# Bad input


@pytest.fixture
def unchecked_types():
    """Types as in a user's process: the tests' own checks of them speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


A, FEWER, WIDER = np.zeros((4, 4, 4, 3)), np.zeros((3, 4, 4, 3)), np.zeros((4, 4, 4, 5))


@pytest.mark.parametrize(
    ("loss", "arguments", "settings", "message"),
    [
        (maps.hint, (A, WIDER), {}, r"`hint` compares maps of one shape, .* regressor"),
        (maps.hint, (A[0], A[0]), {}, r"of the student have shape \(4, 4, 3\)"),
        (maps.attention, (A, A[:, 0]), {}, r"of the teacher have shape \(4, 4, 3\)"),
        (maps.attention, (A, FEWER), {}, "student saw 4 images and the teacher 3"),
        (maps.attention, (A, np.zeros((4, 2, 9, 3))), {}, "neither is the larger"),
        (maps.factor, (A, A), {"exponent": 3}, "`exponent` must be one of 1, 2"),
        (maps.nst, (A, FEWER), {}, "give both the same batch"),
        (maps.vid, (A, A, [np.eye(4)], np.ones(3)), {}, r"`kernels\[0\]` must have shape \(3, 3\)"),
        (maps.vid, (A, A, [], np.ones(3)), {}, "at least one of `kernels`"),
        (maps.vid, (A, A, [np.eye(3)], np.ones(2)), {}, r"`log_scale` must have shape \(3\)"),
        (maps.vid, (A, A, [np.eye(3)], np.ones(3)), {"epsilon": 0.0}, "`epsilon` must be pos"),
        (maps.abound, ([A], [A, A]), {}, "as many layers .* got 1 and 2"),
        (maps.abound, ([], []), {}, "at least 1, got 0 and 0"),
        (maps.abound, ([A], [WIDER]), {}, r"in pair 0 .* connector"),
        (maps.abound, ([A], [A]), {"margin": 0.0}, "`margin` must be positive"),
        (flow.fsp, ([A], [A]), {}, "at least 2, got 1 and 1"),
        (
            flow.fsp,
            ([A, A], [A, WIDER]),
            {},
            "in pair 1 of layers the student has 3 and the teacher 5",
        ),
        (flow.kdsvd, ([A, A], [A, WIDER]), {}, "`kdsvd` compares channel by channel"),
        (flow.kdsvd, ([A, A], [A, A]), {"count": 4}, r"`count` must lie in \[1, 3\], got 4"),
    ],
)
def test_bad_input_says_what_mends_it(loss, arguments, settings, message, unchecked_types):
    with pytest.raises(checks.InputError, match=message):
        loss(*arguments, **settings)
