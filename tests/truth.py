"""Slow and plain NumPy truths that the fast code is held against."""

import numpy as np
import ot
from scipy.special import logsumexp


def sinkhorn(cost, source, target, epsilon, iterations=20_000, tolerance=1e-12):
    """Float64 log-domain Sinkhorn of one problem: (plan, sharp cost, relative cost)."""
    cost, source, target = (np.asarray(x, np.float64) for x in (cost, source, target))
    source, target = source / source.sum(), target / target.sum()
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(source), np.log(target)
    f, g = np.zeros(len(source)), np.zeros(len(target))
    for _ in range(iterations):
        g = -logsumexp(f[:, None] + log_a[:, None] - cost / epsilon, axis=0)
        f = -logsumexp(g[None] + log_b[None] - cost / epsilon, axis=1)
        plan = np.exp(f[:, None] + g[None] + log_a[:, None] + log_b[None] - cost / epsilon)
        if np.abs(plan.sum(axis=0) - target).sum() < tolerance:
            break
    sharp = (plan * cost).sum()
    outer = source[:, None] * target[None]
    divergence = (plan * np.log(np.where(plan > 0, plan / np.where(outer > 0, outer, 1), 1))).sum()
    return plan, sharp, sharp + epsilon * divergence


def exact_cost(cost, source, target):
    """Unregularised transport cost of one problem, by POT's network simplex."""
    cost, source, target = (np.asarray(x, np.float64) for x in (cost, source, target))
    return ot.emd2(source / source.sum(), target / target.sum(), cost)


def directional_derivative(function, point, direction, step):
    """Central finite difference of `function` along `direction`."""
    return (function(point + step * direction) - function(point - step * direction)) / (2 * step)
