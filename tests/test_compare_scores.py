"""Scores against the gain of students: agreement by hand, the table of a small grid, resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy_faculty
from scipy import stats

from experiments import _foretold, _settings
from experiments import compare_scores as compare
from fdjax import checks, scores

SCORES = ("transport", "transport:cost=centres:level=task", "leep", "size", "etran")


def test_agreement_is_scipys_and_a_teacher_without_score_is_last():
    score = np.array([0.1, np.nan, 0.5, 0.3, 0.2])
    truth = np.array([1.0, 0.0, 5.0, 5.0, 1.0])
    found = _foretold.compare(score, truth)
    last = np.array([0.1, -9.0, 0.5, 0.3, 0.2])
    assert found.weighted_tau == pytest.approx(stats.weightedtau(last, truth).statistic)
    assert found.tau == pytest.approx(stats.kendalltau(last, truth).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(last, truth).statistic)
    # Not infinitely far: as low as the lowest that there is.
    lowest = np.array([0.1, 0.1, 0.5, 0.3, 0.2])
    assert found.pearson == pytest.approx(stats.pearsonr(lowest, truth).statistic)
    assert (found.regret, found.recall, found.unknown) == (0.0, 1.0, 1)
    worse = _foretold.compare(-last, truth)
    assert worse.regret == 5.0 and worse.weighted_tau < 0
    nothing = _foretold.compare(np.full(5, np.nan), truth)
    assert nothing.unknown == 5 and np.isnan(nothing[:6]).all()
    assert np.isnan(_foretold.compare(score, np.ones(5)).weighted_tau)


def test_the_most_that_a_score_can_reach():
    assert _foretold.perfect(np.arange(6.0)) == pytest.approx((1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0))
    # One of three pairs is tied: tau-b of an order without ties is 2 / sqrt(2 * 3).
    limit = _foretold.perfect(np.array([0.0, 0.0, 1.0]))
    assert limit.tau == pytest.approx(2 / np.sqrt(6)) and limit.weighted_tau < 1


def test_summaries_are_over_tasks_and_paired_with_the_first():
    def one(tau, regret=0.0):
        return _foretold.Foretold(tau, tau, tau, tau, regret, 1.0, 2)

    found = {
        "worse": {"t": one(0.1), "u": one(0.5), "v": one(np.nan)},
        "better": {"t": one(0.4, 0.02), "u": one(0.6, 0.04), "v": one(np.nan, 0.0)},
        "nowhere": {task: one(np.nan) for task in "tuv"},
    }
    first, second, third = _foretold.summaries(found)
    assert (first.score, second.score, third.score) == ("better", "worse", "nowhere")
    assert first.weighted_tau == pytest.approx((0.5, 0.1)) and first.behind == (0.0, 0.0)
    assert second.behind == pytest.approx((0.2, 0.1)) and second.tasks == 2
    assert first.regret == pytest.approx((0.02, 0.02 / np.sqrt(3))) and first.unknown == 6
    assert np.isnan(third.weighted_tau[0]) and third.tasks == 0


def test_settings_of_a_flag():
    known = _settings.defaults(scores.transport)
    assert known["cost"] == "predictions" and known["smoothing"] == 0.0
    assert _settings.read("transport:smoothing=0.5:leave_one_out=false:cost=x", known) == {
        "smoothing": 0.5,
        "leave_one_out": False,
        "cost": "x",
    }
    for text, message in {
        "transport:cost": "write a setting as name=value",
        "transport:shape=1": "setting of transport",
        "transport:smoothing=much": "'much' is no number",
        "transport:leave_one_out=maybe": "switch in transport",
    }.items():
        with pytest.raises(checks.InputError, match=message):
            _settings.read(text, known)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy_faculty.grid(folder, objective="transport", scores=SCORES)


@pytest.fixture(scope="module")
def grid(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("grid")
    return workdir, compare.run(compare.Config(workdir=str(workdir), **flags))


def test_the_truth_is_the_gain_of_the_students(grid):
    workdir, results = grid
    values = toy_faculty.written(workdir)
    assert len(values) == 2 * (1 + 2)
    gain = {
        teacher: toy_faculty.gain(values, "toy@0", "transport", teacher)
        for teacher in results["teachers"]["toy@0"]
    }
    assert {p["teacher"]: p["gain"] for p in results["pairs"]} == pytest.approx(gain)
    truth = list(gain.values())
    assert set(results["values"]["toy@0"]) == set(SCORES)
    for text, values in results["values"]["toy@0"].items():
        agreed = results["by_task"][text]["toy@0"]
        assert agreed.regret == pytest.approx(max(truth) - truth[int(np.argmax(values))])
    assert [row.score for row in results["scores"]] != []
    report = (workdir / "report.md").read_text()
    assert all(text in report for text in SCORES) and "unlabelled training images" in report
    assert (workdir / "scores.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_other_scores_need_no_student(grid, flags, tmp_path):
    workdir, results = grid
    lines = (workdir / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:3]) + lines[3][:25])
    again = compare.run(compare.Config(workdir=str(tmp_path), **flags))
    assert json.dumps(again["pairs"]) == json.dumps(results["pairs"])
    assert sorted((tmp_path / "runs.jsonl").read_text().splitlines()) == sorted(
        line.rstrip("\n") for line in lines
    )
    size = (tmp_path / "runs.jsonl").stat().st_size
    other = compare.Config(**flags | {"workdir": str(tmp_path), "scores": ("random",), "seeds": 1})
    assert set(compare.run(other)["values"]["toy@0"]) == {"random"}
    assert (tmp_path / "runs.jsonl").stat().st_size == size
    with pytest.raises(checks.InputError, match="begun with another `shots`"):
        compare.run(compare.Config(**flags | {"workdir": str(tmp_path), "shots": 5}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": ()}, "--scores is empty"),
        ({"scores": ("magic",)}, "`--scores` must be one of"),
        ({"scores": ("leep", "leep")}, "names 'leep' twice"),
        ({"scores": ("leep:level=task",)}, "setting of leep"),
        ({"scores": ("otce:weight=1",)}, "`otce` has no settings"),
        ({"objective": "magic"}, "`objective` must be one of"),
        ({"objective": "pseudo_labels"}, "hears no teacher"),
        ({"objective": "kd"}, "hears no teacher of another label space"),
        ({"seeds": 0}, "--seeds must lie in"),
    ],
)
def test_a_mistake_is_refused_before_any_work(flags, tmp_path, changes, message):
    config = compare.Config(**({"workdir": str(tmp_path / "job")} | flags | changes))
    with pytest.raises(checks.InputError, match=message):
        compare.run(config)
    assert not Path(config.workdir, "runs.jsonl").exists()
