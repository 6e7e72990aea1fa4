"""Observations on disk: exact or small, in parts that outlive a kill, pruned when stale."""

import json
import shutil
import threading

import numpy as np
import pytest
from test_faculty import assert_same, card, images, kept_in, refused, variables

from fdjax import data, faculty
from fdjax.faculty import files, kept, observations, running


@pytest.fixture
def root(tmp_path):
    path = faculty.create(tmp_path / "faculty")
    faculty.register(path, card("even"), variables(0))
    faculty.register(path, card("odd", 4), variables(1, 4))
    return path


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it."""


@pytest.fixture
def answered(monkeypatch):
    """Batches that networks have answered, and after how many they are killed."""
    made, seen = running.runner, {"batches": 0, "last": 10**9}

    def counting(root, card):
        ready = made(root, card)

        def answer(inputs):
            if seen["batches"] == seen["last"]:
                raise Killed
            seen["batches"] += 1
            return ready.answer(inputs)

        return ready._replace(answer=answer)

    monkeypatch.setattr(running, "runner", counting)
    monkeypatch.setattr(observations, "_BATCHES", 2)
    return seen


def test_what_is_kept_exactly_is_mapped_and_bit_for_bit_the_same(root):
    fresh = faculty.observe(root, "even", images(), batch_size=3)
    again = faculty.observe(root, "even", images(), batch_size=3)
    assert_same(fresh, again)
    assert isinstance(again.probabilities, np.memmap) and not again.probabilities.flags.writeable
    about = json.loads((kept_in(root)[0] / "about.json").read_text())
    assert about["keep"] == "float32" and about["seconds"] > 0


def test_half_the_space_costs_a_thousandth(root):
    exact = faculty.observe(root, "odd", images())
    said = faculty.observe(root, "odd", images(), keep="float16")
    again = faculty.observe(root, "odd", images(), keep="float16")
    assert_same(said, again)
    np.testing.assert_allclose(said.probabilities, exact.probabilities, rtol=1e-3)
    np.testing.assert_allclose(said.probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(said.features, exact.features, rtol=1e-3, atol=1e-6)
    assert said.probabilities.dtype == said.features.dtype == np.float32
    arrays = {"probabilities.npy", "features.npy"}
    whole, half = (
        sum(p.stat().st_size - 128 for p in folder.iterdir() if p.name in arrays)
        for folder in kept_in(root)
    )
    assert half == whole / 2


def test_the_rest_of_the_mass_is_spread_over_the_other_labels():
    said = np.array([[0.5, 0.125, 0.25, 0.0625, 0.0625]], np.float32)
    arrays = kept.encoded(said, None, 2, "t")
    assert sorted(arrays["labels"][0]) == [0, 2]
    found = kept.decoded(arrays, 5)["probabilities"]
    # A quarter of the mass is left for three labels.
    np.testing.assert_allclose(found, [[0.5, 1 / 12, 0.25, 1 / 12, 1 / 12]], rtol=1e-6)
    every = kept.decoded(kept.encoded(said, None, 9, "t"), 5)["probabilities"]
    np.testing.assert_allclose(every, said, rtol=1e-6)


def test_no_label_loses_all_its_mass():
    said = np.array([[1.0 - 3e-12, 1e-12, 1e-12, 1e-12]], np.float32)
    for keep in ("float16", 1, 2):
        found = kept.decoded(kept.encoded(said, None, keep, "t"), 4)["probabilities"]
        assert (found > 0).all() and found.sum() == pytest.approx(1)


def test_only_so_many_labels_of_a_teacher_are_kept(root):
    exact = faculty.observe(root, "odd", images()).probabilities
    said = faculty.observe(root, "odd", images(), keep=2).probabilities
    assert_same([said], [faculty.observe(root, "odd", images(), keep=2).probabilities])
    likeliest = np.sort(exact, axis=1)[:, -2:]
    np.testing.assert_allclose(np.sort(said, axis=1)[:, -2:], likeliest, rtol=1e-3)
    assert kept_in(root)[-1].name.endswith("-top2")


def test_what_does_not_fit_float16_is_refused():
    with refused("features of teacher 't' go beyond 65504"):
        kept.encoded(np.ones((1, 1)), np.array([[7e4]]), "float16", "t")
    for keep in (0, -1, True):
        with refused("`keep` must be float32, float16 or a number of labels"):
            kept.check(keep)


def test_an_observation_that_was_killed_goes_on(root, answered):
    whole = faculty.observe(root, "even", images(21), batch_size=4)
    assert answered["batches"] == 6
    shutil.rmtree(root / "outputs")
    for last in (7, 9, 11):
        answered["last"] = last
        with pytest.raises(Killed):
            faculty.observe(root, "even", images(21), batch_size=4)
        assert kept_in(root) == []
    # 6 batches of the first time, and of these: 1, killed in the first part; 2; 2.
    answered["last"] = 10**9
    assert_same(faculty.observe(root, "even", images(21), batch_size=4), whole)
    assert answered["batches"] == 13
    (folder,) = (root / "outputs").iterdir()
    assert [path.name[0] for path in folder.iterdir()] == ["e"]


def test_damaged_parts_and_parts_of_another_cut_are_made_again(root, answered):
    whole = faculty.observe(root, "even", images(21), batch_size=4)
    shutil.rmtree(root / "outputs")
    answered["last"] = 6 + 4
    with pytest.raises(Killed):
        faculty.observe(root, "even", images(21), batch_size=4)
    first, second = sorted(root.glob("outputs/*/.*.parts/*.npz"))
    first.write_bytes(first.read_bytes()[:-9])
    answered.update(batches=0, last=10**9)
    assert_same(faculty.observe(root, "even", images(21), batch_size=4), whole)
    assert answered["batches"] == 2 + 2 and not second.exists()


def test_an_unreadable_observation_is_made_again(root):
    # Copied, because the test writes into the very file that is mapped.
    fresh = [np.array(array) for array in faculty.observe(root, "even", images())]
    (folder,) = kept_in(root)
    path = folder / "probabilities.npy"
    whole = path.read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    for damaged in (whole[:-8], flipped, b"", b"text"):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="computing .* again, it is unreadable"):
            assert_same(faculty.observe(root, "even", images()), fresh)
        assert path.read_bytes() == whole
    about = folder / "about.json"
    told = json.loads(about.read_text())
    for text in (
        "{",
        "[]",
        "[" * 100_000,
        json.dumps(told | {"files": {}}),
        json.dumps(told | {"files": {"../../manifest": "0" * 64, "probabilities": "0"}}),
        json.dumps(told | {"seconds": "long"}),
        json.dumps(told | {"files": {"probabilities": told["files"]["features"]}}),
    ):
        about.write_text(text)
        with pytest.warns(UserWarning, match="computing .* again, it is unreadable"):
            assert_same(faculty.observe(root, "even", images()), fresh)


def test_arrays_of_other_shapes_are_made_again_though_their_checksums_agree(root):
    fresh = [np.array(array) for array in faculty.observe(root, "even", images(), keep=2)]
    (folder,) = kept_in(root)
    for name, array in (
        ("probabilities", np.ones((10, 3), np.float16)),
        ("labels", np.full((10, 2), 3, np.int32)),
        ("features", np.ones((9, 5), np.float16)),
        ("class_vectors", np.ones((3, 5), np.float64)),
    ):
        about = json.loads((folder / "about.json").read_text())
        np.save(folder / f"{name}.npy", array)
        about["files"][name] = kept._sha256(folder / f"{name}.npy")
        (folder / "about.json").write_text(json.dumps(about))
        with pytest.warns(UserWarning, match="computing .* again, it is unreadable"):
            assert_same(faculty.observe(root, "even", images(), keep=2), fresh)


def test_several_observers_at_once_get_the_same(root, answered):
    faculty.observe(root, "even", images(21), batch_size=4)
    shutil.rmtree(root / "outputs")
    said = {}

    def observe(number):
        said[number] = faculty.observe(root, "even", images(21), batch_size=4)

    threads = [threading.Thread(target=observe, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 4
    for one in said.values():
        assert_same(one, said[0])
    assert_same(faculty.observe(root, "even", images(21), batch_size=4), said[0])
    assert len(kept_in(root)) == 1


def test_a_full_disk_costs_the_copy_only(root, answered, monkeypatch):
    whole = faculty.observe(root, "even", images(21), batch_size=4)
    shutil.rmtree(root / "outputs")
    write, room = files.write_arrays, [1]

    def filling(path, arrays):
        if not room:
            raise OSError(28, "No space left on device")
        room.pop()
        write(path, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_arrays", filling)
        patched.setattr(kept, "_append", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        with pytest.warns(UserWarning, match="cannot keep .* for next time"):
            assert_same(faculty.observe(root, "even", images(21), batch_size=4), whole)
    assert answered["batches"] == 12 and kept_in(root) == []
    assert_same(faculty.observe(root, "even", images(21), batch_size=4), whole)


def test_a_link_that_leads_out_is_refused(root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "outputs").symlink_to(outside)
    with refused("is a link that leads out of the faculty"):
        faculty.observe(root, "even", images())
    (root / "outputs").unlink()
    shutil.move(root / "teachers", outside / "teachers")
    (root / "teachers").symlink_to(outside / "teachers")
    with refused("is a link that leads out of the faculty"):
        faculty.register(root, card("third"), variables(2))
    assert [path.name for path in outside.iterdir()] == ["teachers"]


def test_what_nobody_will_read_again_is_pruned(root, answered):
    faculty.observe_all(root, images())
    faculty.observe(root, "odd", images(), keep="float16")
    answered["last"] = answered["batches"] + 3
    with pytest.raises(Killed):
        faculty.observe(root, "even", images(21), batch_size=4)
    answered["last"] = 10**9
    teachers = sorted(str(one.teacher) for one in faculty.holdings(root))
    assert teachers == ["even", "even", "odd", "odd"]  # the parts of a killed observer are of use
    assert faculty.prune(root) == ()
    # What it was putting together, had it been killed in earnest; parts that it had put together.
    (root / "outputs" / "0" / ".even.12.new").mkdir(parents=True)
    (whole,) = root.glob("outputs/*/odd-*-float16")
    whole.with_name(f".{whole.name}.{'0' * 16}.parts").mkdir()
    assert [one.teacher for one in faculty.prune(root)] == [None, None]
    assert sum(one.seconds > 0 for one in faculty.holdings(root)) == 3
    size = sum(path.stat().st_size for path in root.glob("outputs/**/*") if path.is_file())
    assert sum(one.size for one in faculty.holdings(root)) == size
    # Other weights, other preprocessing, a file of an older version, what a kill left.
    faculty.register(root, card("even"), variables(5), replace=True)
    grey = data.Preprocessing(8, 8, 1, (0.1,), (1.0,))
    faculty.register(root, card("odd", 4, preprocessing=grey), variables(1, 4), replace=True)
    folder = root / "outputs" / data.digest(images())
    (folder / "even-old.npz").write_bytes(b"old")
    (root / ".manifest.json.123.new").write_text("half")
    (root / "teachers" / ".third.new").mkdir()
    removed = faculty.prune(root)
    assert len(removed) == 5 and all(one.teacher is None for one in removed)
    assert list((root / "outputs").iterdir()) == [] and faculty.holdings(root) == ()
    assert sorted(path.name for path in (root / "teachers").iterdir()) == ["even", "odd"]
    assert not list(root.glob(".*.new"))
    assert len(faculty.observe_all(root, images())) == 2
