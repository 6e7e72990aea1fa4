"""Contrastive losses: telling the two views of one image from views of different images."""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks

Form = Literal["auto", "product", "gather"]

HIGHEST = jax.lax.Precision.HIGHEST
_GUARD = 1e-7  # added to the noise, as the authors do
# Rows of the bank for each candidate of an example up to which the product with the whole bank
# is quicker than gathering the candidates' rows (measured on a processor, at batch 64).
_PRODUCT_UP_TO = 12


class Sides(NamedTuple):
    """The same of student and teacher: banks of embeddings, logits, or log-normalisers."""

    student: Array
    teacher: Array


def unit(vectors: Float[Array, "*rows features"]) -> Float[Array, "*rows features"]:
    """Vectors scaled to length one; a vector of zeros stays so, with a gradient of zero."""
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    some = square > 0
    return jnp.where(some, vectors * jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)


def similarities(
    anchors: Float[Array, "batch features"],
    bank: Float[Array, "examples features"],
    candidates: Int[Array, "batch candidates"],
    *,
    form: Form = "auto",
) -> Float[Array, "batch candidates"]:
    """Inner products of each anchor with rows of a bank, chosen for each anchor by itself.

    Gathering the rows takes batch * candidates * features numbers out of memory: 512 MB for 64
    anchors with 16,384 candidates of 128 features. Unless the bank is far longer than that,
    the product of all anchors with all of it is several times quicker, and its entries are
    gathered instead. No gradient flows into the bank.

    Args:
        anchors: One vector an example.
        bank: One vector for each example of the data. It may be sharded by rows.
        candidates: Rows of the bank, for each example.
        form: "product" with the whole bank; "gather" of the rows, one example at a time; "auto"
            chooses by size. They differ by rounding only.

    Returns:
        The inner products; NaN for a row that the bank does not have.

    Raises:
        InputError: If the numbers of features differ or `form` is unknown.
    """
    checks.choice("form", form, get_args(Form))
    checks.shape("bank", bank, (None, anchors.shape[-1]))
    bank = jax.lax.stop_gradient(bank)
    if form == "auto":
        short = len(bank) <= _PRODUCT_UP_TO * candidates.shape[-1]
        form = "product" if short else "gather"
    if form == "product":
        with_all = jnp.matmul(anchors, bank.T, precision=HIGHEST)
        return jnp.take_along_axis(with_all, candidates, axis=-1)

    # Gathered anew in the backward pass: the rows of one example at a time are all that is held.
    @jax.checkpoint
    def with_own(pair: tuple[Array, Array]) -> Array:
        anchor, rows = pair
        return jnp.matmul(jnp.take(bank, rows, axis=0), anchor, precision=HIGHEST)

    return jax.lax.map(with_own, (anchors, candidates))


def bank_logits(
    student: Float[Array, "batch features"],
    teacher: Float[Array, "batch features"],
    banks: Sides,
    candidates: Int[Array, "batch candidates"],
    *,
    temperature: float,
) -> Sides:
    """Similarity over temperature of each side with the other side's bank."""
    return Sides(
        similarities(student, banks.teacher, candidates) / temperature,
        similarities(teacher, banks.student, candidates) / temperature,
    )


def log_normaliser(logits: Float[Array, "batch candidates"], num_examples: int) -> Float[Array, ""]:
    """Logarithm of Z: the mean exponential of the logits, times the size of the data.

    The paper's critic would need the sum over all the data; this estimates it once, at the
    first step, and it is held fixed from then on.
    """
    log_mean = jax.nn.logsumexp(logits) - math.log(logits.size)
    return jax.lax.stop_gradient(log_mean + math.log(num_examples))


def nce(log_scores: Float[Array, "batch candidates"], num_examples: int) -> Float[Array, " batch"]:
    """Noise-contrastive estimation: is a candidate the positive, or drawn from the data?

    With o the score and K / n the density of the K negatives under the uniform noise over n
    examples it is -log(o / (o + K / n)) for the positive and, summed over the negatives,
    -log((K / n) / (o + K / n)).

    Args:
        log_scores: Logarithm of the normalised score of each candidate, the positive first.
        num_examples: Size n of the data, >= 1.

    Returns:
        Loss of each example, in nats.

    Raises:
        InputError: If there is no negative or `num_examples` is not positive.

    References:
        Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, eq. 18-19,
        as their code has it.
    """
    checks.positive("num_examples", num_examples)
    negatives = log_scores.shape[-1] - 1
    checks.require(negatives >= 1, "`log_scores` needs one negative or more beside the positive.")
    noise = negatives / num_examples
    odds = log_scores - math.log(noise + _GUARD)
    rejected = jnp.sum(jax.nn.softplus(odds[:, 1:]), axis=-1) + negatives * math.log1p(
        _GUARD / noise
    )
    return jax.nn.softplus(-odds[:, 0]) + rejected


def crd(
    student: Float[Array, "batch features"],
    teacher: Float[Array, "batch features"],
    banks: Sides,
    candidates: Int[Array, "batch candidates"],
    log_normalisers: Sides | None = None,
    *,
    temperature: float = 0.07,
) -> Float[Array, " batch"]:
    """Contrastive representation distillation against banks of earlier embeddings.

    The student's embedding of an image is told from chance by the teacher's of the same image,
    and the teacher's by the student's: a bound on what the two say of each other. All that is
    learnt or remembered belongs to the objective of this name.

    Args:
        student: Embeddings of the images, of length one.
        teacher: Likewise.
        banks: Earlier embeddings of all the data by student and by teacher; no gradient.
        candidates: Rows of the banks for each image: the positive first, then the negatives.
        log_normalisers: Logarithms of Z of student and teacher. None takes those of this call,
            as the paper's code does at the first.
        temperature: > 0; 0.07 in the authors' code, 0.1 in the paper on CIFAR-100.

    Returns:
        Loss of each example, of both sides together, in nats.

    Raises:
        InputError: If the shapes do not fit, there is no negative, or `temperature` is not
            positive.

    References:
        Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, eq. 18-19.
    """
    checks.positive("temperature", temperature)
    logits = bank_logits(student, teacher, banks, candidates, temperature=temperature)
    num_examples = len(banks.student)
    if log_normalisers is None:
        log_normalisers = Sides(*(log_normaliser(of, num_examples) for of in logits))
    from_student, from_teacher = (
        nce(of - log_z, num_examples) for of, log_z in zip(logits, log_normalisers, strict=True)
    )
    return from_student + from_teacher


def info_nce(
    anchors: Float[Array, "batch features"],
    positives: Float[Array, "batch features"],
    negatives: Float[Array, "others features"],
    is_negative: Bool[Array, "batch others"] | None = None,
    *,
    temperature: float = 0.07,
) -> Float[Array, " batch"]:
    """Cross-entropy of finding the positive among the negatives that all anchors share.

    Args:
        anchors: Embeddings, of length one.
        positives: The other view of each anchor, of length one.
        negatives: Other views of other images: those of the batch, or a queue of earlier ones.
        is_negative: Which of them count for which anchor; all if None. With `positives` for
            negatives, the diagonal must not.
        temperature: > 0.

    Returns:
        -log(exp(s+ / temperature) / (exp(s+ / temperature) + sum exp(s- / temperature))) of
        each anchor, s the inner product; zero for one without negatives.

    Raises:
        InputError: If the shapes do not fit or `temperature` is not positive.

    References:
        van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding,
        2018, eq. 4; He et al., Momentum Contrast, CVPR 2020 (the queue).
    """
    checks.positive("temperature", temperature)
    checks.shape("positives", positives, anchors.shape)
    checks.shape("negatives", negatives, (None, anchors.shape[-1]))
    if is_negative is not None:
        checks.shape("is_negative", is_negative, (len(anchors), len(negatives)))
    own = jnp.sum(anchors * positives, axis=-1, keepdims=True) / temperature
    others = jnp.matmul(anchors, negatives.T, precision=HIGHEST) / temperature
    if is_negative is not None:
        others = jnp.where(is_negative, others, -jnp.inf)
    return jax.nn.logsumexp(jnp.concatenate([own, others], axis=-1), axis=-1) - own[:, 0]
