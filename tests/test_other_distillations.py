"""The experiments with several teachers, with another sense, and with other data."""

import jax.numpy as jnp
import numpy as np
import pytest
import toy_recipe

from experiments import cross_modal_distillation as cross_modal
from experiments import ensemble_distillation as ensemble
from experiments import representation_transfer as transfer
from fdjax import checks, data


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a small run."""
    return toy_recipe.make(tmp_path_factory.mktemp("world"))


def names(results):
    """Rows of a table."""
    return [row["method"] for row in results["table"]]


@pytest.mark.slow
def test_an_ensemble_stands_beside_its_first_teacher(flags, tmp_path):
    more = {"teachers": ("mlp", "mlp"), "methods": ("crd+kd",), "workdir": str(tmp_path)}
    results = ensemble.run(ensemble.Config(**flags | more))
    assert names(results) == ["alone", "crd+kd, one teacher", "crd+kd, 2 teachers"]
    reached = results["teachers"]
    assert set(reached) == {"teacher 0", "teacher 1", ensemble.TOGETHER}
    assert all((tmp_path / "networks" / f"teacher-{number}").is_dir() for number in (0, 1))
    # Nothing is trained again.
    size = (tmp_path / "runs.jsonl").stat().st_size
    again = ensemble.run(ensemble.Config(**flags | more))
    assert again["table"] == results["table"]
    assert (tmp_path / "runs.jsonl").stat().st_size == size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": ("mlp",)}, "an ensemble has two at least"),
        ({"methods": ("factor",)}, "`factor` prepares something of one teacher"),
        ({"methods": ("similarity",), "batch_size": 1}, "relates 2 images"),
    ],
)
def test_an_ensemble_refuses_beforehand(flags, tmp_path, changes, message):
    more = {"teachers": ("mlp", "mlp"), "workdir": str(tmp_path / "run")}
    with pytest.raises(checks.InputError, match=message):
        ensemble.run(ensemble.Config(**flags | more | changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sides", ["edges", "chrominance"])
def test_one_side_teaches_the_other_without_labels(flags, tmp_path, sides):
    more = {"teacher": "mlp", "methods": ("crd+kd",), "sides": sides, "workdir": str(tmp_path)}
    results = cross_modal.run(cross_modal.Config(**flags | more | {"seeds": 1}))
    assert names(results) == ["alone", "crd+kd", cross_modal.LABELS]
    assert all(0 <= row["linear probe"][0] <= 1 for row in results["table"])


def test_the_student_sees_no_brightness_and_the_teacher_reads_the_pairs_as_its_own():
    task = data.synthetic(num_classes=2, height=6, width=6, channels=3, train_per_class=5)
    sides = cross_modal.SIDES["chrominance"]
    both = cross_modal.two_sides(task, sides)
    own, pairs = data.native_preprocessing(both), data.native_preprocessing(both)
    pairs = data.Preprocessing(6, 6, 3, (0.2, 0.3, 0.4), (0.5, 2.0, 0.1))
    seen = []
    teacher = cross_modal._workshop.Learner(
        None, lambda variables, images: seen.append(images), None
    )
    images = jnp.asarray(data.preprocess(both.train.images, pairs))
    cross_modal.looking_on(teacher, own, pairs).use({}, images)
    np.testing.assert_allclose(seen[0], data.preprocess(both.train.images, own), atol=1e-5)
    assert sides.teacher == (0, 1) and sides.student == (1, 3)


def test_senses_refuse_beforehand(flags, tmp_path):
    grey = toy_recipe.make(tmp_path, channels=1)
    run = {"workdir": str(tmp_path / "run"), "teacher": "mlp"}
    with pytest.raises(checks.InputError, match="take a data set of colour images"):
        cross_modal.run(cross_modal.Config(**grey | run | {"sides": "chrominance"}))
    with pytest.raises(checks.InputError, match="`dkd` teaches labelled images"):
        cross_modal.run(cross_modal.Config(**flags | run | {"methods": ("dkd",)}))
    assert not (tmp_path / "run").exists()


def test_features_are_tried_on_other_classes(flags, tmp_path):
    more = {"teacher": "mlp", "methods": ("kd",), "workdir": str(tmp_path / "run"), "seeds": 1}
    results = transfer.run(transfer.Config(**flags | more))
    assert names(results) == ["alone", "kd"]
    assert set(results["teacher"]) == {transfer.OWN, transfer.OTHER}
    own, other = transfer.both_tasks(transfer.Config(**flags | more))
    assert not set(own.class_names) & set(other.class_names)
    named = transfer.Config(**flags | more | {"transfer": flags["dataset"]})
    assert [task.num_classes for task in transfer.both_tasks(named)] == [4, 4]
    few = toy_recipe.make(tmp_path, classes=3)
    with pytest.raises(checks.InputError, match="has 3 classes, too few to divide"):
        transfer.run(transfer.Config(**few | more))
