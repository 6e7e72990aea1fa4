"""Compression by every method: its table, how it goes on, and what it refuses beforehand."""

import functools
import json

import jax
import numpy as np
import pytest
import toy_recipe

from experiments import _comparison, _grid, _methods, _recipe, _workshop, compress
from fdjax import checks

# One with a bank, one with a first stage, and both terms of a preset.
METHODS = ("kd", "crd+kd:temperature=0.1", "abound")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a small run."""
    made = toy_recipe.make(tmp_path_factory.mktemp("world"))
    return made | {"teacher": "mlp", "methods": METHODS}


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """A finished run: its workdir and its results."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, compress.run(compress.Config(workdir=str(workdir), **flags))


@pytest.mark.slow
def test_every_student_is_written_down_once(finished):
    workdir, results = finished
    first, *lines = map(json.loads, (workdir / "runs.jsonl").read_text().splitlines())
    assert first["flags"]["epochs"] == 2 and "methods" not in first["flags"]
    jobs = [_comparison.Job(*(line[key] for key in _comparison.Job._fields)) for line in lines]
    assert len(jobs) == len(set(jobs)) == 1 + 2 * (1 + len(METHODS))
    value = dict(zip(jobs, (line["value"] for line in lines), strict=True))
    for row in results["table"]:
        of = [value[row["method"], seed, "accuracy"] for seed in (0, 1)]
        alone = [value["alone", seed, "accuracy"] for seed in (0, 1)]
        assert row["accuracy"] == of
        gain = np.array(of) - alone
        assert row["accuracy gain"] == pytest.approx(
            (gain.mean(), gain.std(ddof=1) / 2**0.5), nan_ok=True
        )
    assert [row["method"] for row in results["table"]] == ["alone", *METHODS]
    report = (workdir / "report.md").read_text()
    assert "python -m experiments.compress" in report and "crd+kd:temperature=0.1" in report
    assert (workdir / "methods.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers_and_with_more_methods(finished, flags, tmp_path):
    workdir, results = finished
    lines = (workdir / "runs.jsonl").read_text().splitlines(keepends=True)
    kept = "".join(lines[:4])
    (tmp_path / "runs.jsonl").write_text(kept + lines[4][:20])
    again = flags | {"workdir": str(tmp_path), "methods": (METHODS[0], "uld")}
    found = compress.run(compress.Config(**again))
    # The teacher and its first student were trained anew, to the same numbers.
    assert found["table"][:2] == results["table"][:2]
    after = (tmp_path / "runs.jsonl").read_text()
    assert after.startswith(kept) and len(after.splitlines()) == 1 + 1 + 3 * 2
    with pytest.raises(checks.InputError, match="begun with another `epochs`"):
        compress.run(compress.Config(**again | {"epochs": 3}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "--methods is empty"),
        ({"methods": ("magic",)}, "`method` must be one of kd"),
        ({"methods": ("kd", "kd")}, "names 'kd' twice"),
        ({"methods": ("kd+kd",)}, "`method` must be one of"),
        ({"untrained": ("crd:temperature=0",)}, "`temperature` must be positive"),
        ({"methods": ("crd:magic=1",)}, "`setting of crd` must be one of"),
        ({"methods": ("crd:temperature=0",)}, "`temperature` must be positive"),
        ({"methods": ("crd",), "negatives": 81}, "`negatives` is 81, but the bank has only 80"),
        ({"methods": ("similarity",), "batch_size": 1}, "relates 2 images of a batch"),
        ({"methods": ("rkd",), "batch_size": 2}, "relates 3 images of a batch"),
        ({"methods": ("hint",)}, "`hint` is to take layer 2, but the student has 2 layers"),
        ({"methods": ("attention",), "teacher": "resnet8"}, "as many layers"),
        ({"teacher": "oracle"}, "`network` must be one of"),
        ({"student": "mlp", "dtype": "bfloat16"}, "--dtype=bfloat16 is not for 'mlp'"),
        ({"devices": 5}, "--devices=5, but there are 4"),
        ({"devices": 4, "batch_size": 18}, "cannot be spread evenly over 4 devices"),
        ({"shots": 21}, "has only 20"),
        ({"student": "vgg8"}, "pixels, got 6x6"),
    ],
)
def test_a_mistake_is_refused_before_any_work(flags, tmp_path, changes, message):
    config = compress.Config(**flags | {"workdir": str(tmp_path / "run")} | changes)
    with pytest.raises(checks.InputError, match=message):
        compress.run(config)
    assert not (tmp_path / "run").exists()


def test_images_that_judge_a_choice_of_settings_are_training_images(flags):
    config = compress.Config(**flags | {"shots": 10})
    test, validation = (
        _recipe.task(config),
        _recipe.judged(_recipe.task(config), "validation"),
    )
    assert len(test.train) == 40 and len(test.test) == 40
    assert len(validation.train) == 32 and len(validation.test) == 8
    rows = {image.tobytes() for image in test.train.images}
    assert {image.tobytes() for image in validation.test.images} <= rows


def test_the_optimiser_is_pytorchs(flags):
    """Momentum and decay as torch.optim.SGD has them, typed out; the rate drops twice here."""
    config = compress.Config(**flags | {"drops": (0.5, 0.75), "epochs": 4, "weight_decay": 0.1})
    workshop = _workshop.Workshop(_recipe.task(config), config)
    assert workshop.steps(4) == 20
    optimiser = workshop.optimiser(0.5, 4)
    value = weight = np.array([1.0, -2.0])
    state, velocity = optimiser.init(value), np.zeros(2)
    for step in range(20):
        gradient = np.sin(value + step)
        updates, state = optimiser.update(gradient, state, value)
        value = value + np.asarray(updates)
        rate = 0.5 * (1.0 if step < 10 else 0.1 if step < 15 else 0.01)
        velocity = 0.9 * velocity + np.sin(weight + step) + 0.1 * weight
        weight = weight - rate * velocity
        np.testing.assert_allclose(value, weight, rtol=1e-4, atol=1e-5)
    assert _recipe.student_rate(config) == 0.05
    mobile = compress.Config(student="mobilenet_v2")
    assert _recipe.student_rate(mobile) == 0.01
    assert _recipe.student_rate(compress.Config(learning_rate=0.2)) == 0.2


@pytest.mark.slow
def test_several_devices_train_the_same_student(flags):
    """Batch and bank spread over four devices; sums come in another order, no more."""

    def trained(devices):
        config = compress.Config(**flags | {"devices": devices})
        workshop = _workshop.Workshop(_recipe.task(config), config)
        networks = [_workshop.learner("mlp", 4, workshop.image_shape) for _ in range(2)]
        teachers = _methods.of_one(networks[1], networks[1].fresh(jax.random.key(9)))
        lesson = _methods.Lesson(
            _methods.parse("crd+kd"), _methods.Scene(workshop, networks[0], teachers)
        )
        course = lesson.course(None)
        return course.train(0, None, "student")

    alone, spread = trained(1), trained(4)
    bank = spread.objective_state[1][2].banks.student
    assert {shard.data.shape for shard in bank.addressable_shards} == {(20, 128)}
    kernel = spread.variables["params"]["head"]["kernel"]
    assert kernel.sharding.is_fully_replicated and kernel.sharding.num_devices == 4
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4),
        alone.variables,
        spread.variables,
    )


def test_a_pass_that_trains_nothing_fills_the_banks_before_the_first_step(flags):
    config = compress.Config(**flags)
    workshop = _workshop.Workshop(_recipe.task(config), config)
    learner = _workshop.learner("mlp", 4, workshop.image_shape)
    teachers = _methods.of_one(learner, learner.fresh(jax.random.key(9)))
    scene = _methods.Scene(workshop, learner, teachers)
    filled, noisy = (
        _methods.Lesson(_methods.parse(text), scene).course(None).start(1)
        for text in ("crd", "crd:unseen=noise")
    )
    before, after = (state.objective_state[1][1] for state in (noisy, filled))
    assert after.seen.all() and not after.started and not before.started
    lengths = np.linalg.norm(after.banks.teacher, axis=1)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)
    assert np.ptp(np.linalg.norm(before.banks.teacher, axis=1)) > 0.1
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same(filled.variables, noisy.variables)
    same(filled.objective_params, noisy.objective_params)
    same(filled.optimiser_state, noisy.optimiser_state)
    assert filled.step == noisy.step == 0


def test_methods_have_published_weights_unless_others_are_given():
    assert _methods.parse("crd").weights == (1.0, 0.0, 0.8)
    assert _methods.parse("crd+kd").weights == (1.0, 1.0, 0.8)
    assert _methods.parse("vid+kd").weights == (1.0, 1.0, 1.0)
    found = _methods.parse("dkd:ce=0.5:kd=0.25:weight=2:beta=3")
    assert found.weights == (0.5, 0.25, 2.0) and found.settings == {"beta": 3.0}
    assert _methods.parse("kd:kd=0.5:temperature=2").weights == (0.1, 0.5, 0.0)
    more = [*_methods.EVERY, "crd:unseen=noise"]
    assert [one.text for one in _methods.parse_all(["all", more[-1]])] == more
    assert set(_methods.EVERY) >= {"kd", "hint", "fsp", "kdsvd", "crd", "crd+kd", "dist", "uld"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_method_trains_a_pair_of_residual_networks(tmp_path, dtype):
    made = toy_recipe.make(tmp_path) | {"student": "resnet8", "teacher": "resnet8", "epochs": 1}
    methods = _methods.EVERY if dtype == "float32" else ("crd", "hint")
    config = compress.Config(
        workdir=str(tmp_path / "run"),
        **made | {"seeds": 1, "dtype": dtype, "methods": methods, "augmentation": "shift_flip"},
    )
    table = compress.run(config)["table"]
    assert [row["method"] for row in table] == ["alone", *methods]
    assert all(0 <= row["accuracy"][0] <= 1 for row in table)
    assert np.isnan(_grid.mean_and_error(table[0]["accuracy"])[1])
