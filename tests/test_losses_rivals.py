"""Rivals of transport against reference code, closed forms and plain loops over examples."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import oracle_files
import pytest

from fdjax import checks, costs, losses

BATCH, CLASSES, TEACHER_CLASSES, WIDTH = 8, 3, 5, 4
STUDENT_TEACHER = ("student", "teacher")
# Into six dimensions, angles kept.
ROTATION = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0][:WIDTH].astype(np.float32)
LABELS = jnp.array([0, 0, 1, 1, 2, 0, -1, -1])


def draws(dtype=None):
    """Arguments of every loss by name, from one fixed draw."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype or jnp.float32)

    student, teacher = 2 * normal(BATCH, CLASSES), 2 * normal(BATCH, TEACHER_CLASSES)
    own, given = normal(BATCH, WIDTH), normal(BATCH, 6)
    # Classes lie near each other, so that there are semi-hard triplets to mine.
    own = 0.2 * own + 1.0
    cost, centres = jnp.abs(normal(TEACHER_CLASSES, CLASSES)), normal(CLASSES, 6)
    return {
        "projected_kl": (student, teacher, cost),
        "uld": (student, teacher),
        "extra_head": (2 * normal(BATCH, TEACHER_CLASSES), teacher),
        "feature_matching": (own, normal(BATCH, WIDTH)),
        "pseudo_labels": (3 * student,),
        "refilled_relations": (own, given, LABELS),
        "refilled_classifier": (student, given, LABELS, centres),
        "gkd_classifier": (student, given, teacher, LABELS, centres),
    }


NAMES = list(draws())
PER_EXAMPLE = [name for name in NAMES if name != "refilled_relations"]


def softmax(logits):
    """Of rows, in NumPy."""
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kl(target, other):
    """Of rows, in NumPy; target > 0."""
    return (target * (np.log(target) - np.log(other))).sum(axis=-1)


# Every loss


@functools.cache
def compiled(name, **settings):
    """`(first, *rest) -> (values, gradient of their sum in first)`."""

    def total(first, *rest):
        value = getattr(losses, name)(first, *rest, **settings)
        return value.sum(), value

    gradient = jax.value_and_grad(total, has_aux=True)

    def both(*arguments):
        (_, value), slope = gradient(*arguments)
        return value, slope

    return jax.jit(both)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_one_an_example_and_the_same_under_jit_and_vmap(name):
    loss, arguments = getattr(losses, name), draws()[name]
    value = loss(*arguments)
    assert value.shape == ((BATCH,) if name in PER_EXAMPLE else ())
    assert (value >= 0).all() and (value > 0).any()
    np.testing.assert_allclose(compiled(name)(*arguments)[0], value, rtol=1e-5, atol=1e-6)
    twice = jax.tree.map(lambda a: np.stack([a, a]), arguments)
    mapped = jax.jit(jax.vmap(loss))(*twice)
    np.testing.assert_allclose(mapped, np.stack([value, value]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {}) for name in NAMES] + [("refilled_relations", {"comparison": "triplets"})],
)
def test_gradients_agree_with_finite_differences(name, settings, x64):
    first, *rest = map(np.asarray, draws(jnp.float64)[name])
    direction = np.random.default_rng(1).normal(size=first.shape)

    def total(by):
        return compiled(name, **settings)(first + by * direction, *rest)[0].sum()

    slope = (total(1e-6) - total(-1e-6)) / 2e-6
    gradient = compiled(name, **settings)(first, *rest)[1]
    assert abs(slope) > 1e-5
    np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=1e-5)


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_one_example_is_a_batch(name):
    arguments = [np.asarray(a)[:1] if a.shape[0] == BATCH else a for a in draws()[name]]
    value, gradient = compiled(name)(*arguments)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_equal_rows_and_rows_of_zeros_have_a_finite_gradient(name):
    def degenerate(array):
        array = np.array(array)
        if array.shape[0] == BATCH and array.ndim == 2:
            array[:3], array[4] = array[0], 0.0
        return array

    first, *rest = map(degenerate, draws()[name])
    for scale in (1.0, 1e4, 0.0):
        value, gradient = compiled(name)(np.float32(scale) * first, *rest)
        assert np.isfinite(value).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["projected_kl", "uld", "extra_head", "gkd_classifier"])
def test_padded_teacher_labels_change_nothing(name):
    base = list(map(np.asarray, draws()[name]))
    arguments = base.copy()
    position = 2 if name == "gkd_classifier" else 1

    def padded(logits, value):
        return np.pad(logits, ((0, 0), (0, 2)), constant_values=value)

    arguments[position] = padded(base[position], -np.inf)
    if name == "projected_kl":
        arguments[2] = np.pad(base[2], ((0, 2), (0, 0)))
    if name == "extra_head":
        arguments[0] = padded(base[0], 7.0)
    (want, slope), (got, new_slope) = compiled(name)(*base), compiled(name)(*arguments)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(new_slope[:, : slope.shape[1]], slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(new_slope[:, slope.shape[1] :], 0.0)


@pytest.fixture
def unchecked_types():
    """Types as in a user's process: the tests' own checks of them speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("name", "changed", "settings", "message"),
    [
        ("projected_kl", {2: jnp.zeros((3, 5))}, {}, r"`cost` must have shape \(5, 3\), got"),
        ("projected_kl", {}, {"temperature": 0.0}, "`temperature` must be positive"),
        ("projected_kl", {}, {"epsilon": -1.0}, "`epsilon` must be positive, got -1"),
        ("uld", {}, {"temperature": -1.0}, "`temperature` must be positive"),
        ("extra_head", {0: jnp.zeros((8, 3))}, {}, r"`head_logits` must have shape \(8, 5\)"),
        ("extra_head", {}, {"temperature": 0.0}, "`temperature` must be positive"),
        ("feature_matching", {0: jnp.zeros((8, 9))}, {}, "got 9 of the student and 4 of the tea"),
        ("pseudo_labels", {}, {"threshold": 1.5}, r"`threshold` must lie in \[0.0, 1.0\]"),
        (
            "refilled_relations",
            {},
            {"comparison": "pairs"},
            "`comparison` must be one of tuples, triplets",
        ),
        ("refilled_relations", {}, {"margin": 0.0}, "`margin` must be positive, got 0"),
        ("refilled_relations", {}, {"temperature": 0.0}, "`temperature` must be positive"),
        ("refilled_classifier", {3: jnp.zeros((3, 2))}, {}, r"`centres` must have shape \(3, 6\)"),
        ("refilled_classifier", {2: LABELS + 1}, {}, r"`labels` must lie in \[-1, 2\], got 3"),
        ("refilled_classifier", {}, {"temperature": 0.0}, "`temperature` must be positive"),
        ("gkd_classifier", {4: jnp.zeros((2, 6))}, {}, r"`centres` must have shape \(3, 6\)"),
    ],
)
def test_bad_input_is_refused(name, changed, settings, message, unchecked_types):
    arguments = [changed.get(i, a) for i, a in enumerate(draws()[name])]
    with pytest.raises(checks.InputError, match=message):
        getattr(losses, name)(*arguments, **settings)


# Predictions


@pytest.mark.parametrize("name", ["uld_class_student_smaller", "uld_class_student_larger"])
def test_uld_agrees_with_the_reference_code(name, x64):
    stored = oracle_files.load(f"distill/{name}")
    student, teacher = (jnp.asarray(stored[key][:, 0], jnp.float64) for key in STUDENT_TEACHER)

    def loss(logits):  # the paper's weight is theirs to add
        return float(stored["weight"]) * losses.uld(logits, teacher).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(student)
    np.testing.assert_allclose(value, stored["loss"], rtol=1e-12)
    np.testing.assert_allclose(gradient, stored["grad_student"][:, 0], atol=1e-12)


def answer(targets):
    """First position and length of an answer, by the reference code's next-token convention."""
    inside = np.flatnonzero(targets != -100)
    return max(int(inside[0]) - 1, 0), len(inside)


def test_uld_agrees_with_the_reference_code_on_sequences(x64):
    stored = oracle_files.load("distill/uld_sequence")
    student, teacher = (jnp.asarray(stored[key], jnp.float64) for key in STUDENT_TEACHER)
    own, given, share = [], [], []  # sample and position of each answer, and its weight
    for sample in range(len(student)):
        (s, n), (t, m) = (answer(stored[f"{side}_targets"][sample]) for side in STUDENT_TEACHER)
        for step in range(min(n, m)):
            own.append((sample, s + step))
            given.append((sample, t + step))
            share.append(float(stored["weight"]) / min(n, m) / len(student))

    def loss(logits):
        picked = (side[*np.transpose(at)] for side, at in ((logits, own), (teacher, given)))
        return jnp.vdot(losses.uld(*picked), np.array(share))

    value, gradient = jax.jit(jax.value_and_grad(loss))(student)
    np.testing.assert_allclose(value, stored["loss"], rtol=1e-12)
    np.testing.assert_allclose(gradient, stored["grad_student"], atol=1e-12)


def test_uld_by_hand():
    student = jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5]]))
    teacher = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.5, 0.0, 0.5]]))
    # |0.8 - 0.6| + |0.2 - 0.3| + 0.1; which labels they are is nothing to it.
    np.testing.assert_allclose(losses.uld(student, teacher), [0.4, 0.0], atol=1e-6)


def test_projected_kl_is_zero_at_the_leep_predictor_and_follows_the_formula():
    rng = np.random.default_rng(2)
    probabilities = jnp.asarray(softmax(rng.normal(size=(BATCH, TEACHER_CLASSES))), jnp.float32)
    labels = jnp.array([0, 1, 2, 0, 1, 2, -1, -1])
    cost = costs.from_predictions(probabilities, labels, CLASSES)
    target = np.asarray(probabilities) @ np.exp(-np.asarray(cost))
    log_target, log_teacher = jnp.log(jnp.asarray(target)), jnp.log(probabilities)
    np.testing.assert_allclose(losses.projected_kl(log_target, log_teacher, cost), 0, atol=1e-6)
    student = jnp.asarray(rng.normal(size=(BATCH, CLASSES)), jnp.float32)
    got = losses.projected_kl(student, log_teacher, cost, temperature=2.0, epsilon=0.5)
    sharper = softmax(-np.asarray(cost) / 0.5)
    want = kl(softmax(np.asarray(log_teacher) / 2) @ sharper, softmax(student / 2))
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_projected_kl_of_a_label_that_cannot_be_reached_is_finite():
    cost = jnp.array([[0.0, 1e4], [0.0, 1e4]])  # exp(-1e4) is zero in float32

    def loss(logits):
        return losses.projected_kl(logits, jnp.zeros((1, 2)), cost).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((1, 2)))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.5, 0.5]], rtol=1e-6)


def test_extra_head_is_hintons_divergence():
    head, teacher = draws()["extra_head"]
    got = losses.extra_head(head, teacher, temperature=2.0)
    np.testing.assert_allclose(got, 4 * kl(softmax(teacher / 2), softmax(head / 2)), rtol=1e-4)


def test_feature_matching_by_hand():
    got = losses.feature_matching(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 4.0]] * 2))
    np.testing.assert_allclose(got, [5.0, 16.0])


def test_pseudo_labels_teach_what_is_sure_and_nothing_else():
    probabilities = jnp.array([[0.97, 0.02, 0.01], [0.94, 0.05, 0.01], [0.01, 0.0, 0.99]])
    logits = jnp.log(probabilities)
    np.testing.assert_allclose(
        losses.pseudo_labels(logits), [-np.log(0.97), 0.0, -np.log(0.99)], rtol=1e-5
    )
    lower = losses.pseudo_labels(logits, threshold=0.9)
    np.testing.assert_allclose(lower[1], -np.log(0.94), rtol=1e-5)
    gradient = jax.grad(lambda z: losses.pseudo_labels(z).sum())(logits[:2])
    # Cross-entropy with a fixed label: prediction minus label.
    np.testing.assert_allclose(gradient[0], [-0.03, 0.02, 0.01], atol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0.0)


# Relationships


def relations_in_loops(own, given, labels, *, comparison, margin=0.2, temperature=4.0):
    """ReFilled's stage 1 as three loops over the batch."""

    def distance(features, i, j):
        a, b = (features[k] / np.linalg.norm(features[k]) for k in (i, j))
        return np.linalg.norm(a - b)

    known = [i for i in range(len(labels)) if labels[i] >= 0]
    found = []
    for a in known:
        for p in known:
            if p == a or labels[p] != labels[a]:
                continue
            near = distance(own, a, p)
            negatives = [
                n
                for n in known
                if labels[n] != labels[a] and 0 < distance(own, a, n) - near <= margin
            ]
            if comparison == "tuples" and negatives:
                teacher, student = (
                    softmax([-distance(side, a, j) / temperature for j in (p, *negatives)])
                    for side in (given, own)
                )
                found.append(kl(teacher, student))
            if comparison == "triplets":
                for n in negatives:
                    yes = [
                        1
                        / (1 + np.exp((distance(side, a, p) - distance(side, a, n)) / temperature))
                        for side in (given, own)
                    ]
                    teacher, student = (np.array([y, 1 - y]) for y in yes)
                    found += [kl(teacher, student) / 2]
    assert len(found) > 3
    return np.mean(found)


@pytest.mark.parametrize("comparison", ["tuples", "triplets"])
def test_relations_agree_with_plain_loops(comparison, x64):
    arguments = draws(jnp.float64)["refilled_relations"]
    got, _ = compiled("refilled_relations", comparison=comparison)(*arguments)
    want = relations_in_loops(*map(np.asarray, arguments), comparison=comparison)
    np.testing.assert_allclose(got, want, rtol=1e-7)


@pytest.mark.parametrize("comparison", ["tuples", "triplets"])
def test_relations_see_the_labelled_part_and_directions_only(comparison):
    own, given, labels = map(np.asarray, draws()["refilled_relations"])
    loss = compiled("refilled_relations", comparison=comparison)
    labelled = (labels >= 0)[:, None]
    base, _ = loss(own, given, labels)
    moved, gradient = loss(np.where(labelled, own, -own), np.where(labelled, given, 0), labels)
    scaled, _ = loss(own, 7 * given, labels)
    np.testing.assert_allclose([moved, scaled], [base, base], rtol=1e-3)
    np.testing.assert_array_equal(gradient[~labelled[:, 0]], 0.0)
    np.testing.assert_allclose(loss(own, own @ ROTATION, labels)[0], 0.0, atol=1e-7)
    assert loss(own, given, np.full_like(labels, -1))[0] == 0.0


def test_relations_need_three_images():
    own, given, labels = draws()["refilled_relations"]
    for size in (1, 2):
        with pytest.raises(checks.InputError, match=f"but the batch has {size}; raise the batch"):
            losses.refilled_relations(own[:size], given[:size], labels[:size])


def classifier_by_hand(student, given, classes, centres, temperature, student_temperature):
    """KL over some classes, the teacher by the direction of the centres."""
    unit = np.asarray(centres) / np.linalg.norm(centres, axis=1, keepdims=True)
    scores = np.asarray(given) @ unit.T
    return kl(
        softmax(scores[:, classes] / temperature),
        softmax(np.asarray(student)[:, classes] / student_temperature),
    )


def test_classifier_follows_the_nearest_centre_among_the_named_classes():
    student, given, labels, centres = draws()["refilled_classifier"]
    got = losses.refilled_classifier(student, given, labels, centres)
    want = classifier_by_hand(student, given, [0, 1, 2], centres, 2.0, 2.0)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    fewer = jnp.where(labels == 1, -1, labels)  # class 1 is named by none
    got = losses.refilled_classifier(student, given, fewer, centres, temperature=3.0)
    want = classifier_by_hand(student, given, [0, 2], centres, 3.0, 3.0)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_classifier_without_centres_takes_those_of_the_labelled_part():
    student, given, labels, _ = draws()["refilled_classifier"]
    centres = costs.class_centres(given, labels, CLASSES)
    np.testing.assert_allclose(
        losses.refilled_classifier(student, given, labels),
        losses.refilled_classifier(student, given, labels, centres),
        rtol=1e-4,
    )


@pytest.mark.parametrize("labels", [[-1] * BATCH, [1] * BATCH])
def test_classifier_of_fewer_than_two_classes_teaches_nothing(labels):
    student, given, _, centres = draws()["refilled_classifier"]

    value, gradient = compiled("refilled_classifier")(student, given, jnp.array(labels), centres)
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


def test_gkd_weighs_by_the_teachers_surprise():
    student, given, teacher, labels, centres = draws()["gkd_classifier"]
    surprise = -np.log(softmax(teacher).max(axis=1))
    scaled = (surprise - surprise.min()) / (surprise.max() - surprise.min())
    weight = 2 / (1 + np.exp(scaled))
    plain = classifier_by_hand(student, given, [0, 1, 2], centres, 2.0, 1.0)
    got = losses.gkd_classifier(student, given, teacher, labels, centres, temperature=2.0)
    np.testing.assert_allclose(got, weight * plain, rtol=1e-4)
    equally_sure = losses.gkd_classifier(student, given, jnp.zeros((BATCH, 5)), labels, centres)
    unweighted = losses.refilled_classifier(student, given, labels, centres, temperature=1.0)
    np.testing.assert_allclose(equally_sure, unweighted, rtol=1e-6)
