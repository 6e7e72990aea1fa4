"""A step learns what it is told to, and a run goes on after a kill as if nothing had happened."""

import functools
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

from fdjax import checkpoints, checks, data, objectives, training
from fdjax.types import Batch, Outputs

SGD = optax.sgd(0.1)


@functools.cache
def by_labels(**settings):
    """Learns from the labelled images alone."""
    return worlds.lesson(
        objectives.cross_entropy(), labelled=8, optimiser=SGD, num_examples=240, **settings
    )


@functools.cache
def regulated():
    """Learns from the labels it is not sure of, with an optimiser that remembers."""
    return worlds.lesson(objectives.cross_entropy(), labelled=8, num_examples=240, confidence=0.9)


@functools.cache
def by_teacher():
    """Learns from the teacher alone; it never sees a label."""
    cost, signal = worlds.cost(), worlds.teacher_outputs()
    return worlds.lesson(objectives.transport(cost), signal=signal, labelled=0)


@functools.cache
def by_both():
    """A run with something in every part of its state."""
    labels = (1.0, objectives.cross_entropy())
    teacher = (0.5, objectives.transport(worlds.cost()))
    return worlds.lesson(
        objectives.weighted_sum(labels, teacher),
        signal=worlds.teacher_outputs(),
        labelled=8,
        num_examples=240,
        confidence=0.9,
    )


def run(lesson, steps, folder=None, **settings):
    settings = {"save_every": 10, "log_every": 5} | settings
    start = settings.pop("start", None) or lesson.fresh()
    batches = settings.pop("batches", lesson.batches)
    return training.fit(
        lesson.step, start, batches, lesson.teacher, steps=steps, folder=folder, **settings
    )


def never(*_):
    raise AssertionError("no step was to be made")


def params(state):
    return state.variables["params"]


def rows(*indices):
    """Examples of the task as a batch."""
    part, indices = worlds.task().train, np.asarray(indices, np.int32)
    return Batch(part.images[indices], part.labels[indices], indices)


# What a step learns


def test_steps_lower_the_loss_and_raise_the_accuracy():
    _, records = run(by_labels(), 60)
    assert [record["step"] for record in records] == list(range(5, 61, 5))
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert records[-1]["accuracy"] == 1.0


@pytest.mark.slow
def test_a_teacher_of_other_labels_teaches_by_transport_without_any_label():
    _, untrained = worlds.student()
    assert worlds.accuracy_on_test_images(untrained) < 0.5
    state, records = run(by_teacher(), 80)
    assert worlds.accuracy_on_test_images(state.variables) > 0.8
    assert all(record["accuracy"] is None for record in records)


def test_observed_outputs_teach_as_the_live_teacher_does():
    network, variables = worlds.teacher()
    examples = rows(3, 200, 7, 7)
    live = network(variables, examples.images)
    stored = training.observed(worlds.teacher_outputs(), examples)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), stored, live)


def test_the_step_donates_its_state_and_spares_what_the_caller_gave():
    # An optimiser that keeps the parameters it is given, as averaging ones do.
    keeping = optax.GradientTransformation(lambda p: p, lambda u, s, p: (u, s))
    lesson = worlds.lesson(objectives.cross_entropy(), optimiser=optax.chain(SGD, keeping))
    start = lesson.init()
    state, _ = lesson.step(start, next(lesson.batches(0)), lesson.teacher)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params(start)))
    _, variables = worlds.student()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))
    # Not trained: it started at the caller's values, and the student left them.
    worlds.assert_same(state.optimiser_state[1][0], variables["params"])
    assert (params(state)["head"]["kernel"] != variables["params"]["head"]["kernel"]).any()


def test_a_step_is_traced_once():
    traces = []
    network, variables = worlds.student()

    def counted(variables, images):
        traces.append(1)
        return network(variables, images)

    lesson = worlds.lesson(objectives.cross_entropy(), learner=(counted, variables))
    start = lesson.fresh()
    traces.clear()
    run(lesson, 3, start=start)
    assert len(traces) == 1


def test_full_confidence_is_no_regulation():
    plain, regulated = by_labels(), by_labels(confidence=1.0)
    one, other = plain.fresh(), regulated.fresh()
    for start in range(4):
        examples = next(plain.batches(start))
        one, found = plain.step(one, examples, None)
        other, same = regulated.step(other, examples, None)
        for a, b in zip(jax.tree.leaves(params(one)), jax.tree.leaves(params(other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert found["participants"] == same["participants"] == worlds.BATCH
    # All are counted under regulation, and none without it.
    assert one.counts.sum() == 0
    assert other.counts.sum() == 4 * worlds.BATCH


def test_only_the_participants_are_learnt_from():
    lesson = worlds.lesson(objectives.cross_entropy(), optimiser=SGD, confidence=0.0)
    network, variables = worlds.student()
    examples = rows(*range(3 * worlds.SHOTS))
    logits = network(variables, examples.images)[0].logits
    wrong = np.flatnonzero(logits.argmax(axis=-1) != examples.labels)
    assert 0 < len(wrong) < 3 * worlds.SHOTS
    state, found = lesson.step(lesson.fresh(), examples, None)
    surprise = -jax.nn.log_softmax(logits)[wrong, examples.labels[wrong]]
    assert found["participants"] == len(wrong)
    np.testing.assert_allclose(found["loss"], surprise.mean(), rtol=1e-5)
    alone = worlds.lesson(objectives.cross_entropy(), optimiser=SGD)
    same, _ = alone.step(alone.fresh(), rows(*wrong), None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params(state), params(same)
    )


def test_counts_add_up_to_the_participants():
    lesson = by_both()
    state, records = run(lesson, 30, log_every=1)
    participants = sum(record["participants"] for record in records)
    assert state.counts.sum() == participants < 30 * worlds.BATCH
    seen = {int(i) for k in range(30) for i in next(lesson.batches(k)).indices}
    assert set(np.flatnonzero(state.counts).tolist()) <= seen


def test_a_weight_of_zero_removes_an_example():
    weights = jnp.ones(240).at[jnp.array([1, 2])].set(0.0)
    lesson = worlds.lesson(objectives.cross_entropy(), optimiser=SGD, weights=weights)
    signal = None
    # Rows 1 and 2 change places with each other's images: nobody looks.
    examples, other = rows(0, 1, 5, 2), rows(0, 2, 5, 1)
    one, found = lesson.step(lesson.fresh(), examples, signal)
    two, same = lesson.step(lesson.fresh(), other._replace(labels=examples.labels), signal)
    worlds.assert_same(params(one), params(two))
    assert found["loss"] == same["loss"] > 0
    still, found = lesson.step(lesson.fresh(), rows(1, 2, 1, 2), signal)
    worlds.assert_same(params(still), worlds.student()[1]["params"])
    assert found["loss"] == 0


def test_weights_that_do_not_reach_every_example_are_found_out():
    lesson = worlds.lesson(objectives.cross_entropy(), optimiser=SGD, weights=jnp.ones(2))
    with pytest.raises(checks.InputError, match="diverged"):
        run(lesson, 1)


@pytest.mark.slow
def test_the_statistics_of_a_residual_student_move():
    learner = worlds.student("resnet", widths=(4,))
    lesson = worlds.lesson(objectives.cross_entropy(), learner=learner, optimiser=SGD)
    state, _ = run(lesson, 2)
    before, after = learner[1]["batch_stats"], state.variables["batch_stats"]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(moved))
    assert sorted(state.variables) == ["batch_stats", "params"]


# Augmentation


def test_student_and_teacher_see_the_same_changed_images():
    def seen(variables, images):
        return Outputs(variables["params"] * images.reshape(len(images), -1))

    def student(variables, images):
        return seen(variables, images), variables

    def teach(variables, batch):
        return seen(variables, batch.images)

    def gap(batch, student, teacher):
        given = batch.images.reshape(len(batch.images), -1)
        both = jnp.stack([student.logits - given, teacher.logits - given])
        return jnp.abs(both).max(axis=(0, 2)), given.mean()

    # The mean of the images stands in the state, to be looked at from outside.
    objective = objectives.Objective(
        init=lambda *_: ((), jnp.zeros(())),
        loss=lambda params, state, key, *shown: gap(*shown),
    )
    still = optax.sgd(0.0)
    one, examples = {"params": jnp.ones(())}, rows(0, 1, 2)
    examples = examples._replace(labels=np.full(3, -1, np.int32))
    state = training.init_state(
        jax.random.key(0), one, student, teach, objective, still, examples, one
    )

    def augment(key, images):
        return images + jax.random.normal(key, (3, 1, 1, 1))

    step = training.make_step(student, teach, objective, still, augment=augment)
    means = []
    for _ in range(2):
        state, metrics = step(state, examples, one)
        assert metrics["loss"] < 1e-5  # the compiler may make the noise anew for each use
        means.append(float(state.objective_state))
    assert len({*means, float(examples.images.mean())}) == 3


def test_outputs_computed_beforehand_refuse_augmentation():
    with pytest.raises(checks.InputError, match=r"as they were.*run the teacher live"):
        worlds.lesson(
            objectives.cross_entropy(),
            signal=Outputs(jnp.zeros((240, 6))),
            augment=lambda key, images: images,
        )


# What is refused before it starts


def start_with(learner=None, signal=None, labels=None, num_examples=0):
    part = worlds.task().train
    if labels is not None:
        part = data.Split(part.images, np.full(len(part), labels, np.int32))
    lesson = worlds.lesson(
        objectives.cross_entropy(),
        learner=learner,
        signal=signal,
        part=part,
        num_examples=num_examples,
    )
    return lesson.fresh()


def test_variables_without_params_are_refused():
    network, variables = worlds.student()
    with pytest.raises(checks.InputError, match='must hold a collection "params"'):
        start_with(learner=(network, variables["params"]))


def test_what_does_not_fit_the_first_batch_is_refused():
    with pytest.raises(checks.InputError, match=r"`labels` must lie in \[-1, 2\], got 3"):
        start_with(labels=3)
    with pytest.raises(checks.InputError, match="one row for each example"):
        start_with(signal=Outputs(jnp.zeros((10, 6))))
    with pytest.raises(checks.InputError, match="`num_examples` is 10, but"):
        start_with(num_examples=10)


@pytest.mark.parametrize("setting", ["save_every", "log_every", "judge_every"])
def test_intervals_must_be_positive(setting):
    with pytest.raises(checks.InputError, match=f"`{setting}` must be positive, got 0"):
        run(by_labels(), 1, **{setting: 0})


# The loop, its files and its end


def test_metrics_are_json_lines_with_null_for_what_is_undefined(tmp_path):
    _, records = run(by_teacher(), 7, tmp_path, log_every=3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert [json.loads(line, parse_constant=refuse) for line in lines] == records
    assert [record["step"] for record in records] == [3, 6, 7]
    assert {record["accuracy"] for record in records} == {None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl"]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(by_labels(), 5, save_every=2)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_counts_nothing_is_saved_and_resumed(tmp_path):
    lesson = worlds.lesson(objectives.cross_entropy())
    state, _ = run(lesson, 1, tmp_path)
    assert state.counts is None
    worlds.assert_same(run(lesson, 1, tmp_path, resume=True)[0], state)


def test_teacher_outputs_of_numpy_go_to_the_device_once():
    lesson, teachers = by_teacher(), []

    def step(state, examples, teacher):
        teachers.append(teacher.logits)
        return lesson.step(state, examples, teacher)

    on_host = jax.tree.map(np.asarray, lesson.teacher)
    worlds.assert_same(run(lesson._replace(step=step, teacher=on_host), 2)[0], run(lesson, 2)[0])
    assert isinstance(teachers[0], jax.Array) and teachers[1] is teachers[0]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_it(tmp_path):
    lesson = by_labels()

    def spoilt(start):
        for step, examples in enumerate(lesson.batches(start), start):
            blot = np.nan if step >= 12 else 0.0
            yield examples._replace(images=examples.images + np.float32(blot))

    with pytest.raises(checks.InputError, match=r"`chemistry` diverged: .* at step 15; lower"):
        run(lesson, 30, tmp_path, batches=spoilt, name="chemistry")
    # What was saved before stays, and the run goes on from it.
    assert checkpoints.latest(tmp_path / "checkpoints") == 10
    state, _ = run(lesson, 20, tmp_path, resume=True)
    worlds.assert_same(state, run(lesson, 20)[0])


def test_a_last_step_that_spoils_the_parameters_is_not_kept(tmp_path):
    lesson = worlds.lesson(objectives.cross_entropy(), optimiser=optax.sgd(jnp.nan))
    with pytest.raises(checks.InputError, match="a parameter is not finite at step 1"):
        run(lesson, 1, tmp_path)
    assert checkpoints.latest(tmp_path / "checkpoints") is None


def test_batches_that_end_are_named(tmp_path):
    lesson = by_labels()

    def three(start):
        return iter([next(lesson.batches(k)) for k in range(start, 3)])

    with pytest.raises(checks.InputError, match="the batches of `train` end before step 4"):
        run(lesson, 10, batches=three)


def test_a_folder_that_holds_a_run_is_refused_unless_resumed(tmp_path):
    run(by_labels(), 10, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(checks.InputError, match="holds a run already; go on with `resume`"):
        run(by_labels(), 20, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert checkpoints.latest(tmp_path / "checkpoints") == 10


def test_a_finished_run_comes_back_at_once(tmp_path):
    lesson = by_labels()
    finished, records = run(lesson, 10, tmp_path)
    idle = lesson._replace(step=never, batches=lambda start: (never() for _ in range(1)))
    again, same = run(idle, 10, tmp_path, resume=True)
    worlds.assert_same(again, finished)
    assert same == records
    with pytest.raises(checks.InputError, match="`train` has 10 steps behind it, more than the 5"):
        run(idle, 5, tmp_path, resume=True)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(checks.InputError, match=r"cannot write to .*file"):
        run(by_labels()._replace(step=never), 5, tmp_path / "file")


def test_lost_records_are_named(tmp_path):
    run(by_labels(), 5, tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(checks.InputError, match=r"metrics.jsonl cannot be read .*; restore it"):
        run(by_labels(), 10, tmp_path, resume=True)


# The best state so far


def scripted(*values):
    """A judge that gives these values, one after the other."""
    left = iter(values)
    return lambda variables: next(left)


def judged(records):
    return {record["step"]: record["judged"] for record in records if "judged" in record}


def test_the_state_of_the_highest_judgement_is_returned_the_first_of_equals():
    judge = scripted(0.25, 0.75, 0.5, 0.75, 0.5)
    state, records = run(by_labels(), 23, judge=judge, judge_every=5, log_every=10)
    worlds.assert_same(state, run(by_labels(), 10)[0])
    assert judged(records) == {5: 0.25, 10: 0.75, 15: 0.5, 20: 0.75, 23: 0.5}
    assert [record["step"] for record in records] == [5, 10, 15, 20, 23]


def test_patience_ends_a_run_for_good(tmp_path):
    judge = scripted(0.25, 0.75, 0.5, 0.75)
    settings = {"judge_every": 4, "patience": 2, "log_every": 100}
    state, records = run(by_labels(), 40, tmp_path, judge=judge, **settings)
    assert int(state.step) == 8
    assert list(judged(records)) == [4, 8, 12, 16]
    assert checkpoints.latest(tmp_path / "checkpoints") == 16
    idle = by_labels()._replace(step=never)
    again, same = run(idle, 40, tmp_path, judge=never, resume=True, **settings)
    worlds.assert_same(again, state)
    assert same == records


@functools.cache
def near_the_state_of(step):
    """A judge who wants the parameters of this step of the regulated run."""
    wanted = jax.device_get(params(run(regulated(), step)[0]))

    def judge(variables):
        gaps = jax.tree.map(lambda a, b: np.square(a - b).sum(), variables["params"], wanted)
        return -float(sum(jax.tree.leaves(gaps)))

    return judge


@pytest.mark.parametrize("best", [15, 35], ids=["best_before_the_kill", "best_after_it"])
@pytest.mark.parametrize("kill", ["step", "save"])
def test_a_judged_run_goes_on_as_if_it_had_never_stopped(tmp_path, monkeypatch, best, kill):
    lesson, judge = regulated(), near_the_state_of(best)
    save = checkpoints.save

    def interrupted(folder, step, tree):
        if step == 30:
            raise KeyboardInterrupt
        save(folder, step, tree)

    def batches(start):
        for step, examples in enumerate(lesson.batches(start), start):
            if step == 27:
                raise KeyboardInterrupt
            yield examples

    settings = {"judge": judge, "judge_every": 5, "log_every": 7}
    want, want_records = run(lesson, 40, **settings)
    worlds.assert_same(want, run(lesson, best)[0])
    if kill == "save":
        monkeypatch.setattr(checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream = {"batches": batches} if kill == "step" else {}
        run(lesson, 40, tmp_path, **stream, **settings)
    monkeypatch.undo()
    assert checkpoints.latest(tmp_path / "checkpoints") == 20
    state, records = run(lesson, 40, tmp_path, resume=True, **settings)
    worlds.assert_same(state, want)
    assert records == want_records


def test_a_judge_must_give_numbers_and_patience_needs_one(tmp_path):
    with pytest.raises(checks.InputError, match=r"judge of `train` gave nan at step 5"):
        run(by_labels(), 10, judge=scripted(np.nan), judge_every=5)
    with pytest.raises(checks.InputError, match="give a `judge`"):
        run(by_labels(), 10, patience=2)
    with pytest.raises(checks.InputError, match="`patience` must be positive"):
        run(by_labels(), 10, judge=never, patience=0)


def test_a_run_without_a_judge_is_not_resumed_with_one(tmp_path):
    run(by_labels(), 5, tmp_path)
    with pytest.raises(checks.InputError, match=r"holds another tree.*with the settings"):
        run(by_labels(), 10, tmp_path, resume=True, judge=never)


# Interrupted runs


@functools.cache
def uninterrupted(lesson):
    return run(lesson(), 40)


def assert_as_if_never_interrupted(folder, lesson=by_both):
    state, records = run(lesson(), 40, folder, resume=True)
    want, want_records = uninterrupted(lesson)
    worlds.assert_same(state, want)
    assert records == want_records
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == want_records


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path):
    run(by_both(), 25, tmp_path)
    assert_as_if_never_interrupted(tmp_path)


def test_an_interrupt_between_records_and_checkpoint_changes_nothing(tmp_path, monkeypatch):
    save = checkpoints.save

    def interrupted(folder, step, tree):
        if step == 20:
            raise KeyboardInterrupt
        save(folder, step, tree)

    monkeypatch.setattr(checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(by_both(), 40, tmp_path)
    monkeypatch.undo()
    assert checkpoints.latest(tmp_path / "checkpoints") == 10
    assert '"step": 20' in (tmp_path / "metrics.jsonl").read_text()
    assert_as_if_never_interrupted(tmp_path)


def stall(folder, lesson):
    """Runs in a process of its own, until the batch of step 28, which never comes."""
    folder, lesson = pathlib.Path(folder), globals()[lesson]()

    def batches(start):
        for step, examples in enumerate(lesson.batches(start), start):
            if step == 27:
                (folder / "stalled").touch()
                time.sleep(600)
            yield examples

    run(lesson, 40, folder, batches=batches)


@pytest.mark.parametrize(
    "lesson", [regulated, pytest.param(by_both, marks=pytest.mark.slow)], ids=lambda f: f.__name__
)
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(tmp_path, lesson):
    call = f"import test_training; test_training.stall({str(tmp_path)!r}, {lesson.__name__!r})"
    here = pathlib.Path(__file__).parent
    log = tmp_path / "log"
    with log.open("w") as output:
        child = subprocess.Popen([sys.executable, "-c", call], cwd=here, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "stalled").exists():
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the run did not get to its 28th step"
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert checkpoints.latest(tmp_path / "checkpoints") == 20
    assert_as_if_never_interrupted(tmp_path, lesson)
