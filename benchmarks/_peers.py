"""Other people's solvers that the transport benchmark times, each a function of a problem."""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import _answers, _problems


def solve_ott(epsilon: float, threshold: float, **options: Any) -> Callable[..., Any]:
    """ott-jax's Sinkhorn, vmapped: `(cost, source, target) -> (value, f, g, iterations)`."""
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    solver = sinkhorn.Sinkhorn(threshold=threshold, **options)

    def teacher(cost: jax.Array, source: jax.Array, target: jax.Array) -> Any:
        def one(a: jax.Array, b: jax.Array) -> Any:
            shared = geometry.Geometry(cost, epsilon=epsilon)
            out = solver(linear_problem.LinearProblem(shared, a, b))
            return out.reg_ot_cost, out.f, out.g, out.n_iters

        return jax.vmap(one)(source, target)

    def solve(cost: jax.Array, source: jax.Array, target: jax.Array) -> Any:
        if len(cost) == 1:  # XLA runs a plain product faster than a batch of one
            out = teacher(cost[0], source[0], target[0])
            return jax.tree.map(lambda array: array[None], out)
        return jax.vmap(teacher)(cost, source, target)

    return solve


def _ott(
    problem: _problems.Problem, settings: _answers.Settings, note: str = "", **options: Any
) -> tuple[_answers.Answer, Callable[..., Any]]:
    solve = solve_ott(problem.epsilon, settings.threshold, **options)
    timing = settings.measure(jax.jit(solve), *_answers.arrays(problem))
    costs, *potentials, iterations = timing.result
    answer = _answers.Answer(
        problem,
        timing,
        tuple(potentials),
        costs=costs,
        iterations=int(iterations.max()),
        mode="log" if options.get("lse_mode", True) else "kernel",
        note=note,
    )
    return answer, lambda *arrays: solve(*arrays)[0]


def ott(problem: _problems.Problem, settings: _answers.Settings) -> _answers.Answer:
    """ott-jax as its documentation vmaps it: log domain, stopping by itself."""
    answer, cost_of = _ott(problem, settings)
    return answer._replace(gradient=_answers.gradient(cost_of, problem, settings))


def smallest_multiple(meets: Callable[[int], bool], guess: int, most: int) -> int | None:
    """Smallest multiple of ten for which `meets` holds, by bisection around a guess.

    Args:
        meets: False up to some number, True from there on.
        guess: Multiple of ten near the answer.
        most: Largest multiple of ten to try.

    Returns:
        The number, or None if `most` is too small.
    """
    step, low, high = 10, 0, min(guess, most)
    if meets(high):
        while high - step > 0 and meets(high - step):
            high, step = high - step, 2 * step
        low = max(high - step, 0)
    else:
        while True:
            low, high, step = high, min(high + step, most), 2 * step
            if low == most:
                return None
            if meets(high):
                break
    while high - low > 10:
        middle = (low + high) // 20 * 10
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def ott_fixed(problem: _problems.Problem, settings: _answers.Settings) -> _answers.Answer:
    """ott-jax at its best under vmap: just enough iterations, no stopping test.

    In kernel mode, or where that cannot reach the threshold in the log domain.
    """
    needed = _problems.plain_iterations(problem, settings.threshold, _answers.MOST_ITERATIONS)
    # float32 may need a few more iterations; where it needs twice as many, it fails.
    most = min(2 * needed, _answers.MOST_ITERATIONS)
    once = settings._replace(repeats=1)

    def run(count: int, lse_mode: bool, settings: _answers.Settings, note: str = "") -> Any:
        options = {"lse_mode": lse_mode, "min_iterations": count, "max_iterations": count}
        return _ott(problem, settings, note, **options)

    @functools.cache
    def error(count: int, lse_mode: bool) -> float:
        return _answers.error(run(count, lse_mode, once)[0])

    def enough(lse_mode: bool) -> int | None:
        if math.isnan(error(needed, lse_mode)):
            return None  # the kernel underflows, which more iterations do not mend
        return smallest_multiple(
            lambda count: error(count, lse_mode) <= settings.threshold, needed, most
        )

    count, lse_mode = enough(False), False
    if count is None:
        count, lse_mode = enough(True), True
    note = _answers.NOT_CONVERGED if count is None else ""
    answer, cost_of = run(count or most, lse_mode, settings, note)
    return answer._replace(gradient=_answers.gradient(cost_of, problem, settings))


def _optional(name: str, install: str = "pip install -U -e '.[bench]'") -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise _answers.LeftOutError(f"no module {name}; {install}") from missing


def torch_log(problem: _problems.Problem, settings: _answers.Settings) -> _answers.Answer:
    """A plain log-domain batch in PyTorch, checked at every tenth iteration."""
    torch = _optional("torch", "pip install torch")
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    scaled = torch.tensor(problem.cost / problem.epsilon, device=device)[:, None]
    turned = scaled.transpose(-1, -2).contiguous()  # sums over the last axis are the fast ones
    a, b = (torch.tensor(marginal, device=device) for marginal in problem[1:3])
    log_a, log_b = a.log(), b.log()

    def columns(f: Any) -> Any:
        return torch.logsumexp(f[..., None, :] - turned, -1)

    def solve() -> tuple[Any, ...]:
        f = torch.zeros_like(a)
        for count in range(1, _answers.MOST_ITERATIONS + 1):
            g = log_b - columns(f)
            f = log_a - torch.logsumexp(g[..., None, :] - scaled, -1)
            if count % 10 == 0:
                errors = ((g + columns(f)).exp() - b).abs().sum(-1)
                if errors.max() <= settings.threshold:
                    break
        dual = (a * (f - log_a)).sum(-1) + (b * (g - log_b)).sum(-1)
        return (*(problem.epsilon * array.cpu().numpy() for array in (f, g, dual)), count)

    timing = settings.measure(solve)
    f, g, costs, count = timing.result
    # What PyTorch allocates is not seen by the measure of memory.
    timing = timing._replace(bytes=None)
    return _answers.Answer(
        problem, timing, (f, g), costs=costs, iterations=count, mode="log", note=f"on {device}"
    )


def _l2_threshold(problem: _problems.Problem, settings: _answers.Settings) -> float:
    """POT stops by the L2 error of a marginal; this one implies the L1 error wanted."""
    return settings.threshold / math.sqrt(max(problem.cost.shape[1:]))


def pot_batch(problem: _problems.Problem, settings: _answers.Settings) -> _answers.Answer:
    """POT's solver of batches (kernel mode, NumPy), which takes a cost for each problem."""
    batched = _optional("ot.batch")
    exact = problem.exact()
    shape = (*problem.source.shape[:2], *problem.cost.shape[1:])
    costs = np.broadcast_to(exact.cost[:, None], shape).reshape(-1, *shape[2:])
    a, b = (marginal.reshape(-1, marginal.shape[-1]) for marginal in exact[1:3])

    def solve() -> tuple[np.ndarray, int]:
        result = batched.solve_batch(
            costs,
            reg=exact.epsilon,
            a=a,
            b=b,
            method="sinkhorn",
            grad="detach",
            tol=_l2_threshold(problem, settings),
            max_iter=_answers.MOST_ITERATIONS,
        )
        return result.plan, result.log["n_iter"]

    timing = settings.measure(solve)
    plans, iterations = timing.result
    note = "float64, cost of the plan"
    return _answers.Answer(exact, timing, plans=plans, iterations=int(iterations), note=note)


def pot_loop(problem: _problems.Problem, settings: _answers.Settings) -> _answers.Answer:
    """POT's Sinkhorn, one problem after the other."""
    pot = _optional("ot")
    exact = problem.exact()
    options = {
        "stopThr": _l2_threshold(problem, settings),
        "numItermax": _answers.MOST_ITERATIONS,
        "log": True,
    }

    def solve() -> tuple[np.ndarray, int]:
        plans, logs = zip(
            *(pot.sinkhorn(a, b, cost, exact.epsilon, **options) for cost, a, b in exact.each()),
            strict=True,
        )
        return np.stack(plans), max(log["niter"] for log in logs) + 1

    timing = settings.measure(solve)
    plans, iterations = timing.result
    note = "float64, cost of the plan"
    return _answers.Answer(exact, timing, plans=plans, iterations=iterations, note=note)


def pot_exact(problem: _problems.Problem, settings: _answers.Settings) -> _answers.Answer:
    """POT's exact solver (network simplex), without entropy, one problem after the other."""
    pot = _optional("ot")
    exact = problem.exact()

    def solve() -> list[float]:
        return [float(pot.emd2(a, b, cost)) for cost, a, b in exact.each()]

    timing = settings.measure(solve)
    return _answers.Answer(exact, timing, mode="exact", note="no entropy: another problem")
