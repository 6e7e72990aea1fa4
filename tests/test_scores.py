"""What holds for every score, and the scores of predictions, neighbours and nothing at all."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest

from fdjax import scores
from fdjax.checks import InputError
from fdjax.types import TeacherOutputs

EXAMPLES, LABELS, FEATURES, CLASSES = 40, 6, 8, 3
OF_FEATURES = ["transport", "logme", "knn"]
OF_THE_TASK = [*OF_FEATURES, "leep", "nce"]


def teacher(seed: int = 0) -> tuple[TeacherOutputs, jax.Array]:
    """A teacher whose features and predictions have something to do with the labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(EXAMPLES) % CLASSES
    features = rng.normal(size=(EXAMPLES, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[labels]
    class_vectors = rng.normal(size=(LABELS, FEATURES))
    outputs = TeacherOutputs(
        probabilities=jax.nn.softmax(jnp.asarray(features @ class_vectors.T, jnp.float32)),
        features=jnp.asarray(features, jnp.float32),
        class_vectors=jnp.asarray(class_vectors, jnp.float32),
        class_mask=jnp.ones(LABELS, bool),
        source_accuracy=jnp.float32(0.5 + seed / 10),
        num_parameters=jnp.float32(1000.0 + seed),
    )
    return outputs, jnp.asarray(labels)


def padded(outputs: TeacherOutputs, labels: int = 4, features: int = 5) -> TeacherOutputs:
    return outputs._replace(
        probabilities=jnp.pad(outputs.probabilities, ((0, 0), (0, labels))),
        features=jnp.pad(outputs.features, ((0, 0), (0, features))),
        class_vectors=jnp.pad(outputs.class_vectors, ((0, labels), (0, features))),
        class_mask=jnp.pad(outputs.class_mask, (0, labels)),
    )


def black_box(outputs: TeacherOutputs) -> TeacherOutputs:
    return outputs._replace(features=None, class_vectors=None)


def of_oracle(name: str) -> tuple[dict[str, np.ndarray], TeacherOutputs, jax.Array, int]:
    data = oracle_files.load(f"transfer/{name}")
    probabilities = jnp.asarray(data["source_probs"])
    features = (
        jnp.asarray(data["features"]).astype(probabilities.dtype) if "features" in data else None
    )
    mask = jnp.ones(probabilities.shape[1], bool)
    outputs = TeacherOutputs(probabilities, features, None, mask)
    return data, outputs, jnp.asarray(data["labels"]), int(data["labels"].max()) + 1


@pytest.mark.parametrize("name", scores.SCORES)
def test_jit_and_vmap_and_padding_change_nothing(name):
    score = scores.SCORES[name]
    outputs, labels = teacher()
    others = [outputs, teacher(1)[0], teacher(2)[0]]
    plain = [score(other, labels, CLASSES) for other in others]
    assert all(value.shape == () and jnp.isfinite(value) for value in plain)
    faculty = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(padded, others))
    mapped = jax.jit(jax.vmap(lambda one: score(one, labels, CLASSES)))(faculty)
    np.testing.assert_allclose(mapped, jnp.stack(plain), atol=1e-5)
    jitted = jax.jit(score, static_argnums=2)
    np.testing.assert_allclose(jitted(outputs, labels, CLASSES), plain[0], atol=1e-6)


@pytest.mark.parametrize("name", scores.SCORES)
def test_order_of_examples_changes_nothing(name):
    score = jax.jit(scores.SCORES[name], static_argnums=2)
    outputs, labels = teacher()
    order = np.random.default_rng(0).permutation(EXAMPLES)
    shuffled = outputs._replace(
        probabilities=outputs.probabilities[order], features=outputs.features[order]
    )
    expected = score(outputs, labels, CLASSES)
    np.testing.assert_allclose(score(shuffled, labels[order], CLASSES), expected, atol=1e-5)


@pytest.mark.parametrize("name", scores.SCORES)
def test_a_black_box_is_nan_where_features_count(name):
    outputs, labels = teacher()
    score = scores.SCORES[name]
    assert jnp.isnan(score(black_box(outputs), labels, CLASSES)) == (name in OF_FEATURES)
    # In a faculty with features a black box has features of NaN.
    blind = outputs._replace(features=outputs.features * jnp.nan)
    assert jnp.isnan(jax.jit(score, static_argnums=2)(blind, labels, CLASSES)) == (
        name in OF_FEATURES
    )


@pytest.mark.parametrize("name", OF_THE_TASK)
def test_good_predictions_and_features_score_higher(name):
    outputs, labels = teacher()
    good = outputs._replace(
        probabilities=jax.nn.softmax(6 * jnp.eye(LABELS)[labels]),
        features=jnp.eye(LABELS)[labels] + 0.1 * outputs.features[:, :LABELS],
        class_vectors=jnp.eye(LABELS),
    )
    order = np.random.default_rng(0).permutation(EXAMPLES)
    bad = good._replace(probabilities=good.probabilities[order], features=good.features[order])
    score = jax.jit(scores.SCORES[name], static_argnums=2)
    assert score(good, labels, CLASSES) > score(bad, labels, CLASSES)


@pytest.mark.parametrize("name", ["t01", "t10_many", "leep_zero_column", "missing_class"])
def test_leep_matches_the_reference(x64, name):
    data, outputs, labels, classes = of_oracle(name)
    expected = data["leep_without_zero_column" if name == "leep_zero_column" else "leep"]
    np.testing.assert_allclose(scores.leep(outputs, labels, classes), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["t01", "t10_many", "missing_class"])
def test_nce_matches_the_reference(x64, name):
    data, outputs, labels, classes = of_oracle(name)
    np.testing.assert_allclose(scores.nce(outputs, labels, classes), data["nce"], rtol=1e-12)


def test_leep_of_hard_predictions_is_nce(x64):
    data, outputs, labels, classes = of_oracle("leep_hard_predictions")
    np.testing.assert_allclose(scores.leep(outputs, labels, classes), data["leep"], rtol=1e-12)
    np.testing.assert_allclose(scores.nce(outputs, labels, classes), data["leep"], rtol=1e-12)


def test_leep_and_nce_by_hand():
    probabilities = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    outputs = TeacherOutputs(probabilities, None, None, jnp.ones(2, bool))
    labels = jnp.array([0, 0, 1, 1])
    # P(z) = (2.5, 1.5) / 4; P(y=0|z) = (2 / 2.5, 0); P(y=1|z) = (0.5 / 2.5, 1).
    expected = (2 * np.log(0.8) + np.log(1.0) + np.log(0.5 * 0.2 + 0.5)) / 4
    np.testing.assert_allclose(scores.leep(outputs, labels, 2), expected, rtol=1e-6)
    # Hard predictions 0, 0, 1, 0: label 0 takes two thirds of z = 0.
    expected = (2 * np.log(2 / 3) + np.log(1.0) + np.log(1 / 3)) / 4
    np.testing.assert_allclose(scores.nce(outputs, labels, 2), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["t01", "t04_wide", "t10_many"])
def test_nearest_neighbour_matches_the_reference(x64, name):
    data, outputs, labels, classes = of_oracle(name)
    found = scores.knn(outputs, labels, classes)
    np.testing.assert_allclose(100 * found, data["knn1_loo_cosine"], rtol=1e-12)


def test_neighbours_by_hand():
    angles = jnp.deg2rad(jnp.array([0.0, 10.0, 21.0, 80.0, 90.0, 101.0]))
    features = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    outputs = TeacherOutputs(jnp.ones((6, 1)), features, None, jnp.ones(1, bool))
    labels = jnp.array([0, 0, 1, 1, 1, 1])
    # Only the third looks to its nearest, of class 0; with three, the first two do so too.
    np.testing.assert_allclose(scores.knn(outputs, labels, 2), 5 / 6, rtol=1e-6)
    np.testing.assert_allclose(scores.knn(outputs, labels, 2, k=3), 3 / 6, rtol=1e-6)
    # Of two votes for different classes the nearer one wins: as one neighbour.
    np.testing.assert_allclose(scores.knn(outputs, labels, 2, k=2), 5 / 6, rtol=1e-6)
    with pytest.raises(InputError, match="`k` must be at least 1 and below the 6 examples, got 6"):
        scores.knn(outputs, labels, 2, k=6)


def test_baselines():
    outputs, labels = teacher()
    assert scores.source_accuracy(outputs, labels, CLASSES) == 0.5
    np.testing.assert_allclose(scores.size(outputs, labels, CLASSES), np.log(1000), rtol=1e-6)
    unknown = outputs._replace(source_accuracy=float("nan"), num_parameters=float("nan"))
    assert jnp.isnan(scores.source_accuracy(unknown, labels, CLASSES))
    assert jnp.isnan(scores.size(unknown, labels, CLASSES))


def test_random_is_uniform_and_reproducible():
    draw = jax.jit(scores.random, static_argnums=2, static_argnames="seed")
    outputs, labels = teacher()
    assert draw(outputs, labels, CLASSES) == draw(outputs, labels, CLASSES)
    assert draw(outputs, labels, CLASSES) != draw(outputs, labels, CLASSES, seed=1)
    probabilities = jax.nn.softmax(jax.random.normal(jax.random.key(0), (400, EXAMPLES, LABELS)))
    values = jax.vmap(lambda p: scores.random(outputs._replace(probabilities=p), labels, CLASSES))
    drawn = np.sort(values(probabilities))
    assert drawn[0] >= 0 and drawn[-1] < 1
    # Kolmogorov-Smirnov distance of 400 draws; above 0.08 in one case of a hundred.
    assert np.abs(drawn - np.linspace(0, 1, 400)).max() < 0.08


def test_leep_has_finite_gradients_also_at_zero_probability():
    outputs, labels = teacher()
    outputs = padded(outputs)

    def of(probabilities):
        return scores.leep(outputs._replace(probabilities=probabilities), labels, CLASSES)

    gradient = jax.grad(of)(outputs.probabilities)
    assert jnp.isfinite(gradient).all()
    step = 1e-2 * jax.random.normal(jax.random.key(1), gradient.shape)
    step = step * outputs.probabilities
    ahead, behind = of(outputs.probabilities + step), of(outputs.probabilities - step)
    np.testing.assert_allclose((ahead - behind) / 2, jnp.vdot(gradient, step), rtol=2e-2, atol=1e-5)
