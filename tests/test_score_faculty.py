"""The experiment that ranks a faculty: intervals, nulls, budget, elimination, foreign outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy_faculty

from experiments import _outputs, score_faculty
from fdjax.checks import InputError

CLASSES = ("left", "right", "up")
LABELS = np.arange(60) % 3


def probabilities(share, labels=3, seed=0):
    """A teacher that knows the task's classes in that share of the examples."""
    random = np.random.default_rng(seed)
    said = np.where(random.uniform(size=60) < share, LABELS, random.integers(0, labels, 60))
    return (0.9 * np.eye(labels)[said] + 0.1 / labels).astype(np.float32)


def write(folder, **teachers):
    """A folder as a user of another framework writes it."""
    folder.mkdir()
    np.savez(folder / "labels.npz", labels=LABELS, class_names=np.array(CLASSES))
    for name, arrays in teachers.items():
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


@pytest.fixture
def folder(tmp_path):
    features = np.random.default_rng(1).normal(size=(60, 5)) + np.eye(3, 5)[LABELS]
    spoilt = probabilities(0.9)
    spoilt[7] = np.nan
    return write(
        tmp_path / "given",
        good={"probabilities": probabilities(1.0)},
        twin={"probabilities": probabilities(1.0)},
        poor={"probabilities": probabilities(0.2, labels=20), "num_parameters": 100},
        seeing={
            "probabilities": probabilities(0.6, seed=3).astype(np.float64),
            "features": features.astype(np.float16),
            "class_vectors": np.eye(3, 5),
            "class_names": np.array(["a", "b", "c"]),
            "source_accuracy": 0.7,
        },
        spoilt={"probabilities": spoilt},
    )


def run(folder, tmp_path, **flags):
    flags = {"scores": ("reference", "knn", "size"), "resamples": 20} | flags
    config = score_faculty.Config(outputs=str(folder), workdir=str(tmp_path / "job"), **flags)
    return score_faculty.run(config)


def test_foreign_outputs_are_ranked_and_the_bad_one_is_named(folder, tmp_path, capsys):
    results = run(folder, tmp_path, null=True, budget=True)
    assert results["classes"] == CLASSES
    order = [row["teacher"] for row in results["ranking"]]
    assert order == ["good", "twin", "seeing", "poor", "spoilt"]
    rows = dict(zip(order, results["ranking"], strict=True))
    assert np.isnan(rows["spoilt"]["reference"]) and "spoilt" in results["faults"]
    assert np.isfinite(rows["seeing"]["knn"]) and np.isnan(rows["good"]["knn"])
    np.testing.assert_allclose(rows["poor"]["size"], np.log(100), rtol=1e-6)
    assert rows["poor"]["labels"] == 20
    assert rows["good"]["reference p"] == 0.01 and rows["seeing"]["reference ±"] > 0
    assert rows["twin"]["first is better"] == 0.5 and rows["poor"]["first is better"] > 0.99
    assert results["verdict"].startswith(
        "good is first by reference, but cannot be told from twin:"
    )
    budget = {(row["score"], row["examples a class"]): row for row in results["budget"]}
    assert [size for name, size in budget if name == "reference"] == [2, 4, 8, 16]
    assert budget["reference", 16]["tau"] > budget["reference", 2]["tau"]
    written = json.loads((tmp_path / "job/results.json").read_text())
    assert written["chosen"] == "good"
    report = (tmp_path / "job/report.md").read_text()
    shown = capsys.readouterr().out
    for text in (report, shown):
        assert "spoilt cannot be scored in full: probabilities of 1 examples are NaN" in text
        assert "reference 3 of 4" in text
    assert (tmp_path / "job/budget.png").read_bytes().startswith(b"\x89PNG")


def test_one_example_a_class_leaves_no_interval(folder, tmp_path):
    labels = np.where(np.arange(60) < 3, LABELS, -1)
    np.savez(folder / "labels.npz", labels=labels, class_names=np.array(CLASSES))
    results = run(folder, tmp_path, scores=("leep",))
    assert np.isnan(results["ranking"][0]["leep ±"])
    assert results["verdict"].endswith("is first by leep; how sure that is, is not known.")
    with pytest.raises(InputError, match="--budget needs three labelled examples of each class"):
        run(folder, tmp_path, scores=("leep",), budget=True)


def test_elimination_asks_fewer_questions(folder, tmp_path):
    (folder / "twin.npz").unlink()
    results = run(folder, tmp_path, eliminate=True)
    assert results["chosen"] == "good" and results["leaders"] == ["good"]
    assert results["questions"] < results["full"] == 4 * 60
    with pytest.raises(InputError, match="leave out --null and --budget"):
        run(folder, tmp_path, eliminate=True, null=True)
    with pytest.raises(InputError, match="does not suffice for the first round"):
        run(folder, tmp_path, eliminate=True, questions=10)


def test_elimination_of_a_faculty_asks_its_networks(tmp_path):
    flags = toy_faculty.make(tmp_path)
    config = score_faculty.Config(
        **{key: flags[key] for key in ("root", "dataset")},
        shots=8,
        workdir=str(tmp_path / "job"),
        scores=("leep",),
        eliminate=True,
        resamples=20,
    )
    results = score_faculty.run(config)
    assert set(results["leaders"]) <= {toy_faculty.FULL, toy_faculty.PART}
    assert results["questions"] <= results["full"] == 2 * 8 * 2
    assert list(Path(flags["root"], "outputs").iterdir())


def searched(tmp_path, flags, **settings):
    settings = {"scores": ("leep",), "resamples": 0, "search": 1, "probes": 30} | settings
    known = {key: flags[key] for key in ("root", "dataset", "shots")}
    config = score_faculty.Config(**known, workdir=str(tmp_path / "job"), **settings)
    return score_faculty.run(config)


def test_search_asks_the_nearest_teachers_only(tmp_path):
    flags = toy_faculty.make(tmp_path)
    outputs = Path(flags["root"], "outputs")
    results = searched(tmp_path, flags)
    (name,) = results["search"]["names"]
    assert [row["teacher"] for row in results["ranking"]] == [name] == [results["chosen"]]
    assert results["search"]["teachers"] == 2 and results["search"]["solved"] >= 1
    # Both were asked about the probes, and one of them about the labelled images.
    asked = sorted(len(list(folder.iterdir())) for folder in outputs.iterdir())
    assert asked == [1, 2]
    report = (tmp_path / "job/report.md").read_text()
    assert "Nearest 1 of 2 teachers by their sketches" in report
    both = searched(tmp_path, flags, search=5, encoder=toy_faculty.FULL)
    assert set(both["search"]["names"]) == {toy_faculty.FULL, toy_faculty.PART}
    with pytest.raises(InputError, match="name of the teacher"):
        searched(tmp_path, flags, encoder="nobody")


def test_foreign_outputs_cannot_be_searched(folder, tmp_path):
    with pytest.raises(InputError, match="--search needs teachers that can be asked"):
        run(folder, tmp_path, search=2)


GOOD = probabilities(1.0)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"probabilities": GOOD[:50]}, r"bad.npz has probabilities of 50 examples, but labels.npz"),
        ({"probs": GOOD}, r"bad.npz has no array `probabilities`"),
        ({"probabilities": GOOD, "feature": GOOD}, r"bad.npz` must be one of .*; got 'feature'"),
        ({"probabilities": GOOD.argmax(1)}, r"`probabilities` of .*bad.npz must be fractions"),
        ({"probabilities": GOOD, "features": GOOD[:9]}, r"`features of .*bad.npz` must have shape"),
        (
            {"probabilities": GOOD, "features": GOOD, "class_vectors": np.ones((3, 4))},
            r"`class_vectors of .*bad.npz` must have shape \(3, 3\)",
        ),
        (
            {"probabilities": GOOD, "class_names": np.array(["one"])},
            r"`class_names of .*bad.npz` must have shape \(3\)",
        ),
        (
            {"probabilities": GOOD, "class_names": np.array([{}, {}, {}])},
            r"cannot read .*bad.npz .*write it anew",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(tmp_path, arrays, message):
    folder = write(tmp_path / "given", bad=arrays)
    with pytest.raises(InputError, match=message):
        _outputs.read(str(folder))


def test_a_damaged_file_is_named(folder):
    path = folder / "good.npz"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot read .*good.npz"):
            _outputs.read(str(folder))


def test_labels_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*labels.npz"):
        _outputs.read(str(tmp_path))
    folder = write(tmp_path / "given")
    with pytest.raises(InputError, match="holds no teacher"):
        _outputs.read(str(folder))
    for labels, message in (
        (LABELS / 2, "must be whole numbers"),
        (LABELS + 1, r"must lie in \[-1, 2\]"),
        (LABELS % 2, "has no example of class 2"),
    ):
        np.savez(folder / "labels.npz", labels=labels, class_names=np.array(CLASSES))
        with pytest.raises(InputError, match=message):
            _outputs.read(str(folder))
