"""A disk that is full or cannot be written, and two runs in one place: told in a sentence."""

import contextlib
import json
import os
import resource
import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from test_faculty import assert_same, black_box, card, images, refused, variables

from experiments import _grid, _ledger, _run, build_faculty
from fdjax import checkpoints, data, faculty, locks, reports


@contextlib.contextmanager
def room(size):
    """No file may grow beyond so many bytes: as on a full disk, a write is cut short or fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = "cannot (write|save) to .*(too large|[Ff]ile|space).*with space left"


def test_a_job_that_cannot_be_written_down_leaves_no_half_line(tmp_path):
    path = tmp_path / "runs.jsonl"
    ledger = _ledger.Ledger(path, _grid.Job, {"shots": 3})
    ledger.begin()
    with room(300), refused(FULL):
        for seed in range(9):
            ledger.add(_grid.Job("task", "objective", "teacher", seed), 0.5)
    known = dict(ledger.values)
    ledger.add(_grid.Job("task", "objective", "teacher", 9), 0.25)
    again = _ledger.Ledger(path, _grid.Job, {"shots": 3})
    assert 0 < len(known) < 9 and again.values == ledger.values
    assert len(path.read_text().splitlines()) == 1 + len(known) + 1


def test_reports_keep_the_old_file(tmp_path):
    path = reports.write_json(tmp_path / "results.json", {"old": 1})
    picture = reports.plot_curves(tmp_path / "curve.png", {"a": [(0, 1.0)]}, "accuracy")
    picture.unlink()  # the fonts it found are kept elsewhere
    with room(300), refused(FULL):
        reports.write_json(path, {"new": list(range(1000))})
    with room(300), refused(FULL):
        reports.plot_curves(tmp_path / "curve.png", {"a": [(0, 1.0)]}, "accuracy")
    assert json.loads(path.read_text()) == {"old": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["results.json"]


# orbax writes in threads of its own, whose failure it tells by an exception too.
THREADS = (
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
)


@THREADS[0]
@THREADS[1]
def test_a_checkpoint_keeps_the_one_before(tmp_path):
    checkpoints.save(tmp_path, 1, {"a": jnp.arange(3.0)})
    noise = np.random.default_rng(0).normal(size=(100, 100))
    with room(2000), refused(FULL):
        checkpoints.save(tmp_path, 2, {"a": noise})
    assert checkpoints.latest(tmp_path) == 1
    restored = checkpoints.restore(tmp_path, {"a": jnp.zeros(3)})
    np.testing.assert_array_equal(restored["a"], np.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.fixture
def root(tmp_path):
    path = faculty.create(tmp_path / "faculty")
    faculty.register(path, card("even"), variables(0))
    return path


@THREADS[0]
@THREADS[1]
def test_a_faculty_stays_as_it_was(root):
    said = faculty.observe(root, "even", images(100))  # what is compiled is kept elsewhere
    shutil.rmtree(root / "outputs")
    before = sorted(path for path in root.rglob("*"))
    with room(500):
        with refused(FULL):
            faculty.register(root, card("third"), variables(2))
        with refused(FULL):
            told = card("apart", preprocessing=None)
            faculty.register_outputs(root, told, black_box(), data.digest(images()))
        with pytest.warns(UserWarning, match="cannot keep .* for next time"):
            assert_same(faculty.observe(root, "even", images(100)), said)
    assert [one.name for one in faculty.cards(root)] == ["even"]
    outputs = root / "outputs"
    left = [path for path in root.rglob("*") if path != outputs and outputs not in path.parents]
    assert sorted(left) == before
    assert not [path for path in outputs.rglob("*") if path.is_file()]
    assert_same(faculty.observe(root, "even", images(100)), said)


@pytest.mark.parametrize("place", ["/proc/none", "/proc/self/none"])
def test_where_nothing_can_be_written(place):
    with refused(f"cannot write to {place}"):
        faculty.create(place)
    with refused(f"cannot write to the workdir {os.path.realpath(place)}.*--workdir"):
        build_faculty.run(build_faculty.Config(workdir=place))


def test_a_lock_is_one_holders_and_ends_with_it(tmp_path):
    path = tmp_path / "lock"
    first = locks.acquire(path, wait=False)
    assert first is not None and locks.acquire(path, wait=False) is None
    os.close(first)
    taken = []
    with locks.held(path):
        thread = threading.Thread(target=lambda: taken.append(locks.acquire(path, wait=True)))
        thread.start()
        thread.join(0.1)
        assert taken == []
    thread.join()
    os.close(taken[0])
    with pytest.raises(OSError), locks.held(tmp_path / "none" / "lock"):
        pass


def test_a_workdir_is_one_runs(tmp_path):
    config = build_faculty.Config(workdir=str(tmp_path / "job"), root=str(tmp_path / "faculty"))
    faculty.create(config.root)
    (tmp_path / "job").mkdir()
    other_run = locks.acquire(tmp_path / "job" / ".run.lock", wait=False)
    with refused(f"another run is at work in {tmp_path}/job; wait for its end, or choose another"):
        _run.Run(config)
    assert not (tmp_path / "job" / "flags.txt").exists()
    os.close(other_run)
    # One that failed in this process does not keep the next out.
    _run.Run(config)
    (tmp_path / "job" / ".results.json.99.tmp").write_text("half")
    record = _run.Run(config)
    record.finish({})
    os.close(locks.acquire(tmp_path / "job" / ".run.lock", wait=False))


def test_what_a_faculty_keeps_is_counted_and_pruned(tmp_path, root):
    faculty.observe(root, "even", images())
    faculty.register(root, card("even"), variables(3), replace=True)
    faculty.observe(root, "even", images())
    config = build_faculty.Config(workdir=str(tmp_path / "job"), root=str(root), gc=True)
    rows = {row["observations"]: row for row in build_faculty.run(config)["observations"]}
    assert rows["kept"]["number"] == rows["removed"]["number"] == 1
    assert rows["kept"]["MB"] > 0 and rows["kept"]["seconds to make"] > 0
    assert len(faculty.holdings(root)) == 1
    assert json.loads((tmp_path / "job" / "results.json").read_text())["observations"]
