"""The cross-validated weight: who is heard, that no label judges itself, and a hand-made loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from fdjax import checks, costs, crossfit, crossvalidation, data, losses, models, objectives
from fdjax.types import Batch, Outputs

CLASSES, SHOTS, FOLDS, STEPS, LABELLED, UNLABELLED = 3, 10, 4, 60, 8, 16
WEIGHTS = (0.0, 0.1, 1.0)
MODEL = models.create("mlp", CLASSES, widths=(8,))
STUDENT, NETWORK = models.trainable(MODEL), models.frozen(MODEL)
OPTIMISER = optax.adam(0.03)
KEY = jax.random.key(0)
TRACES = []


def start(key):
    TRACES.append(key)
    return models.initialise(MODEL, key, (4, 4, 1))


@functools.cache
def task():
    """Six noisy patterns, of which pairs are to be told apart; few have a label."""
    raw = data.synthetic(
        num_classes=6, height=4, width=4, train_per_class=40, test_per_class=1, noise=0.5, seed=1
    )
    images = data.preprocess(raw.train.images, data.native_preprocessing(raw))
    pairs = raw.train.labels // 2
    labels = np.full(len(pairs), -1, np.int32)
    rng = np.random.default_rng(0)
    for pair in range(CLASSES):
        labels[rng.permutation(np.flatnonzero(pairs == pair))[:SHOTS]] = pair
    return images, labels, raw.train.labels


@functools.cache
def teacher(kind):
    """Logits for the six patterns: of one who knows them, or of one who makes them up."""
    images, _, patterns = task()
    if kind == "knows nothing":
        made_up = 3 * np.random.default_rng(1).normal(size=(len(images), 6))
        return Outputs(jnp.asarray(made_up, jnp.float32))
    if kind == "knows too little":
        return Outputs(jnp.zeros((200, 6)))
    means = np.stack([images[patterns == pattern].mean(axis=0) for pattern in range(6)])
    distance = ((images[:, None] - means) ** 2).sum(axis=(2, 3, 4))
    return Outputs(jnp.asarray(-distance / 2, jnp.float32))


# Its loss serves every cost, so that the tests compile one program.
PROJECTED = objectives.projected_kl(jnp.zeros((6, CLASSES)), epsilon=0.5)


def term(labels, kind="knows", permuted=False):
    probabilities = jax.nn.softmax(teacher(kind).logits)
    cost = costs.from_predictions(probabilities, labels, CLASSES)
    cost = cost[:, jnp.array([1, 2, 0])] if permuted else cost
    return objectives.Objective(lambda *_: ((), cost), PROJECTED.loss)


def choose(term=term, kind="knows", labels=None, **settings):
    images, known, _ = task()
    defaults = {
        "weights": WEIGHTS,
        "folds": FOLDS,
        "steps": STEPS,
        "batch_size": LABELLED,
        "unlabelled_batch": UNLABELLED,
    }
    return crossvalidation.choose_weight(
        KEY,
        STUDENT,
        NETWORK,
        start,
        OPTIMISER,
        term,
        jnp.asarray(images),
        jnp.asarray(known if labels is None else labels),
        teacher(kind),
        **(defaults | settings),
    )


@functools.cache
def good():
    return choose()


def test_a_teacher_is_heard_who_helps():
    weight, found = good()
    assert weight > 0
    np.testing.assert_allclose(found.weights, WEIGHTS)
    place = int(np.argmin(np.abs(found.weights - weight)))
    assert found.log_likelihood[place] > found.log_likelihood[0] + 0.05
    assert found.deficit.min() == 0.0
    assert (found.accuracy >= 1 / 3).all()


@pytest.mark.parametrize(
    ("kind", "permuted"), [("knows nothing", False), ("knows", True)], ids=["useless", "wrong"]
)
def test_a_teacher_is_not_heard_who_does_not_help(kind, permuted):
    _, first = good()
    before = len(TRACES)
    weight, found = choose(functools.partial(term, kind=kind, permuted=permuted), kind)
    assert weight == 0.0
    # The student alone is the same, whoever is not heard, and nothing is compiled again.
    np.testing.assert_allclose(found.log_likelihood[0], first.log_likelihood[0], rtol=1e-6)
    assert len(TRACES) == before


def test_the_term_is_made_without_the_labels_that_it_is_judged_by():
    given = []

    def watched(labels):
        given.append(np.asarray(labels))
        return term(labels)

    choose(watched)
    _, labels, _ = task()
    hidden = np.array([(seen < 0) & (labels >= 0) for seen in given])
    np.testing.assert_array_equal(hidden.sum(axis=0), labels >= 0)
    assert all((seen == labels)[~mask].all() for seen, mask in zip(given, hidden, strict=True))


@jax.jit
def hand_step(state, key, weight, cost, odds):
    """One step of a student, written out: `odds` of each image to be drawn as a labelled one."""
    images, labels, _ = task()
    key, labelled_key, unlabelled_key = jax.random.split(key, 3)
    known, unlabelled = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    drawn = jax.random.categorical(labelled_key, odds[known], shape=(LABELLED,))
    more = jax.random.choice(unlabelled_key, jnp.asarray(unlabelled), (UNLABELLED,))
    rows = jnp.append(jnp.asarray(known)[drawn], more)
    batch = Batch(jnp.asarray(images)[rows], jnp.asarray(labels)[rows], rows)
    said = Outputs(teacher("knows").logits[rows])

    def value(params):
        outputs, _ = STUDENT({"params": params}, batch.images)
        taught, _ = PROJECTED.loss((), cost, key, batch, outputs, said)
        told = losses.cross_entropy(outputs.logits[:LABELLED], batch.labels[:LABELLED])
        return told.mean() + weight * taught.mean()

    params, optimiser_state = state
    change, optimiser_state = OPTIMISER.update(jax.grad(value)(params), optimiser_state)
    return optax.apply_updates(params, change), optimiser_state


def by_hand(weight, left_out):
    """What one student of the table says of the labelled images that it did not see."""
    images, labels, _ = task()
    fold = crossfit.folds_of(labels, FOLDS)
    _, cost = term(jnp.asarray(np.where(fold == left_out, -1, labels))).init()
    odds = np.where(fold == left_out, -np.inf, 0.0)
    keys = [jax.random.split(key, FOLDS)[left_out] for key in jax.random.split(KEY, 3)]
    params = start(keys[0])["params"]
    state = params, OPTIMISER.init(params)
    for key in jax.random.split(keys[1], STEPS):
        state = hand_step(state, key, weight, cost, odds)
    mine = np.flatnonzero(fold == left_out)
    logits = NETWORK({"params": state[0]}, images[mine]).logits
    return labels[mine], log_softmax(np.asarray(logits, np.float64), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 2])
def test_the_table_is_that_of_students_trained_by_hand(place):
    _, found = good()
    pairs = [by_hand(WEIGHTS[place], left_out) for left_out in range(FOLDS)]
    labels, said = (np.concatenate(parts) for parts in zip(*pairs, strict=True))

    def surprise(exponent):
        return -log_softmax(exponent * said, axis=1)[np.arange(len(labels)), labels].mean()

    least = minimize_scalar(surprise, bounds=(0, 3), method="bounded").fun
    np.testing.assert_allclose(found.log_likelihood[place], -least, atol=2e-3)
    np.testing.assert_allclose(found.accuracy[place], (said.argmax(axis=1) == labels).mean())


@pytest.mark.slow
def test_students_side_by_side_do_the_same():
    _, alone = good()
    _, together = choose(at_once=len(WEIGHTS) * FOLDS)
    np.testing.assert_allclose(together.log_likelihood, alone.log_likelihood, atol=1e-3)


@pytest.mark.slow
def test_a_term_may_learn_and_remember_and_a_transport_be_one():
    def with_head(labels):
        return objectives.extra_head()

    def carried(labels):
        probabilities = jax.nn.softmax(teacher("knows").logits)
        return objectives.transport(
            costs.from_predictions(probabilities, labels, CLASSES), epsilon=0.2
        )

    for made in (with_head, carried):
        _, found = choose(made, weights=(0.0, 1.0), steps=20)
        assert np.isfinite(found.log_likelihood).all()
        assert found.log_likelihood[1] != found.log_likelihood[0]
    _, found = choose(carried, weights=(0.0, 1.0), steps=20, unlabelled_batch=0)
    assert np.isfinite(found.log_likelihood).all()


def table(log_probabilities):
    """The choice from log-probabilities of two classes, the first of which is right."""
    labels = jnp.zeros(log_probabilities.shape[1], jnp.int32)
    return crossvalidation._choose(np.array([0.0, 0.1, 1.0]), log_probabilities, labels)


def test_the_smallest_weight_wins_that_is_not_worse_for_certain():
    rng = np.random.default_rng(0)
    margin = rng.normal(0.5, 1.0, size=40)
    certain, noise = margin + 1.0, margin + np.tile([0.3, -0.3], 20)
    for margins, weight in (([margin, noise, certain], 1.0), ([margin, noise, noise], 0.0)):
        logits = np.stack([np.stack([m, -m], axis=1) for m in margins])
        chosen, found = table(jnp.asarray(log_softmax(logits, axis=2), jnp.float32))
        assert chosen == weight
        np.testing.assert_allclose(found.accuracy, [(m > 0).mean() for m in margins])
    # Softer predictions are no better ones.
    logits = np.stack([np.stack([m, -m], axis=1) for m in (3 * margin, margin, 0.5 * margin)])
    chosen, found = table(jnp.asarray(log_softmax(logits, axis=2), jnp.float32))
    assert chosen == 0.0
    np.testing.assert_allclose(found.deficit, 0.0, atol=1e-3)


def test_a_weight_that_diverges_is_not_chosen_and_a_student_that_does_is_refused():
    said = np.log(np.full((3, 6, 2), 0.5, np.float32))
    said[1] = np.nan
    chosen, found = table(jnp.asarray(said))
    assert chosen == 0.0
    assert found.log_likelihood[1] == -np.inf
    said[0] = np.nan
    with pytest.raises(checks.InputError, match="diverges without any term"):
        table(jnp.asarray(said))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": (0.1, 1.0)}, "`weights` must be numbers >= 0 with 0 among them"),
        ({"weights": (-1.0, 0.0)}, "`weights` must be numbers >= 0"),
        ({"folds": 1}, "`folds` must be at least 2"),
        ({"steps": 0}, "`steps` must be positive"),
        ({"at_once": 0}, "`at_once` must be positive"),
        ({"unlabelled_batch": -1}, "`unlabelled_batch` must be >= 0, got -1"),
        ({"labels": np.repeat([0, 1, 2], 80)}, "no unlabelled image; set `unlabelled_batch` to 0"),
        ({"labels": np.full(240, -1)}, "`labels` names no class"),
        ({"kind": "knows too little"}, "there are 240 images, but 200 labels or outputs"),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(checks.InputError, match=message):
        choose(**settings)
