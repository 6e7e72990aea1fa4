"""Scores over several devices and several processes are those of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import ranks
import toy_faculty

from experiments import _run, score_faculty
from fdjax import selection, sharding
from fdjax.checks import InputError

ROOT = Path(__file__).parent.parent


def run_ranks(command, processes, timeout):
    """Runs processes that belong together; returns what each printed, unless one fails."""
    running = [
        subprocess.Popen(
            [sys.executable, *command(process)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        said = [one.communicate(timeout=timeout)[0] for one in running]
    finally:
        for one in running:
            one.kill()
    for one, text in zip(running, said, strict=True):
        assert one.returncode == 0, text
    return said


def free_address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def test_rows_are_dealt_out_evenly_and_come_back():
    mesh = sharding.device_mesh()
    assert mesh.size == 4
    rows = np.arange(10.0).reshape(5, 2)
    placed = sharding.put(rows, sharding.by_rows(mesh))
    assert placed.shape == (8, 2) and placed.sharding.shard_shape(placed.shape) == (2, 2)
    np.testing.assert_array_equal(placed, np.concatenate([rows, rows[[4, 4, 4]]]))
    whole = sharding.put(rows, sharding.everywhere(mesh))
    assert whole.sharding.is_fully_replicated
    np.testing.assert_array_equal(sharding.fetch(whole), rows)
    doubled = sharding.over_leading_axis(lambda array: 2 * array, mesh)
    np.testing.assert_array_equal(jax.jit(doubled)(rows), 2 * rows)


def test_too_few_threads_for_the_devices_are_noticed(monkeypatch):
    for threads, devices, short in (
        ("2", 2, True),
        ("4", 2, False),
        ("7", 4, True),
        ("1", 1, False),
    ):
        monkeypatch.setenv("NPROC", threads)
        assert sharding.short_of_threads(sharding.device_mesh(num_devices=devices)) == short
    monkeypatch.setenv("NPROC", "many")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert sharding.short_of_threads(sharding.device_mesh(num_devices=2))


@pytest.mark.slow
def test_batches_of_factorisations_on_simulated_devices_do_not_wait_for_ever():
    """With two threads, as on two cores; without the guard it never ends."""
    code = """if True:
        import jax, numpy as np
        jax.config.update("jax_num_cpu_devices", 4)
        from benchmarks import devices
        from fdjax import scores, selection, sharding
        config = devices.Config(teachers=16, examples=300)
        faculty, labels = devices.make_faculty(config)
        mesh = sharding.device_mesh()
        assert sharding.short_of_threads(mesh)
        np.asarray(selection.score_faculty(scores.logme, faculty, labels, 20, mesh=mesh))
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NPROC": "2"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=240, check=True)


def test_a_lone_process_waits_for_nobody():
    sharding.meet("here")


def test_a_process_that_is_none_of_them_is_refused():
    with pytest.raises(InputError, match=r"`--process` must lie in \[0, 1\], got 2"):
        _run.join("127.0.0.1:1", 2, 2)
    jax.devices()
    with pytest.raises(InputError, match="process 1 of 2 could not join the others at"):
        _run.join("127.0.0.1:1", 2, 1)  # too late: this process has its devices already


@pytest.mark.slow
def test_four_devices_give_the_scores_of_one():
    alone, spread = ranks.scored(), ranks.scored(sharding.device_mesh())
    for name, values in alone.items():
        np.testing.assert_allclose(spread[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.isfinite(values).all() and len(values) == ranks.TEACHERS


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


def test_teachers_are_not_copied_to_every_device():
    """What a device holds of the faculty is its share."""
    mesh = sharding.device_mesh()
    stacked = selection.stack(ranks.faculty())
    for leaf in jax.tree.leaves(sharding.put(stacked, sharding.by_rows(mesh))):
        assert leaf.addressable_shards[0].data.shape[0] == 2
