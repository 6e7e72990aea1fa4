"""Our own solver, the roof above it, and the table of all that the benchmark times."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _answers, _peers, _problems, _timing
from fdjax import transport
from fdjax.transport import Domain

_HIGHEST = jax.lax.Precision.HIGHEST


def _solve_ours(
    problem: _problems.Problem,
    threshold: float,
    domain: Domain,
    max_iterations: int = _answers.MOST_ITERATIONS,
) -> Callable[[jax.Array, jax.Array, jax.Array], transport.Solution]:
    def solve(cost: jax.Array, source: jax.Array, target: jax.Array) -> transport.Solution:
        return transport.solve(
            cost,
            source,
            target,
            epsilon=problem.epsilon,
            threshold=threshold,
            max_iterations=max_iterations,
            domain=domain,
        )

    return jax.jit(solve)


def _mode(solution: transport.Solution) -> str:
    """The domain of all problems, or the share of each."""
    solved_in = np.asarray(solution.domain)
    shares = {name: np.mean(solved_in == place) for place, name in enumerate(transport.DOMAINS)}
    held = {name: float(share) for name, share in shares.items() if share > 0}
    if len(held) == 1:
        return next(iter(held))
    return ", ".join(f"{share:.1%} {name}" for name, share in held.items())


def _iterations_run(solution: transport.Solution, domain: Domain) -> float:
    """Iterations a problem: where all are solved at once they run as long as the slowest of them.

    That is in the kernel domain, and in a wide one that is forced.
    """
    iterations = np.asarray(solution.iterations, np.float64)
    again = (np.asarray(solution.domain) > 0) & (domain != "wide")
    together = iterations[~again].max(initial=0.0)
    return float(together + (iterations * again).mean())


def _iteration_seconds(
    problem: _problems.Problem, settings: _answers.Settings, domain: Domain
) -> float | None:
    """Time of one iteration of ours, from two solves that differ in their number only.

    What a call does besides the loop is in both and cancels.
    """
    if not settings.detail:
        return None
    few, many = 20, 120
    arrays = _answers.arrays(problem)
    timings = settings.measure_together(
        [(_solve_ours(problem, 1e-30, domain, count), *arrays) for count in (few, many)]
    )
    # No error is below the threshold, but where the float range holds no example to it the loop
    # ends at once; and noise can turn the difference of two short calls round. Neither measures.
    if [int(timing.result.iterations.max()) for timing in timings] != [few, many]:
        return None
    seconds = (timings[1].seconds - timings[0].seconds) / (many - few)
    return seconds if seconds > 0 else None


def ours(problem: _problems.Problem, settings: _answers.Settings) -> _answers.Answer:
    """`fdjax.transport.solve`: all problems as one direct sum; in turns with matrix products."""
    shape = (*problem.source.shape[:2], *problem.cost.shape[1:])
    yardsticks = {
        "square": _timing.square_product(),
        "pair": _timing.pair_product(*shape),
        "double": _timing.pair_product(*shape, double=True),
    }
    vectors = _timing.vector_product(problem.size, *problem.cost.shape[1:])
    timing, *products = settings.measure_together(
        [
            (_solve_ours(problem, settings.threshold, settings.domain), *_answers.arrays(problem)),
            *(yardstick.call for yardstick in yardsticks.values()),
        ]
    )
    # Not in turns: it leaves a core idle, which then takes milliseconds to wake for ours.
    yardsticks["vectors"] = vectors
    products.append(settings.measure(*vectors.call))
    solution = timing.result
    most = transport.DOMAINS[int(np.median(np.asarray(solution.domain)))]

    def cost_of(cost: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
        return transport.transport_cost(
            cost,
            source,
            target,
            epsilon=problem.epsilon,
            threshold=settings.threshold,
            max_iterations=_answers.MOST_ITERATIONS,
        )

    return _answers.Answer(
        problem,
        timing,
        (solution.source_potential, solution.target_potential),
        costs=solution.regularised_cost,
        iterations=int(np.max(np.asarray(solution.iterations))),
        iterations_run=_iterations_run(solution, settings.domain),
        mode=_mode(solution),
        iteration_seconds=_iteration_seconds(problem, settings, most),
        gradient=_answers.gradient(cost_of, problem, settings),
        gflops={
            name: yardstick.gflop / product.seconds
            for (name, yardstick), product in zip(yardsticks.items(), products, strict=True)
        },
        note="" if bool(solution.converged.all()) else _answers.NOT_CONVERGED,
    )


def roof(problem: _problems.Problem, settings: _answers.Settings) -> _answers.Answer:
    """Two products and two divisions an iteration: what no Sinkhorn in float32 can beat."""
    count = settings.iterations or _problems.plain_iterations(
        problem, settings.threshold, _answers.MOST_ITERATIONS
    )

    @jax.jit
    def solve(cost: jax.Array, source: jax.Array, target: jax.Array) -> Any:
        kernel = jnp.exp(-cost / problem.epsilon)
        source, target = (jnp.swapaxes(rows, -1, -2) for rows in (source, target))
        if len(cost) == 1:
            kernel, source, target = kernel[0], source[0], target[0]
        transposed = jnp.swapaxes(kernel, -1, -2)

        def iteration(_: int, scalings: tuple[jax.Array, jax.Array]) -> Any:
            u, _v = scalings
            v = target / jnp.matmul(transposed, u, precision=_HIGHEST)
            return source / jnp.matmul(kernel, v, precision=_HIGHEST), v

        start = jnp.ones_like(source), jnp.ones_like(target)
        u, v = jax.lax.fori_loop(0, count, iteration, start)
        return jnp.swapaxes(u, -1, -2), jnp.swapaxes(v, -1, -2)

    timing = settings.measure(solve, *_answers.arrays(problem))
    with np.errstate(divide="ignore", invalid="ignore"):
        f, g = (
            problem.epsilon * np.log(np.asarray(scaling, np.float64)).reshape(marginal.shape)
            for scaling, marginal in zip(timing.result, problem[1:3], strict=True)
        )
        dual = [
            (mass * (potential - problem.epsilon * np.log(mass))).sum(axis=-1)
            for mass, potential in zip(problem[1:3], (f, g), strict=True)
        ]
    return _answers.Answer(
        problem,
        timing,
        (f, g),
        costs=dual[0] + dual[1],
        iterations=count,
        iteration_seconds=timing.seconds / count,
        note="only a yardstick: it knows the number of iterations, and stops there",
    )


SOLVERS: dict[str, Callable[[_problems.Problem, _answers.Settings], _answers.Answer]] = {
    "ours": ours,
    "ott": _peers.ott,
    "ott_fixed": _peers.ott_fixed,
    "pot_batch": _peers.pot_batch,
    "pot_loop": _peers.pot_loop,
    "pot_exact": _peers.pot_exact,
    "torch": _peers.torch_log,
    "roof": roof,
}

_LOOPS = ("pot_loop", "pot_exact")


def within_budget(
    name: str, problem: _problems.Problem, settings: _answers.Settings
) -> _answers.Answer:
    """The answer of a solver for as many of the problems as its budget allows.

    Problems in plenty are first tried on a few of them. Loops get `subsample` problems.

    Raises:
        _answers.LeftOutError: If the peer is missing, or even the few take longer than the budget.
    """
    solver = SOLVERS[name]
    if name in _LOOPS:
        problem = problem.few(settings.subsample)
    cells = math.prod(problem.cost.shape[1:])
    probe = problem.few(min(64, max(1, 2**16 // cells)))
    while probe.size < problem.size:
        tried = solver(probe, settings._replace(repeats=1, detail=False))
        seconds = tried.timing.seconds
        if seconds > settings.budget:
            raise _answers.LeftOutError(
                f"{probe.size} of {problem.size} problems take {seconds:.0f} s, over the budget "
                f"of {settings.budget:g} s; raise --budget"
            )
        # The first call, which is not counted, and two that are.
        affordable = problem.few(max(probe.size, int(settings.budget / 3 / seconds * probe.size)))
        if affordable.size < 4 * probe.size:
            problem = affordable
            break
        # Few problems are slower than their share, so that far more are tried again.
        if affordable.size >= problem.size:
            break
        probe = affordable
    return solver(problem, settings)
