"""What the solvers of the transport benchmark are told, and what they answer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _problems, _timing
from fdjax.transport import Domain

MOST_ITERATIONS = 2000
NOT_CONVERGED = "yet not converged"
"""Note of an answer whose marginals are further off than was asked."""


class Settings(NamedTuple):
    """How a solver is run.

    Attributes:
        threshold: Largest L1 error of a marginal.
        repeats: Timed calls.
        budget: Seconds for the timed calls of one solver.
        subsample: Problems for solvers that take one after the other.
        detail: Whether the gradient and the loop alone are timed too.
        iterations: Iterations of the roof; None: as many as plain Sinkhorn needs.
        domain: Of ours: see `transport.solve`.
    """

    threshold: float = 1e-3
    repeats: int = 7
    budget: float = 60.0
    subsample: int = 16
    detail: bool = False
    iterations: int | None = None
    domain: Domain = "auto"

    def measure(self, function: Callable[..., Any], *args: Any) -> _timing.Timing:
        """Times a function as these settings want."""
        return self.measure_together([(function, *args)])[0]

    def measure_together(self, calls: Sequence[tuple[Any, ...]]) -> list[_timing.Timing]:
        """Times calls in turns as these settings want."""
        least = 0.02 * self.repeats if self.repeats > 1 else 0.0
        return _timing.measure_together(
            calls, repeats=self.repeats, budget=self.budget, least=least
        )


class Answer(NamedTuple):
    """What a solver gave.

    Attributes:
        problem: What it solved: all, or as many as the budget allows.
        timing: Of the call that solved them.
        potentials: Dual potentials (f, g), or None where the solver gives plans.
        plans: Transport plans, or None where it gives potentials (or costs only).
        costs: Regularised costs [teachers, examples]; None: to be taken from the plans.
        iterations: Sinkhorn iterations, the most of any problem; None where there are none.
        iterations_run: Iterations a problem that were really run; None: `iterations`.
        mode: "kernel" (scalings), "log" (log-sum-exp), the share in "log", or "exact".
        iteration_seconds: One iteration within the loop; None where not measured.
        gradient: Seconds of the summed cost, and of it with its gradient with respect to
            the target logits; None where not measured.
        gflops: Rates of the matrix products that were timed in turns with the call, by name.
        note: What the reader must know of this row.
    """

    problem: _problems.Problem
    timing: _timing.Timing
    potentials: tuple[Any, Any] | None = None
    plans: np.ndarray | None = None
    costs: Any = None
    iterations: int | None = None
    iterations_run: float | None = None
    mode: str = "kernel"
    iteration_seconds: float | None = None
    gradient: tuple[float, float] | None = None
    gflops: Mapping[str, float] | None = None
    note: str = ""


class LeftOutError(Exception):
    """A peer that is not installed, or too slow for the budget."""


def error(answer: Answer) -> float:
    """Largest L1 error of any marginal of any solved problem; NaN if unknown or not finite."""
    if answer.plans is not None:
        return _problems.plan_error(answer.problem, answer.plans)
    if answer.potentials is not None:
        return _problems.potential_error(answer.problem, *answer.potentials)
    return math.nan


def arrays(problem: _problems.Problem) -> list[jax.Array]:
    """Cost, source and target on the device."""
    return [jnp.asarray(array) for array in problem[:3]]


def gradient(
    cost_of: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    problem: _problems.Problem,
    settings: Settings,
) -> tuple[float, float] | None:
    """Seconds of `cost_of(cost, source, target)`, forward and with its gradient."""
    if not settings.detail:
        return None

    def loss(logits: jax.Array, cost: jax.Array, source: jax.Array) -> jax.Array:
        return cost_of(cost, source, jax.nn.softmax(logits)).sum()

    cost, source, target = arrays(problem)
    args = (jnp.log(target), cost, source)
    forward, both = settings.measure_together(
        [(jax.jit(loss), *args), (jax.jit(jax.value_and_grad(loss)), *args)]
    )
    return forward.seconds, both.seconds
