"""How much faster is one direct sum than other batched Sinkhorns, at the same accuracy?

    python -m benchmarks.transport --out=transport.json      (about 3 minutes on 2 cores)
    python -m benchmarks.transport --suite=claims --budget=20 --subsample=64 --out=claims.json
    python -m benchmarks.transport --suite=grid --budget=10 --out=grid.json

All solvers get the same problems in the same run: by default 1,024 problems of 100 x 100 with
one shared uniform random cost, epsilon 0.02 of its mean, and an L1 error of the marginals of
at most 0.001. Rows are `ours`; `ott`, ott-jax vmapped as its documentation shows; `ott_fixed`,
its best setting under vmap; `pot_batch` and `pot_loop`, POT's Sinkhorn on NumPy; `pot_exact`,
POT's exact solver; `torch`, a plain log-domain batch; `roof`, a bare loop of matrix products.
Peers are optional: pip install -e '.[bench]', and PyTorch for `torch`. README.md beside this
file explains the columns.

Expect, on 2 cores shared with other work: ours 0.07-0.08 s (13,000 problems a second); as
multiples of it ott 135-160, ott_fixed 3-6, pot_batch 280, pot_loop 17, pot_exact 9.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import numpy as np
from absl import app, flags

from benchmarks import _answers, _problems, _solvers, _suites, _timing
from fdjax import checks, reports
from fdjax.reports import files
from fdjax.transport import Domain

PEERS = ("ott", "ott_fixed", "pot_batch", "pot_loop", "pot_exact")
SUITES = ("default", *_suites.SUITES)


class Config(NamedTuple):
    """Settings; the flags of the same names say what they mean."""

    batch: int = 1024
    source: int = 100
    target: int = 100
    faculty: int = 1
    spread: float = _suites.FLAT
    epsilon_ratio: float = 0.02
    domain: Domain = "auto"
    threshold: float = 1e-3
    repeats: int = 7
    subsample: int = 16
    budget: float = 60.0
    detail: bool = False
    seed: int = 0
    peers: tuple[str, ...] = PEERS
    suite: str = "default"
    out: str | None = None
    resume: bool = False


def case_of(config: Config) -> _suites.Case:
    """The case that the settings describe."""
    return _suites.Case(*(getattr(config, name) for name in _suites.Case._fields))


def _costs(answer: _answers.Answer) -> np.ndarray | None:
    if answer.costs is not None:
        return np.asarray(answer.costs, np.float64)
    if answer.plans is not None:
        return _problems.plan_costs(answer.problem, answer.plans)
    return None


def _difference(answer: _answers.Answer, reference: np.ndarray) -> float:
    """Largest relative difference of the regularised costs that both know."""
    found = _costs(answer)
    if found is None:
        return math.nan
    teachers, examples = np.minimum(found.shape, reference.shape)
    ratio = found[:teachers, :examples] / reference[:teachers, :examples]
    return float(np.abs(ratio - 1).max())


def _row(
    name: str, problem: _problems.Problem, settings: _answers.Settings, reference: np.ndarray
) -> dict[str, Any]:
    answer = _solvers.within_budget(name, problem, settings)
    solved, timing = answer.problem.size, answer.timing
    scale = problem.size / solved
    forward, both = answer.gradient or (math.nan, math.nan)
    part = f"extrapolated from {solved} of {problem.size} problems"
    notes = [answer.note, part if solved < problem.size else ""]
    iteration = answer.iteration_seconds
    return {
        "solver": name,
        "seconds": timing.seconds * scale,
        "problems_per_second": solved / timing.seconds,
        "iterations": answer.iterations,
        "iterations_run": answer.iterations_run or answer.iterations,
        "mode": answer.mode,
        "marginal_error": _answers.error(answer),
        "cost_difference": _difference(answer, reference),
        "compile_seconds": timing.compile_seconds,
        "megabytes": None if timing.bytes is None else timing.bytes / 1e6,
        "iteration_seconds": None if iteration is None else iteration * scale,
        "gradient_seconds": both * scale,
        "gradient_ratio": both / forward,
        "gflops": answer.gflops,
        "note": "; ".join(filter(None, notes)),
    }


def _with_shares(
    row: Mapping[str, Any], problem: _problems.Problem, rates: Mapping[str, float]
) -> dict[str, Any]:
    """Adds how near the loop and the whole call come to each rate of the matrix product."""
    pair = 4e-9 * problem.size * math.prod(problem.cost.shape[1:])  # GFLOP an iteration
    count, iteration = row["iterations_run"], row["iteration_seconds"]
    call = None if count is None else pair * count / row["seconds"]
    loop = None if iteration is None else pair / iteration
    shares = {
        f"{part}_of_{name}": None if speed is None else speed / rate
        for part, speed in (("loop", loop), ("call", call))
        for name, rate in rates.items()
    }
    return {**row, **shares}


def measure_case(config: Config) -> dict[str, Any]:
    """Times ours and the peers on the same problems.

    Of each row, `ratio` says how many times as long as ours it took, `marginal_error` is the
    worst L1 error of a marginal, and `cost_difference` the largest relative difference of
    the regularised cost from a float64 reference on a subsample.

    Returns:
        The rows, ours first, or none if ours is left out; what was left out and why; and
        the rates of matrix products in GFLOP/s, timed in turns with ours.
    """
    for peer in config.peers:
        checks.choice("peers", peer, _suites.ALL)
    problem = case_of(config).problem(config.seed)
    reference = _problems.reference_costs(problem.few(config.subsample).exact())
    settings = _answers.Settings(
        config.threshold,
        config.repeats,
        config.budget,
        config.subsample,
        config.detail,
        domain=config.domain,
    )
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    rates: dict[str, float] = {}
    for name in ("ours", *config.peers):
        if "ours" in left_out:
            break  # nothing to compare with
        try:
            row = _row(name, problem, settings, reference)
        except _answers.LeftOutError as reason:
            left_out[name] = str(reason)
            print(f"{name} is left out: {reason}")
            continue
        gflops = row.pop("gflops")
        if name == "ours":
            rates = dict(gflops)
            settings = settings._replace(iterations=row["iterations"])
        rows.append(_with_shares(row, problem, rates))
    ratios = _timing.with_ratios(rows) if rows else []
    return {"rows": ratios, "left_out": left_out, "gflops": rates}


COLUMNS = (
    "solver",
    "ratio",
    "seconds",
    "problems_per_second",
    "iterations",
    "iterations_run",
    "mode",
    "marginal_error",
    "cost_difference",
    "compile_seconds",
    "megabytes",
    "loop_of_square",
    "loop_of_pair",
    "loop_of_double",
    "loop_of_vectors",
    "call_of_square",
    "call_of_pair",
    "call_of_double",
    "call_of_vectors",
    "gradient_seconds",
    "gradient_ratio",
    "note",
)


def _case_text(case: Mapping[str, Any]) -> str:
    """A measured case as Markdown."""
    rates = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in case["gflops"].items())
    lines = [f"### {case['title']}", ""]
    if case["rows"]:
        lines += [reports.table(case["rows"], columns=COLUMNS), f"Matrix products: {rates}."]
    lines += [f"Left out: {name} ({reason})." for name, reason in case["left_out"].items()]
    return "\n".join([*lines, ""])


def markdown(entry: Mapping[str, Any]) -> str:
    """A record as a page: what ran where, the claims if it has them, and a table a case."""
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
    lines = [
        f"`{entry['command']}`",
        "",
        f"{entry['date']}; {entry['processor']}, {entry['cpu_count']} cores; {entry['device']}; "
        f"{versions}.",
        "",
    ]
    if "claims" in entry:
        lines += [reports.table(entry["claims"])]
    return "\n".join([*lines, *map(_case_text, entry["cases"])])


def write(out: str | None, entry: Mapping[str, Any], page: str) -> None:
    """A record as JSON where asked, and its page as Markdown beside it."""
    if out is None:
        return
    reports.write_json(out, entry)
    with files.replacing(pathlib.Path(out).with_suffix(".md")) as temporary:
        temporary.write_text(page, encoding="utf-8")


def run(config: Config) -> dict[str, Any]:
    """Times one case; prints a table, writes JSON and Markdown, returns the record.

    The rows are those of `measure_case`.

    Raises:
        InputError: If a peer is unknown, ours alone exceeds the budget, or there is nothing to
            resume.
    """
    checks.require(not config.resume, "`resume` is for a suite; one case begins anew.")
    config = config._replace(subsample=min(config.subsample, config.batch))
    case = {"title": case_of(config).title, **measure_case(config)}
    checks.require(
        "ours" not in case["left_out"],
        f"`budget` of {config.budget:g} seconds is too small for these problems; raise it.",
    )
    entry = {
        "command": command(config),
        **_timing.surroundings(),
        "settings": config._asdict(),
        **case,
        "matmul_gflops": case["gflops"]["square"],
    }
    print(_case_text(case))
    write(config.out, entry, markdown({**entry, "cases": [case]}))
    return entry


def run_suite(config: Config) -> dict[str, Any]:
    """Times every case of `config.suite`; prints, writes and returns as `run`.

    Files are written after every case, so that a long run that is stopped leaves what it has,
    and goes on with `config.resume`.

    Raises:
        InputError: If the suite is unknown, `config` sets what the suite's cases set, or a run
            cannot be resumed.
    """
    checks.choice("suite", config.suite, _suites.SUITES)
    for name in _suites.Case._fields:
        checks.require(
            getattr(config, name) == Config._field_defaults[name],
            f"`{name}` is set by every case of the suite {config.suite}; leave it out.",
        )
    entry: dict[str, Any] = {
        "command": command(config._replace(resume=False)),
        **_timing.surroundings(),
        "settings": config._replace(resume=False)._asdict(),
        "cases": [],
    }
    if config.resume:
        entry = stopped(config, entry)
    for case in _suites.SUITES[config.suite]()[len(entry["cases"]) :]:
        one = config._replace(**case._asdict())
        one = one._replace(subsample=min(one.subsample, one.batch), detail=True)
        entry["cases"].append({"title": case.title, "settings": one._asdict(), **measure_case(one)})
        print(_case_text(entry["cases"][-1]), flush=True)
        write(config.out, entry, markdown(entry))
    if config.suite == "claims":
        entry["claims"] = _suites.verdicts(entry["cases"])
        print(reports.table(entry["claims"]))
        write(config.out, entry, markdown(entry))
    return entry


def stopped(config: Config, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of the same settings on the same machine left in `config.out`.

    Raises:
        InputError: If there is none, or its times cannot stand beside those of this run.
    """
    out = config.out
    checks.require(out is not None, "`resume` goes on with the file `out`; name it.")
    checks.require(pathlib.Path(str(out)).is_file(), f"there is no {out} to go on with.")
    found = json.loads(pathlib.Path(str(out)).read_text(encoding="utf-8"))
    for name in ("command", "versions", "device", "processor", "cpu_count"):
        checks.require(
            found.get(name) == entry[name],
            f"{out} is of another {name} ({found.get(name)}, here {entry[name]}); its times "
            "cannot stand beside new ones. Leave `resume` out to begin anew.",
        )
    return found


def command(config: Config) -> str:
    """The command line that runs `config`."""
    changed = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in config._asdict().items()
        if value != Config._field_defaults[name] and name != "peers"
    ]
    if config.peers != PEERS:
        changed += [f"--peers={peer}" for peer in config.peers]
    return " ".join(["python -m benchmarks.transport", *changed])


def define_flags() -> None:
    """Defines the flags; called from the command line only, so that importing changes nothing."""
    flags.DEFINE_enum(
        "suite",
        "default",
        SUITES,
        "`default`: one case, which the flags describe; `claims`: what the claims are about; "
        "`grid`: sizes, batches, faculties, epsilons and spreads.",
    )
    flags.DEFINE_integer("batch", 1024, "Problems of each teacher.", lower_bound=1)
    flags.DEFINE_integer("source", 100, "Labels on the teacher's side.", lower_bound=2)
    flags.DEFINE_integer("target", 100, "Labels on the student's side.", lower_bound=2)
    flags.DEFINE_integer("faculty", 1, "Teachers, each with its own cost.", lower_bound=1)
    flags.DEFINE_float(
        "spread", 1.0, "Spread of the teachers' logits: 1 flat, 5 peaked.", lower_bound=0.0
    )
    flags.DEFINE_float(
        "epsilon_ratio", 0.02, "Epsilon as a share of the mean cost.", lower_bound=1e-6
    )
    flags.DEFINE_enum("domain", "auto", get_args(Domain), "Domain in which ours iterates.")
    flags.DEFINE_float("threshold", 1e-3, "Largest L1 error of a marginal.", lower_bound=1e-8)
    flags.DEFINE_integer("repeats", 7, "Timed calls of each solver.", lower_bound=1)
    flags.DEFINE_integer(
        "subsample", 16, "Problems for the reference and for loops.", lower_bound=1
    )
    flags.DEFINE_float(
        "budget",
        60.0,
        "Seconds for the timed calls of each solver; a slower one gets fewer problems.",
        lower_bound=1e-3,
    )
    flags.DEFINE_bool(
        "detail", False, "Also time the gradient and the loop alone; suites always do."
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random problems.")
    flags.DEFINE_multi_enum(
        "peers", list(PEERS), _suites.ALL, "Solvers to compare with; repeat the flag."
    )
    flags.DEFINE_string("out", None, "JSON file to write; Markdown goes beside it.")
    flags.DEFINE_bool(
        "resume", False, "Keep the cases that a stopped run of a suite left in --out, and go on."
    )


def main(_: list[str]) -> None:
    """Runs the benchmark with the flags' values."""
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in Config._fields}
    config = Config(**{**values, "peers": tuple(values["peers"])})
    if config.suite == "default":
        run(config)
    else:
        run_suite(config)


if __name__ == "__main__":
    define_flags()
    app.run(main)
