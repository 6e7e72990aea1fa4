"""Benchmarks: they time what they say, and their numbers agree with each other."""

import importlib
import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _answers, _peers, _problems, _solvers, _suites, _timing, transport
from fdjax import checks

SMALL = transport.Config(
    batch=3, source=5, target=4, faculty=2, epsilon_ratio=0.2, repeats=2, subsample=3
)


def constant_problem(teachers, examples, source, target):
    """All masses and costs equal; made without JAX, which would compile for every shape."""
    return _problems.Problem(
        np.ones((teachers, source, target), np.float32),
        np.full((teachers, examples, source), 1 / source, np.float32),
        np.full((teachers, examples, target), 1 / target, np.float32),
        0.1,
    )


def test_measure_counts_calls_and_takes_the_median(monkeypatch):
    clock = iter([0, 5, 0, 1, 0, 3])
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: next(clock))
    timing = _timing.measure(lambda x: x + 1, 1, repeats=3)
    assert timing[:4] == (0.0, 3, (5, 1, 3), 2)


def test_measure_takes_turns(monkeypatch):
    calls = []
    timings = _timing.measure_together([(calls.append, "a"), (calls.append, "b")], repeats=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]  # the first of each is not timed
    assert [len(timing.all) for timing in timings] == [2, 2]


def test_measure_stops_when_the_budget_is_spent():
    calls = []
    timing = _timing.measure(lambda: calls.append(1), repeats=50, budget=1e-9)
    assert len(timing.all) == 2
    assert len(calls) == 3


def test_measure_repeats_quick_calls(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: next(clock))
    assert len(_timing.measure(int, repeats=1, least=5).all) == 5


def test_measure_compiles_apart_and_knows_the_storage():
    timing = _timing.measure(jax.jit(lambda x: jnp.sort(x * 2)), jnp.ones(300), repeats=1)
    assert timing.compile_seconds > 0
    assert timing.bytes >= 0
    np.testing.assert_array_equal(timing.result, 2 * np.ones(300))
    timing = _timing.measure(lambda: np.ones(100_000), repeats=1)
    assert 800_000 <= timing.bytes < 1_000_000


def test_measure_refuses_no_repeats():
    with pytest.raises(checks.InputError, match="`repeats` must be positive"):
        _timing.measure(int, repeats=0)


def test_yardsticks_stay_in_range():
    square = _timing.square_product(size=64)
    assert square.gflop == pytest.approx(2e-9 * 64**3)
    (pairs, *arrays), gflop = _timing.pair_product(2, 64, 8, 4)
    assert gflop == pytest.approx(1000 * 4e-9 * 2 * 64 * 8 * 4)
    result = pairs(*arrays)
    assert result.shape == (2, 8, 64)
    assert 0 < result.min() < result.max() < 2
    (vectors, *arrays), gflop = _timing.vector_product(64, 8, 4)
    assert gflop == pytest.approx(1000 * 4e-9 * 64 * 8 * 4)
    result = vectors(*arrays)
    assert result.shape == (64, 8)
    assert 0 < result.min() < result.max() < 1


def test_ratios_need_rows():
    rows = [{"seconds": 0.5}, {"seconds": 2.0}]
    assert [row["ratio"] for row in _timing.with_ratios(rows)] == [1.0, 4.0]
    with pytest.raises(checks.InputError, match="`rows` is empty"):
        _timing.with_ratios([])


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "transport.json"
    config = SMALL._replace(peers=(*transport.PEERS, "roof"), out=str(path))
    return transport.run(config), json.loads(path.read_text()), path.with_suffix(".md").read_text()


def test_solvers_agree(result):
    entry, written, _ = result
    rows = {row["solver"]: row for row in entry["rows"]}
    assert list(rows) == ["ours", *transport.PEERS, "roof"]
    assert entry["left_out"] == {}
    for name, row in rows.items():
        assert row["seconds"] > 0
        if name not in ("pot_exact", "roof"):
            # float32 sums may lie a little above the threshold that a solver saw met.
            assert row["marginal_error"] < 1.1 * SMALL.threshold, name
            assert row["cost_difference"] < 1e-3, name
            assert row["iterations"] > 0
    assert rows["ours"]["cost_difference"] < 1e-5
    assert rows["roof"]["iterations"] == rows["ours"]["iterations"]
    assert "extrapolated from 2 of 6" in rows["pot_loop"]["note"]
    assert math.isnan(rows["pot_exact"]["cost_difference"])
    last = written["rows"][-2]
    assert last["solver"] == "pot_exact"
    assert last["cost_difference"] is None
    assert written["settings"]["batch"] == 3
    assert {"python", "jax", "ott-jax"} <= set(written["versions"])
    assert entry["matmul_gflops"] > 0


def test_shares_fit_the_times(result):
    entry = result[0]
    for row in entry["rows"][:3]:
        flop = row["iterations_run"] * 6 * 4 * 5 * 4
        share = 1e-9 * flop / row["seconds"] / entry["gflops"]["pair"]
        assert row["call_of_pair"] == pytest.approx(share)
        assert row["loop_of_pair"] is None  # without `detail`
    roof = entry["rows"][-1]
    assert roof["loop_of_square"] == pytest.approx(roof["call_of_square"])


@pytest.mark.slow
def test_detail_times_the_gradient_and_the_loop():
    config = SMALL._replace(batch=512, source=64, target=64, epsilon_ratio=0.05, repeats=5)
    row = transport.run(config._replace(detail=True, peers=()))["rows"][0]
    assert row["gradient_seconds"] > 0
    # Wide bounds, as the machine may be busy.
    assert 0.2 < row["gradient_ratio"] < 5
    assert row["iteration_seconds"] * row["iterations"] < 5 * row["seconds"]


def test_gradient_is_timed_with_respect_to_the_target(monkeypatch):
    measured = []
    timing = _timing.Timing(0.0, 2.0, (2.0,), None)

    def measure(self, calls):
        measured.extend(function(*args) for function, *args in calls)
        return [timing, timing._replace(seconds=3.0)]

    monkeypatch.setattr(_answers.Settings, "measure_together", measure)
    problem = constant_problem(1, 2, 3, 2)
    settings = _answers.Settings(detail=True)

    def cost_of(cost, source, target):
        return (target[..., 0] ** 2).sum(axis=-1)

    assert _answers.gradient(cost_of, problem, settings) == (2.0, 3.0)
    value, (same, gradient) = measured
    assert value == same == 0.5
    # d (t0^2) / d logit0 = 2 t0 t0 (1 - t0), with t0 = 1/2, for each of the two problems.
    np.testing.assert_allclose(gradient, np.array([[[0.25, -0.25]] * 2]).reshape(1, 2, 2))
    assert _answers.gradient(cost_of, problem, _answers.Settings()) is None


class FakeSolution(NamedTuple):
    iterations: np.ndarray
    domain: np.ndarray


@pytest.mark.parametrize(
    ("iterations", "domain", "mode", "run"),
    [
        ([[20, 80]], [[0, 0]], "kernel", 80.0),
        ([[20, 80]], [[2, 2]], "log", 50.0),
        ([[20, 30, 60, 80]], [[0, 0, 0, 1]], "75.0% kernel, 25.0% wide", 60.0 + 20.0),
    ],
)
def test_iterations_that_were_run(iterations, domain, mode, run):
    solution = FakeSolution(np.asarray(iterations), np.asarray(domain))
    assert _solvers._mode(solution) == mode
    assert _solvers._iterations_run(solution, "auto") == run
    if mode == "log":  # a forced wide domain, unlike the others beyond the kernel, is one batch
        assert _solvers._iterations_run(solution, "wide") == 80.0


@pytest.mark.parametrize(
    ("seconds", "iterations", "slope"),
    [
        ((7.0, 17.0), (20, 120), 0.1),
        ((7.0, 6.0), (20, 120), None),
        ((7.0, 7.1), (10, 10), None),  # the float range holds no example: both ended at once
    ],
)
def test_one_iteration_is_the_slope_of_two_solves(monkeypatch, seconds, iterations, slope):
    results = [FakeSolution(np.array([10, most]), np.zeros(2)) for most in iterations]
    timings = [
        _timing.Timing(0.0, each, (), result) for each, result in zip(seconds, results, strict=True)
    ]
    monkeypatch.setattr(_answers.Settings, "measure_together", lambda *_: timings)
    settings = _answers.Settings(detail=True)
    found = _solvers._iteration_seconds(constant_problem(1, 2, 3, 2), settings, "log")
    assert found == (slope and pytest.approx(slope))


def test_the_page_shows_the_table_and_its_command(result):
    entry, _, page = result
    assert f"`{entry['command']}`" in page
    assert "### 5 x 4, batch 3, faculty 2, epsilon 0.2 of the mean cost, flat teachers" in page
    assert "| pot_batch |" in page
    assert entry["date"] in page


def test_the_command_gives_the_settings_again():
    assert transport.command(transport.Config()) == "python -m benchmarks.transport"
    assert transport.command(transport.Config(batch=8, detail=True, peers=("ott",))) == (
        "python -m benchmarks.transport --batch=8 --detail=true --peers=ott"
    )


@pytest.mark.parametrize(
    ("peer", "module"), [("pot_batch", "ot.batch"), ("pot_loop", "ot"), ("torch", "torch")]
)
def test_missing_peer_is_left_out_and_said_so(monkeypatch, peer, module):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(_answers.LeftOutError, match=f"no module {module}; pip install"):
        _solvers.within_budget(peer, constant_problem(1, 2, 3, 2), _answers.Settings())


def fake_solver(seconds_each, sizes):
    def solve(problem, settings):
        sizes.append(problem.size)
        seconds = seconds_each * problem.size
        timing = _timing.Timing(0.0, seconds, (seconds,), None)
        shape = problem.source.shape[:2]
        gflops = {"square": 1.0, "pair": 1.0, "double": 1.0, "vectors": 1.0}
        costs = np.ones(shape)
        return _answers.Answer(problem, timing, costs=costs, iterations=10, gflops=gflops)

    return solve


@pytest.mark.parametrize(("budget", "solved"), [(900, 100), (90, 30), (11, 10), (9, None)])
def test_a_slow_solver_gets_fewer_problems(monkeypatch, budget, solved):
    sizes = []
    monkeypatch.setitem(_solvers.SOLVERS, "ott", fake_solver(1.0, sizes))
    problem = constant_problem(1, 100, 82, 79)  # tried on 2**16 // (82 * 79) = 10
    settings = _answers.Settings(budget=budget)
    if solved is None:
        with pytest.raises(_answers.LeftOutError, match="10 of 100 problems take 10 s, over"):
            _solvers.within_budget("ott", problem, settings)
    else:
        assert _solvers.within_budget("ott", problem, settings).problem.size == solved
        assert sizes == [10, solved]


@pytest.fixture
def quick_solvers(monkeypatch):
    """Claims and solvers that cost nothing, ours a second, and the next a second more."""
    for place, name in enumerate(list(_solvers.SOLVERS)):
        monkeypatch.setitem(_solvers.SOLVERS, name, fake_solver(1.0 + place, []))
    tiny = [case._replace(source=3, target=2, batch=4) for case in _suites.CLAIMS]
    monkeypatch.setitem(_suites.SUITES, "claims", lambda: tuple(tiny))


def test_claims_are_judged(quick_solvers, tmp_path, capsys):
    out = tmp_path / "claims.json"
    entry = transport.run_suite(transport.Config(suite="claims", subsample=2, out=str(out)))
    claims = {row["claim"]: row for row in entry["claims"]}
    fixed = claims["100 x 100, epsilon 0.02, flat: times as fast as ott_fixed"]
    assert (fixed["asked"], fixed["measured"], fixed["met"]) == ("at least 2", 3.0, True)
    assert claims["100 x 100, epsilon 0.02, flat: times as fast as ott"]["met"] is False
    shares = [row for claim, row in claims.items() if "log domain" in claim]
    assert [row["met"] for row in shares] == [False] * 4
    assert len(json.loads(out.read_text())["cases"]) == len(_suites.CLAIMS)
    assert "times as fast as pot_exact" in out.with_suffix(".md").read_text()
    assert "Left out" not in capsys.readouterr().out


def test_the_overview_has_a_row_a_case_and_marks_who_did_not_converge():
    ours = {"solver": "ours", "ratio": 1.0, "seconds": 0.5, "note": "", "mode": "kernel"}
    fast = {"solver": "ott_fixed", "ratio": 2.5, "note": "extrapolated"}
    slow = {"solver": "ott", "ratio": 99.6, "note": f"{_answers.NOT_CONVERGED}; extrapolated"}
    case = {"title": _suites.case(10, 7, 0.1).title, "rows": [ours, fast, slow]}
    (row,) = _suites.overview([case])
    assert row["case"] == "10 x 7, batch 1024, faculty 1, epsilon 0.1, flat"
    assert (row["seconds"], row["ott_fixed"], row["ott"]) == (0.5, 2.5, "> 100")


def test_a_stopped_suite_goes_on(quick_solvers, tmp_path, monkeypatch):
    out = tmp_path / "claims.json"
    config = transport.Config(suite="claims", subsample=2, out=str(out))
    whole = transport.run_suite(config)
    kept = json.loads(out.read_text())
    del kept["claims"], kept["cases"][2:]
    kept["cases"][0]["title"] = "measured before"
    out.write_text(json.dumps(kept))
    entry = transport.run_suite(config._replace(resume=True))
    titles = [case["title"] for case in entry["cases"]]
    assert titles == ["measured before", *(case["title"] for case in whole["cases"][1:])]
    assert entry["command"] == whole["command"]
    assert [row["met"] for row in entry["claims"]] == [row["met"] for row in whole["claims"]]
    with pytest.raises(checks.InputError, match="is of another command"):
        transport.run_suite(config._replace(resume=True, seed=1))
    with pytest.raises(checks.InputError, match="to go on with"):
        transport.run_suite(config._replace(resume=True, out=str(tmp_path / "none.json")))
    with pytest.raises(checks.InputError, match="a suite; one case begins anew"):
        transport.run(transport.Config(resume=True))


def test_a_suite_sets_its_own_cases():
    with pytest.raises(checks.InputError, match="`batch` is set by every case of the suite grid"):
        transport.run_suite(transport.Config(suite="grid", batch=3))
    with pytest.raises(checks.InputError, match="`suite` must be one of claims, grid"):
        transport.run_suite(transport.Config(suite="all"))


def test_the_grid_holds_every_value_once():
    cases = _suites.grid()
    assert len({case.title for case in cases}) == len(cases)
    for axis, values in (
        ("batch", {64, 1024, 4096}),
        ("faculty", {1, 16, 256}),
        ("epsilon_ratio", {0.5, 0.1, 0.05, 0.02, 0.005}),
        ("spread", {_suites.FLAT, _suites.PEAKED}),
    ):
        assert {getattr(case, axis) for case in cases} == values


def test_unknown_peer():
    with pytest.raises(checks.InputError, match="`peers` must be one of ott"):
        transport.run(SMALL._replace(peers=("geomloss",)))


@pytest.mark.parametrize("answer", [10, 20, 90, 100, 110, 230])
@pytest.mark.parametrize("guess", [10, 100, 200])
def test_smallest_multiple_is_found(answer, guess):
    tried = []

    def meets(count):
        tried.append(count)
        return count >= answer

    assert _peers.smallest_multiple(meets, guess, 1000) == answer
    assert len(set(tried)) == len(tried) <= 10
    assert _peers.smallest_multiple(lambda _: False, guess, 300) is None


def test_few_problems_keep_the_teachers():
    problem = constant_problem(3, 4, 3, 2)
    assert problem.few(6).source.shape == (3, 2, 3)
    assert problem.few(2).target.shape == (2, 1, 2)
    assert problem.few(100).size == problem.size == 12


def test_peaked_teachers_are_surer():
    flat, peaked = (
        _problems.random(source=9, target=2, batch=50, spread=spread).source.max(axis=-1).mean()
        for spread in (_suites.FLAT, _suites.PEAKED)
    )
    assert flat < 0.5 < 0.8 < peaked


def symmetric(epsilon):
    half = np.full((1, 1, 2), 0.5)
    return _problems.Problem(1 - np.eye(2)[None], half, half, epsilon)


def test_reference_in_closed_form():
    # By symmetry the plan is [[p, q], [q, p]] with q / p = exp(-1 / epsilon).
    problem = symmetric(0.5)
    q = 0.5 / (1 + np.exp(2.0))
    plan = np.array([[0.5 - q, q], [q, 0.5 - q]])
    expected = 2 * q + 0.5 * (plan * np.log(plan / 0.25)).sum()
    assert _problems.reference_costs(problem)[0, 0] == pytest.approx(expected, rel=1e-9)
    assert _problems.plan_costs(problem, plan[None])[0, 0] == pytest.approx(expected, rel=1e-12)
    assert _problems.plan_error(problem, plan[None]) < 1e-15
    assert math.isnan(_problems.plan_error(problem, np.full((1, 2, 2), np.nan)))
    potential = 0.25 * np.log(plan[0, 0]) * np.ones((1, 1, 2))
    assert _problems.potential_error(problem, potential, potential) < 1e-15
    assert math.isnan(_problems.potential_error(problem, potential, np.nan * potential))


def test_reference_where_float64_scalings_underflow():
    # So small an epsilon leaves the mass where it is: KL of the diagonal plan is log 2.
    cost = _problems.reference_costs(symmetric(1e-3))
    np.testing.assert_allclose(cost, 1e-3 * np.log(2), rtol=1e-9)


def test_plain_iterations_meet_the_threshold_first():
    problem = transport.case_of(SMALL._replace(epsilon_ratio=0.1)).problem(0)
    count = _problems.plain_iterations(problem, 1e-3)
    assert count % 10 == 0

    def error(count):
        settings = _answers.Settings(repeats=1, iterations=count)
        return _answers.error(_solvers.roof(problem, settings))

    assert error(count) <= 1.01e-3 < error(count - 10)
    assert _problems.plain_iterations(problem, 1e-3, most=20) == 20


def test_torch_agrees():
    pytest.importorskip("torch")
    problem = transport.case_of(SMALL).problem(0)
    answer = _peers.torch_log(problem, _answers.Settings(repeats=1))
    assert _answers.error(answer) < 1.1e-3
    expected = _problems.reference_costs(problem.exact())
    np.testing.assert_allclose(answer.costs, expected, rtol=1e-3)
