"""Checkpoints come back as they were saved, survive kills, and say what is wrong with them."""

import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from fdjax import checkpoints
from fdjax.checks import InputError


def state(value=1.0):
    """A training state with everything that a tree may hold."""
    params = {"head": {"kernel": jnp.full((3, 2), value), "bias": jnp.arange(2.0)}}
    return {
        "params": params,
        "optimiser": optax.adamw(1e-3).init(params),
        "key": jax.random.key(7),
        "step": 5,
        "rate": np.float32(value),
        "small": jnp.ones(3, jnp.bfloat16),
        "flags": (np.array([True, False]), np.arange(3, dtype=np.uint8)),
        "nothing": None,
    }


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if isinstance(one, jax.Array):
            assert isinstance(two, jax.Array)
        if jax.dtypes.issubdtype(jnp.result_type(one), jax.dtypes.prng_key):
            one, two = jax.random.key_data(one), jax.random.key_data(two)
        assert np.asarray(one).dtype == np.asarray(two).dtype
        np.testing.assert_array_equal(one, two)


def test_a_state_comes_back_as_it_was(tmp_path):
    checkpoints.save(tmp_path / "run", 5, state(2.0))
    restored = checkpoints.restore(tmp_path / "run", state(0.0))
    assert_same(state(2.0), restored)
    # Randomness goes on where it stopped.
    np.testing.assert_array_equal(
        jax.random.normal(restored["key"]), jax.random.normal(state()["key"])
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["5"]


def test_relative_paths_and_plain_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save("run", 0, {"a": np.arange(3)})
    assert checkpoints.latest("run") == 0
    np.testing.assert_array_equal(
        checkpoints.restore("run", {"a": np.zeros(3, np.int64)})["a"], [0, 1, 2]
    )


def test_the_last_checkpoints_are_kept(tmp_path):
    assert checkpoints.latest(tmp_path / "absent") is None
    for step in (1, 2, 10):
        checkpoints.save(tmp_path, step, {"a": np.full(2, step)}, keep=2)
    assert checkpoints.latest(tmp_path) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2"]
    restored = checkpoints.restore(tmp_path, {"a": np.zeros(2, np.int64)}, step=2)
    np.testing.assert_array_equal(restored["a"], 2)
    # A run begun again in the same folder does not lose what it has just saved.
    checkpoints.save(tmp_path, 3, {"a": np.full(2, 3)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_the_same_step_is_replaced(tmp_path):
    for value in (1, 2):
        checkpoints.save(tmp_path, 4, {"a": np.full(2, value)})
    restored = checkpoints.restore(tmp_path, {"a": np.zeros(2, np.int64)})
    np.testing.assert_array_equal(restored["a"], 2)


def test_saving_is_quick_enough_for_a_training_loop(tmp_path):
    tree = {str(index): jnp.ones((100, 100)) for index in range(10)}
    checkpoints.save(tmp_path, 0, tree)
    begun = time.perf_counter()
    for step in range(1, 6):
        checkpoints.save(tmp_path, step, tree)
    # About 0.05 s each where measured; the bound only catches a wait or a compilation.
    assert (time.perf_counter() - begun) / 5 < 1.0


def test_nested_dicts_come_back_without_a_template(tmp_path):
    tree = {
        "params": {"head": {"kernel": jnp.ones((2, 3))}, "w": np.ones(2, ml_dtypes.bfloat16)},
        "batch_stats": {"mean": np.zeros(3, np.float32)},
    }
    checkpoints.save_tree(tmp_path / "deep" / "variables", tree)
    loaded = checkpoints.load_tree(tmp_path / "deep" / "variables")
    jax.tree.map(np.testing.assert_array_equal, loaded, tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    assert loaded["params"]["w"].dtype == ml_dtypes.bfloat16


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it."""


@pytest.mark.parametrize("survived", range(5))
def test_a_save_cut_short_leaves_a_complete_checkpoint(tmp_path, monkeypatch, survived):
    """Stops a save before its first, second... change of the file system that matters."""
    checkpoints.save_tree(tmp_path / "a", {"x": np.zeros(2)})
    calls = []

    def dying(function):
        def run(*arguments, **settings):
            calls.append(function.__name__)
            if len(calls) > survived:
                raise Killed
            return function(*arguments, **settings)

        return run

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying(os.replace))
        patched.setattr(shutil, "rmtree", dying(shutil.rmtree))
        patched.setattr(checkpoints, "_checksums", dying(checkpoints._checksums))
        with pytest.raises(Killed):
            checkpoints.save_tree(tmp_path / "a", {"x": np.ones(2)})
    assert calls[-1] == ["_checksums", "rmtree", "replace", "replace", "rmtree"][survived]
    # The old one until the second rename, then the new one.
    np.testing.assert_array_equal(
        checkpoints.load_tree(tmp_path / "a")["x"], 0.0 if survived < 4 else 1.0
    )
    checkpoints.save_tree(tmp_path / "a", {"x": np.full(2, 2.0)})
    np.testing.assert_array_equal(checkpoints.load_tree(tmp_path / "a")["x"], 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_step_cut_short_while_replaced_is_still_found(tmp_path):
    checkpoints.save(tmp_path, 7, {"x": np.zeros(2)})
    os.replace(tmp_path / "7", tmp_path / ".7.previous")
    shutil.copytree(tmp_path / ".7.previous", tmp_path / ".8.new")
    assert checkpoints.latest(tmp_path) == 7
    checkpoints.restore(tmp_path, {"x": np.zeros(2)})


LOOP = """
import sys, numpy
from fdjax import checkpoints
for step in range(10_000):
    checkpoints.save(sys.argv[1], step, {"x": numpy.full(50_000, step)})
    print(step, flush=True)
"""


def test_a_killed_process_leaves_its_last_checkpoint(tmp_path):
    arguments = [sys.executable, "-c", LOOP, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < 3:
            pass
        time.sleep(0.03)
        process.send_signal(signal.SIGKILL)
        printed = process.stdout.read().split()
    reported = int(printed[-1]) if printed else 3
    step = checkpoints.latest(tmp_path)
    assert step >= reported
    restored = checkpoints.restore(tmp_path, {"x": np.zeros(50_000, np.int64)})
    np.testing.assert_array_equal(restored["x"], step)


def test_damage_to_any_file_is_noticed(tmp_path):
    checkpoints.save(tmp_path, 1, {"a": np.arange(999), "b": np.ones(2)})
    folder = tmp_path / "1"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    template = {"a": np.zeros(999, np.int64), "b": np.zeros(2)}
    for path in files:
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for damaged in (whole[:middle], flipped, None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(InputError, match=f"{folder}.* damaged.*delete this folder"):
                checkpoints.restore(tmp_path, template)
            path.write_bytes(whole)
    np.testing.assert_array_equal(checkpoints.restore(tmp_path, template)["b"], 1.0)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": np.zeros(3)}, "'b' is only in the checkpoint"),
        ({"a": np.zeros(3), "b": 1, "c": 2}, "'c' is only in the tree to restore"),
        ({"a": np.zeros(4), "b": 1}, r"'a' is float64\[3\] there, float64\[4\] was expected"),
        ({"a": np.zeros(3), "b": 1.5}, r"'b' is int64\[\] there, float64\[\] was expected"),
    ],
)
def test_another_tree_is_refused(tmp_path, template, message):
    checkpoints.save(tmp_path, 1, {"a": np.zeros(3), "b": 1})
    with pytest.raises(InputError, match=f"{tmp_path / '1'} holds another tree: {message}"):
        checkpoints.restore(tmp_path, template)


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(InputError, match=f"no checkpoint in {tmp_path}/absent"):
        checkpoints.restore(tmp_path / "absent", {"a": 1})
    checkpoints.save(tmp_path, 3, {"a": 1})
    with pytest.raises(InputError, match=r"no checkpoint of step 4 in .*it has steps 3\."):
        checkpoints.restore(tmp_path, {"a": 1}, step=4)
    with pytest.raises(InputError, match=f"no checkpoint at {tmp_path}/weights"):
        checkpoints.load_tree(tmp_path / "weights")


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(InputError, match="`step` must be an integer of at least 0, got -1"):
        checkpoints.save(tmp_path, -1, {"a": 1})
    with pytest.raises(InputError, match="`keep` must be positive"):
        checkpoints.save(tmp_path, 1, {"a": 1}, keep=0)
    with pytest.raises(InputError, match=r"leaf \['a'\] of `tree` must be an array.*got str"):
        checkpoints.save(tmp_path, 1, {"a": "text"})
    with pytest.raises(InputError, match=r"leaf \['a'\] of `tree` is empty \(shape \(0, 2\)\)"):
        checkpoints.save(tmp_path, 1, {"a": np.zeros((0, 2))})
    with pytest.raises(InputError, match="no array to save"):
        checkpoints.save(tmp_path, 1, {})
    with pytest.raises(InputError, match="two leaves of `tree` have the same path"):
        checkpoints.save(tmp_path, 1, {"a": {"b": 1}, "a/b": 2})
    for tree in ({"a": [np.ones(2)]}, {"a/b": np.ones(2)}):
        with pytest.raises(InputError, match="`tree` must be nested dicts"):
            checkpoints.save_tree(tmp_path / "x", tree)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=f"cannot save to {tmp_path}/file/1: .*choose a folder"):
        checkpoints.save(tmp_path / "file", 1, {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
