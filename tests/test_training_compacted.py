"""The compacted step: few of many are back-propagated, and where it should be it is the mask."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

from fdjax import checks, objectives, regulation, training
from fdjax.types import Batch, Outputs

SGD = optax.sgd(0.1)
EXAMPLES = 240


@functools.cache
def labelled():
    """The task of the world, all its images labelled."""
    source = worlds.source_task()
    return type(source.train)(source.train.images, source.train.labels // 2)


def by_kd():
    """Quicker to compile than transport, and as much a loss of each example by itself."""
    return objectives.weighted_sum((1.0, objectives.cross_entropy()), (0.5, objectives.kd()))


@functools.cache
def teaching():
    """What the teacher says of the labelled images, with features."""
    network, variables = worlds.teacher()
    return jax.jit(network)(variables, labelled().images)


def one_label_space():
    """The same, as if it knew the task's own labels."""
    return teaching()._replace(logits=teaching().logits[:, ::2])


def lesson(objective, *, signal=None, optimiser=SGD, confidence=None, learner=None, **settings):
    """As `worlds.lesson`, with a memory, and compacted where there are `slots`."""
    network, variables = learner or worlds.student()
    teach = training.no_teacher if signal is None else training.observed
    base = worlds.lesson(objective, signal=signal, part=labelled(), learner=learner)
    state = training.init_state(
        jax.random.key(2),
        variables,
        network,
        teach,
        objective,
        optimiser,
        next(base.batches(0)),
        signal,
        num_examples=EXAMPLES,
        confidence=confidence,
        remembers="slots" in settings,
    )
    make = training.make_compacted_step if "slots" in settings else training.make_step
    step = make(network, teach, objective, optimiser, confidence=confidence, **settings)
    return base._replace(step=step, fresh=lambda: jax.tree.map(jnp.copy, state))


def params(state):
    return state.variables["params"]


def assert_close(one, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def run(own, steps):
    state, found = own.fresh(), []
    for number in range(steps):
        state, metrics = own.step(state, next(own.batches(number)), own.teacher)
        found.append({key: float(value) for key, value in metrics.items()})
    return state, found


def rows(*indices):
    part, indices = labelled(), np.asarray(indices, np.int32)
    return Batch(part.images[indices], part.labels[indices], indices)


def test_confidence_one_with_room_for_all_is_plain_distillation_step_by_step():
    signal = one_label_space()
    plain = lesson(by_kd(), signal=signal)
    full = lesson(by_kd(), signal=signal, slots=worlds.BATCH, confidence=1.0)
    one, other = plain.fresh(), full.fresh()
    for number in range(5):
        examples = next(plain.batches(number))
        one, found = plain.step(one, examples, signal)
        other, same = full.step(other, examples, signal)
        assert_close(params(one), params(other))
        np.testing.assert_array_equal(jax.random.key_data(one.key), jax.random.key_data(other.key))
        assert found["participants"] == same["participants"] == worlds.BATCH
    assert other.counts.sum() == 5 * worlds.BATCH


@pytest.mark.parametrize("mode", ["significance", "regulated", "hybrid"])
def test_with_room_for_the_participants_it_is_the_masked_step(mode):
    settings = {}
    if mode != "significance":
        settings["confidence"] = 0.45
    if mode != "regulated":
        settings["weights"] = jnp.linspace(0.5, 1.5, EXAMPLES)
    signal = one_label_space()
    mask = lesson(by_kd(), signal=signal, **settings)
    slots = worlds.BATCH if mode == "significance" else worlds.BATCH - 2
    few = lesson(by_kd(), signal=signal, slots=slots, **settings)
    one, other = mask.fresh(), few.fresh()
    met = []
    for number in range(6):
        examples = next(mask.batches(number))
        one, found = mask.step(one, examples, signal)
        other, same = few.step(other, examples, signal)
        met.append(int(found["participants"]))
        if met[-1] > slots:
            break
        assert met[-1] == same["participants"]
        np.testing.assert_allclose(found["loss"], same["loss"], rtol=1e-5)
        assert_close(params(one), params(other))
    assert len(met) > 2  # some steps were compared
    if mode != "significance":
        assert min(met) < slots


def test_confidence_zero_uses_the_misclassified_only():
    own = lesson(objectives.cross_entropy(), slots=10, confidence=0.0)
    network, variables = worlds.student()
    examples = next(own.batches(0))
    wrong = network(variables, examples.images)[0].logits.argmax(axis=-1) != examples.labels
    state, found = own.step(own.fresh(), examples, None)
    assert 0 < found["participants"] == min(10, wrong.sum())
    used = np.flatnonzero(state.counts)
    assert set(used) <= set(examples.indices[np.asarray(wrong)])


def test_where_slots_are_few_the_mean_gradient_is_in_expectation_that_of_all():
    mask = lesson(objectives.cross_entropy(), confidence=0.6)
    few = lesson(objectives.cross_entropy(), slots=4, confidence=0.6)
    examples = next(mask.batches(0))
    want, found = mask.step(mask.fresh(), examples, None)
    assert found["participants"] > 6
    start = np.asarray(params(mask.fresh())["head"]["kernel"])
    moves = []
    for seed in range(400):
        state = few.fresh()._replace(key=jax.random.key(seed))
        moves.append(np.asarray(params(few.step(state, examples, None)[0])["head"]["kernel"]))
    moves = np.stack(moves) - start
    error = moves.std(axis=0, ddof=1) / np.sqrt(len(moves))
    off = (moves.mean(axis=0) - (np.asarray(params(want)["head"]["kernel"]) - start)) / error
    assert np.abs(off).max() < 4.5  # of 24 numbers, in standard errors


def test_counts_are_of_the_used_and_survive_a_resume(tmp_path):
    settings = {"slots": 6, "confidence": regulation.by_share(0.4), "refresh_every": 3}
    own = lesson(by_kd(), signal=one_label_space(), optimiser=optax.adam(0.03), **settings)

    def fit(steps, **more):
        return training.fit(
            own.step, own.fresh(), own.batches, own.teacher, steps=steps, log_every=1, **more
        )

    whole, records = fit(20)
    used = sum(record["participants"] for record in records)
    assert whole.counts.sum() == used <= 6 * 20
    assert len({record["threshold"] for record in records}) > 10
    fit(9, folder=tmp_path)
    resumed, _ = fit(20, folder=tmp_path, resume=True)
    worlds.assert_same(resumed, whole)


def test_looking_at_every_step_is_the_exact_rule_and_looking_seldom_is_not():
    settings = {"slots": 6, "confidence": 0.6}
    exact = lesson(objectives.cross_entropy(), refresh_every=1, **settings)
    seldom = lesson(objectives.cross_entropy(), refresh_every=4, **settings)
    one, other = exact.fresh(), seldom.fresh()
    examples = next(exact.batches(0))
    one, _ = exact.step(one, examples, None)
    other, _ = seldom.step(other, examples, None)
    worlds.assert_same(params(one), params(other))  # the first step looks
    worlds.assert_same(one.seen, other.seen)
    # The second does not: of images never looked at, all are as good.
    fresh = rows(*np.setdiff1d(np.arange(40), examples.indices)[:16])
    before = np.array(other.seen.confidence)  # the step donates the memory
    other, found = seldom.step(other, fresh, None)
    assert found["participants"] == 6
    changed = np.flatnonzero(before != np.asarray(other.seen.confidence))
    assert set(changed) == set(np.flatnonzero(other.counts)) - set(np.flatnonzero(one.counts))


def test_the_unused_cost_the_teacher_nothing():
    sizes = []

    def teach(teacher, batch):
        sizes.append(batch.images.shape[0])
        return Outputs(jnp.zeros((batch.images.shape[0], 1)))

    network, variables = worlds.student()
    objective, examples = objectives.cross_entropy(), rows(*range(16))
    state = training.init_state(
        jax.random.key(0), variables, network, teach, objective, SGD, examples, None,
        num_examples=EXAMPLES, remembers=True,
    )  # fmt: skip
    step = training.make_compacted_step(network, teach, objective, SGD, slots=5)
    sizes.clear()
    step(state, examples, None)
    assert set(sizes) == {5}


def test_examples_of_no_significance_are_never_used():
    weights = jnp.ones(EXAMPLES).at[: EXAMPLES // 2].set(0.0)
    own = lesson(objectives.cross_entropy(), slots=12, weights=weights)
    state, _ = run(own, 10)
    assert state.counts[: EXAMPLES // 2].sum() == 0
    assert state.counts.sum() > 0


@pytest.mark.parametrize("name", ["prioritised", "forgetting", "grand"])
def test_other_ways_to_choose_fill_their_slots(name):
    own = lesson(objectives.cross_entropy(), slots=4, select=regulation.SELECTIONS[name])
    state, found = run(own, 3)
    assert state.counts.sum() == 12
    assert all(np.isfinite(record["loss"]) for record in found)


def test_the_hardest_are_chosen_by_the_fresh_loss():
    own = lesson(objectives.cross_entropy(), slots=3, select=regulation.SELECTIONS["hardest"])
    network, variables = worlds.student()
    examples = next(own.batches(0))
    logits = network(variables, examples.images)[0].logits
    loss = -np.asarray(jax.nn.log_softmax(logits))[np.arange(16), examples.labels]
    state, found = own.step(own.fresh(), examples, None)
    assert set(np.flatnonzero(state.counts)) == set(examples.indices[np.argsort(-loss)[:3]])
    np.testing.assert_allclose(found["loss"], np.sort(loss)[-3:].mean(), rtol=1e-5)


def objective_of(name):
    settings = {
        "cost": worlds.cost(),
        "labels": labelled().labels,
        "negatives": 32,
        "temperature": 1.0,
    }
    return objectives.create(name, **settings)


# One of each by default; all pairs are slow.
PAIRS = [("kd", "significance"), ("transport", "hybrid"), ("crd", "regulated")]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=() if (name, mode) in PAIRS else pytest.mark.slow)
        for name in ("kd", "transport", "crd")
        for mode in ("significance", "regulated", "hybrid")
    ],
)
def test_every_mode_works_with_every_objective(name, mode):
    settings = {}
    if mode != "significance":
        settings["confidence"] = 0.5
    if mode != "regulated":
        settings["weights"] = jnp.linspace(0.0, 2.0, EXAMPLES)
    signal = one_label_space() if name == "kd" else teaching()
    objective = objectives.weighted_sum(
        (1.0, objectives.cross_entropy()), (0.3, objective_of(name))
    )
    own = lesson(
        objective, signal=signal, optimiser=optax.adam(0.03), slots=8, refresh_every=2, **settings
    )
    state, found = run(own, 25)
    assert found[-1]["loss"] < found[0]["loss"]
    assert state.counts.sum() == sum(record["participants"] for record in found) <= 8 * 25


@functools.cache
def maps_of():
    """A network with maps and features, for objectives on these, and what it says of all images."""
    network, variables = worlds.student("resnet", widths=(4, 4, 4))
    return (network, variables), jax.jit(network)(variables, labelled().images)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_hybrid_distillation_works_with_all_objectives(name):
    learner, signal = maps_of()
    settings = {"cost": jnp.ones((3, 3)) - jnp.eye(3), "labels": labelled().labels}
    settings |= {"negatives": 32, "probabilities": jax.nn.softmax(signal.logits)[None]}
    settings |= {"log_beliefs": jax.nn.log_softmax(signal.logits)}
    settings |= {"centres": signal.features[:3]}
    if name == "wkd_features":  # the last map is of one pixel, which has no deviation
        settings["layer"] = 1
    if name == "factor":
        paraphraser = objectives.factor_paraphraser()
        examples = rows(*range(worlds.BATCH))
        few = jax.tree.map(lambda leaf: leaf[: worlds.BATCH], signal)
        settings["paraphraser"] = paraphraser.init(jax.random.key(0), examples, few, few)[0]
    known = {k for make in objectives.OBJECTIVES.values() for k in _keywords(make)}
    term = objectives.create(name, **{k: v for k, v in settings.items() if k in known})
    objective = objectives.weighted_sum((1.0, objectives.cross_entropy()), (0.1, term))
    own = lesson(
        objective,
        signal=signal,
        learner=learner,
        optimiser=optax.adam(0.01),
        slots=8,
        confidence=0.6,
        weights=jnp.linspace(0.5, 1.5, EXAMPLES),
        refresh_every=2,
    )
    state, found = run(own, 6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables))
    assert state.counts.sum() == sum(record["participants"] for record in found) > 0


def _keywords(function):
    return inspect.signature(function).parameters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slots": 0}, "`slots` must be positive"),
        ({"slots": 4, "refresh_every": 0}, "`refresh_every` must be positive"),
        ({"slots": 4, "confidence": 2.0}, "`confidence` must lie in"),
        (
            {"slots": 4, "confidence": 0.5, "select": regulation.SELECTIONS["hardest"]},
            "two ways to choose",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    network, _ = worlds.student()
    with pytest.raises(checks.InputError, match=message):
        training.make_compacted_step(
            network, training.no_teacher, objectives.cross_entropy(), SGD, **settings
        )


def test_a_state_or_batch_that_does_not_fit_is_refused():
    plain = lesson(objectives.cross_entropy())
    few = lesson(objectives.cross_entropy(), slots=worlds.BATCH + 1)
    examples = next(plain.batches(0))
    with pytest.raises(checks.InputError, match="needs a state with a memory"):
        few.step(plain.fresh(), examples, None)
    with pytest.raises(checks.InputError, match=r"`slots` must lie in \[1, 16\], got 17"):
        few.step(few.fresh(), examples, None)
    moving = lesson(objectives.cross_entropy(), confidence=regulation.by_share(0.5))
    with pytest.raises(checks.InputError, match="give `init_state` the `confidence`"):
        moving.step(plain.fresh(), examples, None)
    with pytest.raises(checks.InputError, match="give `num_examples`"):
        training.init_state(
            jax.random.key(0),
            worlds.student()[1],
            worlds.student()[0],
            training.no_teacher,
            objectives.cross_entropy(),
            SGD,
            examples,
            None,
            remembers=True,
        )
