"""A faculty on disk gives back what was registered, and says what is wrong with it."""

import dataclasses
import functools
import json
import os
import re
import shutil

import jax
import numpy as np
import pytest

from fdjax import checkpoints, data, faculty, models
from fdjax.checks import InputError
from fdjax.faculty import fitting, observations, running

PREPROCESSING = data.Preprocessing(height=8, width=8, channels=1, mean=(0.5,), std=(0.25,))


def card(name="even", classes=3, **values):
    defaults = {
        "architecture": "mlp",
        "options": {"widths": (6, 5)},
        "class_names": tuple(f"class {index}" for index in range(classes)),
        "source_task": "digits",
        "preprocessing": PREPROCESSING,
        "source_accuracy": 0.75,
        "licence": "Apache-2.0",
    }
    return faculty.Card(name=name, **defaults | values)


@functools.cache
def variables(seed=0, classes=3):
    model = models.create("mlp", classes, widths=(6, 5))
    return models.initialise(model, jax.random.key(seed), (8, 8, 1))


def images(number=10, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (number, 9, 8, 1), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    path = faculty.create(tmp_path / "faculty")
    faculty.register(path, card("even"), variables(0))
    faculty.register(path, card("odd", 4), variables(1, 4))
    return path


def black_box(number=10, classes=3):
    probabilities = np.random.default_rng(1).dirichlet(np.ones(classes), number)
    return {"probabilities": probabilities.astype(np.float32)}


def refused(message):
    return pytest.raises(InputError, match=message)


def assert_same(first, second):
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


def test_teachers_come_back_as_they_were_registered(root):
    registered = faculty.register(root, card("third"), variables(2))
    assert [one.name for one in faculty.cards(root)] == ["even", "odd", "third"]
    loaded, network, weights = faculty.load(root, "third")
    assert loaded == registered == faculty.cards(root)[2]
    assert loaded.num_parameters == (64 * 6 + 6) + (6 * 5 + 5) + (5 * 3 + 3)
    assert re.fullmatch("[0-9a-f]{64}", loaded.digest)
    blank = {"digest": "", "num_parameters": None}
    assert dataclasses.replace(loaded, **blank) == card("third")
    jax.tree.map(np.testing.assert_array_equal, weights, variables(2))
    assert network(weights, np.ones((2, 8, 8, 1), np.float32)).logits.shape == (2, 3)


def test_the_digest_is_of_the_weights_alone(root):
    one = faculty.register(root, card("a"), variables(0))
    two = faculty.register(root, card("b", licence=None), variables(0))
    other = faculty.register(root, card("c"), variables(3))
    assert one.digest == two.digest != other.digest


def test_an_observation_is_what_the_network_says(root):
    said = faculty.observe(root, "odd", images(), batch_size=4)
    one, network, weights = faculty.load(root, "odd")
    outputs = network(weights, data.preprocess(images(), PREPROCESSING))
    np.testing.assert_allclose(said.probabilities, jax.nn.softmax(outputs.logits), atol=1e-6)
    np.testing.assert_allclose(said.features, outputs.features, atol=1e-5)
    np.testing.assert_array_equal(said.class_vectors, weights["params"]["head"]["kernel"].T)
    np.testing.assert_array_equal(said.class_mask, [True] * 4)
    assert said.source_accuracy == 0.75 and said.num_parameters == one.num_parameters
    assert all(isinstance(array, np.ndarray) for array in said)


def kept_in(root):
    return sorted(root.glob("outputs/*/[!.]*"))


def test_an_observation_is_kept_and_used_again(root, monkeypatch):
    fresh = faculty.observe(root, "even", images())
    (kept,) = kept_in(root)
    digest = faculty.cards(root)[0].digest
    assert kept == root / "outputs" / data.digest(images()) / f"even-{digest}"
    written = kept.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(observations, "_run", None)
        assert_same(faculty.observe(root, "even", images()), fresh)
    assert kept.stat().st_mtime_ns == written
    # Other images are another folder; so is the same name with other weights.
    faculty.observe(root, "even", images(seed=1))
    faculty.register(root, card("even"), variables(5), replace=True)
    replaced = faculty.observe(root, "even", images())
    assert not np.allclose(replaced.probabilities, fresh.probabilities)
    assert len(kept_in(root)) == 3
    shutil.rmtree(root / "outputs")
    assert_same(faculty.observe(root, "even", images()), replaced)


def test_other_preprocessing_is_observed_anew(root):
    before = faculty.observe(root, "even", images())
    changed = dataclasses.replace(PREPROCESSING, mean=(0.0,))
    faculty.register(root, card("even", preprocessing=changed), variables(0), replace=True)
    after = faculty.observe(root, "even", images())
    assert not np.allclose(before.probabilities, after.probabilities)
    assert len(kept_in(root)) == 1


def test_an_observation_moved_by_hand_is_refused(root):
    faculty.observe_all(root, images())
    folder = root / "outputs" / data.digest(images())
    even, odd = sorted(folder.iterdir())
    shutil.rmtree(odd)
    shutil.copytree(even, odd)
    with refused("was not made for this teacher.*the teacher_digest .* moved by hand; delete it"):
        faculty.observe(root, "odd", images())
    os.rename(folder, folder.with_name(data.digest(images(seed=1))))
    with refused("the images_digest inside differs"):
        faculty.observe(root, "even", images(seed=1))


def test_a_faculty_that_cannot_be_written_can_be_observed(root):
    (root / "outputs").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot keep"):
        said = faculty.observe(root, "even", images())
    assert said.probabilities.shape == (10, 3)


def test_all_teachers_are_observed_in_order(root):
    faculty.register_outputs(
        root, card("apart", preprocessing=None), black_box(), data.digest(images())
    )
    every = faculty.observe_all(root, images(), progress=True)
    assert [said.probabilities.shape for said in every] == [(10, 3), (10, 4), (10, 3)]
    assert every[2].features is None and every[2].class_vectors is None
    turned = faculty.observe_all(root, images(), names=("odd", "even"))
    assert_same(turned[0], every[1])
    assert_same(turned[1], every[0])


def test_teachers_of_one_architecture_share_one_compilation(root):
    for seed in range(3):
        faculty.register(root, card(f"teacher-{seed}"), variables(10 + seed))
    running._forward.clear_cache()
    faculty.observe_all(root, images())
    assert running._forward._cache_size() == 2  # three labels and four


def test_a_teacher_known_by_its_outputs(root):
    vectors = {"features": np.ones((10, 2)), "class_vectors": np.ones((3, 2))}
    known = faculty.register_outputs(
        root,
        card("apart", preprocessing=None, architecture="ViT-L/16", num_parameters=300),
        black_box() | vectors,
        data.digest(images()),
    )
    assert faculty.cards(root)[-1] == known and known.num_parameters == 300
    said = faculty.observe(root, "apart", images())
    np.testing.assert_array_equal(said.probabilities, black_box()["probabilities"])
    assert said.features.shape == (10, 2) and said.num_parameters == 300
    # As its own kind of outputs, too.
    faculty.register_outputs(root, card("again", preprocessing=None), said, data.digest(images()))
    np.testing.assert_array_equal(faculty.observe(root, "again", images()).features, said.features)
    with refused("'apart' is known only by its outputs on other images"):
        faculty.observe(root, "apart", images(seed=1))
    with refused("'apart' has no `preprocessing`, so it cannot be run"):
        faculty.load(root, "apart")
    path = root / "teachers" / "apart" / "outputs.npz"
    np.savez(path, **black_box())
    with refused("outputs.npz is not what the card of teacher 'apart' tells"):
        faculty.observe(root, "apart", images())
    path.write_bytes(b"")
    with refused(f"cannot read {path} of teacher 'apart'"):
        faculty.observe(root, "apart", images())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": None}, "need `probabilities`"),
        ({"probabilities": np.full((10, 2), 0.5)}, r"must have shape \(any, 3\), got \(10, 2\)"),
        ({"probabilities": np.full((10, 3), np.nan)}, "of teacher apart hold NaN"),
        ({"probabilities": np.full((10, 3), 1.0)}, "sum to 1 for each example"),
        ({"features": np.ones((9, 2))}, r"must have shape \(10, any\)"),
        ({"features": np.ones((10, 2)), "class_vectors": np.ones((3, 4))}, r"shape \(3, 2\)"),
    ],
)
def test_impossible_outputs_are_refused(root, change, message):
    with refused(message):
        faculty.register_outputs(
            root, card("apart", preprocessing=None), black_box() | change, "0" * 64
        )
    assert len(faculty.cards(root)) == 2


def test_nan_is_blamed_on_its_teacher(root):
    broken = jax.tree.map(np.array, variables(0))
    broken["params"]["head"]["bias"][1] = np.nan
    faculty.register(root, card("broken"), broken)
    with refused("teacher 'broken' answers NaN or infinity"):
        faculty.observe_all(root, images())
    assert not list(root.glob("outputs/*/broken*"))


def test_changed_weights_are_noticed(root):
    folder = root / "teachers" / "even" / "variables"
    # A flipped bit, found by the checksum of the file...
    file = max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with refused(f"{folder} is damaged: its file .* has changed"):
        faculty.load(root, "even")
    # ... and sound weights of another teacher, found by the card's digest.
    checkpoints.save_tree(folder, variables(8))
    with refused(f"teacher 'even' in {folder} are not those of its card.*replace=True"):
        faculty.observe(root, "even", images())
    shutil.rmtree(folder)
    with refused(f"no checkpoint at {folder}"):
        faculty.load(root, "even")


def test_a_head_of_another_size_is_refused(root):
    """Loaders elsewhere drop such a head in silence and go on with a random one."""
    with refused("last layer has 4 rows, but the card names 3 classes"):
        faculty.register(root, card("third"), variables(1, 4))
    path = root / "teachers" / "even" / "card.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"class_names": ["a", "b"]}))
    with refused("of teacher 'even': the last layer has 3 rows, but the card names 2 classes"):
        faculty.load(root, "even")


def test_weights_of_another_network_are_refused(root):
    with refused(r"\['dense_0'\]\['bias'\] has shape \(6,\), but mlp .* has \(7,\)"):
        faculty.register(root, card("third", options={"widths": (7, 5)}), variables(0))
    with refused("`architecture` must be one of mlp, convnet, resnet, .*; got 'vgg'"):
        faculty.register(root, card("third", architecture="vgg"), variables(0))
    with refused("there is no collection `params`"):
        faculty.register(root, card("third"), {"weights": np.ones(2)})
    with refused("has no `preprocessing`, so it cannot be run"):
        faculty.register(root, card("third", preprocessing=None), variables(0))
    assert len(faculty.cards(root)) == 2


def test_a_taken_name_needs_permission(root):
    with refused("has a teacher 'even' already; choose another name or give `replace=True`"):
        faculty.register(root, card("even"), variables(4))
    new = faculty.register(root, card("even", source_accuracy=0.5), variables(4), replace=True)
    assert [one.name for one in faculty.cards(root)] == ["even", "odd"]
    assert faculty.load(root, "even")[0] == new
    assert sorted(path.name for path in (root / "teachers").iterdir()) == ["even", "odd"]


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it."""


@pytest.mark.parametrize("name", ["even", "third"])
def test_a_registration_cut_short_leaves_the_faculty_as_it_was(root, monkeypatch, name):
    before = faculty.cards(root)
    elsewhere = faculty.create(root.parent / "elsewhere")
    replacing = faculty.register(elsewhere, card(name), variables(6))
    replace_file, stop = os.replace, 0
    while True:
        calls = []

        def dying(*arguments, stop=stop, calls=calls):
            calls.append(arguments)
            if len(calls) > stop:
                raise Killed
            return replace_file(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", dying)
            try:
                new = faculty.register(root, card(name), variables(6), replace=True)
                break
            except Killed:
                stop += 1
        read = faculty.cards(root)
        assert [one.name for one in read] == ["even", "odd"]
        for one, old in zip(read, before, strict=True):
            # Loading checks that card and weights belong together.
            assert faculty.load(root, one.name)[0] in (old, replacing)
    assert stop >= 3
    assert faculty.load(root, name)[0] == new == replacing
    assert {path.name for path in (root / "teachers").iterdir()} == {"even", "odd", name}


@pytest.mark.parametrize("name", ["../even", "a/b", ".hidden", "", "a" * 101, "a\n", "ä", ".."])
def test_names_that_are_paths_in_disguise_are_refused(root, name):
    with refused("`name` must be 1 to 100 letters"):
        card(name)
    with refused("`name of the teacher` must be one of even, odd"):
        faculty.load(root, name)


def test_a_manifest_cannot_lead_out_of_the_faculty(root):
    (root / "manifest.json").write_text('{"format": 1, "teachers": ["../../etc"]}')
    with refused(f"`teachers` in {root}/manifest.json must list different names"):
        faculty.cards(root)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "other", "is the card of teacher 'other', not of 'even'"),
        ("name", 3, "`name` must be 1 to 100 letters"),
        ("architecture", None, "`architecture` must be the name"),
        ("options", ["widths"], "`options` must be options by name"),
        ("class_names", "abc", "`class_names` must be a list of at least one name"),
        ("class_names", ["a", "a", "b"], "`class_names` must be .* all different"),
        ("num_parameters", "many", "`num_parameters` must be an integer"),
        ("num_parameters", True, "`num_parameters` must be an integer"),
        ("source_accuracy", 75, r"`source_accuracy` must be a number in \[0, 1\] or None, got 75"),
        ("digest", "abc", "`digest` must be 64 hexadecimal digits"),
        ("digest", "", "`digest` is empty"),
        ("licence", 1, "`licence` must be a name or None"),
        ("preprocessing", 1, "`preprocessing` must be an object"),
        ("preprocessing", {"height": 8}, "`preprocessing`: key `channels` is missing"),
        ("colour", "red", "the card: key `colour` is unknown"),
    ],
)
def test_a_wrong_card_names_file_and_key(root, key, value, message):
    path = root / "teachers" / "even" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with refused(f"{path}.*{message}"):
        faculty.cards(root)


def test_other_damage_to_a_card_is_named(root):
    path = root / "teachers" / "even" / "card.json"
    values = json.loads(path.read_text())
    given = values["preprocessing"]
    for change, message in (
        ({"height": "8"}, "must give height, width and channels as integers"),
        ({"mean": [0.5, 0.5]}, r"`preprocessing`: `mean` must have shape \(1\)"),
    ):
        path.write_text(json.dumps(values | {"preprocessing": given | change}))
        with refused(f"{path} is no valid card: .*{message}"):
            faculty.cards(root)
    del values["licence"]
    path.write_text(json.dumps(values))
    with refused("key `licence` is missing"):
        faculty.cards(root)
    path.write_text("{")
    with refused(f"{path} is no valid card: it is no JSON"):
        faculty.cards(root)
    path.unlink()
    with refused(f"cannot read {path} .No such file.*restore it from a copy"):
        faculty.cards(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "has `format` None, this version of fdjax reads 1"),
        ('{"format": 2, "teachers": []}', "has `format` 2"),
        ('{"format": 1, "teachers": "even"}', "`teachers` in .* must list"),
        ('{"format": 1, "teachers": ["a", "a"]}', "`teachers` in .* must list different"),
    ],
)
def test_a_broken_manifest_is_named(root, text, message):
    (root / "manifest.json").write_text(text)
    with refused(f"manifest.json.* {message}|{message}"):
        faculty.cards(root)


def test_a_faculty_is_made_once_and_in_its_own_folder(tmp_path, root):
    assert faculty.create(root) == root
    assert len(faculty.cards(root)) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with refused(r"full is not empty and no faculty \(it holds thesis.tex\)"):
        faculty.create(tmp_path / "full")
    with refused("cannot write to .*thesis.tex.*choose a folder you may write to"):
        faculty.create(tmp_path / "full" / "thesis.tex")
    absent = tmp_path / "absent"
    with refused(f"no faculty at {absent}; make one with `python -m experiments.build_faculty"):
        faculty.cards(absent)
    empty = faculty.create(tmp_path / "empty")
    assert faculty.cards(empty) == ()
    with refused(f"no teacher to ask in the faculty at {empty}"):
        faculty.observe_all(empty, images())


def test_bad_requests_are_refused(root):
    with refused("`name of the teacher` must be one of even, odd; got 'third'"):
        faculty.observe_all(root, images(), names=("even", "third"))
    with refused("`batch_size` must be positive"):
        faculty.observe(root, "even", images(), batch_size=0)
    with refused("at least one image"):
        faculty.observe(root, "even", images(0))


def test_options_come_back_as_tuples():
    made = card(options={"widths": [6, 5]}, class_names=("a", "b"))
    assert made.options == {"widths": (6, 5)}
    assert fitting.network(made) == models.create("mlp", 2, widths=(6, 5))
