"""Batches of transport problems, and what is true of them in float64, for the benchmarks."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import special

# Costs above this many epsilons leave the range of float64 exponentials: log-sum-exp then.
_FLOAT64_RANGE = 690.0


class Problem(NamedTuple):
    """One cost for all examples of a teacher, and a pair of marginals for each example.

    Attributes:
        cost: [teachers, source, target].
        source: [teachers, examples, source].
        target: [teachers, examples, target].
        epsilon: In units of cost.
    """

    cost: np.ndarray
    source: np.ndarray
    target: np.ndarray
    epsilon: float

    @property
    def size(self) -> int:
        """Number of transport problems."""
        return self.source.shape[0] * self.source.shape[1]

    def few(self, count: int) -> "Problem":
        """About `count` of the problems: as many teachers as possible, with equal examples."""
        teachers = min(len(self.cost), count)
        examples = max(1, count // teachers)
        parts = (
            self.cost[:teachers],
            self.source[:teachers, :examples],
            self.target[:teachers, :examples],
        )
        return Problem(*parts, self.epsilon)

    def exact(self) -> "Problem":
        """The same in float64."""
        cost, source, target = (array.astype(np.float64) for array in self[:3])
        # float32 softmax sums to one only nearly, which exact solvers refuse.
        source /= source.sum(axis=-1, keepdims=True)
        target /= target.sum(axis=-1, keepdims=True)
        return Problem(cost, source, target, self.epsilon)

    def each(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Cost, source and target of one problem after the other."""
        for cost, sources, targets in zip(self.cost, self.source, self.target, strict=True):
            for source, target in zip(sources, targets, strict=True):
                yield cost, source, target


def random(
    *,
    source: int,
    target: int,
    batch: int,
    faculty: int = 1,
    spread: float = 1.0,
    epsilon_ratio: float = 0.02,
    seed: int = 0,
) -> Problem:
    """Uniform random costs, and softmax marginals like those of a network.

    Args:
        source: Labels of a teacher.
        target: Labels of the student.
        batch: Examples of each teacher.
        faculty: Teachers, each with its own cost.
        spread: Standard deviation of the teachers' logits: 1 is flat, 5 peaked. The
            student's is 1.
        epsilon_ratio: Epsilon as a share of the mean cost.
        seed: Of the random numbers.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    cost = np.asarray(jax.random.uniform(keys[0], (faculty, source, target)))
    teacher, student = (
        np.asarray(jax.nn.softmax(width * jax.random.normal(key, (faculty, batch, size))))
        for key, size, width in zip(keys[1:], (source, target), (spread, 1.0), strict=True)
    )
    return Problem(cost, teacher, student, epsilon_ratio * float(cost.mean()))


class _Exact:
    """Float64 operations of one problem, with potentials in units of epsilon."""

    def __init__(self, problem: Problem):
        self.scaled = problem.cost.astype(np.float64) / problem.epsilon
        self.kernel = np.exp(-self.scaled)
        self.held = np.abs(self.scaled).max() < _FLOAT64_RANGE

    def log_sums(self, potential: np.ndarray, axis: int) -> np.ndarray:
        """log K exp(potential) for axis 1, log K' exp(potential) for axis 0."""
        if not self.held:
            matrix = self.scaled if axis == 1 else np.swapaxes(self.scaled, 1, 2)
            sums = [
                [special.logsumexp(row - block, axis=1) for row in rows]
                for rows, block in zip(potential, matrix, strict=True)
            ]
            return np.asarray(sums)
        matrix = np.swapaxes(self.kernel, 1, 2) if axis == 1 else self.kernel
        highest = potential.max(axis=-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            return highest + np.log(np.matmul(np.exp(potential - highest), matrix))


def _sinkhorn(problem: Problem, tolerance: float, iterations: int, every: int) -> tuple[Any, int]:
    """Plain float64 Sinkhorn, checked at `every` so many iterations; (f, g) and the count."""
    exact = _Exact(problem)
    log_a, log_b = np.log(problem.source), np.log(problem.target)
    f, g, count = np.zeros_like(log_a), np.zeros_like(log_b), 0
    while count < iterations:
        for _ in range(every):
            g = log_b - exact.log_sums(f, 0)
            f = log_a - exact.log_sums(g, 1)
        count += every
        columns = np.exp(g + exact.log_sums(f, 0))
        if np.abs(columns - problem.target).sum(axis=-1).max() <= tolerance:
            break
    return (f, g), count


def plain_iterations(problem: Problem, threshold: float, most: int = 5000) -> int:
    """Plain Sinkhorn iterations, in tens, until every marginal of every problem is met.

    Args:
        problem: All of its problems must be below the threshold.
        threshold: Largest L1 error of a marginal.
        most: Where to give up; this is returned then.
    """
    return _sinkhorn(problem.exact(), threshold, most, 10)[1]


def reference_costs(problem: Problem, tolerance: float = 1e-7) -> np.ndarray:
    """Regularised costs [teachers, examples] by float64 Sinkhorn until L1 errors are tiny.

    The error of the cost is of second order in that of the marginals.
    """
    (f, g), _ = _sinkhorn(problem, tolerance, 100_000, 10)
    # Potentials relative to the marginals give KL(P | source target').
    dual = (problem.source * (f - np.log(problem.source))).sum(axis=-1)
    dual += (problem.target * (g - np.log(problem.target))).sum(axis=-1)
    return problem.epsilon * dual


def potential_error(problem: Problem, f: Any, g: Any) -> float:
    """Largest L1 error of a marginal, from dual potentials in units of cost; NaN if they are."""
    exact = _Exact(problem)
    f, g = (np.asarray(array, np.float64) / problem.epsilon for array in (f, g))
    rows, columns = exact.log_sums(g, 1), exact.log_sums(f, 0)
    with np.errstate(invalid="ignore", over="ignore"):
        errors = [
            np.abs(np.exp(f + rows) - problem.source).sum(axis=-1).max(),
            np.abs(np.exp(g + columns) - problem.target).sum(axis=-1).max(),
        ]
    return float(np.max(errors))


def plan_error(problem: Problem, plans: np.ndarray) -> float:
    """Largest L1 error of a marginal, from plans one after the other; NaN if one holds NaN."""
    errors = [
        max(np.abs(plan.sum(axis=1) - a).sum(), np.abs(plan.sum(axis=0) - b).sum())
        for plan, (_, a, b) in zip(plans, problem.each(), strict=True)
    ]
    return float(np.max(errors)) if errors else math.nan


def plan_costs(problem: Problem, plans: np.ndarray) -> np.ndarray:
    """<P, cost> + epsilon KL(P | source target') [teachers, examples] of given plans."""
    costs = [
        (plan * cost).sum() + problem.epsilon * special.rel_entr(plan, np.outer(a, b)).sum()
        for plan, (cost, a, b) in zip(plans, problem.each(), strict=True)
    ]
    return np.asarray(costs).reshape(problem.source.shape[:2])
