"""Scores as their papers define them, slowly, in NumPy and SciPy."""

import numpy as np
from scipy import optimize, special, stats


def varying(features):
    """Features in double precision, without those that are equal in all examples."""
    features = features.astype(np.float64)
    return features[:, (features != features[0]).any(axis=0)]


def groups(features, labels):
    return [features[labels == label] for label in np.unique(labels)]


def regularised_hscore(features, labels):
    """Shrinkage by the formula of Ledoit and Wolf as scikit-learn computes it."""
    from sklearn.covariance import LedoitWolf

    centred = features - features.mean(axis=0)
    model = LedoitWolf().fit(centred)
    means = np.zeros_like(centred)
    for label in np.unique(labels):
        means[labels == label] = centred[labels == label].mean(axis=0)
    ratio = np.linalg.solve(model.covariance_, np.cov(means, rowvar=False))
    return (1 - model.shrinkage_) * np.trace(ratio)


def transrate(features, labels, distortion=1e-4):
    def rate(rows):
        matrix = np.eye(rows.shape[1]) + rows.T @ rows / (len(rows) * distortion)
        return np.linalg.slogdet(matrix)[1] / 2

    centred = features - features.mean(axis=0)
    return rate(centred) - np.mean([rate(rows) for rows in groups(centred, labels)])


def gbc(features, labels):
    """With spherical covariances."""
    means = [rows.mean(axis=0) for rows in groups(features, labels)]
    variances = [np.maximum(rows.var(axis=0), 1e-4) for rows in groups(features, labels)]
    variances = [np.full_like(v, v.mean()) for v in variances]
    total = 0.0
    for i, (mean, variance) in enumerate(zip(means, variances, strict=True)):
        for j, (other_mean, other) in enumerate(zip(means, variances, strict=True)):
            middle = (variance + other) / 2
            distance = np.sum((mean - other_mean) ** 2 / middle) / 8
            distance += np.sum(np.log(middle) - np.log(variance * other) / 2) / 2
            total += np.exp(-distance) * (i != j)
    return -total


def parc(features, labels):
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    pairs = np.triu_indices(len(labels), 1)
    distance = (1 - np.corrcoef(standard))[pairs]
    different = (labels[:, None] != labels)[pairs]
    return 100 * stats.spearmanr(distance, different).statistic


def etran_energy(features, labels, share=0.005):
    energy = np.sort(special.logsumexp(features, axis=1))
    return energy[: max(1, int(share * len(labels) + 1e-9))].mean()


def pactran_gaussian(features, labels, strength=10.0, variance=100.0):
    centred = features - features.mean(axis=0)
    target = (labels[:, None] == np.unique(labels)).astype(float)
    examples, width = centred.shape
    classes = target.shape[1]
    decay = 1 / (strength * examples)

    def logits(flat):
        layer = flat.reshape(width + 1, classes)
        return layer, centred @ layer[:-1] + layer[-1]

    def value(flat):
        layer, scores = logits(flat)
        logs = special.log_softmax(scores, axis=1)
        error = (np.exp(logs) - target) / examples
        slope = np.vstack([centred.T @ error + decay * layer[:-1], error.sum(axis=0)])
        return -np.sum(target * logs) / examples + decay / 2 * np.sum(
            layer[:-1] ** 2
        ), slope.ravel()

    found = optimize.minimize(
        value,
        np.zeros((width + 1) * classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 10000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 30},
    )
    probabilities = special.softmax(logits(found.x)[1], axis=1)
    spread = probabilities * (1 - probabilities)
    curvature = np.sum((centred**2).T @ spread) + spread.sum()
    flatness = curvature / (decay * width * classes)
    return -(found.fun + classes * decay * variance / 2 * np.log1p(flatness))
