"""A student's options: images held out, teachers run live on changed images, fine-tuning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_faculty
from test_experiments import write_npz
from toy_faculty import FULL, PART

from experiments import _goals, _live, _student, _task, _validation, distil_student
from fdjax import checks, data, faculty, models, objectives, training
from fdjax.data.augmentation import shift
from fdjax.types import Outputs

COLOUR, BLACK_BOX = "colour", "black_box"


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a student of two of four classes, and two more teachers.

    `COLOUR` reads larger images in colour, `BLACK_BOX` is known by what it says of the task.
    """
    flags = toy_faculty.make(tmp_path_factory.mktemp("world"))
    task = _task.target(distil_student.Config(**flags))
    card = faculty.Card(
        name=COLOUR,
        architecture="mlp",
        options={"widths": (8,)},
        class_names=("a", "b", "c"),
        source_task="colours",
        preprocessing=data.Preprocessing(6, 5, 3, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
    )
    model = models.create("mlp", 3, widths=(8,))
    faculty.register(flags["root"], card, models.initialise(model, jax.random.key(2), (6, 5, 3)))
    unseen = faculty.Card(
        name=BLACK_BOX, architecture="unknown", class_names=("x", "y"), source_task="secret"
    )
    says = {"probabilities": np.full((len(task.train), 2), 0.5)}
    faculty.register_outputs(flags["root"], unseen, says, data.digest(task.train.images))
    return flags


@pytest.fixture(scope="module")
def place(flags):
    """The task, what the faculty says of it, and a school with changed images."""
    config = distil_student.Config(**flags)
    task = _task.target(config)
    school = _student.School(
        task,
        "mlp",
        _student.budget(config),
        objectives.cross_entropy(),
        teach=training.no_teacher,
        augment=shift,
    )
    return task, _task.observe(config.root, task), school


def run(flags, workdir, **changes):
    return distil_student.run(distil_student.Config(**flags | {"workdir": str(workdir)} | changes))


# Over several devices


def test_four_devices_train_the_student_of_one(flags, tmp_path):
    alone = run(flags, tmp_path / "one", objective="kd", validation=0.25)
    spread = run(flags, tmp_path / "four", objective="kd", validation=0.25, devices=4)
    assert (spread["accuracy"], spread["step"]) == (alone["accuracy"], alone["step"])
    losses = [[entry["loss"] for entry in one["history"]] for one in (spread, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": 9}, "--devices=9, but there are 4 here"),
        ({"devices": 0, "batch_size": 26}, "--batch_size=26 cannot be spread evenly over 4"),
    ],
)
def test_devices_that_cannot_share_a_batch_are_refused(flags, tmp_path, changes, words):
    with pytest.raises(checks.InputError, match=words):
        run(flags, tmp_path, **changes)


# Images held out from training


def test_images_held_out_lose_their_label_and_nothing_else(place):
    task, *_ = place
    reduced, held_out = _validation.hold_out(task, 0.3, seed=0)
    np.testing.assert_array_equal(reduced.train.images, task.train.images)
    rows = np.flatnonzero(reduced.train.labels != task.train.labels)
    assert (reduced.train.labels[rows] == -1).all()
    # Of 4 labelled images of each of two classes 0.3 are 1.2.
    np.testing.assert_array_equal(held_out.labels, task.train.labels[rows])
    np.testing.assert_array_equal(held_out.images, task.train.images[rows])
    assert sorted(held_out.labels) == [0, 1]
    assert reduced.test is task.test
    others = [_validation.hold_out(task, 0.3, seed=seed)[1].images for seed in range(1, 6)]
    assert any((other != held_out.images).any() for other in others)


def test_every_class_keeps_a_label(place):
    task, *_ = place
    one = data.Task("one", task.train.rows(np.array([0, 4])), task.test, task.class_names)
    with pytest.raises(checks.InputError, match=r"would leave class 'class_\d' none of its 1"):
        _validation.hold_out(one, 0.1, seed=0)
    two = data.Task("two", task.train.rows(np.array([0, 1, 4, 5])), task.test, task.class_names)
    reduced, _ = _validation.hold_out(two, 0.5, seed=0)
    assert sorted(reduced.train.labels) == [-1, -1, 0, 1]


def test_the_judge_counts_right_images_and_tells_equals_apart_by_probability():
    part = data.Split(np.zeros((3, 1, 1, 1), np.float32), np.array([0, 1, 1], np.int32))
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    judge = _validation.judge(lambda variables, images: Outputs(jnp.log(variables)), part)
    # Two of three are right, and the right class has (0.9 + 0.8 + 0.3) / 3 in the mean.
    assert judge(probabilities) == pytest.approx((2 + 2 / 3) / 4)
    worse = np.array([[0.49, 0.51], [0.0, 1.0], [0.51, 0.49]])
    assert judge(worse) < judge(np.array([[0.51, 0.49], [0.49, 0.51], [0.99, 0.01]]))


VALIDATED = {"validation": 0.3, "judge_every": 4, "save_every": 5, "objective": "uld"}


def test_validation_keeps_the_best_state_also_from_changed_images(flags, tmp_path):
    changes = VALIDATED | {"teacher": PART, "augmentation": "shift"}
    results = run(flags, tmp_path, **changes)
    judged = {entry["step"]: entry["judged"] for entry in results["history"]}
    assert list(judged) == [4, 8, 12]
    assert results["judged"] == max(judged.values()) == judged[results["step"]]
    assert "held out from training" in (tmp_path / "report.md").read_text()
    again = run(flags, tmp_path, resume=True, **changes)
    assert (again["accuracy"], again["history"]) == (results["accuracy"], results["history"])


@pytest.mark.slow
def test_training_never_looks_at_test_images(flags, tmp_path):
    results = run(flags, tmp_path / "one", **VALIDATED)
    task = data.load(flags["dataset"])
    blank = write_npz(tmp_path / "blank.npz", task, test_images=np.zeros_like(task.test.images))
    blind = run(flags, tmp_path / "blind", dataset=str(blank), **VALIDATED)
    assert blind["history"] == results["history"] and blind["step"] == results["step"]
    assert blind["accuracy"] != results["accuracy"]


def test_without_unlabelled_images_those_held_out_fill_no_batch(flags, place):
    config = distil_student.Config(**flags | {"validation": 0.3, "unlabelled": 0})
    task, budget, validation = distil_student.with_validation(config, _task.target(config))
    assert (task.train.labels < 0).sum() == len(validation.held_out) == 2
    school = _student.School(task, "mlp", budget, objectives.cross_entropy())
    assert (next(school.batches(0, 0)).labels >= 0).all()
    config = dataclasses.replace(config, unlabelled=-1)
    _, budget, _ = distil_student.with_validation(config, place[0])
    assert budget == _student.budget(config)


# Live teachers


@pytest.mark.parametrize("names", [(PART,), (COLOUR,), (FULL, COLOUR, PART)], ids="-".join)
def test_on_unchanged_images_live_teachers_say_what_was_kept(flags, place, names):
    _, seen, school = place
    teach, live = _live.teachers(flags["root"], seen, names, school.preprocessing)
    batch = next(school.batches(0, 0))
    said = jax.jit(teach)(live, batch)
    if len(names) == 1:
        kept = _task.teaching(seen, *names)
        np.testing.assert_allclose(said.features, kept.features[batch.indices], atol=1e-5)
    else:
        kept = _task.teaching_together(seen, names)
    np.testing.assert_allclose(said.logits, kept.logits[batch.indices], atol=1e-5)


def test_a_live_namesake_is_heard_on_the_task_s_classes(flags, place):
    task, seen, school = place
    lesson = _goals.Lesson(school, seen, "predictions", {FULL: 1.0}, 0)
    _, kept = _goals.make(_goals.parse("kd"), lesson)
    teach, live = _live.teachers(
        flags["root"], seen, [FULL], school.preprocessing, labels=task.class_names
    )
    batch = next(school.batches(0, 0))
    np.testing.assert_allclose(
        jax.jit(teach)(live, batch).logits,
        jax.nn.log_softmax(kept.logits[batch.indices]),
        atol=1e-5,
    )


def test_one_compiled_step_serves_live_teachers_of_one_architecture(flags, place):
    """A step is compiled anew for another function or for arguments of other shapes only."""
    _, seen, school = place
    ask = functools.partial(_live.teachers, flags["root"], seen, native=school.preprocessing)
    (teach, full), (same, part) = ask([FULL]), ask([PART])
    assert same is teach and ask([COLOUR])[0] is not teach
    forms = [jax.tree.map(jax.typeof, teacher) for teacher in (full, part)]
    assert forms[0] == forms[1]
    assert (full[0].variables["params"]["head"]["bias"] == 0).all()
    assert part[0].variables["params"]["head"]["bias"][3] == -np.inf


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "teacher"),
    [
        ("pseudo_labels", "best"),  # alone
        ("reference", "mixture"),  # by beliefs about the unchanged images, found by their rows
    ],
)
def test_a_student_learns_from_changed_images(flags, tmp_path, objective, teacher):
    changes = {"objective": objective, "teacher": teacher, "mixture": 2, "steps": 4}
    results = run(flags, tmp_path, augmentation="shift", **changes)
    assert results["step"] == 4 and np.isfinite(results["history"][-1]["loss"])
    again = run(flags, tmp_path, augmentation="shift", resume=True, **changes)
    assert again["accuracy"] == results["accuracy"]


# Fine-tuning


def test_a_new_head_leaves_the_rest():
    model = models.create("mlp", 3, widths=(8,))
    old = models.initialise(model, jax.random.key(0), (2, 2, 1))
    new = models.with_new_head(old, 5, jax.random.key(1))
    expected = jax.eval_shape(
        lambda: models.initialise(
            models.create("mlp", 5, widths=(8,)), jax.random.key(0), (2, 2, 1)
        )
    )
    jax.tree.map(lambda a, b: checks.shape("leaf", a, b.shape), new, expected)
    np.testing.assert_array_equal(
        new["params"]["dense_0"]["kernel"], old["params"]["dense_0"]["kernel"]
    )
    head = new["params"]["head"]
    assert not head["bias"].any()
    # Of variance 1 / features, as fresh weights are: 40 numbers within four standard errors.
    assert 0.1 < 8 * np.var(head["kernel"]) < 1.9
    assert (
        models.with_new_head(old, 5, jax.random.key(2))["params"]["head"]["kernel"]
        != head["kernel"]
    ).any()
    with pytest.raises(checks.InputError, match="no last layer"):
        models.with_new_head({"params": {}}, 5, jax.random.key(0))


def test_fine_tuning_starts_from_the_teacher_and_reads_as_it_did(flags, place):
    task, _, school = place
    cards = {
        card.name: faculty.load(flags["root"], card.name)[::2]
        for card in faculty.cards(flags["root"])[:2]
    }
    tuned = {name: school.fine_tuning(*loaded) for name, loaded in cards.items()}
    assert tuned[FULL].step is tuned[PART].step
    card, variables = cards[PART]
    np.testing.assert_array_equal(
        tuned[PART].train.images, data.preprocess(task.train.images, card.preprocessing)
    )
    state = tuned[PART].start(0, None, tuned[PART].objective)
    start = state.variables["params"]
    np.testing.assert_array_equal(
        start["dense_0"]["kernel"], variables["params"]["dense_0"]["kernel"]
    )
    assert start["head"]["kernel"].shape == (64, 2)
    changed = dataclasses.replace(card, preprocessing=data.Preprocessing(6, 4, 1, [0.0], [1.0]))
    with pytest.raises(checks.InputError, match=r"shape \(6, 4, 1\), but .* \(4, 4, 1\)"):
        school.fine_tuning(changed, variables)


def test_fine_tuning_as_an_objective(flags, tmp_path):
    changes = {"objective": "fine_tune", "teacher": FULL, "validation": 0.3, "steps": 40}
    results = run(flags, tmp_path, **changes)
    assert results["teacher"] == FULL
    assert results["history"][-1]["loss"] < results["history"][0]["loss"]
    assert 0 <= results["accuracy"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentation": "shift", "teacher": BLACK_BOX}, "cannot be run, which --augmentation"),
        ({"objective": "fine_tune", "teacher": BLACK_BOX}, "which --objective=fine_tune needs"),
        ({"objective": "fine_tune", "teacher": COLOUR}, "fine-tune a teacher of this shape"),
        ({"objective": "fine_tune", "teacher": "mixture"}, "`fine_tune` cannot hear several"),
        ({"objective": "fine_tune", "weight": 1.0}, "leave out --weight"),
        ({"objective": "fine_tune:weight=1"}, "has no settings"),
        ({"validation": 0.2, "shots": 1, "teacher": FULL}, "label more of them with --shots"),
        ({"validation": 0.6}, r"--validation must lie in \[0.0, 0.5\]"),
        ({"patience": 3}, "give --validation too"),
        ({"augmentation": "blur"}, "--augmentation"),
    ],
)
def test_what_cannot_be_done_is_refused(flags, tmp_path, changes, message):
    with pytest.raises(checks.InputError, match=message):
        run(flags, tmp_path, **changes)
    assert not (tmp_path / "results.json").exists()


def test_kept_outputs_refuse_changed_images(place):
    *_, school = place
    with pytest.raises(checks.InputError, match="run the teacher live"):
        school.minimising(objectives.uld(), teach=training.observed)
