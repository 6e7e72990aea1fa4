"""Which acceleration of Sinkhorn pays: momentum, Anderson, scheduling or a warm start?

    python -m benchmarks.acceleration --out=acceleration.json

256 problems of 100 x 100 with one shared cost, flat and peaked teachers, epsilon 0.1, 0.02 and
0.005 of the mean cost, and an L1 error of the marginals of at most 0.001 within 2,000 iterations.
Rows are `ours`, which starts cold; `ours_mean`, started from one problem of the mean marginals,
solved within the call; `ours_previous`, started from the step of training before; `ott`, plain
Sinkhorn of ott-jax in the log domain, vmapped; and the same with momentum 1.5
(`ott_momentum`), Anderson acceleration of memory 5 (`ott_anderson`) and an epsilon that falls to
its value in 22 iterations (`ott_schedule`). README.md beside this file explains the columns.

Expect, as multiples of ours, on a core shared with other work (about 12 minutes): ours_mean
0.8-1.1, ours_previous 0.6-0.9, ott 70-190, ott_momentum 20-90, ott_anderson 30-360,
ott_schedule 60-290.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import _answers, _peers, _problems, _suites, _timing, transport
from fdjax import reports
from fdjax import transport as room

_STEP = 0.05  # standard deviation by which a step of training moves the student's logits
_ROUNDING = 1.1  # float32 sums may lie a little above the threshold that a solver saw met

COLUMNS = (
    "solver",
    "ratio",
    "seconds",
    "iterations",
    "mean_iterations",
    "converged",
    "marginal_error",
    "compile_seconds",
)

Arrays = tuple[jax.Array, jax.Array, jax.Array]


class Config(NamedTuple):
    """Settings; the flags of the same names say what they mean."""

    batch: int = 256
    source: int = 100
    target: int = 100
    epsilon_ratio: tuple[float, ...] = (0.1, 0.02, 0.005)
    spread: tuple[float, ...] = (_suites.FLAT, _suites.PEAKED)
    threshold: float = 1e-3
    repeats: int = 5
    budget: float = 20.0
    seed: int = 0
    out: str | None = None


def _solve(problem: _problems.Problem, settings: _answers.Settings) -> Callable[..., Any]:
    """Our solver, as a function of cost, source, target and, if wanted, first potentials."""

    def solve(
        cost: jax.Array, source: jax.Array, target: jax.Array, initial: Any = None
    ) -> room.Solution:
        return room.solve(
            cost,
            source,
            target,
            epsilon=problem.epsilon,
            threshold=settings.threshold,
            max_iterations=_answers.MOST_ITERATIONS,
            initial=initial,
        )

    return solve


def from_mean(
    solve: Callable[..., room.Solution], epsilon: float
) -> Callable[[jax.Array, jax.Array, jax.Array], room.Solution]:
    """`solve`, started from the potentials of one problem a teacher: that of the mean marginals.

    What the problems share are the potentials relative to the marginals; those that a solver
    takes are epsilon log mass above them.
    """

    def started(cost: jax.Array, source: jax.Array, target: jax.Array) -> room.Solution:
        means = [marginal.mean(axis=-2, keepdims=True) for marginal in (source, target)]
        mean = solve(cost, *means)
        initial = tuple(
            potential + epsilon * (jnp.log(marginal) - jnp.log(of_mean))
            for potential, marginal, of_mean in zip(mean[:2], (source, target), means, strict=True)
        )
        return solve(cost, source, target, initial)

    return started


def step_before(target: jax.Array, seed: int) -> jax.Array:
    """Predictions of the student one step of training ago."""
    noise = jax.random.normal(jax.random.key(seed), target.shape, target.dtype)
    return jax.nn.softmax(jnp.log(target) + _STEP * noise)


def _ours(
    problem: _problems.Problem, settings: _answers.Settings, seed: int
) -> dict[str, tuple[_timing.Timing, Any, Any]]:
    """Timing, potentials and iterations of ours, cold and warm, timed in turns."""
    solve = _solve(problem, settings)
    cost, source, target = _answers.arrays(problem)
    before = solve(cost, source, step_before(target, seed))
    calls = {
        "ours": (jax.jit(solve), cost, source, target),
        "ours_mean": (jax.jit(from_mean(solve, problem.epsilon)), cost, source, target),
        "ours_previous": (jax.jit(solve), cost, source, target, before[:2]),
    }
    timings = settings.measure_together(list(calls.values()))
    return {
        name: (timing, timing.result[:2], timing.result.iterations)
        for name, timing in zip(calls, timings, strict=True)
    }


def _ott_variants(epsilon: float) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Epsilon, or its schedule, and the options of ott-jax's Sinkhorn."""
    from ott.geometry import epsilon_scheduler
    from ott.solvers.linear import acceleration

    ways: Any = acceleration  # whose decorator hides the fields of its classes from type checkers
    momentum, anderson = ways.Momentum(value=1.5), ways.AndersonAcceleration(memory=5)
    schedule = epsilon_scheduler.Epsilon(epsilon, init=10.0, decay=0.9)
    return {
        "ott": (epsilon, {}),
        "ott_momentum": (epsilon, {"momentum": momentum}),
        "ott_anderson": (epsilon, {"anderson": anderson}),
        "ott_schedule": (schedule, {}),
    }


def _ott(
    problem: _problems.Problem, settings: _answers.Settings
) -> dict[str, tuple[_timing.Timing, Any, Any]]:
    """Timing, potentials and iterations of ott-jax with each acceleration."""
    found = {}
    for name, (epsilon, options) in _ott_variants(problem.epsilon).items():
        options = {"max_iterations": _answers.MOST_ITERATIONS, **options}
        solve = _peers.solve_ott(epsilon, settings.threshold, **options)
        timing = settings.measure(jax.jit(solve), *_answers.arrays(problem))
        _, *potentials, iterations = timing.result
        found[name] = (timing, potentials, iterations)
    return found


def errors(problem: _problems.Problem, f: Any, g: Any) -> np.ndarray:
    """Marginal error of every example, recomputed in float64; NaN where a potential is."""

    def one(teacher: int, example: int) -> float:
        of_teacher, place = slice(teacher, teacher + 1), slice(example, example + 1)
        alone = problem._replace(
            cost=problem.cost[of_teacher],
            source=problem.source[of_teacher, place],
            target=problem.target[of_teacher, place],
        )
        potentials = (np.asarray(array)[of_teacher, place] for array in (f, g))
        return _problems.potential_error(alone, *potentials)

    teachers, examples = problem.source.shape[:2]
    return np.array([[one(i, j) for j in range(examples)] for i in range(teachers)])


def measure_case(config: Config, case: _suites.Case) -> dict[str, Any]:
    """Times every acceleration on the same problems.

    Returns:
        A title, and a row for each: `converged` is the share of examples whose marginals are
        met, `marginal_error` the worst of all, and `ratio` the time as a multiple of ours.
    """
    problem = case.problem(config.seed)
    settings = _answers.Settings(config.threshold, config.repeats, config.budget)
    rows = []
    measured = _ours(problem, settings, config.seed) | _ott(problem, settings)
    for name, (timing, potentials, iterations) in measured.items():
        found = errors(problem.exact(), *potentials)
        rows.append(
            {
                "solver": name,
                "seconds": timing.seconds,
                "iterations": int(np.max(iterations)),
                "mean_iterations": float(np.mean(iterations)),
                "converged": float(np.mean(found <= _ROUNDING * config.threshold)),
                "marginal_error": float(np.max(found)),
                "compile_seconds": timing.compile_seconds,
            }
        )
    return {"title": case.title, "rows": _timing.with_ratios(rows)}


def _case_text(case: Mapping[str, Any]) -> str:
    return f"### {case['title']}\n\n{reports.table(case['rows'], columns=COLUMNS)}"


def markdown(entry: Mapping[str, Any]) -> str:
    """A record as a page: what ran where, and a table a case."""
    return "\n".join([transport.markdown({**entry, "cases": []}), *map(_case_text, entry["cases"])])


def command(config: Config) -> str:
    """The command line that runs `config`."""
    changed = []
    for name, value in config._asdict().items():
        if value != Config._field_defaults[name]:
            values = value if isinstance(value, tuple) else (value,)
            changed += [f"--{name}={one}" for one in values]
    return " ".join(["python -m benchmarks.acceleration", *changed])


def run(config: Config) -> dict[str, Any]:
    """Times every epsilon and spread; prints tables, writes JSON and Markdown, returns the record.

    Files are written after every case, so that a long run that is stopped leaves what it has.
    """
    entry: dict[str, Any] = {
        "command": command(config),
        **_timing.surroundings(),
        "settings": config._asdict(),
        "cases": [],
    }
    for spread in config.spread:
        for ratio in config.epsilon_ratio:
            case = _suites.case(
                config.source, config.target, ratio, batch=config.batch, spread=spread
            )
            entry["cases"].append(measure_case(config, case))
            print(_case_text(entry["cases"][-1]), flush=True)
            transport.write(config.out, entry, markdown(entry))
    return entry


def define_flags() -> None:
    """Defines the flags; called from the command line only, so that importing changes nothing."""
    flags.DEFINE_integer("batch", 256, "Problems.", lower_bound=1)
    flags.DEFINE_integer("source", 100, "Labels on the teacher's side.", lower_bound=2)
    flags.DEFINE_integer("target", 100, "Labels on the student's side.", lower_bound=2)
    flags.DEFINE_multi_float(
        "epsilon_ratio",
        list(Config().epsilon_ratio),
        "Epsilon as a share of the mean cost; repeat the flag.",
        lower_bound=1e-6,
    )
    flags.DEFINE_multi_float(
        "spread",
        list(Config().spread),
        "Spread of the teachers' logits: 1 flat, 5 peaked; repeat the flag.",
        lower_bound=0.0,
    )
    flags.DEFINE_float("threshold", 1e-3, "Largest L1 error of a marginal.", lower_bound=1e-8)
    flags.DEFINE_integer("repeats", 5, "Timed calls of each solver.", lower_bound=1)
    flags.DEFINE_float(
        "budget",
        20.0,
        "Seconds after which no further call of a solver is timed, once two are.",
        lower_bound=1e-3,
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random problems.")
    flags.DEFINE_string("out", None, "JSON file to write; Markdown goes beside it.")


def main(_: list[str]) -> None:
    """Runs the benchmark with the flags' values."""
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in Config._fields}
    several = {name: tuple(values[name]) for name in ("epsilon_ratio", "spread")}
    run(Config(**{**values, **several}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
