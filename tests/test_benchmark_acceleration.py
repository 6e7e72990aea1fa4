"""The benchmark of accelerations on tiny problems."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _problems, _suites, acceleration
from fdjax import transport

ROWS = ["ours", "ours_mean", "ours_previous"]
ROWS += ["ott", "ott_momentum", "ott_anderson", "ott_schedule"]
SMALL = acceleration.Config(
    batch=3, source=5, target=4, epsilon_ratio=(0.2,), spread=(_suites.FLAT,), repeats=1
)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "acceleration.json"
    entry = acceleration.run(SMALL._replace(out=str(path)))
    return entry, json.loads(path.read_text()), path.with_suffix(".md").read_text()


@pytest.mark.slow
def test_every_acceleration_solves_easy_problems(result):
    (case,) = result[0]["cases"]
    assert [row["solver"] for row in case["rows"]] == ROWS
    for row in case["rows"]:
        assert row["seconds"] > 0 and row["compile_seconds"] > 0
        # ott-jax stops by one marginal; momentum leaves the other one unmet as well.
        most = 2e-3 if row["solver"] == "ott_momentum" else 1.1e-3
        assert row["marginal_error"] < most, row["solver"]
        assert (row["converged"] == 1.0) == (row["marginal_error"] <= 1.1e-3)
        assert 0 < row["mean_iterations"] <= row["iterations"] < 2000
    assert case["rows"][0]["ratio"] == 1.0


@pytest.mark.slow
def test_the_record_and_the_page_hold_what_was_measured(result):
    entry, written, page = result
    assert [row["solver"] for row in written["cases"][0]["rows"]] == ROWS
    assert written["settings"]["batch"] == 3
    assert {"python", "jax", "ott-jax"} <= set(written["versions"])
    assert f"`{entry['command']}`" in page
    assert "### 5 x 4, batch 3, faculty 1, epsilon 0.2 of the mean cost, flat teachers" in page
    assert "| ott_anderson  |" in page


def test_the_command_gives_the_settings_again():
    assert acceleration.command(acceleration.Config()) == "python -m benchmarks.acceleration"
    assert acceleration.command(SMALL._replace(epsilon_ratio=(0.2, 0.1))) == (
        "python -m benchmarks.acceleration --batch=3 --source=5 --target=4 --epsilon_ratio=0.2 "
        "--epsilon_ratio=0.1 --spread=1.0 --repeats=1"
    )


def test_errors_are_those_of_every_example():
    problem = _problems.random(source=3, target=2, batch=2, epsilon_ratio=1.0).exact()
    epsilon = problem.epsilon
    # The product of the marginals meets both where the cost is zero; the second is too heavy.
    problem = problem._replace(cost=np.zeros((1, 3, 2)))
    f, g = (epsilon * np.log(mass) for mass in problem[1:3])
    f[0, 1] += epsilon * np.log(1.5)
    np.testing.assert_allclose(acceleration.errors(problem, f, g), [[0, 0.5]], atol=1e-12)
    f[0, 0, 0] = np.nan
    assert np.isnan(acceleration.errors(problem, f, g)[0, 0])


@pytest.mark.slow
def test_the_mean_problem_is_a_good_start_and_changes_no_answer():
    problem = _problems.random(source=5, target=4, batch=3, epsilon_ratio=0.2)
    arrays = [jnp.asarray(array) for array in problem[:3]]
    calls = []

    def solve(cost, source, target, initial=None):
        calls.append((source, initial))
        return transport.solve(
            cost, source, target, epsilon=problem.epsilon, threshold=1e-5, initial=initial
        )

    found = acceleration.from_mean(solve, problem.epsilon)(*arrays)
    np.testing.assert_allclose(found.transport_cost, solve(*arrays).transport_cost, rtol=1e-4)
    (mean, nothing), *_ = calls
    assert nothing is None and mean.shape == (1, 1, 5)
    # Of equal examples the mean is each of them, so that the start is the solution.
    same = [arrays[0], *(jnp.repeat(array[:, :1], 3, axis=1) for array in arrays[1:])]
    calls.clear()
    found = acceleration.from_mean(solve, problem.epsilon)(*same)
    for potential, expected in zip(calls[1][1], found[:2], strict=True):
        apart = potential - expected  # by a constant, which makes no difference to a plan
        np.testing.assert_allclose(apart - apart.mean(axis=-1, keepdims=True), 0.0, atol=1e-4)


def test_a_step_of_training_moves_the_logits_a_little():
    target = jax.nn.softmax(jax.random.normal(jax.random.key(0), (1, 50, 40)))
    before = acceleration.step_before(target, seed=1)
    np.testing.assert_allclose(before.sum(axis=-1), 1.0, rtol=1e-5)
    moved = jnp.log(before) - jnp.log(target)
    assert 0.045 < float(jnp.std(moved - moved.mean(axis=-1, keepdims=True))) < 0.055
