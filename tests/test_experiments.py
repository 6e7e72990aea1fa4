"""The experiments from flags to report on tiny tasks, and their answers to mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import (
    _run,
    _task,
    build_faculty,
    distil_student,
    faculty_distillation,
    score_faculty,
)
from fdjax import checks, data, faculty

REPOSITORY = Path(__file__).parent.parent


def write_npz(path: Path, task: data.Task, **changes) -> Path:
    arrays = {
        "train_images": task.train.images,
        "train_labels": task.train.labels,
        "test_images": task.test.images,
        "test_labels": task.test.labels,
        "class_names": np.array(task.class_names),
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data set of four classes as a file, and three teachers on parts of it."""
    folder = tmp_path_factory.mktemp("world")
    task = data.synthetic(num_classes=4, height=4, width=4, train_per_class=40, test_per_class=10)
    path = write_npz(folder / "toy.npz", task)
    build = build_faculty.Config(
        workdir=str(folder / "build"),
        root=str(folder / "faculty"),
        datasets=(str(path),),
        num_teachers=3,
        classes_per_teacher=(2, 4, 3),
        architectures=("mlp",),
        steps=30,
    )
    build_faculty.run(build)
    return folder, build


def main_job(world, **changes) -> faculty_distillation.Config:
    folder, build = world
    settings = {
        "workdir": str(folder / "job"),
        "root": build.root,
        "dataset": build.datasets[0],
        "shots": 4,
        "student": "mlp",
        "steps": 20,
        "batch_size": 24,
        "labelled": 8,
        "seeds": 2,
    }
    return faculty_distillation.Config(**(settings | changes))


def test_the_faculty_is_built_once_and_only_what_is_missing(world):
    _, build = world
    cards = faculty.cards(build.root)
    assert [len(card.class_names) for card in cards] == [2, 4, 3]
    manifest = Path(build.root, "manifest.json").stat().st_mtime_ns
    results = build_faculty.run(build)
    assert Path(build.root, "manifest.json").stat().st_mtime_ns == manifest
    assert [row["teacher"] for row in results["teachers"]] == [card.name for card in cards]


def test_the_main_job_writes_results_report_and_pictures(world):
    config = main_job(world)
    results = faculty_distillation.run(config)
    written = json.loads(Path(config.workdir, "results.json").read_text())
    names = {card.name for card in faculty.cards(config.root)}
    assert {row["teacher"] for row in written["ranking"]} == names
    assert written["chosen"] == written["ranking"][0]["teacher"]
    values = [row["scores"]["transport"] for row in written["ranking"]]
    assert values == sorted(values, reverse=True)
    assert set(written["accuracy"]) == {"alone", "random_teacher", "chosen_teacher", "mixture"}
    assert set(written["mixture"]) == names  # three teachers are all there are
    for accuracies in written["accuracy"].values():
        assert len(accuracies) == 2 and all(0 <= value <= 1 for value in accuracies)
    assert set(written["seconds"]) == {"build", "observe", "score", "distil"}
    assert written["flags"]["shots"] == 4 and "jax" in written["versions"]
    assert written["accuracy"] == results["accuracy"]
    report = Path(config.workdir, "report.md").read_text()
    assert "experiments.faculty_distillation" in report and results["chosen"] in report
    for picture in ("ranking.png", "cost.png"):
        assert Path(config.workdir, picture).read_bytes().startswith(b"\x89PNG")
    assert f"--dataset={config.dataset}" in Path(config.workdir, "flags.txt").read_text()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(world):
    config = main_job(world, seeds=1, every_teacher=False, mixture=1, objective="transport")
    first = faculty_distillation.run(config)
    again = faculty_distillation.run(config)
    assert first["accuracy"] == again["accuracy"] and first["ranking"] == again["ranking"]


@pytest.mark.slow
def test_scores_agree_between_settings_that_only_change_the_speed(world):
    folder, build = world
    config = {
        "workdir": str(folder / "score"),
        "root": build.root,
        "dataset": build.datasets[0],
        "shots": 4,
        "scores": ("transport", "leep"),
    }
    whole = score_faculty.run(score_faculty.Config(**config))
    parts = score_faculty.run(score_faculty.Config(**config, teacher_batch=2))
    spread = score_faculty.run(score_faculty.Config(**config, shard=True))
    for other in (parts, spread):
        for row, same in zip(whole["ranking"], other["ranking"], strict=True):
            assert row["teacher"] == same["teacher"]
            np.testing.assert_allclose(row["transport"], same["transport"], atol=1e-5)
    assert whole["chosen"] == whole["ranking"][0]["teacher"]


def test_no_teacher_has_seen_an_image_of_the_target(world):
    _, build = world
    teachers, target = _task.halves(data.load(build.datasets[0]))
    seen = {image.tobytes() for image in teachers.train.images}
    assert not seen & {image.tobytes() for image in target.train.images}


@pytest.mark.slow
def test_a_killed_student_goes_on_to_the_same_result(world):
    """Killed for real, by SIGKILL, after its first checkpoint."""
    folder, build = world
    flags = {
        "root": build.root,
        "dataset": build.datasets[0],
        "shots": 4,
        "student": "mlp",
        "steps": 4000,
        "batch_size": 24,
        "labelled": 8,
        "save_every": 500,
        "objective": "transport",
    }
    whole = distil_student.run(distil_student.Config(workdir=str(folder / "whole"), **flags))
    workdir = folder / "killed"
    command = [sys.executable, "-m", "experiments.distil_student", f"--workdir={workdir}"]
    command += [f"--{key}={value}" for key, value in flags.items()]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any((workdir / "checkpoints").glob("[0-9]*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (workdir / "results.json").exists()
    with pytest.raises(checks.InputError, match="holds a run already"):
        distil_student.run(distil_student.Config(workdir=str(workdir), **flags))
    resumed = distil_student.run(distil_student.Config(workdir=str(workdir), resume=True, **flags))
    assert resumed["accuracy"] == whole["accuracy"]
    assert resumed["history"] == whole["history"]
    assert (workdir / "metrics.jsonl").read_bytes() == (folder / "whole/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "no_such_set"}, "no_such_set"),
        ({"dataset": "missing.npz"}, r"missing\.npz"),
        ({"classes": ("zero", "one")}, "zero"),
        ({"classes": ("1",)}, "one class only"),
        ({"shots": 1000}, "shots|1000"),
        ({"shots": 0}, "--shots must lie in"),
        ({"student": "transformer"}, "--student"),
        ({"score": "magic"}, "--score"),
        ({"labelled": 24}, "--labelled=24"),
        ({"root": "nowhere"}, "no faculty"),
    ],
)
def test_a_mistake_is_one_clear_sentence_before_any_work(world, tmp_path, changes, message):
    config = main_job(world, **({"workdir": str(tmp_path / "job")} | changes))
    with pytest.raises(checks.InputError, match=message):
        faculty_distillation.run(config)
    assert not (tmp_path / "job/results.json").exists()


def test_a_workdir_that_is_a_file_is_refused(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(checks.InputError, match="choose another folder with --workdir"):
        faculty_distillation.run(main_job(world, workdir=str(tmp_path / "file")))


@pytest.mark.parametrize("broken", ["label", "class", "array"])
def test_broken_data_files_are_refused(world, tmp_path, broken):
    _, build = world
    task = data.load(build.datasets[0])
    labels = np.array(task.train.labels)
    changes = {
        "label": {"train_labels": np.where(labels == 3, 7, labels)},
        "class": {"train_labels": np.where(labels == 3, 2, labels)},
        "array": {"test_images": None},
    }[broken]
    path = write_npz(tmp_path / "broken.npz", task, **changes)
    with pytest.raises(checks.InputError, match=r"train_labels|test_images|class"):
        faculty_distillation.run(
            main_job(world, workdir=str(tmp_path / "job"), dataset=str(path), classes=("2", "3"))
            if broken != "class"
            else main_job(
                world,
                workdir=str(tmp_path / "job"),
                dataset=str(path),
                classes=task.class_names,
            )
        )


def test_as_a_command_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.faculty_distillation",
            f"--workdir={tmp_path / 'job'}",
            "--dataset=no_such_set",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert "no_such_set" in done.stderr


def test_flags_are_those_of_the_config_and_help_explains(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.faculty_distillation", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Labelled images of each class." in done.stdout
    assert "Does a teacher chosen by its transport cost help" in done.stdout


def test_the_command_line_of_a_run_names_what_differs_from_the_defaults():
    config = score_faculty.Config(shots=3, scores=("leep", "nce"))
    assert _run.command_line("experiments.score_faculty", config) == (
        "python -m experiments.score_faculty --shots=3 --scores=leep,nce"
    )


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(world, capsys):
    _, build = world
    page = (REPOSITORY / "README.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    for there, here in (
        ('"digits"', repr(build.datasets[0])),
        ('"runs/faculty-digits-12-0"', repr(build.root)),
    ):
        assert there in code
        code = code.replace(there, here)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert "True" in capsys.readouterr().out
    assert np.isfinite(names["gradient"]).all()
