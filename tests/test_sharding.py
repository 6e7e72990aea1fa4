"""Arrays over several devices of one process, and scores that are those of one device."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import ranks

from fdjax import selection, sharding

ROOT = Path(__file__).parent.parent


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


def test_what_each_process_has_is_joined_and_comes_back():
    mesh = sharding.device_mesh()
    rows = {"a": np.arange(8.0).reshape(8, 1), "b": np.arange(8)}
    joined = sharding.joined(rows, mesh)
    assert joined["a"].sharding.shard_shape((8, 1)) == (2, 1)
    for name, values in rows.items():
        np.testing.assert_array_equal(sharding.on_host(joined[name]), values)


def test_the_rest_is_put_beside_what_is_spread_already():
    mesh = sharding.device_mesh()
    bank = sharding.put(np.arange(8.0), sharding.by_rows(mesh))
    key = jax.random.key(3)
    tree = {"bank": bank, "key": key, "step": np.int32(4)}
    placed = sharding.put_rest(tree, sharding.everywhere(mesh))
    assert placed["bank"] is bank and placed["step"].sharding.is_fully_replicated
    assert sharding.is_random_key(placed["key"]) and not sharding.is_random_key(bank)
    assert placed["key"].sharding.num_devices == 4
    assert jax.random.uniform(placed["key"]) == jax.random.uniform(key)


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


@pytest.mark.slow
def test_four_devices_give_the_scores_of_one():
    alone, spread = ranks.scored(), ranks.scored(sharding.device_mesh())
    for name, values in alone.items():
        np.testing.assert_allclose(spread[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.isfinite(values).all() and len(values) == ranks.TEACHERS


def test_teachers_are_not_copied_to_every_device():
    """What a device holds of the faculty is its share."""
    mesh = sharding.device_mesh()
    stacked = selection.stack(ranks.faculty())
    for leaf in jax.tree.leaves(sharding.put(stacked, sharding.by_rows(mesh))):
        assert leaf.addressable_shards[0].data.shape[0] == 2
