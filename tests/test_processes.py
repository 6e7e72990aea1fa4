"""Several processes are one program: what they compute is what one does, and they end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import rank_student
import ranks
import toy_faculty
import toy_recipe

from experiments import _run, distil_student, score_faculty
from fdjax import checkpoints, processes
from fdjax.checks import InputError

ROOT = Path(__file__).parent.parent


def start(command):
    """A process of its own, with the tree of this test."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_ranks(command, number, timeout, status=0):
    """Runs processes that belong together; returns what each printed, if all have this status."""
    running = [start(command(process)) for process in range(number)]
    try:
        said = [one.communicate(timeout=timeout)[0] for one in running]
    finally:
        for one in running:
            one.kill()
    for one, text in zip(running, said, strict=True):
        assert one.returncode == status, text
    return said


def free_address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


# Joining, agreeing, failing


def test_a_lone_process_waits_for_nobody():
    processes.meet("here")
    processes.part()
    processes.fail("words", 3)
    processes.agree("words", "any")
    assert processes.is_first() and not processes.are_several()
    assert processes.text_of_first("mine") == "mine" and processes.from_first(3) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("127.0.0.1:1", 2, 2), r"`--process` must lie in \[0, 1\], got 2"),
        ((None, 2, 1), "--processes=2 need --coordinator=HOST:PORT"),
        (("127.0.0.1", 2, 1), "must be HOST:PORT of process 0"),
    ],
)
def test_processes_that_cannot_come_together_are_refused(given, words, tmp_path):
    with pytest.raises(InputError, match=words):
        processes.check(*given)
    names = dict(zip(("coordinator", "processes", "process"), given, strict=True))
    with pytest.raises(InputError, match=words):
        distil_student.run(distil_student.Config(workdir=str(tmp_path / "job"), **names))
    assert not (tmp_path / "job").exists()


def test_processes_join_before_anything_else(tmp_path):
    jax.devices()
    with pytest.raises(InputError, match="process 1 of 2 could not join the others at"):
        processes.join("127.0.0.1:1", 2, 1)
    assert not processes.are_several()
    flags = {"coordinator": "127.0.0.1:1", "processes": 2, "workdir": str(tmp_path / "job")}
    with pytest.raises(InputError, match="several processes must join before"):
        _run.Run(distil_student.Config(**flags))
    assert not (tmp_path / "job").exists()


def test_who_waits_in_vain_says_so():
    code = f"from fdjax import processes; processes.join('{free_address()}', 2, 0, patience=1.0)"
    (said,) = run_ranks(lambda _: ["-c", code], 1, timeout=60, status=2)
    assert "error: process 0 of 2 waited 1 seconds in vain for the others" in said


@pytest.mark.slow
def test_two_processes_train_as_one_and_fail_as_one(tmp_path):
    address = free_address()

    def command(process):
        return ["tests/rank_student.py", address, "2", str(process), str(tmp_path)]

    said = run_ranks(command, 2, timeout=240, status=7)
    assert f"error: process 1 failed: {rank_student.SORRY}: process 1 has other words" in said[0]
    alone = rank_student.trained(tmp_path / "alone")
    assert any("banks" in name for name in alone)
    for process in range(2):
        with np.load(tmp_path / f"{process}.npz") as found:
            assert set(found) == set(alone)
            for name, values in alone.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    # The first one writes, the others do not.
    assert checkpoints.latest(tmp_path / "0" / "checkpoints") == rank_student.STEPS
    assert not (tmp_path / "1" / "checkpoints").exists()


# The commands


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path):
    address = free_address()
    out = [tmp_path / f"{process}.npz" for process in range(2)]

    def command(process):
        return ["tests/ranks.py", address, "2", str(process), "2", str(out[process])]

    run_ranks(command, 2, timeout=240)
    alone = ranks.scored()
    for path in out:
        with np.load(path) as found:
            for name, values in alone.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_one_command_a_host_scores_a_faculty(tmp_path):
    flags = toy_faculty.make(tmp_path)
    common = [f"--{key}={flags[key]}" for key in ("root", "dataset", "shots")]
    common += ["--scores=leep,logme", "--resamples=0", "--shard"]

    def command(process):
        own = [f"--workdir={tmp_path}/job", f"--process={process}", "--processes=2"]
        return ["-m", "experiments.score_faculty", *common, *own, f"--coordinator={address}"]

    address = free_address()
    said = run_ranks(command, 2, timeout=240)
    results = json.loads((tmp_path / "job/results.json").read_text())
    config = score_faculty.Config(
        **{key: flags[key] for key in ("root", "dataset", "shots")},
        scores=("leep", "logme"),
        resamples=0,
        workdir=str(tmp_path / "alone"),
    )
    alone = score_faculty.run(config)
    for one, two in zip(results["ranking"], alone["ranking"], strict=True):
        assert one["teacher"] == two["teacher"] and all(one["teacher"] in text for text in said)
        np.testing.assert_allclose([one["leep"]], [two["leep"]], rtol=1e-5)
        np.testing.assert_allclose([one["logme"]], [two["logme"]], rtol=1e-5)
    assert results["flags"]["process"] == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"job", "alone", "faculty"}


def distil(flags, workdir, address, **more):
    """Command of each of two processes that train one student."""
    values = flags | {"workdir": workdir, "objective": "transport", "devices": 0} | more

    def command(process):
        given = [f"--{key}={value}" for key, value in values.items()]
        own = [f"--coordinator={address}", "--processes=2", f"--process={process}"]
        return ["-m", "experiments.distil_student", *given, *own]

    return command


@pytest.mark.slow
def test_one_command_a_host_trains_a_student(tmp_path):
    """Killed on its way, then resumed; beside it what is refused and what fails on one host."""
    flags = toy_faculty.make(tmp_path) | {"steps": 200, "save_every": 5}
    job = tmp_path / "job"
    command = distil(flags, job, free_address())
    first, other = start(command(0)), start(command(1))
    end = time.monotonic() + 200
    while checkpoints.latest(job / "checkpoints") is None and time.monotonic() < end:
        time.sleep(0.02)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    # The first one notices by itself that it is alone.
    assert "rror" in first.communicate(timeout=150)[0]
    assert first.returncode not in (0, None) and other.returncode == -signal.SIGKILL
    assert not (job / "results.json").exists()

    said = run_ranks(distil(flags, job, free_address()), 2, timeout=240, status=2)
    assert all("holds a run already" in text for text in said)
    said = run_ranks(distil(flags, job, free_address(), resume=True), 2, timeout=240)
    results = json.loads((job / "results.json").read_text())
    config = distil_student.Config(**flags, workdir=str(tmp_path / "alone"), objective="transport")
    alone = distil_student.run(config)
    assert results["teacher"] == alone["teacher"]
    np.testing.assert_allclose(results["accuracy"], alone["accuracy"], atol=1e-6)
    losses = [[entry["loss"] for entry in one["history"]] for one in (results, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-5)
    assert all(f"test accuracy: {alone['accuracy']:.3f}" in text for text in said)

    address = free_address()
    odd = tmp_path / "odd"
    one, other = distil(flags, odd, address), distil(flags, odd, address, learning_rate=0.5)
    commands = [one(0), other(1)]
    said = run_ranks(commands.__getitem__, 2, timeout=240, status=2)
    assert "process 1 has other flags than process 0" in said[0]
    assert not odd.exists()
    (tmp_path / "more").mkdir()
    more = toy_recipe.make(tmp_path / "more")["dataset"]
    address = free_address()
    one, other = distil(flags, odd, address), distil(flags, odd, address, dataset=more)
    said = run_ranks([one(0), other(1)].__getitem__, 2, timeout=240, status=2)
    assert "process 1 has other data than process 0" in said[0]
    refused = distil(flags, odd, free_address(), batch_size=25)
    for text in run_ranks(refused, 2, timeout=240, status=2):
        assert "--batch_size=25 cannot be spread evenly over 2 devices" in text


@pytest.mark.slow
def test_one_command_a_host_compresses_with_a_bank_in_parts(tmp_path):
    values = toy_recipe.make(tmp_path) | {
        "seeds": 1,
        "teacher": "mlp",
        "methods": "crd,crd+kd",
        "workdir": tmp_path / "job",
        "learning_rate": 0.01,
    }

    def command(process, *more):
        given = [f"--{key}={value}" for key, value in values.items()]
        return ["-m", "experiments.compress", *given, *more]

    address = free_address()
    own = ["--devices=0", f"--coordinator={address}", "--processes=2"]
    run_ranks(lambda process: command(process, *own, f"--process={process}"), 2, timeout=240)
    values["workdir"] = tmp_path / "alone"
    run_ranks(command, 1, timeout=240)
    for name in ("alone/seed-0", "crd/seed-0/last", "crd+kd/seed-0/last"):
        folder = Path("networks", name, "checkpoints")
        states = [
            checkpoints.load_tree(
                tmp_path / job / folder / str(checkpoints.latest(tmp_path / job / folder))
            )
            for job in ("job", "alone")
        ]
        for one, two in zip(*map(jax.tree.leaves, states), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5, err_msg=name)
    lines = [(tmp_path / job / "runs.jsonl").read_text() for job in ("job", "alone")]
    assert len(lines[0].splitlines()) == len(lines[1].splitlines()) == 5
