"""LogME as its authors' code computes it, on NumPy, one teacher after the other."""

import numpy as np

STEPS = 11
ENOUGH = 1e-3


def _directions(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors and values; of tall features through their Gram matrix."""
    examples, width = features.shape
    if examples <= width:
        left, singular, _ = np.linalg.svd(features, full_matrices=False)
        return left, singular
    _, squares, right = np.linalg.svd(features.T @ features)
    singular = np.sqrt(squares)
    rank = int((singular > 1e-10).sum())
    return (features @ right.T)[:, :rank] / singular[:rank], singular[:rank]


def logme(features: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Mean over classes of the evidence at which the fixed point of eq. 5 stops.

    References:
        You, Liu, Wang, Long, LogME, ICML 2021, algorithm 2 (the optimised one); as the code at
        github.com/thuml/LogME does it: double precision, at most eleven steps a class.
    """
    features = features.astype(np.float64)
    examples, width = features.shape
    left, singular = _directions(features)
    spectrum = singular**2
    values = []
    for label in range(num_classes):
        target = (labels == label).astype(np.float64)
        projected = (left.T @ target) ** 2
        outside = target @ target - projected.sum()
        prior = noise = 1.0
        evidence = 0.0
        for _ in range(STEPS):
            ratio = prior / noise
            effective = (spectrum / (spectrum + ratio)).sum()
            weights = (spectrum * projected / (ratio + spectrum) ** 2).sum()
            misfit = (projected / (1 + spectrum / ratio) ** 2).sum() + outside
            prior = effective / (weights + 1e-5)
            noise = (examples - effective) / (misfit + 1e-5)
            evidence = 0.5 * (
                width * np.log(prior)
                + examples * np.log(noise)
                - np.log(prior + noise * spectrum).sum()
                - noise * misfit
                - prior * weights
                - examples * np.log(2 * np.pi)
            )
            if abs(prior / noise - ratio) / ratio <= ENOUGH:
                break
        values.append(evidence / examples)
    return float(np.mean(values))
