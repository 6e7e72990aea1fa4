"""OTCE against the exact plans of the reference code."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import ot
import pytest

from fdjax import scores
from fdjax.checks import InputError

parts_of = jax.jit(scores.otce_parts, static_argnums=(4, 5))


def problem(name):
    data = oracle_files.load(f"transfer/{name}")
    source, target = data["otce_source_labels"], data["labels"]
    inputs = (
        jnp.asarray(data["otce_source_features"].astype(np.float64)),
        jnp.asarray(source),
        jnp.asarray(data["features"].astype(np.float64)),
        jnp.asarray(target),
    )
    return data, inputs, (int(source.max()) + 1, int(target.max()) + 1)


@pytest.mark.parametrize("name", ["t01", "t10_many"])
def test_parts_match_the_reference(x64, name):
    data, inputs, classes = problem(name)
    parts = parts_of(*inputs, *classes)
    np.testing.assert_allclose(parts.distance, data["otce_W"], rtol=1e-9)
    wanted = data["otce_conditional_entropy"]
    np.testing.assert_allclose(parts.conditional_entropy, wanted, rtol=1e-9)


def test_unlabelled_examples_take_no_part_and_numbers_without_common_multiple_are_solved(x64):
    _, (source, source_labels, target, target_labels), classes = problem("t01")
    unlabelled = target_labels.at[:3].set(-1)
    parts = parts_of(source, source_labels, target, unlabelled, *classes)
    cost = np.asarray(jnp.sum((source[:, None] - target[None, 3:]) ** 2, axis=-1))
    plan = ot.emd(ot.unif(40), ot.unif(57), cost)
    np.testing.assert_allclose(parts.distance, np.sum(plan * cost), rtol=1e-9)
    joint = np.eye(classes[0])[source_labels].T @ plan @ np.eye(classes[1])[target_labels[3:]]
    joint = np.maximum(joint, 1e-300)
    entropy = -np.sum(joint * np.log(joint / joint.sum(axis=1, keepdims=True)))
    np.testing.assert_allclose(parts.conditional_entropy, entropy, rtol=1e-9)


def test_a_line_by_hand():
    """Neighbours pair up: source label 0 meets target label 1, source label 1 both."""
    source, target = (
        jnp.array([[0.0], [1.0], [5.0], [6.0]]),
        jnp.array([[0.5], [1.5], [5.0], [7.0]]),
    )
    labels = (jnp.array([0, 0, 1, 1]), jnp.array([1, 1, 1, 0]))
    inputs = (source, labels[0], target, labels[1], 2, 2)
    parts = parts_of(*inputs)
    np.testing.assert_allclose(parts.distance, (0.25 + 0.25 + 0 + 1) / 4, rtol=1e-6)
    np.testing.assert_allclose(parts.conditional_entropy, 0.5 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(scores.otce(*inputs), -0.5 * np.log(2), rtol=1e-6)
    found = scores.otce(*inputs, distance_weight=-2.0, entropy_weight=-3.0, constant=1.0)
    np.testing.assert_allclose(found, 1 - 2 * 0.375 - 1.5 * np.log(2), rtol=1e-6)

    both = jax.vmap(lambda shift: scores.otce_parts(source + shift, *inputs[1:]).distance)
    # Moving the source by s adds s^2 - 2 s times the mean step, 0.5.
    np.testing.assert_allclose(both(jnp.array([0.0, 0.1])), [0.375, 0.375 + 0.01 - 0.1], rtol=1e-5)
    slope = jax.grad(lambda shift: scores.otce_parts(source + shift, *inputs[1:]).distance)(0.0)
    np.testing.assert_allclose(slope, -1.0, rtol=1e-5)


def test_what_is_not_defined_is_nan_and_bad_input_is_refused():
    features, labels = jnp.ones((3, 2)), jnp.array([0, 1, 0])
    for inputs in (
        (features * jnp.nan, labels, features, labels),
        (features, labels, features, jnp.full(3, -1)),
    ):
        assert all(jnp.isnan(part) for part in parts_of(*inputs, 2, 2))
    with pytest.raises(InputError, match="same number of features, got 2 and 1; take both"):
        scores.otce(features, labels, features[:, :1], labels, 2, 2)
