"""The grid of objectives: what its table says, and that it goes on where it was killed."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy_faculty

from experiments import _grid
from experiments import compare_objectives as compare
from fdjax import checks

OBJECTIVES = ("pseudo_labels", "reference:form=soft")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a small grid."""
    return toy_faculty.grid(tmp_path_factory.mktemp("world"), objectives=OBJECTIVES)


@pytest.fixture(scope="module")
def grid(flags, tmp_path_factory):
    """A finished grid: its flags, its workdir and its results."""
    workdir = tmp_path_factory.mktemp("grid")
    config = compare.Config(workdir=str(workdir), **flags)
    return config, workdir, compare.run(config)


@pytest.mark.slow
def test_every_student_of_the_grid_is_written_down_once(grid):
    _, workdir, results = grid
    first = json.loads((workdir / "runs.jsonl").read_text().splitlines()[0])
    assert first["flags"]["shots"] == 4 and "workdir" not in first["flags"]
    # Two seeds; alone, self-trained, by two teachers, and by both together.
    assert len(toy_faculty.written(workdir)) == 2 * (1 + 1 + 2 + 1)
    assert set(results["tasks"]) == {"toy@0"}


@pytest.mark.slow
def test_the_table_is_made_of_the_students(grid):
    _, workdir, results = grid
    values = toy_faculty.written(workdir)
    name = OBJECTIVES[1]
    row = results["objectives"][1]
    gain = {
        (task, teacher): toy_faculty.gain(values, task, name, teacher)
        for task in results["tasks"]
        for teacher in results["scores"][task]
    }
    assert row["pairs"] == 2 and row["worst"] == pytest.approx(min(gain.values()))
    assert row["gain"][0] == pytest.approx(np.mean(list(gain.values())))
    chosen = [gain[task, next(iter(scores))] for task, scores in results["scores"].items()]
    assert row["chosen"][0] == pytest.approx(np.mean(chosen))
    report = (workdir / "report.md").read_text()
    assert name in report and "unlabelled training images" in report
    assert (workdir / "gains.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_grid_goes_on_to_the_same_table(grid, flags, tmp_path):
    _, workdir, results = grid
    text = (workdir / "runs.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    # In the middle of a line, as a kill may leave it.
    kept = "".join(lines[:10]) + lines[10][:25]
    (tmp_path / "runs.jsonl").write_text(kept)
    resumed = compare.run(compare.Config(workdir=str(tmp_path), **flags))
    for key in ("objectives", "pairs", "alone", "scores", "tasks"):
        assert json.dumps(resumed[key]) == json.dumps(results[key])
    after = (tmp_path / "runs.jsonl").read_text()
    assert after.startswith("".join(lines[:10]))
    assert sorted(after.splitlines()) == sorted(text.splitlines())
    again = (tmp_path / "runs.jsonl").stat().st_size
    compare.run(compare.Config(workdir=str(tmp_path), **flags))
    assert (tmp_path / "runs.jsonl").stat().st_size == again


@pytest.mark.slow
def test_a_finished_grid_goes_on_with_more_objectives(grid, flags, tmp_path):
    _, workdir, results = grid
    text = (workdir / "runs.jsonl").read_text()
    (tmp_path / "runs.jsonl").write_text(text)
    more = flags | {"workdir": str(tmp_path), "objectives": (OBJECTIVES[0], "fine_tune")}
    found = compare.run(compare.Config(**more))
    assert json.dumps(found["objectives"][0]) == json.dumps(results["objectives"][0])
    tuned = found["objectives"][1]
    assert (tuned["objective"], tuned["pairs"], tuned["mixture"]) == ("fine_tune", 2, None)
    after = (tmp_path / "runs.jsonl").read_text()
    # Two students of two teachers; nobody else is trained again.
    assert after.startswith(text) and len(after.splitlines()) == len(text.splitlines()) + 4


@pytest.mark.slow
def test_other_flags_or_another_faculty_are_refused(grid, flags, tmp_path):
    config, workdir, _ = grid
    changed = compare.Config(**flags | {"workdir": str(workdir), "shots": 5})
    record = (workdir / "flags.txt").read_text()
    with pytest.raises(checks.InputError, match="begun with another `shots`: 4 and not 5"):
        compare.run(changed)
    assert (workdir / "flags.txt").read_text() == record
    first = json.loads((workdir / "runs.jsonl").read_text().splitlines()[0])
    first["flags"]["faculty"] = "another"
    (tmp_path / "runs.jsonl").write_text(json.dumps(first) + "\n")
    with pytest.raises(checks.InputError, match="begun with another `faculty`"):
        compare.run(compare.Config(workdir=str(tmp_path), **flags))
    (tmp_path / "runs.jsonl").write_text('{"flags": {}}\n{"task": "t"}\n')
    with pytest.raises(checks.InputError, match="cannot be read"):
        compare.run(compare.Config(workdir=str(tmp_path), **flags))
    assert config.shots == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ()}, "--objectives is empty"),
        ({"objectives": ("magic",)}, "`objective` must be one of"),
        ({"objectives": ("uld", "uld")}, "names 'uld' twice"),
        ({"objectives": ("kd",)}, "`kd` is for one label space"),
        ({"teachers": ("nobody",)}, "--teachers"),
        ({"tasks": ("digits", "digits")}, "--tasks names 'digits@0' twice"),
        ({"tasks": ("digits:1+2",), "classes": ("1", "2")}, "--classes goes with --dataset"),
        ({"tasks": ("digits:1+zero",)}, "zero"),
        ({"mixed": -1}, "--mixed must lie in"),
        ({"varied": 9, "copies": "labelled", "objectives": ("beliefs",)}, "use --copies=unlab"),
        (
            {"varied": 9, "copies": "labelled", "objectives": ("uld:weight=auto",)},
            "'uld:weight=auto' judges by labels that were left out",
        ),
        ({"image_size": -1}, "--image_size must lie in"),
        ({"seeds": 0}, "--seeds must lie in"),
        ({"root": "nowhere"}, "no faculty"),
    ],
)
def test_a_mistake_is_refused_before_any_work(flags, tmp_path, changes, message):
    config = compare.Config(**({"workdir": str(tmp_path / "job")} | flags | changes))
    with pytest.raises(checks.InputError, match=message):
        compare.run(config)
    assert not Path(config.workdir, "runs.jsonl").exists()


def test_tasks_are_draws_or_named(flags):
    config = compare.Config(**flags | {"num_tasks": 2, "seed": 3})
    found = _grid.task_configs(config)
    assert {name: one.seed for name, one in found.items()} == {"toy@3": 3, "toy@4": 4}
    config = compare.Config(
        **flags | {"num_tasks": 2, "tasks": ("digits", "a/b.npz:x+y", "c.npz@7")}
    )
    found = _grid.task_configs(config)
    assert {name: (one.dataset, one.seed, one.classes) for name, one in found.items()} == {
        "digits@0": ("digits", 0, ()),
        "digits@1": ("digits", 1, ()),
        "b:x+y": ("a/b.npz", 0, ("x", "y")),
        "c@7": ("c.npz", 7, ()),
    }


def test_gains_are_paired_by_seed_and_harm_is_more_than_an_error():
    accuracy = {}
    for seed, alone in enumerate((0.5, 0.6, 0.7)):
        job = _grid.Job("t", "alone", "(none)", seed)
        accuracy[job] = alone
        accuracy[job._replace(objective="x", teacher="good")] = alone + 0.1
        accuracy[job._replace(objective="x", teacher="bad")] = alone - 0.02
        accuracy[job._replace(objective="x", teacher="slight")] = alone - 0.004
        accuracy[job._replace(objective="x", teacher="shaky")] = alone - (0.2, -0.2, 0.1)[seed]
        accuracy[job._replace(objective="x", teacher="(mixture)")] = alone + 0.12
    pairs = _grid.gains(accuracy)
    assert {pair.teacher: pair.harmed for pair in pairs} == {
        "good": False,
        "bad": True,
        "slight": False,
        "shaky": False,
        "(mixture)": False,
    }
    by_name = {pair.teacher: pair for pair in pairs}
    assert by_name["good"].gain == pytest.approx(0.1)
    assert by_name["shaky"].error == pytest.approx(np.std([0.2, -0.2, 0.1], ddof=1) / 3**0.5)
    row = compare.summary(pairs, "x", {"t": {"good": -0.1, "bad": -0.2}})
    assert row["gain"][0] == pytest.approx((0.1 - 0.02 - 0.004 - 0.1 / 3) / 4)
    assert np.isnan(row["gain"][1])
    assert row["chosen"][0] == pytest.approx(0.1) and row["mixture"][0] == pytest.approx(0.12)
    assert (row["worst_pair"], row["harmed"], row["pairs"]) == ("shaky, t", 1, 4)


def test_errors_of_the_table_are_over_tasks():
    accuracy = {}
    for task, gain in (("t", 0.1), ("u", 0.3)):
        job = _grid.Job(task, "alone", "(none)", 0)
        accuracy |= {job: 0.5, job._replace(objective="x"): 0.5 + gain}
    row = compare.summary(_grid.gains(accuracy), "x", {"t": {"a": 0.0}, "u": {"a": 0.0}})
    assert row["gain"] == row["chosen"] == pytest.approx((0.2, 0.1))
    assert row["mixture"] is None


def test_one_seed_has_no_error_and_may_still_harm():
    job = _grid.Job("t", "alone", "(none)", 0)
    (pair,) = _grid.gains({job: 0.5, job._replace(objective="x", teacher="bad"): 0.4})
    assert np.isnan(pair.error) and pair.harmed
