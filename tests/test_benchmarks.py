"""Benchmarks: they time what they say, and their numbers agree with each other."""

import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _timing, transport
from fdjax import checks

SMALL = transport.Config(batch=6, source=5, target=4, epsilon_ratio=0.2, repeats=2, subsample=3)


def test_measure_counts_calls_and_takes_the_median(monkeypatch):
    clock = iter([0, 100, 0, 5, 0, 1, 0, 3])
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: next(clock))
    timing = _timing.measure(lambda x: x + 1, 1, repeats=3)
    assert timing == _timing.Timing(0.0, 3, (5, 1, 3), 2)


def test_measure_stops_when_the_budget_is_spent():
    calls = []
    timing = _timing.measure(lambda: calls.append(1), repeats=50, budget=1e-9)
    assert len(timing.all) == 2
    assert len(calls) == 3


def test_measure_compiles_apart():
    timing = _timing.measure(jax.jit(lambda x: x * 2), jnp.ones(3), repeats=1)
    assert timing.compile_seconds > 0
    np.testing.assert_array_equal(timing.result, 2 * np.ones(3))


def test_measure_refuses_no_repeats():
    with pytest.raises(checks.InputError, match="`repeats` must be positive"):
        _timing.measure(int, repeats=0)


def test_matmul_rate_is_a_rate():
    assert 0 < _timing.matmul_rate(size=64, repeats=1) < 1e7


def test_record_writes_what_it_prints(tmp_path, capsys):
    rows = [{"solver": "ours", "seconds": 0.5}, {"solver": "peer", "seconds": 2.0}]
    path = tmp_path / "record.json"
    entry = _timing.record(path, rows, "python -m x", size=3)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written == entry
    assert [row["ratio"] for row in written["rows"]] == [1.0, 4.0]
    assert written["command"] == "python -m x"
    assert written["size"] == 3
    assert {"python", "jax", "ott-jax"} <= set(written["versions"])
    assert "| peer   |   2.000 | 4.000 |" in capsys.readouterr().out
    with pytest.raises(checks.InputError, match="`rows` is empty"):
        _timing.record(None, [], "")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "transport.json"
    return transport.run(SMALL._replace(out=str(path))), json.loads(path.read_text())


def test_solvers_agree(result):
    entry, written = result
    rows = {row["solver"]: row for row in entry["rows"]}
    assert list(rows) == ["ours", *transport.PEERS]
    assert entry["left_out"] == {}
    for name, row in rows.items():
        assert row["seconds"] > 0
        if name != "pot_exact":
            # float32 sums may lie a little above the threshold that a solver saw met.
            assert row["marginal_error"] < 1.1 * SMALL.threshold, name
            assert row["cost_difference"] < 1e-3, name
    assert rows["ours"]["cost_difference"] < 1e-5
    assert "extrapolated from 3 of 6" in rows["pot_loop"]["note"]
    assert math.isnan(rows["pot_exact"]["cost_difference"])
    assert written["rows"][-1]["cost_difference"] is None
    assert written["settings"]["batch"] == 6
    assert entry["matmul_gflops"] > 0


def test_the_command_gives_the_settings_again():
    assert transport.command(transport.Config()) == "python -m benchmarks.transport"
    assert transport.command(transport.Config(batch=8, peers=("ott",))) == (
        "python -m benchmarks.transport --batch=8 --peers=ott"
    )


def test_missing_peer_is_left_out_and_said_so(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    entry = transport.run(SMALL._replace(peers=("pot_batch", "pot_loop")))
    assert [row["solver"] for row in entry["rows"]] == ["ours"]
    assert set(entry["left_out"]) == {"pot_batch", "pot_loop"}
    assert "pot_loop is left out: no module ot; pip install" in capsys.readouterr().out


def test_unknown_peer():
    with pytest.raises(checks.InputError, match="`peers` must be one of ott"):
        transport.run(SMALL._replace(peers=("geomloss",)))


def test_reference_in_closed_form():
    half = np.full((1, 2), 0.5)
    problem = transport.Problem(1 - np.eye(2), half, half, 0.5)
    # By symmetry the plan is [[p, q], [q, p]] with q / p = exp(-1 / epsilon).
    q = 0.5 / (1 + np.exp(2.0))
    plan = np.array([[0.5 - q, q], [q, 0.5 - q]])
    expected = 2 * q + 0.5 * (plan * np.log(plan / 0.25)).sum()
    assert transport.reference_costs(problem)[0] == pytest.approx(expected, rel=1e-9)
    assert transport.regularised_cost(problem, 0, plan) == pytest.approx(expected, rel=1e-12)
    answer = transport.Answer(_timing.Timing(0.0, 1.0, (1.0,), None), 1, plans=plan[None])
    assert transport.worst_error(problem, answer) < 1e-15
    broken = answer._replace(plans=np.full((1, 2, 2), np.nan))
    assert math.isnan(transport.worst_error(problem, broken))
