"""Data efficiency from flags to report on a tiny task: shares are kept, a kill costs nothing."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from test_experiments import write_npz

from experiments import _economy, _economy_report, _task, build_faculty, data_efficiency
from fdjax import checks, data, faculty
from fdjax.faculty import records

STEPS, BATCH = 12, 16


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a small grid; its teachers are trained once."""
    folder = tmp_path_factory.mktemp("world")
    task = data.synthetic(num_classes=4, height=4, width=4, train_per_class=40, test_per_class=10)
    path = write_npz(folder / "toy.npz", task)
    return {
        "root": str(folder / "faculty"),
        "datasets": (str(path),),
        "teacher": "mlp",
        "teacher_steps": 30,
        "student": "mlp",
        "steps": STEPS,
        "batch_size": BATCH,
        "peers": ("uniform", "shorter", "hardest", "el2n"),
        "shares": (0.5,),
        "confidences": ("0.9", "share"),
        "seeds": 2,
    }


@pytest.fixture(scope="module")
def grid(flags, tmp_path_factory):
    """A finished grid: its workdir and its results."""
    workdir = tmp_path_factory.mktemp("grid")
    return workdir, data_efficiency.run(data_efficiency.Config(workdir=str(workdir), **flags))


@pytest.mark.slow
def test_each_student_is_a_line_and_keeps_to_its_share(grid):
    workdir, results = grid
    first, *lines = map(json.loads, (workdir / "runs.jsonl").read_text().splitlines())
    assert first["flags"]["steps"] == STEPS and "shares" not in first["flags"]
    # Two seeds of: none, significance, two modes at two confidences, four peers.
    assert len(lines) == len(results["runs"]) == 2 * (1 + 1 + 2 * 2 + 4)
    for run in results["runs"]:
        whole = STEPS * BATCH
        assert run["used"] == whole if run["method"] == "none" else run["used"] <= 0.5 * whole
        assert 0 <= run["validation"] <= 1 and 0 <= run["test"] <= 1 and run["seconds"] > 0
        if run["method"] in ("uniform", "shorter", "hardest", "el2n", "significance"):
            assert run["used"] == 0.5 * whole


@pytest.mark.slow
def test_the_table_is_made_of_the_students(grid):
    workdir, results = grid
    runs = results["runs"]

    def of(method, confidence, key):
        mine = [r for r in runs if (r["method"], r["confidence"]) == (method, confidence)]
        return np.array([run[key] for run in mine])

    row = next(row for row in results["rows"] if row["method"] == "hybrid")
    best = max(("0.9", "share"), key=lambda c: of("hybrid", c, "validation").mean())
    assert row["confidence"] == best
    np.testing.assert_allclose(
        row["gains"], of("hybrid", best, "test") - of("none", "", "test"), atol=1e-12
    )
    assert row["used"] == pytest.approx(of("hybrid", best, "used").mean() / (STEPS * BATCH))
    report = (workdir / "report.md").read_text()
    assert "At a share of 0.5" in report and "hybrid" in report and "(" + best + ")" in report
    assert all(
        (workdir / f"by_{x}.png").read_bytes().startswith(b"\x89PNG") for x in ("used", "time")
    )


@pytest.mark.slow
def test_a_killed_grid_goes_on_where_it_was(grid, flags, tmp_path):
    workdir, results = grid
    lines = (workdir / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:-2]) + lines[-2][:20])
    again = data_efficiency.run(data_efficiency.Config(workdir=str(tmp_path), **flags))
    for row, same in zip(results["rows"], again["rows"], strict=True):
        assert {k: v for k, v in row.items() if k not in ("seconds", "time")} == {
            k: v for k, v in same.items() if k not in ("seconds", "time")
        }
    other = data_efficiency.Config(**flags | {"workdir": str(tmp_path), "steps": STEPS + 1})
    with pytest.raises(checks.InputError, match="begun with another `steps`"):
        data_efficiency.run(other)


@pytest.mark.slow
def test_across_labels_the_significance_is_the_transport_cost(flags, tmp_path):
    own = flags | {
        "workdir": str(tmp_path),
        "across": True,
        "shots": 4,
        "labelled": 8,
        "objective": "transport",
        "modes": ("hybrid",),
        "peers": ("subset",),
        "confidences": ("share", "error", "0.5:0.9"),
        "refreshes": (4,),
        "seeds": 1,
    }
    config = data_efficiency.Config(**own)
    results = data_efficiency.run(config)
    assert [row["method"] for row in results["rows"]] == ["none", "hybrid", "subset"]
    assert len(results["runs"]) == 1 + 3 + 1
    (name,) = data_efficiency.teachers(config, config.root)
    task, held_out = data_efficiency.task_of(config, config.datasets[0])
    assert task.num_classes == 2 and (task.train.labels < 0).any() and len(held_out) > 0
    seen = _task.observe(config.root, task, (name,))
    found = np.asarray(data_efficiency.costs_of(seen, task, name))
    cost = np.asarray(_task.cost(seen, task, name, "predictions"), np.float64)
    each = np.asarray(seen.outputs.probabilities[0], np.float64) @ cost
    labels = task.train.labels
    want = np.where(labels >= 0, each[np.arange(len(labels)), labels], each.min(axis=1))
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.slow
def test_the_record_of_a_teacher_is_kept_and_is_for_its_data_only(flags, grid):
    config = data_efficiency.Config(**flags)
    (name,) = data_efficiency.teachers(config, config.root)
    task, _ = data_efficiency.task_of(config, config.datasets[0])
    counts = faculty.participation(config.root, name, task)
    assert counts.shape == (len(task.train),)
    # Thirty steps of 64 images, of which at least the first were all unsure.
    assert 64 <= counts.sum() <= 30 * 64
    other = data.Task(task.name, task.test, task.test, task.class_names)
    with pytest.raises(checks.InputError, match="is of another data set"):
        faculty.participation(config.root, name, other)
    path = Path(config.root) / "teachers" / name / records.FILE
    kept = path.read_bytes()
    try:
        records.write(path.parent, faculty.Participation(counts, task.digest), "0" * 64)
        with pytest.raises(checks.InputError, match="of other weights"):
            faculty.participation(config.root, name, task)
        path.write_bytes(b"not a zip")
        with pytest.raises(checks.InputError, match="cannot read"):
            faculty.participation(config.root, name, task)
        path.unlink()
        with pytest.raises(checks.InputError, match="was not trained with self-regulation"):
            faculty.participation(config.root, name, task)
    finally:
        path.write_bytes(kept)


def test_records_that_are_no_counts_are_refused(tmp_path):
    for counts in (np.array([-1, 2]), np.array([0.5]), np.zeros(0, int)):
        with pytest.raises(checks.InputError, match="whole numbers"):
            records.write(tmp_path, faculty.Participation(counts, "d"), "w")


def test_a_regulated_teacher_counts_what_it_learnt_from(flags):
    config = build_faculty.Config(
        datasets=flags["datasets"], architectures=("mlp",), steps=40, confidence=0.5
    )
    task = _task.load(config.datasets[0], None, 0)
    trained = build_faculty.train_teacher(task, "mlp", config, 0)
    plain = build_faculty.train_teacher(task, "mlp", build_faculty.Config(steps=40), 0)
    assert plain.participation is None
    assert trained.participation.task_digest == task.digest
    assert 64 < trained.participation.counts.sum() < 40 * 64
    assert any(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(trained.variables), jax.tree.leaves(plain.variables), strict=True
        )
    )


def test_the_confidence_is_chosen_by_images_held_out_and_not_by_test_images():
    def job(confidence, seed):
        return _economy.Job("t", "d", "regulated", 0.5, confidence, 1, seed)

    outcomes = {
        job("0.5", 0): _economy.Outcome(0.6, 0.9, 1, 1.0),
        job("0.5", 1): _economy.Outcome(0.7, 0.9, 1, 1.0),
        job("0.9", 0): _economy.Outcome(0.9, 0.1, 1, 1.0),
        job("0.9", 1): _economy.Outcome(0.5, 0.1, 1, 1.0),
    }
    assert _economy_report.best_confidence(outcomes, "t", ("regulated", 0.5, 1)) == "0.9"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ("regulation",)}, "`--modes` must be one of none, significance"),
        ({"peers": ("easiest",)}, "`--peers` must be one of uniform"),
        ({"shares": (0.01,)}, "is no sample; raise one"),
        ({"shares": ()}, "--shares is empty"),
        ({"shares": (0.5, 0.5)}, "--shares names one value twice"),
        ({"confidences": ("high",)}, "must be numbers, START:END"),
        ({"confidences": ("0.1:0.5:0.9",)}, "must be numbers, START:END"),
        ({"confidences": ("0.5:1.5",)}, "must lie in"),
        ({"confidences": ("1.5",)}, "must lie in"),
        ({"confidences": ()}, "need --confidences"),
        ({"refreshes": (0,)}, "--refreshes must lie in"),
        ({"student": "tree"}, "`--student` must be one of"),
        ({"objective": "pseudo_labels"}, "hears no teacher"),
        ({"across": True}, "is for one label space"),
        ({"across": True, "objective": "transport", "labelled": 64}, "leaves no unlabelled image"),
    ],
)
def test_impossible_flags_are_refused_before_any_work(flags, tmp_path, changes, message):
    config = data_efficiency.Config(**flags | {"workdir": str(tmp_path / "new")} | changes)
    with pytest.raises(checks.InputError, match=message):
        data_efficiency.run(config)
    assert not (tmp_path / "new").exists()
