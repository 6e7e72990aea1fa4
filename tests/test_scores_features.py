"""Scores of features beyond what others' code shows: parts, special cases and settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest
import score_truth
from test_scores import CLASSES, EXAMPLES, black_box, of_oracle, teacher

from fdjax import scores
from fdjax.checks import InputError
from fdjax.scores import _mixture, _regression
from fdjax.scores._labelled import labelled
from fdjax.types import TeacherOutputs


def outputs_of(features) -> TeacherOutputs:
    features = jnp.asarray(features)
    probabilities = jnp.ones((features.shape[0], 1), features.dtype)
    return TeacherOutputs(probabilities, features, None, jnp.ones(1, bool))


def test_a_black_box_and_features_of_width_zero_are_not_defined():
    outputs, labels = teacher()
    score = jax.jit(scores.lfc, static_argnums=2)
    assert jnp.isnan(score(black_box(outputs), labels, CLASSES))
    none = outputs._replace(features=outputs.features[:, :0])
    assert jnp.isnan(score(none, labels, CLASSES))


def test_features_that_tell_nothing_by_hand():
    """Two classes at the same four corners of a square."""
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    outputs = outputs_of(np.concatenate([corners, corners]))
    wanted = {
        scores.hscore: 0.0,
        scores.regularised_hscore: 0.0,
        scores.lfc: 0.0,
        scores.etran_lda: 0.5,
        # Equal Gaussians overlap wholly, in both orders of the pair.
        scores.gbc: -2.0,
        functools.partial(scores.gbc, logarithm=True): -np.log(2),
    }
    labels = jnp.repeat(jnp.arange(2), 4)
    found = jax.jit(lambda: [score(outputs, labels, 2) for score in wanted])()
    np.testing.assert_allclose(found, list(wanted.values()), atol=1e-6)


def test_the_logarithm_of_the_overlap_does_not_underflow(x64):
    far = np.concatenate([np.zeros((4, 3)), np.full((4, 3), 100.0)])
    far += np.random.default_rng(0).normal(size=far.shape)
    labels = jnp.repeat(jnp.arange(2), 4)
    score = jax.jit(functools.partial(scores.gbc, logarithm=True), static_argnums=2)
    near = outputs_of(far * np.where(np.arange(8) < 4, 1.0, 0.05)[:, None])
    np.testing.assert_allclose(
        score(near, labels, 2),
        -np.log(-score_truth.gbc(np.asarray(near.features), np.asarray(labels))),
        rtol=1e-9,
    )
    assert score(outputs_of(far), labels, 2) > 1000


def test_coding_rate_of_few_classes_of_many_examples(x64):
    """The way that the tasks of `score_world` do not go."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = rng.normal(size=(60, 6)) + 2 * np.eye(2, 6)[labels]
    score = jax.jit(scores.transrate, static_argnums=2)
    found = score(outputs_of(features), jnp.asarray(labels), 2)
    np.testing.assert_allclose(found, score_truth.transrate(features, labels), rtol=1e-10)


def test_principal_components_are_those_of_scikit_learn(x64):
    from sklearn.decomposition import PCA

    @functools.partial(jax.jit, static_argnums=2)
    def components(outputs, labels, classes):
        return _mixture.principal_components(labelled(outputs, labels, classes), 0.8)

    for name in ("t01", "t04_wide"):
        features = oracle_files.load(f"transfer/{name}")["features"].astype(np.float64)
        found = np.asarray(components(*of_oracle(name)[1:]))
        found = found[:, np.any(found != 0, axis=0)][:, ::-1]
        wanted = PCA(0.8).fit_transform(features)
        np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-9)


def test_mixture_is_that_of_scikit_learn(x64):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    features = oracle_files.load("transfer/t01")["features"].astype(np.float64)
    known = jnp.ones(len(features), bool)
    cluster = jax.jit(_mixture.clusters)
    start = np.asarray(cluster(jnp.asarray(features), known, jnp.arange(7) < 6))
    assert (start.sum(axis=1) == 1).all() and (start[:, :6].sum(axis=0) > 0).all()
    assert start[:, 6].sum() == 0

    hard = start[:, :6]
    count = hard.sum(axis=0)
    means = (hard / count).T @ features
    variances = (hard / count).T @ features**2 - means**2 + 1e-2
    model = GaussianMixture(
        6,
        covariance_type="diag",
        reg_covar=1e-2,
        max_iter=5,
        tol=0.0,
        weights_init=count / count.sum(),
        means_init=means,
        precisions_init=1 / variances,
    )
    with pytest.warns(ConvergenceWarning):
        model.fit(features)
    # Theirs begins after the first maximisation.
    run = jax.jit(_mixture.expectation_maximisation, static_argnums=3)
    found = run(jnp.asarray(features), jnp.asarray(start), jnp.asarray(1e-2), 6)
    np.testing.assert_allclose(found[:, :6], model.predict_proba(features), atol=1e-9)


def test_leep_of_the_components_is_nleep(x64):
    data, outputs, labels, classes = of_oracle("t01")
    posterior = outputs._replace(probabilities=jnp.asarray(data["nleep_seed0_resp"]))
    found = jax.jit(scores.leep, static_argnums=2)(posterior, labels, classes)
    np.testing.assert_allclose(found, data["nleep_seed0_resp_leep_log"], rtol=1e-10)


def test_parts_of_etran_are_combined_over_the_teachers(x64):
    data = oracle_files.load("transfer/etran_group")
    found = scores.etran(jnp.asarray(data["energy"]), jnp.asarray(data["lda"]))
    np.testing.assert_allclose(found, data["etran"], rtol=1e-12)
    labels = jnp.asarray(data["labels"])

    def energy(features):
        return scores.etran_energy(outputs_of(features), labels, 5)

    features = jnp.asarray(data["features"].astype(np.float64))
    np.testing.assert_allclose(jax.jit(jax.vmap(energy))(features), data["energy"], rtol=1e-12)
    # An unknown teacher does not spoil the others, and a part equal for all says nothing.
    part = jnp.array([1.0, jnp.nan, 3.0, 2.0])
    np.testing.assert_allclose(scores.etran(part, part), [0.0, np.nan, 1.0, 0.5])
    np.testing.assert_allclose(scores.etran(jnp.full(4, 7.0), part), [0.0, np.nan, 0.85, 0.425])


@pytest.mark.slow
def test_regression_is_fitted_to_the_end_and_follows_its_features(x64):
    """The implicit derivative of the optimum against finite differences."""
    outputs, labels = teacher()
    member = jax.nn.one_hot(labels, CLASSES)
    features = outputs.features.astype(jnp.float64)
    weight = jax.random.normal(jax.random.key(0), (8, CLASSES))
    step = 1e-4 * jax.random.normal(jax.random.key(1), features.shape)

    @jax.jit
    def of(features):
        layer = _regression.fit(features, member, jnp.asarray(0.01))
        return jnp.vdot(layer[0], weight)

    change = of(features + step) - of(features - step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(of)(features), step), change / 2, rtol=1e-5)


SMOOTH = ("hscore", "regularised_hscore", "transrate", "gbc", "gbc_diagonal", "lfc", "sfda")
SMOOTH += ("etran_energy", "etran_lda", "pactran", "pactran_gamma", "pactran_gaussian")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_match_finite_differences(x64, name):
    """Among padding, too: of one feature, one label and two examples."""
    outputs, labels = teacher()
    labels = labels.at[-2:].set(-1)
    features = jnp.pad(outputs.features.astype(jnp.float64), ((0, 0), (0, 1)))
    probabilities = jnp.pad(outputs.probabilities.astype(jnp.float64), ((0, 0), (0, 1)))

    @jax.jit
    def of(point):
        changed = outputs._replace(features=point[0], probabilities=point[1])
        return scores.SCORES[name](changed, labels, CLASSES + 1)

    point = (features, probabilities)
    gradient = jax.jit(jax.grad(of))(point)
    assert all(jnp.isfinite(leaf).all() for leaf in gradient)
    keys = jax.random.split(jax.random.key(0))
    # Padding stays padding: a feature that begins to vary begins to count.
    step = tuple(
        1e-5 * jax.random.normal(key, part.shape) * part
        for key, part in zip(keys, point, strict=True)
    )
    ahead = of(jax.tree.map(jnp.add, point, step))
    behind = of(jax.tree.map(jnp.subtract, point, step))
    slope = sum(jnp.vdot(g, s) for g, s in zip(gradient, step, strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)
    assert slope != 0


def test_bad_settings_are_refused():
    outputs, labels = teacher()
    for score, settings, message in (
        (scores.transrate, {"distortion": 0.0}, "`distortion` must be positive, got 0.0"),
        (scores.etran_energy, {"share": 1.5}, r"`share` must lie in \[0.0, 1.0\], got 1.5"),
        (scores.etran_energy, {"share": 0.0}, "`share` must be positive"),
        (scores.nleep, {"components": 0}, "`components` must be at least 1, got 0"),
        (scores.nleep, {"energy": 2.0}, r"`energy` must lie in \[0.0, 1.0\], got 2.0"),
        (scores.pactran, {"strength": 0.0}, "`strength` must be positive"),
        (scores.pactran_gaussian, {"variance": -1.0}, "`variance` must be positive"),
    ):
        with pytest.raises(InputError, match=message):
            score(outputs, labels[:EXAMPLES], CLASSES, **settings)
