"""Sketches kept beside the cards of a faculty, and the search over a real one."""

import jax
import numpy as np
import pytest

from fdjax import data, faculty, models, scores, selection
from fdjax.checks import InputError

PREPROCESSING = data.Preprocessing(height=4, width=4, channels=1, mean=(0.5,), std=(0.25,))
NAMES = ("a", "b", "c", "d")


@pytest.fixture
def root(tmp_path):
    path = faculty.create(tmp_path / "faculty")
    for seed, name in enumerate(NAMES):
        register(path, name, seed)
    return path


def register(root, name, seed, **settings):
    card = faculty.Card(
        name=name,
        architecture="mlp",
        options={"widths": (6, 5)},
        class_names=("one", "two", "three"),
        source_task="toy",
        preprocessing=PREPROCESSING,
    )
    model = models.create("mlp", 3, widths=(6, 5))
    variables = models.initialise(model, jax.random.key(seed), (4, 4, 1))
    faculty.register(root, card, jax.tree.map(lambda leaf: 4 * leaf, variables), **settings)


def probes(seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (40, 4, 4, 1), np.uint8)
    encoded = images.reshape(40, -1).astype(np.float32) / 255
    return images, encoded - encoded.mean(axis=0)


def test_sketches_are_made_once_and_are_what_the_teachers_say(root, monkeypatch):
    images, encoded = probes()
    made = faculty.sketch_all(root, images, encoded)
    for name, one in zip(NAMES, made, strict=True):
        said = faculty.observe(root, name, images)
        np.testing.assert_array_equal(one.vectors, selection.sketch(said[0], encoded).vectors)
        assert (root / "teachers" / name / "sketch.npz").is_file()
    monkeypatch.setattr(faculty.observations, "observe", None)
    again = faculty.sketch_all(root, images, encoded, names=NAMES[::-1])
    for one, two in zip(made, again[::-1], strict=True):
        np.testing.assert_array_equal(one.vectors, two.vectors)
        np.testing.assert_array_equal(one.masses, two.masses)


def test_the_nearest_of_a_real_faculty_are_those_of_scoring_all(root):
    images, encoded = probes()
    index = selection.index(faculty.sketch_all(root, images, encoded), NAMES)
    labels = np.arange(40) % 2
    task = selection.sketch(np.eye(2)[labels], encoded)
    everyone = scores.sketch_costs(index, task)
    found = scores.nearest(index, task, 2)
    assert found.positions == tuple(np.argsort(everyone, kind="stable")[:2])


def test_what_is_stale_or_damaged_is_made_again(root):
    images, encoded = probes()
    first = faculty.sketch_all(root, images, encoded)
    # Other probes, another teacher of the name: another sketch, without a word.
    others = faculty.sketch_all(root, *probes(1))
    assert not np.array_equal(first[0].vectors, others[0].vectors)
    faculty.sketch_all(root, images, encoded)
    register(root, "a", 9, replace=True)
    fresh = faculty.sketch_all(root, images, encoded)
    assert not np.array_equal(first[0].vectors, fresh[0].vectors)
    np.testing.assert_array_equal(first[1].vectors, fresh[1].vectors)
    path = root / "teachers" / "b" / "sketch.npz"
    whole = path.read_bytes()
    with np.load(path) as arrays:
        changed = dict(arrays) | {"vectors": arrays["vectors"] + 1}
        lacking = {key: arrays[key] for key in arrays if key != "masses"}
    damages = [lambda: path.write_bytes(whole[: len(whole) // 2])]
    damages += [lambda: np.savez(path, **changed), lambda: np.savez(path, **lacking)]
    for damage in damages:
        damage()
        with pytest.warns(UserWarning, match=r"making .*sketch.npz again"):
            mended = faculty.sketch_all(root, images, encoded)
        np.testing.assert_array_equal(mended[1].vectors, first[1].vectors)
        assert path.read_bytes() == whole


def test_what_does_not_fit_is_refused(root, tmp_path):
    images, encoded = probes()
    with pytest.raises(InputError, match=r"`encoded` must have shape \(40, any\)"):
        faculty.sketch_all(root, images, encoded[1:])
    with pytest.raises(InputError, match="`encoded` must be finite"):
        faculty.sketch_all(root, images, encoded * np.nan)
    with pytest.raises(InputError, match="must be one of a, b, c, d"):
        faculty.sketch_all(root, images, encoded, names=("e",))
    with pytest.raises(InputError, match="no teacher to sketch"):
        faculty.sketch_all(faculty.create(tmp_path / "empty"), images, encoded)
