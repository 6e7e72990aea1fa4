"""The CIFAR networks are those of the public PyTorch code: sizes, maps, numbers, statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import models
from fdjax.checks import InputError
from fdjax.models import grouped, layers
from fdjax.models.shufflenet import shuffled

# By name: trained numbers for 100 classes, hidden maps (height and width, channels) of a 32x32x3
# image, features. The counts are those of the public code's modules built in PyTorch 2.13
# (sum of p.numel() over parameters()); papers round them: 0.28 M for resnet20, 0.86 M for
# resnet56, 1.7 M for resnet110, 2.26 M for wrn_40_2, 0.70 M for wrn_16_2.
THIN = [(32, 16), (32, 16), (16, 32), (8, 64)]
QUICK = {
    "resnet8": (83_892, THIN, 64),
    "resnet20": (278_324, THIN, 64),
    "resnet8x4": (1_233_540, [(32, 32), (32, 64), (16, 128), (8, 256)], 256),
    "wrn_16_1": (180_916, THIN, 64),
    "wrn_16_2": (703_284, [(32, 16), (32, 32), (16, 64), (8, 128)], 128),
    "vgg8": (3_965_028, [(32, 64), (16, 128), (8, 256), (4, 512), (4, 512)], 512),
    "vgg13": (9_462_180, [(32, 64), (16, 128), (8, 256), (4, 512), (4, 512)], 512),
    "mobilenet_v2": (812_836, [(16, 16), (16, 12), (8, 16), (4, 48), (2, 160)], 1280),
    "shufflenet_v1": (949_258, [(32, 24), (16, 240), (8, 480), (4, 960)], 960),
    "shufflenet_v2": (1_355_528, [(32, 24), (16, 116), (8, 232), (4, 464)], 1024),
}
LONG = {
    "resnet14": (181_108, THIN, 64),
    "resnet32": (472_756, THIN, 64),
    "resnet44": (667_188, THIN, 64),
    "resnet56": (861_620, THIN, 64),
    "resnet110": (1_736_564, THIN, 64),
    "resnet32x4": (7_433_860, [(32, 32), (32, 64), (16, 128), (8, 256)], 256),
    "resnet50": (23_705_252, [(32, 64), (32, 256), (16, 512), (8, 1024), (4, 2048)], 2048),
    "wrn_40_1": (569_780, THIN, 64),
    "wrn_40_2": (2_255_156, [(32, 16), (32, 32), (16, 64), (8, 128)], 128),
}
# Tracing alone takes more than a second for the deep ones.
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]

# What the public code's modules answer in PyTorch, in float64 and evaluation mode, to the
# weights of `drawn` and the images of `IMAGES`: `summary` of each hidden map, the features and
# the logits.
PRINTS = {
    "resnet8": (-0.53137, 0.23109, 1.3361, 2.1912, -3.5185, 3.791),
    "vgg8": (-0.061453, -1.2098, -0.74284, 0.12837, 0.69971, -0.19907, -2.3668),
    "resnet8x4": (-0.91273, -1.4872, 0.82623, -0.32031, -1.2213, -0.80035),
    "resnet50": (0.034002, -4.3458, 20.16, -1282, -24442, -48184, -24955),
    "wrn_16_1": (-0.00031862, 0.30103, 8.4201, -17.377, -13.569, 2.97),
    "wrn_16_2": (-0.00031862, 0.035707, -2.9785, 2.0878, 1.1641, -30.608),
    "vgg13": (-0.58058, 1.164, -1.4524, -0.18503, -1.0674, 0.015856, -0.86686),
    "mobilenet_v2": (0.95313, 0.51025, -4.7407, 487.35, 37.143, -1193.6, 135.2),
    "shufflenet_v1": (-0.92039, 0.90027, -49.723, 9185.9, 6255.9, -6584.8),
    "shufflenet_v2": (-0.92039, -0.76191, -13.939, 34.155, -76.092, -14.428),
}
QUICKEST = ("resnet8", "vgg8")
PRINTED = [n if n in QUICKEST else pytest.param(n, marks=pytest.mark.slow) for n in PRINTS]
IMAGES = np.random.default_rng([0]).standard_normal((2, 16, 16, 3)).astype(np.float32)


def traced(model, shape):
    """Shapes of the outputs and of the variables, computing nothing."""
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    start = functools.partial(model.init_with_output, train=False)
    return jax.eval_shape(start, jax.random.key(0), images)


def drawn(variables):
    """Variables in which every array of the same shape and use holds the same random numbers."""

    def draw(path, leaf):
        *_, width = leaf.shape
        kind = path[-1].key
        if kind == "kernel":
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            values = spread * np.random.default_rng(leaf.shape).standard_normal(leaf.shape)
        else:
            seed = 1 + ("bias", "scale", "mean", "var").index(kind)
            low = 0.5 if kind in ("scale", "var") else -0.5
            values = np.random.default_rng([width, seed]).uniform(low, low + 1, width)
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


@functools.cache
def ready(name):
    model = models.create(name, 100)
    return model, drawn(traced(model, (16, 16, 3))[1])


@functools.partial(jax.jit, static_argnums=0)
def predict(model, variables, images):
    return models.predict(model, variables, images)


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, images):
    """Gradient of the mean squared logit, and the variables after one training pass."""

    def loss(params):
        outputs, moved = models.trainable(model)({**variables, "params": params}, images)
        return jnp.square(outputs.logits).mean(), moved

    return jax.grad(loss, has_aux=True)(variables["params"])


def test_every_network_of_the_table_is_tested():
    assert {*QUICK, *LONG, "mlp", "convnet", "resnet"} == set(models.MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_and_maps_are_the_published_ones(name):
    count, hidden, features = (QUICK | LONG)[name]
    outputs, variables = traced(models.create(name, 100), (32, 32, 3))
    assert models.num_parameters(variables) == count
    expected = [(2, size, size, channels) for size, channels in hidden]
    assert [maps.shape for maps in outputs.hidden] == expected
    assert outputs.features.shape == (2, features)
    assert outputs.logits.shape == (2, 100)


@pytest.mark.parametrize("name", PRINTED)
def test_every_map_equals_the_public_codes(name):
    outputs = predict(*ready(name), IMAGES)
    for got, expected in zip(
        [*outputs.hidden, outputs.features, outputs.logits], PRINTS[name], strict=True
    ):
        values = np.asarray(got, np.float64).ravel()
        # Signs and weights that differ from entry to entry notice any change of order.
        summary = values @ np.cos(np.arange(values.size)) / np.sqrt(values.size)
        # Float32 over up to 50 layers, and five printed digits.
        np.testing.assert_allclose(summary, expected, atol=3e-4 * values.std())


@pytest.mark.parametrize(
    "name", ["resnet8", "vgg8", pytest.param("mobilenet_v2", marks=pytest.mark.slow)]
)
def test_grey_images_of_28_pixels_are_taken(name):
    outputs, variables = traced(models.create(name, 10), (28, 28, 1))
    sizes = {
        "resnet8": [28, 28, 14, 7],
        "vgg8": [28, 14, 7, 3, 3],
        "mobilenet_v2": [14, 14, 7, 4, 2],
    }
    assert [maps.shape[1] for maps in outputs.hidden] == sizes[name]
    assert outputs.logits.shape == (2, 10)
    first = jax.tree.leaves(variables["params"]["stem" if name != "vgg8" else "stage_0_layer_0"])
    assert any(leaf.shape[:3] == (3, 3, 1) for leaf in first)


def test_vgg_pools_once_more_for_large_images():
    outputs, _ = traced(models.create("vgg8", 10), (64, 64, 3))
    assert [maps.shape[1] for maps in outputs.hidden] == [64, 32, 16, 8, 4]


TRAINED = ("wrn_16_1", "resnet50", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2")


@pytest.mark.parametrize(
    "name", ["resnet8", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vgg8", *TRAINED))]
)
def test_statistics_move_in_training_only_and_gradients_are_finite(name):
    model, variables = ready(name)
    batch = jax.random.normal(jax.random.key(2), (4, 16, 16, 3))
    gradient, moved = train(model, variables, batch)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    jax.tree.map(np.testing.assert_array_equal, moved["params"], variables["params"])
    assert jax.tree.structure(moved) == jax.tree.structure(variables)
    for before, after in zip(
        jax.tree.leaves(variables["batch_stats"]),
        jax.tree.leaves(moved["batch_stats"]),
        strict=True,
    ):
        assert np.isfinite(after).all() and not np.array_equal(before, after)
    # Frozen, an example's outputs know nothing of the batch it came in.
    whole = predict(model, variables, IMAGES)
    again = predict(model, variables, IMAGES[::-1])
    np.testing.assert_array_equal(whole.logits, predict(model, variables, IMAGES).logits)
    scale = np.abs(whole.logits).max()
    np.testing.assert_allclose(whole.logits / scale, again.logits[::-1] / scale, atol=1e-5)


def test_normalisation_has_the_published_constants():
    maps = jnp.asarray(np.random.default_rng(3).normal(2.0, 3.0, (4, 5, 5, 2)), jnp.float32)
    layer = layers.normalisation(True, dtype="float32", name="norm")
    variables = layer.init(jax.random.key(0), maps)
    result, moved = layer.apply(variables, maps, mutable=["batch_stats"])
    mean, variance = maps.mean(axis=(0, 1, 2)), maps.var(axis=(0, 1, 2))
    expected = (maps - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    # The running values start at 0 and 1 and take a tenth of the batch's.
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 + 0.1 * variance, rtol=1e-5)


def test_a_stride_begins_in_the_padding_above_and_left():
    layer = layers.convolution(1, stride=2, dtype="float32", name="conv")
    kernel = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    result = layer.apply(kernel, jnp.ones((1, 4, 4, 1)))
    # Each window counts the pixels of the image under it.
    np.testing.assert_array_equal(result[0, :, :, 0], [[4, 6], [6, 9]])


@pytest.mark.parametrize(
    ("size", "stride", "groups", "width"), [(3, 1, 6, 6), (3, 2, 6, 6), (1, 1, 3, 9), (3, 1, 2, 4)]
)
def test_grouped_convolutions_equal_the_compilers(size, stride, groups, width):
    draw = np.random.default_rng(size + stride)
    maps = draw.standard_normal((2, 5, 6, 6)).astype(np.float32)
    kernel = draw.standard_normal((size, size, 6 // groups, width)).astype(np.float32)
    strides, padding = (stride, stride), [(size // 2, size // 2)] * 2
    settings = {"feature_group_count": groups, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradients(convolve, maps, kernel):
        result, pull = jax.vjp(
            lambda *given: convolve(*given, strides, padding, **settings), maps, kernel
        )
        weights = jnp.cos(jnp.arange(result.size)).reshape(result.shape)
        return result, *pull(weights)

    ours = with_gradients(grouped.convolve, maps, kernel)
    compilers = with_gradients(jax.lax.conv_general_dilated, maps, kernel)
    for got, expected in zip(ours, compilers, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_channels_by_themselves_are_summed_in_float32():
    # 256 + 1 is 256 in bfloat16, so a sum made in that type would lose all the ones.
    maps = jnp.ones((1, 3, 3, 1), jnp.bfloat16).at[0, 0, 0].set(256)
    kernel = jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    total = grouped.depthwise(maps, kernel, (1, 1), [(0, 0), (0, 0)])
    assert total.dtype == jnp.bfloat16 and total.item() == 264


@pytest.mark.parametrize(("groups", "order"), [(2, [0, 3, 1, 4, 2, 5]), (3, [0, 2, 4, 1, 3, 5])])
def test_shuffle_takes_one_channel_of_each_group_in_turn(groups, order):
    maps = jnp.broadcast_to(jnp.arange(6.0), (1, 2, 2, 6))
    result = shuffled(maps, groups)
    np.testing.assert_array_equal(result, np.broadcast_to(order, (1, 2, 2, 6)))
    np.testing.assert_array_equal(shuffled(result, 6 // groups), maps)


def test_first_weights_have_the_published_spread():
    key = jax.random.key(0)
    # Kernel area times output channels, also where each channel is convolved by itself.
    shape = (3, 3, 1, 1024)
    kernel = layers.KAIMING(key, shape, jnp.float32)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 1024)), rtol=0.03)
    # 9,216 draws know a standard deviation to 0.7%.
    np.testing.assert_allclose(layers.SMALL(key, shape, jnp.float32).std(), 0.01, rtol=0.03)
    size = np.abs(layers.PLAIN(key, shape, jnp.float32)).max()
    assert 0.99 / 3 < size <= 1 / 3


def test_bfloat16_computes_maps_only():
    model, variables = ready("resnet8")
    short = models.create("resnet8", 100, dtype="bfloat16")
    outputs, kept = traced(short, (16, 16, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, kept))} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(models.frozen(short))(variables, IMAGES))
    convolutions = [line for line in text.splitlines() if "= conv_general_dilated[" in line]
    assert len(convolutions) == 9
    assert all(":bf16[" in line for line in convolutions)
    got = predict(short, variables, IMAGES).logits
    expected = predict(model, variables, IMAGES).logits
    # Bfloat16 keeps 8 bits: errors of a few thousandths in each of 8 layers.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got / scale, expected / scale, atol=0.02)
    assert not np.array_equal(got, expected)


def test_names_settle_sizes_and_leave_the_type():
    assert models.options_of("resnet20") == {"dtype": "float32"}
    for name in (*QUICK, *LONG):
        assert models.options_of(name) == {"dtype": "float32"}
        first, second = models.create(name, 10), models.create(name, 10, dtype="float32")
        assert first == second and hash(first) == hash(second)
        assert first != models.create(name, 10, dtype="bfloat16")
    assert models.create("resnet20", 10) != models.create("resnet32", 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (4, 4, 8, 8)}, "`option of resnet8` must be one of dtype; got 'widths'"),
        ({"blocks": (2, 2, 2)}, "`option of resnet8` must be one of dtype; got 'blocks'"),
        ({"dtype": "float16"}, "`dtype` must be one of float32, bfloat16; got 'float16'"),
        ({"dtype": 16}, "`dtype` must be one of float32, bfloat16; got 16"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        models.create("resnet8", 3, **options)


@pytest.mark.parametrize(
    ("name", "smallest", "network"),
    [
        ("resnet8", 4, "residual network"),
        ("resnet50", 8, "residual network"),
        ("wrn_16_1", 4, "wide residual network"),
        ("vgg8", 8, "VGG network"),
        ("mobilenet_v2", 16, "MobileNetV2"),
        ("shufflenet_v1", 8, "ShuffleNet"),
        ("shufflenet_v2", 8, "ShuffleNet"),
    ],
)
def test_images_too_small_to_be_halved_are_refused(name, smallest, network):
    model = models.create(name, 3)
    message = (
        f"a {network} needs images of at least {smallest}x{smallest} pixels, got "
        f"{smallest}x{smallest - 1}"
    )
    with pytest.raises(InputError, match=message):
        models.initialise(model, jax.random.key(0), (smallest, smallest - 1, 1))
