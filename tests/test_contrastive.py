"""CRD's losses, draws and objectives: reference numbers, plain truths, sharding and bad input."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracle_files
import pytest
import worlds
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import logsumexp
from test_losses_decoupled import rest_slow

from fdjax import checks, sharding, training
from fdjax.losses import contrastive
from fdjax.losses.contrastive import Sides
from fdjax.objectives import contrastive as objectives
from fdjax.objectives import cross_entropy, weighted_sum
from fdjax.objectives.candidates import draw, sort_by_class, without_replacement
from fdjax.types import Batch, Outputs

KEYS = jax.random.split(jax.random.key(0), 8)
EXAMPLES, BATCH, SIZE = 16, 4, 8
LABELS = jnp.array([0, 1, 2, 0] * 4).at[5].set(-1)
ROWS = jnp.array([7, 2, 5, 0])
BANK = contrastive.unit(jax.random.normal(KEYS[0], (EXAMPLES, SIZE)))
ANCHORS, OTHERS = (contrastive.unit(jax.random.normal(key, (BATCH, SIZE))) for key in KEYS[1:3])
STUDENT, TEACHER = (
    Outputs(jnp.zeros((BATCH, 3)), jax.random.normal(key, (BATCH, width)))
    for key, width in zip(KEYS[3:5], (5, 6), strict=True)
)
IMAGES = Batch(jnp.zeros((BATCH, 1, 1, 1)), LABELS[ROWS], ROWS)


def test_the_criterion_agrees_with_the_reference_code(x64):
    stored = oracle_files.load("distill/crd_contrast_loss")
    for dtype, exact in (("f8", 1e-9), ("f4", 1e-5)):
        scores = jnp.asarray(stored["x"], dtype)
        examples = int(stored["n_data"])
        graded = jax.value_and_grad(lambda x, n=examples: contrastive.nce(jnp.log(x), n).mean())
        value, gradient = jax.jit(graded)(scores)
        np.testing.assert_allclose(value, stored["loss"], rtol=exact)
        scale = np.abs(stored["grad_x"]).max()
        np.testing.assert_allclose(gradient, stored["grad_x"], atol=10 * exact * scale)


@pytest.mark.parametrize("dtype", rest_slow("float64", "float32"))
@pytest.mark.parametrize("name", rest_slow("crd_small", "crd_K64"))
def test_two_steps_with_the_bank_agree_with_the_reference_code(name, dtype, x64):
    stored = oracle_files.load(f"distill/{name}")
    exact = 1e-9 if dtype == "float64" else 1e-5

    def given(key):
        return jnp.asarray(stored[key], dtype)

    def near(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=10 * exact * np.abs(wanted).max())

    heads = {
        side: {"kernel": given(f"embed_{side[0]}_w").T, "bias": given(f"embed_{side[0]}_b")}
        for side in ("student", "teacher")
    }
    settings = {"temperature": float(stored["nce_t"]), "momentum": float(stored["nce_m"])}

    def loss(trained, state, teacher, indices, candidates):
        student, heads = trained
        nothing = jnp.zeros((len(indices), 1), dtype)
        sides = Outputs(nothing, student), Outputs(nothing, teacher)
        embeddings = objectives.embed(heads, *sides, "crd")
        value, state = objectives.contrast(embeddings, state, indices, candidates, **settings)
        return value.mean(), state

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    labels = np.zeros(int(stored["n_data"]), np.int32)
    zeros = Sides(jnp.zeros((), dtype), jnp.zeros((), dtype))
    banks = Sides(given("memory_v1_init"), given("memory_v2_init"))
    seen = jnp.ones(len(labels), bool)
    state = objectives.BankState(banks, zeros, jnp.array(False), sort_by_class(labels), seen)
    for number in ("step1", "step2"):
        rows, candidates = (
            jnp.asarray(stored[f"{number}_{key}"], jnp.int32) for key in ("idx", "contrast_idx")
        )
        trained = given(f"{number}_student"), heads
        (value, state), (of_student, of_heads) = step(
            trained, state, given(f"{number}_teacher"), rows, candidates
        )
        assert value.dtype == state.banks.student.dtype == dtype
        np.testing.assert_allclose(value, stored[f"{number}_loss"], rtol=exact)
        near(of_student, stored[f"{number}_grad_student"])
        for side in ("student", "teacher"):
            near(of_heads[side]["kernel"].T, stored[f"{number}_grad_embed_{side[0]}_w"])
            near(of_heads[side]["bias"], stored[f"{number}_grad_embed_{side[0]}_b"])
        near(state.banks.student, stored[f"{number}_memory_v1"])
        near(state.banks.teacher, stored[f"{number}_memory_v2"])
        np.testing.assert_allclose(
            jnp.exp(jnp.stack(state.log_normalisers)),
            [stored[f"{number}_Z_v1"], stored[f"{number}_Z_v2"]],
            rtol=10 * exact,
        )


def test_both_ways_to_the_similarities_are_one():
    candidates = jax.random.randint(KEYS[5], (BATCH, 6), 0, EXAMPLES)
    weights = jax.random.normal(KEYS[6], (BATCH, 6))

    def graded(form):
        def value(anchors, bank):
            found = contrastive.similarities(anchors, bank, candidates, form=form)
            return jnp.sum(weights * found), found

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(ANCHORS, BANK)

    product, gather = graded("product"), graded("gather")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), product, gather)
    wanted = np.einsum("bd,bcd->bc", ANCHORS, np.asarray(BANK)[np.asarray(candidates)])
    np.testing.assert_allclose(product[0][1], wanted, rtol=1e-5)
    np.testing.assert_array_equal(product[1][1], 0.0)  # the bank is remembered, not trained
    long = jax.eval_shape(
        lambda bank: contrastive.similarities(ANCHORS, bank, candidates),
        jax.ShapeDtypeStruct((6 * 12 + 1, SIZE), jnp.float32),
    )
    assert long.shape == (BATCH, 6)


def test_info_nce_against_a_plain_softmax_and_with_nobody_to_tell_it_from():
    mask = jnp.array([[False, True, True, True]] * 3 + [[False] * 4])
    value, gradient = jax.jit(
        jax.value_and_grad(
            lambda a: (lambda v: (v.sum(), v))(
                contrastive.info_nce(a, OTHERS, OTHERS, mask, temperature=0.5)
            ),
            has_aux=True,
        )
    )(ANCHORS)
    logits = np.asarray(ANCHORS @ OTHERS.T) / 0.5
    wanted = [logsumexp(np.append(row[1:], row[i])) - row[i] for i, row in enumerate(logits[:3])]
    np.testing.assert_allclose(value[1], [*wanted, 0.0], rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[3], 0.0)


def test_draws_are_even_and_never_twice_the_same():
    """Every ordered triple of seven is as likely as any other, by a chi-squared test."""
    draws = jax.jit(without_replacement, static_argnums=2)(KEYS[0], jnp.full(42_000, 7), 3)
    found, counts = np.unique(np.asarray(draws), axis=0, return_counts=True)
    assert len(found) == 7 * 6 * 5
    expected = 42_000 / 210
    # 209 degrees of freedom: mean 209, standard deviation 20.
    assert np.sum((counts - expected) ** 2 / expected) < 290


def classes_of(rows):
    """Labels, the unlabelled example being a class of its own."""
    return np.where(np.asarray(LABELS)[rows] < 0, 99, np.asarray(LABELS)[rows])


def test_candidates_are_of_the_class_and_of_other_classes():
    classes, rows = sort_by_class(LABELS), np.tile(np.arange(EXAMPLES), 200)
    relaxed = jax.jit(functools.partial(draw, positives="relax"), static_argnums=3)
    drawn = np.asarray(relaxed(KEYS[1], classes, jnp.asarray(rows), 9))
    np.testing.assert_array_equal(classes_of(drawn[:, 0]), classes_of(rows))
    assert set(drawn[rows == 0, 0]) == {0, 3, 4, 7, 8, 11, 12, 15}
    assert set(drawn[rows == 5, 0]) == {5}  # unlabelled: nobody else is known to be like it
    others = drawn[:, 1:]
    assert (classes_of(others) != classes_of(rows)[:, None]).all()
    size = np.array([np.sum(classes_of(np.arange(EXAMPLES)) == one) for one in classes_of(rows)])
    distinct = np.array([len(set(row)) for row in others])
    few = EXAMPLES - size < 9  # class 0 has eight others only
    assert (distinct[~few] == 9).all()
    assert few.any() and (distinct[few] < 9).all() and len(set(others[few].ravel())) == 8
    counts = np.bincount(others[rows == 1].ravel(), minlength=EXAMPLES)
    assert (counts[classes_of(np.arange(EXAMPLES)) == 1] == 0).all()
    pool = counts[counts > 0]
    assert len(pool) == 13 and pool.min() > 100 and pool.max() < 180  # 138 on average


def test_without_regard_to_classes_everything_is_drawn():
    drawn = draw(KEYS[1], sort_by_class(LABELS), ROWS, 99, negatives="anything")
    np.testing.assert_array_equal(drawn[:, 0], ROWS)
    assert set(np.asarray(drawn[0]).tolist()) == set(range(EXAMPLES))


def crd(**settings):
    settings = {"negatives": 6, "embedding_size": SIZE} | settings
    return objectives.crd(LABELS, **settings)


def test_the_bank_spread_over_devices_learns_the_same_in_one_donated_step():
    mesh = sharding.device_mesh("bank")
    assert mesh.size == 4
    rows = NamedSharding(mesh, PartitionSpec("bank"))
    candidates = jax.random.randint(KEYS[5], (BATCH, 7), 0, EXAMPLES).at[:, 0].set(ROWS)

    def step(**settings):
        params, start = crd(unseen="noise", **settings).init(KEYS[0], IMAGES, STUDENT, TEACHER)

        def value(params, state):
            embeddings = objectives.embed(params, STUDENT, TEACHER, "crd")
            found, new = objectives.contrast(
                embeddings, state, ROWS, candidates, temperature=0.1, momentum=0.5
            )
            return found.mean(), (found, new)

        donated = jax.tree.map(jnp.array, start)
        graded = jax.jit(jax.value_and_grad(value, has_aux=True), donate_argnums=1)
        (_, (found, new)), gradient = graded(params, donated)
        assert donated.banks.student.is_deleted()
        return start, found, new, gradient

    alone, spread = step(), step(sharding=rows)
    for bank in (*spread[0].banks, *spread[2].banks):
        assert bank.sharding.is_equivalent_to(rows, 2)
        assert {shard.data.shape for shard in bank.addressable_shards} == {(4, SIZE)}
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, jax.device_get(spread), jax.device_get(alone))
    # The step has moved the rows of the batch, and those only, to vectors of length one.
    start, _, new, _ = alone
    assert not start.started and new.started
    moved = np.flatnonzero((start.banks.teacher != new.banks.teacher).any(axis=1))
    assert set(moved) == set(ROWS.tolist())
    np.testing.assert_allclose(jnp.linalg.norm(new.banks.teacher[ROWS], axis=1), 1.0, rtol=1e-5)


def run(objective):
    """Loss of each example at the first step, the state after it and the heads."""
    params, state = objective.init(KEYS[0], IMAGES, STUDENT, TEACHER)
    value, state = jax.jit(objective.loss)(params, state, KEYS[1], IMAGES, STUDENT, TEACHER)
    return value, state, params


def test_an_image_counts_when_the_banks_hold_its_embeddings_and_not_its_noise():
    waiting, noisy = crd(), crd(unseen="noise")
    params, state = waiting.init(KEYS[0], IMAGES, STUDENT, TEACHER)
    embeddings = objectives.embed(params, STUDENT, TEACHER, "crd")
    step = jax.jit(waiting.loss)
    value, state = step(params, state, KEYS[1], IMAGES, STUDENT, TEACHER)
    # The first sight is silent, and leaves embeddings where there was noise.
    np.testing.assert_array_equal(value, 0.0)
    assert not state.started
    np.testing.assert_array_equal(np.flatnonzero(state.seen), sorted(ROWS.tolist()))
    for bank, fresh in zip(state.banks, embeddings, strict=True):
        np.testing.assert_allclose(bank[ROWS], fresh, rtol=1e-5, atol=1e-6)
    # One image of four is seen again: it alone counts, and the constants are not fixed by it.
    some = IMAGES._replace(indices=jnp.array([7, 1, 3, 4]))
    value, later = step(params, state, KEYS[2], some, STUDENT, TEACHER)
    assert value[0] > 0 and not later.started
    np.testing.assert_array_equal(value[1:], 0.0)
    # All are: from here on it is the authors' objective, from banks that are filled.
    found = step(params, state, KEYS[2], IMAGES, STUDENT, TEACHER)
    all_seen = state._replace(seen=jnp.ones(EXAMPLES, bool))
    wanted = jax.jit(noisy.loss)(params, all_seen, KEYS[2], IMAGES, STUDENT, TEACHER)
    np.testing.assert_array_equal(found[0], wanted[0])
    jax.tree.map(np.testing.assert_array_equal, found[1].banks, wanted[1].banks)
    assert found[1].started and (found[0] > 0).all()
    assert noisy.init(KEYS[0], IMAGES, STUDENT, TEACHER)[1].seen.all()


def test_the_queue_forgets_the_oldest_and_the_first_step_is_that_of_the_batch():
    value, state, params = run(objectives.crd_queue(length=6, embedding_size=SIZE))
    np.testing.assert_array_equal(state.indices, [7, 2, 5, 0, -1, -1])
    alone, _, _ = run(objectives.info_nce(embedding_size=SIZE))
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    embeddings = objectives.embed(params, STUDENT, TEACHER, "crd_queue")
    later = objectives.enqueue(state, IMAGES._replace(indices=ROWS + 1), embeddings)
    np.testing.assert_array_equal(later.indices, [6, 1, 5, 0, 8, 3])
    np.testing.assert_array_equal(later.labels[:2], IMAGES.labels[2:])
    np.testing.assert_allclose(later.embeddings.teacher[4], embeddings.teacher[0], rtol=1e-5)
    assert later.position == 2


def test_in_the_batch_neither_the_image_nor_its_class_is_a_negative():
    value, _, params = run(objectives.info_nce(embedding_size=SIZE, temperature=0.5))
    student, teacher = objectives.embed(params, STUDENT, TEACHER, "info_nce")
    logits = np.asarray(student @ teacher.T) / 0.5
    labels = [0, 2, -1, 0]  # of the batch: the first and the last are of one class
    allowed = [
        [i != j and (labels[i] != labels[j] or labels[i] < 0) for j in range(4)] for i in range(4)
    ]
    for i in range(4):
        wanted = 0.0
        for row in (logits[i], logits[:, i]):
            wanted += logsumexp(np.append(row[np.asarray(allowed[i])], row[i])) - row[i]
        np.testing.assert_allclose(value[i], wanted, rtol=1e-4)


@pytest.fixture
def unchecked_types():
    """Types as in a user's process: the tests' own checks of them speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def silent(side):
    outputs = {"student": STUDENT, "teacher": TEACHER}
    outputs[side] = outputs[side]._replace(features=None)
    return crd().init(KEYS[0], IMAGES, outputs["student"], outputs["teacher"])


def uneven():
    mesh = sharding.device_mesh("bank", 3)
    return crd(sharding=NamedSharding(mesh, PartitionSpec("bank")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crd(negatives=17), "`negatives` is 17, but the bank has only 16 examples"),
        (lambda: crd(negatives=0), "`negatives` must be positive"),
        (lambda: crd(temperature=0.0), "`temperature` must be positive"),
        (lambda: crd(momentum=1.0), r"`momentum` must lie in \[0, 1\)"),
        (lambda: crd(positives="near"), "`positives` must be one of exact, relax"),
        (lambda: crd(draw_from="all"), "`draw_from` must be one of other_classes, anything"),
        (lambda: crd(unseen="never"), "`unseen` must be one of wait, noise"),
        (lambda: crd(embedding_size=0), "`embedding_size` must be positive"),
        (lambda: objectives.crd(jnp.zeros(9, int), negatives=2), "every example is of one class"),
        (lambda: objectives.crd(LABELS - 1, negatives=2), "`labels` must be at least -1, got -2"),
        (lambda: run(objectives.crd(LABELS[:7], negatives=2)), "has example 7 of the data, but"),
        (lambda: silent("student"), "needs features of the student"),
        (lambda: silent("teacher"), "needs features of the teacher"),
        (uneven, "choose a number of devices that divides the number of examples"),
        (lambda: run(objectives.crd_queue(length=3)), "`length` is 3, less than a batch of 4"),
        (lambda: objectives.crd_queue(length=0), "`length` must be positive"),
        (lambda: objectives.info_nce(temperature=-1.0), "`temperature` must be positive"),
        (lambda: contrastive.nce(jnp.zeros((2, 1)), 5), "needs one negative or more"),
        (
            lambda: contrastive.similarities(ANCHORS, BANK, ROWS[:, None], form="fast"),
            "`form` must be one of auto, product, gather",
        ),
        (
            lambda: contrastive.info_nce(ANCHORS, OTHERS, OTHERS, temperature=0.0),
            "`temperature` must be positive",
        ),
    ],
)
def test_bad_input_is_refused(call, message, unchecked_types):
    with pytest.raises(checks.InputError, match=message):
        call()


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_with_bank_queue_and_normalisers(tmp_path):
    """Bit for bit: banks, normalisers and queue are part of the state that a step donates."""
    labels = jnp.asarray(worlds.task().train.labels)
    rows = NamedSharding(sharding.device_mesh("bank"), PartitionSpec("bank"))

    def lesson(**settings):
        # Started from noise, the bank counts from the first step, before every row has moved.
        settings = {"unseen": "noise"} | settings
        bank = objectives.crd(labels, negatives=32, embedding_size=SIZE, **settings)
        objective = weighted_sum(
            (1.0, cross_entropy()),
            (0.8, bank),
            (0.1, objectives.crd_queue(length=20, embedding_size=SIZE)),
            (0.1, objectives.info_nce(embedding_size=SIZE)),
        )
        return worlds.lesson(objective, signal=worlds.teacher_outputs())

    def fit(lesson, steps, **settings):
        state, _ = training.fit(
            lesson.step, lesson.fresh(), lesson.batches, lesson.teacher, steps=steps, **settings
        )
        return state

    spread = lesson(sharding=rows)
    straight = fit(spread, 6)
    fit(spread, 3, folder=tmp_path)
    resumed = fit(spread, 6, folder=tmp_path, resume=True)
    worlds.assert_same(resumed, straight)
    bank = resumed.objective_state[1][1]
    assert bank.started and bank.banks.student.sharding.is_equivalent_to(rows, 2)
    assert (jnp.stack(bank.log_normalisers) > 0).all()
    seen = np.concatenate([next(spread.batches(step)).indices for step in range(6)])
    unseen = np.setdiff1d(np.arange(len(labels)), seen)
    fresh = spread.fresh().objective_state[1][1].banks.student
    np.testing.assert_array_equal(bank.banks.student[unseen], fresh[unseen])
    assert (bank.banks.student != fresh).any(axis=1)[seen].all()
    alone = fit(lesson(), 6).objective_state[1][1]
    np.testing.assert_allclose(alone.banks.student, bank.banks.student, atol=1e-4)

    waiting, folder = lesson(unseen="wait"), tmp_path / "waiting"
    fit(waiting, 3, folder=folder)
    resumed = fit(waiting, 6, folder=folder, resume=True)
    worlds.assert_same(resumed, fit(waiting, 6))
    held = resumed.objective_state[1][1]
    assert not held.started
    np.testing.assert_array_equal(np.flatnonzero(held.seen), np.unique(seen))
