"""What an objective of an experiment is made of: settings, teachers heard, and students taught."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_faculty
from toy_faculty import FULL, PART

from experiments import _goals, _student, _task, distil_student
from fdjax import checks, data, objectives
from fdjax.types import Batch, Outputs


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a student of two of four classes."""
    return toy_faculty.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def lesson(flags):
    config = distil_student.Config(**flags)
    task = _task.target(config)
    school = _student.School(task, "mlp", _student.budget(config), objectives.cross_entropy())
    return _goals.Lesson(
        school, _task.observe(config.root, task), "predictions", {FULL: 0.7, PART: 0.3}, 0
    )


def test_every_objective_has_a_goal():
    assert set(_goals.GOALS) - {"beliefs", "fine_tune"} <= set(objectives.OBJECTIVES)
    for name, goal in _goals.GOALS.items():
        taken = inspect.signature(goal.objective).parameters
        assert set(goal.settings) <= set(taken) and goal.weight >= 0, name


@pytest.mark.parametrize("name", list(_goals.GOALS))
def test_every_objective_can_teach_a_student(lesson, name):
    """Up to the first step, whose trace `start` takes; the losses have tests of their own."""
    nobody = _goals.GOALS[name].hears == "nobody"
    lesson = lesson._replace(shares={} if nobody else {FULL: 1.0})
    objective, teacher = _goals.make(_goals.parse(name), lesson)
    state = lesson.school.minimising(objective).start(lesson.seed, teacher, objective)
    weights, _ = state.objective_state
    np.testing.assert_allclose(weights, [1.0, _goals.GOALS[name].weight])


def test_leading_teachers_teach_together(flags, tmp_path):
    config = distil_student.Config(
        workdir=str(tmp_path), objective="reference", teacher="mixture", mixture=3, **flags
    )
    results = distil_student.run(config)
    assert set(results["shares"]) == {FULL, PART}
    assert sum(results["shares"].values()) == pytest.approx(1.0)
    assert 0 <= results["accuracy"] <= 1


def test_settings_are_read_as_their_defaults_are():
    choice = _goals.parse("reference:penalty=0:form=soft:only_trusted=true", weight=2.0)
    assert choice.settings == {"penalty": 0.0, "form": "soft", "only_trusted": True, "weight": 2.0}
    assert choice.name == "reference" and choice.text.endswith("only_trusted=true")
    assert _goals.parse("uld:weight=7", weight=2.0).settings == {"weight": 2.0}
    assert _goals.parse("transport", epsilon=None) == ("transport", "transport", {})
    assert _goals.settings_of("transport") == {
        "weight": 0.1,
        "temperature": 1.0,
        "epsilon": 0.1,
        "entropy": "plain",
        "value": "regularised",
        "tau": 1.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "`objective` must be one of"),
        ("uld:epsilon=1", "`setting of uld` must be one of weight, temperature"),
        ("uld:temperature", "write a setting as name=value"),
        ("uld:temperature=warm", "'warm' is no number"),
        ("uld:weight=-1", "`weight` must be >= 0"),
        ("reference:only_trusted=1", "one of true, false"),
    ],
)
def test_a_wrong_setting_is_one_clear_sentence(text, message):
    with pytest.raises(checks.InputError, match=message):
        _goals.parse(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "uld", "teacher": "mixture"}, "`uld` cannot hear several teachers"),
        ({"objective": "pseudo_labels", "teacher": FULL}, "hears no teacher"),
        ({"objective": "kd", "teacher": PART, "classes": ("class_0", "class_3")}, "no 'class_3'"),
        ({"objective": "reference", "epsilon": 0.5}, "setting of reference"),
        ({"objective": "reference", "shots": 1}, "one labelled example"),
        ({"teacher": "nobody"}, "--teacher"),
    ],
)
def test_what_cannot_be_taught_is_refused(flags, tmp_path, changes, message):
    config = distil_student.Config(**({"workdir": str(tmp_path)} | flags | changes))
    with pytest.raises(checks.InputError, match=message):
        distil_student.run(config)
    assert not (tmp_path / "results.json").exists()


def test_a_summed_term_is_the_sum_of_each_teachers_own(lesson):
    classes = lesson.school.task.num_classes
    rows = jnp.array([3, 0, 9, 11])
    batch = Batch(jnp.zeros((4, 1, 1, 1)), jnp.full(4, -1), rows)
    student = Outputs(jax.random.normal(jax.random.key(0), (4, classes)))
    choice = _goals.parse("projected_kl:weight=2")

    def value(shares):
        objective, teacher = _goals.make(choice, lesson._replace(shares=shares))
        heard = jax.tree.map(lambda leaf: leaf[rows], teacher)
        key = jax.random.key(1)
        params, state = objective.init(key, batch, student, heard)
        return objective.loss(params, state, key, batch, student, heard)[0]

    wanted = 0.7 * value({FULL: 1.0}) + 0.3 * value({PART: 1.0})
    np.testing.assert_allclose(value(lesson.shares), wanted, rtol=1e-5)


def test_the_mixture_is_of_the_leading_teachers_whose_score_is_known():
    values, names = np.array([-0.4, np.nan, -0.1, -0.2]), ("a", "b", "c", "d")
    shares = _goals.mixture(values, names, 2)
    assert list(shares) == ["c", "d"]
    ratio = np.exp(0.1 / _goals.MIXTURE_TEMPERATURE)
    assert shares["c"] / shares["d"] == pytest.approx(ratio, rel=1e-5)
    assert list(_goals.mixture(values, names, 9)) == ["c", "d", "a"]
    assert _goals.mixture(values, names, 1) == {"c": 1.0}


def test_a_school_finds_its_beliefs_once_for_each_seed(lesson):
    school = lesson.school
    beliefs = school.log_beliefs(3)
    assert beliefs.shape == (len(school.task.train), school.task.num_classes)
    other = school.minimising(objectives.pseudo_labels())
    assert other.log_beliefs(3) is beliefs and other.step is not school.step
    assert (school.log_beliefs(4) != beliefs).any()


def test_unlabelled_images_can_stand_in_for_the_test_images(flags):
    config = distil_student.Config(**flags)
    task, judged = _task.target(config), _task.target(config, judge="unlabelled")
    np.testing.assert_array_equal(judged.test.images, task.train.images[task.train.labels < 0])
    np.testing.assert_array_equal(judged.train.labels, task.train.labels)
    whole = data.restrict(data.load(config.dataset), task.class_names)
    label = {
        image.tobytes(): label
        for image, label in zip(whole.train.images, whole.train.labels, strict=True)
    }
    assert [label[image.tobytes()] for image in judged.test.images] == judged.test.labels.tolist()


def test_images_that_are_not_used_judge_as_well(flags):
    config = distil_student.Config(**flags)
    none = dataclasses.replace(config, unlabelled=0, mixed=7)
    judged = _task.target(none, judge="unlabelled")
    every = _task.target(config, judge="unlabelled")
    np.testing.assert_array_equal(judged.test.images, every.test.images)
    assert (judged.train.labels < 0).sum() == 7


def test_teachers_are_asked_by_name(flags, lesson):
    seen = _task.observe(flags["root"], lesson.school.task, (PART,))
    assert seen.names == (PART,)
    with pytest.raises(checks.InputError, match="`teachers` must be one of"):
        _task.observe(flags["root"], lesson.school.task, ("nobody",))
