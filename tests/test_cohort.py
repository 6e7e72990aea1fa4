"""Students side by side: trained once for all, begun as a teacher, with a weight that is found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_faculty
from toy_faculty import FULL, PART

from experiments import _cohort, _course, _goals, _live, _student, _task, distil_student
from fdjax import crossvalidation, objectives
from fdjax.trust import Trust
from fdjax.types import Batch, Outputs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A school of students of two of four classes, and what two untrained teachers say."""
    flags = toy_faculty.make(tmp_path_factory.mktemp("world"))
    config = distil_student.Config(**flags)
    task = _task.target(config)
    school = _student.School(task, "mlp", _student.budget(config), objectives.cross_entropy())
    return school, _task.observe(config.root, task)


def pupils(text):
    return [
        _cohort.Pupil(_goals.parse(text), {name: 1.0}, seed)
        for name in (FULL, PART)
        for seed in (0, 1)
    ]


@pytest.fixture
def trained(monkeypatch):
    """Seeds of the students that are trained, in one program or each by itself."""
    seeds = []
    teach_one, together = _student.School.teach_one, _student.School.teach_together

    @functools.wraps(teach_one)
    def counted(school, seed, *args, **kwargs):
        seeds.append(seed)
        return teach_one(school, seed, *args, **kwargs)

    @functools.wraps(together)
    def all_counted(school, given, *args, **kwargs):
        seeds.extend(given)
        return together(school, given, *args, **kwargs)

    monkeypatch.setattr(_student.School, "teach_one", counted)
    monkeypatch.setattr(_student.School, "teach_together", all_counted)
    return seeds


def accuracies(place, text):
    ended = {}
    found = _cohort.accuracies(*place, "predictions", pupils(text), "", ended.__setitem__)
    assert [ended[number] for number in range(4)] == found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("only_trusted", ["true", "false"])
def test_students_of_teachers_without_trust_are_trained_once_to_the_same_end(
    place, trained, monkeypatch, only_trusted
):
    # Nobody earns this much.
    text = f"reference:penalty=1000:only_trusted={only_trusted}"
    once = accuracies(place, text)
    assert sorted(trained) == [0, 1]
    monkeypatch.setattr(_course, "trusts_nobody", lambda own: False)
    assert accuracies(place, text) == once
    assert sorted(trained) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("text", ["reference:fitted=false", "uld"])
def test_students_that_hear_their_teachers_are_all_trained(place, trained, text):
    accuracies(place, text)
    assert sorted(trained) == [0, 0, 1, 1]


@pytest.mark.parametrize("text", ["reference:fitted=false:form=soft:gate=none", "extra_head"])
def test_students_in_one_program_end_as_each_by_itself(place, text):
    school, seen = place
    courses, alone = [], []
    for one in pupils(text):
        lesson = _goals.Lesson(school, seen, "predictions", one.shares, one.seed)
        own = _course.course(one.choice, lesson)
        courses.append(own)
        state, _ = courses[0].school.teach_one(one.seed, own.teacher, own.objective, progress=False)
        alone.append(state.variables)
    found = courses[0].school.teach_together(
        [one.seed for one in pupils(text)],
        [own.teacher for own in courses],
        [own.objective for own in courses],
    )
    for one, wanted in zip(found, alone, strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), one, wanted)
    assert len({float(one["params"]["head"]["kernel"].sum()) for one in found}) == 4


def test_students_that_do_not_fit_at_once_train_in_groups_of_one_size(place, trained, monkeypatch):
    wanted = accuracies(place, "uld")
    trained.clear()
    monkeypatch.setattr(_cohort, "_MOST", 2)
    text = pupils("uld")[1:]
    assert _cohort.accuracies(*place, "predictions", text, "") == wanted[1:]
    # The last of three has itself beside it.
    assert trained == [1, 0, 1, 1]
    monkeypatch.setattr(_cohort, "_BYTES", 1)
    trained.clear()
    _cohort.accuracies(*place, "predictions", text[:1], "")
    assert trained == [1]


def test_convolutions_train_on_threads(place, trained):
    school, _ = place
    config = _student.Budget(steps=1, batch_size=8, labelled=4, learning_rate=1e-3)
    convnet = _student.School(school.task, "convnet", config, objectives.cross_entropy())
    assert school.faster_together and not convnet.faster_together


def test_trust_in_one_of_several_is_trust():
    def state(*weights):
        trust = Trust(jnp.ones(()), jnp.array(weights), jnp.ones(()))
        term = objectives.reference(jnp.zeros((len(weights), 3, 2)), trust=trust)
        objective = objectives.weighted_sum((1.0, objectives.cross_entropy()), (1.0, term))
        some = Batch(jnp.zeros((4, 1, 1, 1)), jnp.zeros(4, jnp.int32), jnp.arange(4))
        said = Outputs(jnp.zeros((4, 3 * len(weights))))
        return objective.init(jax.random.key(0), some, Outputs(jnp.zeros((4, 2))), said)[1]

    assert not _course.has_trust(state(0.0, 0.0))
    assert _course.has_trust(state(0.0, 0.5))
    assert not _course.has_trust((jnp.ones(2), ((), ())))


def test_fine_tuned_students_are_each_their_own_teacher(place):
    school, seen = place
    found = accuracies(place, "fine_tune")
    for pupil, value in zip(pupils("fine_tune"), found, strict=True):
        (name,) = pupil.shares
        tuned = school.fine_tuning(*_live.load(seen.root, name, ""))
        state, _ = tuned.teach_one(pupil.seed, None, tuned.objective, progress=False)
        assert tuned.accuracy(state.variables) == value


def test_a_weight_is_found_without_the_labels_that_judge_it(place, monkeypatch):
    school, seen = place
    lesson = _goals.Lesson(school, seen, "predictions", {FULL: 1.0}, 0)
    asked = {}

    def choose(key, student, network, start, optimiser, term, images, labels, teacher, **settings):
        asked.update(settings, term=term, labels=labels, teacher=teacher)
        return 0.3, None

    monkeypatch.setattr(crossvalidation, "choose_weight", choose)
    choice = _course.weighed(_goals.parse("transport:weight=auto:epsilon=0.2"), lesson)
    assert choice.settings == {"weight": 0.3, "epsilon": 0.2}
    np.testing.assert_allclose(asked["weights"], [0.0, 0.03, 0.1, 0.3])
    assert (asked["batch_size"], asked["unlabelled_batch"], asked["steps"]) == (8, 16, 12)
    some = np.array(school.train.labels)
    some[np.flatnonzero(some >= 0)[0]] = -1
    state = asked["term"](jnp.asarray(some)).init(jax.random.key(0), None, None, None)[1]
    known = _task.cost(seen, school.knowing(some).task, FULL, "predictions")
    np.testing.assert_array_equal(state, known)
    assert (state != _task.cost(seen, school.task, FULL, "predictions")).any()
    numbered = _goals.parse("transport:weight=2")
    assert _course.weighed(numbered, lesson) is numbered


@pytest.mark.slow
def test_a_found_weight_teaches(place):
    found = accuracies(place, "projected_kl:weight=auto")
    assert all(0 <= value <= 1 for value in found)


def test_a_school_that_knows_less_believes_otherwise(place):
    school, _ = place
    some = np.array(school.train.labels)
    known = np.flatnonzero(some >= 0)
    some[known[0]] = -1
    less = school.knowing(some)
    assert (less.log_beliefs(0) != school.log_beliefs(0)).any()
    np.testing.assert_array_equal(less.train.labels, some)
    np.testing.assert_array_equal(less.task.train.labels, some)
    np.testing.assert_array_equal(less.train.images, school.train.images)
    assert (school.train.labels[known] >= 0).all()
