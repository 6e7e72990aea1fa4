"""Networks have the promised shapes, sizes and behaviour in and out of training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fdjax import models
from fdjax.checks import InputError

SMALL = {
    "mlp": {"widths": (6, 5)},
    "convnet": {"widths": (3, 4), "dense": 5},
    "resnet": {"widths": (3, 5), "blocks_per_stage": 1},
}
IMAGE_SHAPE = (8, 8, 1)


@functools.cache
def small(name):
    model = models.create(name, 7, **SMALL[name])
    return model, models.initialise(model, jax.random.key(1), IMAGE_SHAPE)


def images(number=4, seed=0, shape=IMAGE_SHAPE):
    return jax.random.normal(jax.random.key(seed), (number, *shape))


@functools.partial(jax.jit, static_argnums=0)
def predict(model, variables, batch):
    return models.predict(model, variables, batch)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_have_the_promised_shapes(name):
    model, variables = small(name)
    outputs = predict(model, variables, images())
    assert outputs.logits.shape == (4, 7) and outputs.logits.dtype == jnp.float32
    assert outputs.features.shape == (4, 5)
    expected = {
        "mlp": [(4, 1, 1, 6), (4, 1, 1, 5)],
        "convnet": [(4, 4, 4, 3), (4, 2, 2, 4)],
        "resnet": [(4, 8, 8, 3), (4, 4, 4, 5)],
    }
    assert [maps.shape for maps in outputs.hidden] == expected[name]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_default_sizes_take_small_and_large_images(name, shape):
    model = models.create(name, 10)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda: models.initialise(model, key, shape))
    outputs = jax.eval_shape(
        functools.partial(models.predict, model), variables, images(2, shape=shape)
    )
    assert outputs.logits.shape == (2, 10)
    assert outputs.features.shape == (2, 64)


@pytest.mark.parametrize("name", SMALL)
def test_the_head_maps_features_to_logits(name):
    model, variables = small(name)
    outputs = predict(model, variables, images())
    vectors = models.class_vectors(variables)
    assert vectors.shape == (7, 5)
    bias = variables["params"]["head"]["bias"]
    np.testing.assert_allclose(outputs.features @ vectors.T + bias, outputs.logits, atol=1e-5)


def test_parameter_counts_by_hand():
    def count(name):
        return models.num_parameters(small(name)[1])

    assert count("mlp") == (64 * 6 + 6) + (6 * 5 + 5) + (5 * 7 + 7)
    assert count("convnet") == (9 * 3 + 3) + (9 * 3 * 4 + 4) + (2 * 2 * 4 * 5 + 5) + (5 * 7 + 7)
    stem = 9 * 3 + 2 * 3
    first = 2 * (9 * 3 * 3 + 2 * 3)
    second = (9 * 3 * 5 + 2 * 5) + (9 * 5 * 5 + 2 * 5) + (3 * 5 + 2 * 5)
    assert count("resnet") == stem + first + second + (5 * 7 + 7)


@pytest.mark.parametrize("name", SMALL)
def test_prediction_is_deterministic_and_the_same_in_every_batch(name):
    model, variables = small(name)
    whole = predict(model, variables, images())
    again = predict(model, variables, images())
    np.testing.assert_array_equal(whole.logits, again.logits)
    backwards = predict(model, variables, images()[::-1])
    np.testing.assert_allclose(whole.logits, backwards.logits[::-1], atol=1e-5)


def test_initialising_under_vmap_and_jit_equals_a_loop():
    model, alone = small("mlp")
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    together = jax.jit(jax.vmap(lambda key: models.initialise(model, key, IMAGE_SHAPE)))(keys)
    jax.tree.map(
        lambda several, one: np.testing.assert_allclose(several[1], one, atol=1e-6),
        together,
        alone,
    )
    kernels = together["params"]["head"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])


def test_running_statistics_move_in_training_only():
    model, variables = small("resnet")
    batch = images()
    outputs, moved = jax.jit(models.trainable(model))(variables, batch)
    assert outputs.logits.shape == (4, 7)
    assert jax.tree.structure(moved) == jax.tree.structure(variables)
    before, after = (tree["batch_stats"]["stem_norm"]["mean"] for tree in (variables, moved))
    # By hand: the running mean starts at zero and takes a tenth of the batch's mean.
    stem = jax.lax.conv_general_dilated(
        batch,
        variables["params"]["stem_conv"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_array_equal(before, 0.0)
    np.testing.assert_allclose(after, 0.1 * stem.mean(axis=(0, 1, 2)), atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, moved["params"], variables["params"])
    evaluated = predict(model, moved, batch)
    assert not np.allclose(evaluated.logits, outputs.logits)


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_networks_without_statistics_pass_their_variables_through(name):
    model, variables = small(name)
    outputs, after = models.trainable(model)(variables, images())
    assert set(after) == {"params"}
    jax.tree.map(np.testing.assert_array_equal, after, variables)
    frozen = models.frozen(model)(variables, images())
    np.testing.assert_allclose(outputs.logits, frozen.logits, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_a_few_steps_fit_a_toy_task(name):
    model, variables = small(name)
    labels = jnp.arange(16) % 2
    # A bright left half against a bright right half, in noise.
    halves = jnp.where(jnp.arange(8) < 4, 1.0, -1.0) * (1 - 2 * labels[:, None])
    batch = 0.3 * images(16, seed=4) + halves[:, None, :, None]
    network = models.trainable(model)
    optimiser = optax.adam(1e-2)

    def loss(params, variables):
        outputs, variables = network({**variables, "params": params}, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels)
        return losses.mean(), variables

    @jax.jit
    def step(variables, state):
        (value, variables), gradient = jax.value_and_grad(loss, has_aux=True)(
            variables["params"], variables
        )
        updates, state = optimiser.update(gradient, state)
        params = optax.apply_updates(variables["params"], updates)
        return {**variables, "params": params}, state, value

    state = optimiser.init(variables["params"])
    for _ in range(60):
        variables, state, value = step(variables, state)
    assert value < 0.1
    predicted = predict(model, variables, batch).logits.argmax(axis=1)
    np.testing.assert_array_equal(predicted, labels)


@pytest.mark.parametrize("name", SMALL)
def test_vmap_over_stacked_variables_equals_a_loop(name):
    model, first = small(name)
    several = (first, models.initialise(model, jax.random.key(5), IMAGE_SHAPE))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    together = jax.jit(jax.vmap(models.frozen(model), in_axes=(0, None)))(stacked, images())
    for index, variables in enumerate(several):
        alone = predict(model, variables, images())
        jax.tree.map(
            lambda all_of_it, one, i=index: np.testing.assert_allclose(
                all_of_it[i], one, atol=1e-5
            ),
            together,
            alone,
        )


def test_equal_arguments_give_equal_models():
    first = models.create("convnet", 3, widths=[4, 5])
    second = models.create("convnet", 3, widths=(4, 5))
    assert first == second and hash(first) == hash(second)
    assert first != models.create("convnet", 4, widths=(4, 5))


def test_options_are_listed_with_their_defaults():
    assert models.options_of("mlp") == {"widths": (128, 64)}
    assert models.options_of("resnet") == {"widths": (16, 32, 64), "blocks_per_stage": 1}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, "`architecture` must be one of mlp, convnet, resnet, .*; got 'vgg'"),
        ("convnet", {"depth": 3}, "`option of convnet` must be one of widths, dense; got 'depth'"),
        ("mlp", {"widths": ()}, "at least one positive integer"),
        ("mlp", {"widths": 8}, "at least one positive integer, got 8"),
        ("mlp", {"widths": (8, 0)}, "`widths` must be a positive integer, got 0"),
        ("convnet", {"dense": True}, "`dense` must be a positive integer, got True"),
        ("convnet", {"dense": 2.5}, "`dense` must be a positive integer, got 2.5"),
    ],
)
def test_unknown_names_and_sizes_are_refused(name, options, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        models.create(name, 3, **options)


def test_other_bad_input_is_refused():
    with pytest.raises(InputError, match="`num_classes` must be a positive integer"):
        models.create("mlp", 0)
    model = models.create("convnet", 3, widths=(4, 4, 4, 4))
    with pytest.raises(InputError, match="at least 16x16 pixels, got 8x8"):
        models.initialise(model, jax.random.key(0), IMAGE_SHAPE)
    with pytest.raises(InputError, match="`image_shape` must be positive"):
        models.initialise(model, jax.random.key(0), (0, 8, 1))
    with pytest.raises(InputError, match="no last layer params/head/kernel"):
        models.class_vectors({"params": {"fc": {"kernel": jnp.ones((2, 3))}}})
