"""How much faster is one direct sum than other batched Sinkhorns, at the same accuracy?

    python -m benchmarks.transport --out transport.json      (about 3 minutes on 2 cores)

All solvers get the same problems in the same run: by default 1,024 problems of 100 x 100 with
one shared uniform random cost, epsilon 0.02 of its mean, and an L1 error of the marginals of
at most 0.001. Rows are `ours`; `ott`, ott-jax vmapped as its documentation shows; `ott_fixed`,
its best setting under vmap; `pot_batch` and `pot_loop`, POT's Sinkhorn on NumPy; `pot_exact`,
POT's exact solver. POT is optional: pip install -e '.[bench]'.

Expect, on 2 cores shared with other work: ours 0.07-0.08 s (13,000 problems a second); as
multiples of it ott 135-160, ott_fixed 3-6, pot_batch 280, pot_loop 17, pot_exact 9.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from scipy import special

from benchmarks import _timing
from fdjax import checks, transport

PEERS = ("ott", "ott_fixed", "pot_batch", "pot_loop", "pot_exact")


class Config(NamedTuple):
    """Settings; the flags of the same names say what they mean."""

    batch: int = 1024
    source: int = 100
    target: int = 100
    epsilon_ratio: float = 0.02
    threshold: float = 1e-3
    repeats: int = 7
    subsample: int = 16
    seed: int = 0
    peers: tuple[str, ...] = PEERS
    out: str | None = None


class Problem(NamedTuple):
    """One cost for all, and a pair of marginals for each problem."""

    cost: np.ndarray
    source: np.ndarray
    target: np.ndarray
    epsilon: float

    def first(self, count: int) -> "Problem":
        """The first `count` problems, in float64."""
        arrays = (self.cost, self.source[:count], self.target[:count])
        cost, source, target = (array.astype(np.float64) for array in arrays)
        # float32 softmax sums to one only nearly, which exact solvers refuse.
        source /= source.sum(axis=1, keepdims=True)
        target /= target.sum(axis=1, keepdims=True)
        return Problem(cost, source, target, self.epsilon)


class Answer(NamedTuple):
    """What a solver gave for the first `solved` problems.

    Attributes:
        timing: Of the call that solved them.
        solved: Their number.
        potentials: Dual potentials (f, g), or None where the solver gives plans.
        plans: Transport plans, or None where it gives potentials (or costs only).
        costs: Regularised costs; None: to be taken from the plans.
        note: What the reader must know of this row.
    """

    timing: _timing.Timing
    solved: int
    potentials: tuple[Any, Any] | None = None
    plans: np.ndarray | None = None
    costs: Any = None
    note: str = ""


class MissingError(Exception):
    """A peer that is not installed."""


def make_problem(config: Config) -> Problem:
    """Uniform random costs, and softmax marginals like those of a network."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    cost = jax.random.uniform(keys[0], (config.source, config.target))
    source, target = (
        jax.nn.softmax(jax.random.normal(key, (config.batch, size)))
        for key, size in zip(keys[1:], (config.source, config.target), strict=True)
    )
    epsilon = config.epsilon_ratio * float(cost.mean())
    return Problem(np.asarray(cost), np.asarray(source), np.asarray(target), epsilon)


def ours(problem: Problem, config: Config) -> Answer:
    """`fdjax.transport.solve`: all problems as one direct sum."""
    solve = jax.jit(
        lambda *arrays: transport.solve(
            *arrays, epsilon=problem.epsilon, threshold=config.threshold
        )
    )
    arrays = map(jnp.asarray, (problem.cost, problem.source, problem.target))
    timing = _timing.measure(solve, *arrays, repeats=config.repeats)
    solution = timing.result
    potentials = (solution.source_potential, solution.target_potential)
    note = f"{int(solution.iterations)} iterations"
    return Answer(timing, config.batch, potentials, costs=solution.regularised_cost, note=note)


def _ott(problem: Problem, config: Config, repeats: int, **settings: Any) -> _timing.Timing:
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    solver = sinkhorn.Sinkhorn(threshold=config.threshold, **settings)

    def solve(cost: jax.Array, source: jax.Array, target: jax.Array) -> Any:
        def one(a: jax.Array, b: jax.Array) -> Any:
            shared = geometry.Geometry(cost, epsilon=problem.epsilon)
            out = solver(linear_problem.LinearProblem(shared, a, b))
            return out.reg_ot_cost, out.f, out.g, out.n_iters

        return jax.vmap(one)(source, target)

    arrays = map(jnp.asarray, (problem.cost, problem.source, problem.target))
    return _timing.measure(jax.jit(solve), *arrays, repeats=repeats)


def ott(problem: Problem, config: Config) -> Answer:
    """ott-jax as its documentation vmaps it: log domain, stopping by itself."""
    timing = _ott(problem, config, config.repeats)
    costs, *potentials, iterations = timing.result
    note = f"{int(iterations.max())} iterations"
    return Answer(timing, config.batch, tuple(potentials), costs=costs, note=note)


def ott_fixed(problem: Problem, config: Config) -> Answer:
    """ott-jax at its best under vmap: kernel mode, just enough iterations, no stopping test."""
    for count in (10 * 2**power for power in range(9)):
        settings = {"lse_mode": False, "min_iterations": count, "max_iterations": count}
        timing = _ott(problem, config, 1, **settings)
        costs, *potentials, _ = timing.result
        answer = Answer(timing, config.batch, tuple(potentials), costs=costs)
        # NaN, from a kernel that underflows, compares as False: it is no convergence.
        met = worst_error(problem, answer) <= config.threshold
        if met:
            break
    timing = _ott(problem, config, config.repeats, **settings)
    note = f"{count} iterations, {'chosen by doubling' if met else 'yet not converged'}"
    return answer._replace(timing=timing, note=note)


def _pot(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingError(f"no module {name}; pip install -U -e '.[bench]'") from error


def _l2_threshold(config: Config) -> float:
    """POT stops by the L2 error of a marginal; this one implies the L1 error wanted."""
    return config.threshold / math.sqrt(max(config.source, config.target))


def pot_batch(problem: Problem, config: Config) -> Answer:
    """POT's solver of batches (kernel mode, NumPy), which takes a cost for each problem."""
    batched = _pot("ot.batch")
    exact = problem.first(config.batch)
    costs = np.broadcast_to(exact.cost, (config.batch, *exact.cost.shape))

    def solve() -> np.ndarray:
        return batched.solve_batch(
            costs,
            reg=exact.epsilon,
            a=exact.source,
            b=exact.target,
            method="sinkhorn",
            grad="detach",
            tol=_l2_threshold(config),
            max_iter=2000,
        ).plan

    timing = _timing.measure(solve, repeats=config.repeats)
    return Answer(timing, config.batch, plans=timing.result, note="float64, cost of the plan")


def pot_loop(problem: Problem, config: Config) -> Answer:
    """POT's Sinkhorn, one problem after the other."""
    pot = _pot("ot")
    few = problem.first(config.subsample)
    settings = {"stopThr": _l2_threshold(config), "numItermax": 2000}

    def solve() -> np.ndarray:
        pairs = zip(few.source, few.target, strict=True)
        return np.stack([pot.sinkhorn(a, b, few.cost, few.epsilon, **settings) for a, b in pairs])

    timing = _timing.measure(solve, repeats=config.repeats)
    return Answer(timing, len(few.source), plans=timing.result, note="float64, cost of the plan")


def pot_exact(problem: Problem, config: Config) -> Answer:
    """POT's exact solver (network simplex), without entropy, one problem after the other."""
    pot = _pot("ot")
    few = problem.first(config.subsample)

    def solve() -> list[float]:
        pairs = zip(few.source, few.target, strict=True)
        return [float(pot.emd2(a, b, few.cost)) for a, b in pairs]

    timing = _timing.measure(solve, repeats=config.repeats)
    return Answer(timing, len(few.source), note="no entropy: another problem")


SOLVERS: dict[str, Callable[[Problem, Config], Answer]] = {
    "ours": ours,
    "ott": ott,
    "ott_fixed": ott_fixed,
    "pot_batch": pot_batch,
    "pot_loop": pot_loop,
    "pot_exact": pot_exact,
}


def plans(problem: Problem, answer: Answer) -> Iterator[np.ndarray]:
    """The plan of each solved problem in float64, one at a time."""
    for row in range(answer.solved):
        if answer.plans is not None:
            yield answer.plans[row]
        elif answer.potentials is not None:
            f, g = (np.asarray(potential[row], np.float64) for potential in answer.potentials)
            yield np.exp((f[:, None] + g - problem.cost) / problem.epsilon)


def worst_error(problem: Problem, answer: Answer) -> float:
    """Largest L1 error of any marginal of any solved problem; NaN if a plan holds NaN."""
    errors = [
        max(
            np.abs(plan.sum(axis=1) - problem.source[row]).sum(),
            np.abs(plan.sum(axis=0) - problem.target[row]).sum(),
        )
        for row, plan in enumerate(plans(problem, answer))
    ]
    return float(np.max(errors)) if errors else math.nan


def regularised_cost(problem: Problem, row: int, plan: np.ndarray) -> float:
    """<P, cost> + epsilon KL(P | source target') of one plan."""
    product = np.outer(problem.source[row], problem.target[row])
    entropy = special.rel_entr(plan, product).sum()
    return float((plan * problem.cost).sum() + problem.epsilon * entropy)


def reference_costs(problem: Problem, tolerance: float = 1e-9) -> np.ndarray:
    """Regularised costs by float64 log-domain Sinkhorn, run until L1 errors are tiny."""
    log_a, log_b = np.log(problem.source), np.log(problem.target)
    f, g = np.zeros_like(log_a), np.zeros_like(log_b)
    scaled = problem.cost / problem.epsilon
    for _ in range(100_000):
        row = -special.logsumexp(g[:, None, :] + log_b[:, None, :] - scaled, axis=2)
        error = np.abs(problem.source * np.expm1(f - row)).sum(axis=1).max()
        if error <= tolerance:
            break
        f = row
        g = -special.logsumexp(f[:, :, None] + log_a[:, :, None] - scaled, axis=1)
    dual = (problem.source * f).sum(axis=1) + (problem.target * g).sum(axis=1)
    return problem.epsilon * dual


def _row(name: str, problem: Problem, config: Config, reference: np.ndarray) -> dict[str, Any]:
    answer = SOLVERS[name](problem, config)
    seconds = answer.timing.seconds * config.batch / answer.solved
    costs = answer.costs
    if costs is None:
        exact = problem.first(answer.solved)
        costs = [
            regularised_cost(exact, row, plan) for row, plan in enumerate(plans(exact, answer))
        ]
    found = np.asarray(costs, np.float64)[: len(reference)]
    difference = np.abs(found / reference - 1).max() if found.size else math.nan
    part = f"extrapolated from {answer.solved} of {config.batch} problems"
    notes = [answer.note, part if answer.solved < config.batch else ""]
    return {
        "solver": name,
        "seconds": seconds,
        "compile_seconds": answer.timing.compile_seconds,
        "problems_per_second": config.batch / seconds,
        "marginal_error": worst_error(problem, answer),
        "cost_difference": difference,
        "note": "; ".join(filter(None, notes)),
    }


def run(config: Config) -> dict[str, Any]:
    """Times ours and the peers on the same problems; prints a table, returns the record.

    Of each row, `ratio` says how many times as long as ours it took, `marginal_error` is the
    worst L1 error of a marginal, and `cost_difference` the largest relative difference of
    the regularised cost from a float64 reference on a subsample.
    """
    for peer in config.peers:
        checks.choice("peers", peer, PEERS)
    config = config._replace(subsample=min(config.subsample, config.batch))
    problem = make_problem(config)
    reference = reference_costs(problem.first(config.subsample))
    rows, left_out = [], {}
    for name in ("ours", *config.peers):
        try:
            rows.append(_row(name, problem, config, reference))
        except MissingError as missing:
            left_out[name] = str(missing)
            print(f"{name} is left out: {missing}")
    return _timing.record(
        config.out,
        rows,
        command(config),
        settings=config._asdict(),
        left_out=left_out,
        matmul_gflops=_timing.matmul_rate(repeats=config.repeats),
    )


def command(config: Config) -> str:
    """The command line that runs `config`."""
    settings = config._replace(peers=())._asdict()
    changed = [
        f"--{name}={value}"
        for name, value in settings.items()
        if value != Config._field_defaults[name] and name != "peers"
    ]
    if config.peers != PEERS:
        changed += [f"--peers={peer}" for peer in config.peers]
    return " ".join(["python -m benchmarks.transport", *changed])


def define_flags() -> None:
    """Defines the flags; called from the command line only, so that importing changes nothing."""
    flags.DEFINE_integer("batch", 1024, "Number of problems solved together.", lower_bound=1)
    flags.DEFINE_integer("source", 100, "Labels on the teacher's side.", lower_bound=2)
    flags.DEFINE_integer("target", 100, "Labels on the student's side.", lower_bound=2)
    flags.DEFINE_float(
        "epsilon_ratio", 0.02, "Epsilon as a share of the mean cost.", lower_bound=1e-6
    )
    flags.DEFINE_float("threshold", 1e-3, "Largest L1 error of a marginal.", lower_bound=1e-8)
    flags.DEFINE_integer("repeats", 7, "Timed calls of each solver.", lower_bound=1)
    flags.DEFINE_integer(
        "subsample", 16, "Problems for the reference and for loops.", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random problems.")
    flags.DEFINE_multi_enum(
        "peers", list(PEERS), PEERS, "Solvers to compare with; repeat the flag."
    )
    flags.DEFINE_string("out", None, "JSON file to write.")


def main(_: list[str]) -> None:
    """Runs the benchmark with the flags' values."""
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in Config._fields}
    run(Config(**{**values, "peers": tuple(values["peers"])}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
