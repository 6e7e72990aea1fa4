"""Contrastive representation distillation against a memory bank, a queue, or the batch itself."""

from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax.losses import contrastive
from fdjax.losses.contrastive import Sides
from fdjax.objectives.base import Objective
from fdjax.objectives.candidates import Classes, Negatives, Positives, draw, sort_by_class
from fdjax.objectives.layers import Layer, apply_linear, linear
from fdjax.objectives.rivals import features
from fdjax.types import Batch, Outputs

Tree = Any
Heads: TypeAlias = dict[str, Layer]
Unseen = Literal["wait", "noise"]


class BankState(NamedTuple):
    """What CRD remembers; all of it is part of a checkpoint.

    Attributes:
        banks: Embedding of each example of the data by student and by teacher, when it was last
            seen.
        log_normalisers: Logarithms of Z of student and teacher; zero before they are fixed.
        started: Whether a step has fixed them.
        classes: The data sorted by class, from which candidates are drawn.
        seen: Whether the banks' row of an example counts: always, or once it was seen.
    """

    banks: Sides
    log_normalisers: Sides
    started: Bool[Array, ""]
    classes: Classes
    seen: Bool[Array, " examples"]


class QueueState(NamedTuple):
    """The latest embeddings, the oldest of which make way.

    Attributes:
        embeddings: By student and by teacher.
        labels: Of their images; -1 where unknown.
        indices: Rows of their images in the data; -1 where the queue is still empty.
        position: Where the next embedding goes.
    """

    embeddings: Sides
    labels: Int[Array, " length"]
    indices: Int[Array, " length"]
    position: Int[Array, ""]


def _heads(key: Array, student: Outputs, teacher: Outputs, size: int, objective: str) -> Heads:
    """A fresh linear layer for each side, both of which are trained."""
    student_key, teacher_key = jax.random.split(key)
    own = features(student, "student", objective).shape[-1]
    given = features(teacher, "teacher", objective).shape[-1]
    return {
        "student": linear(student_key, own, size),
        "teacher": linear(teacher_key, given, size),
    }


def embed(heads: Heads, student: Outputs, teacher: Outputs, objective: str) -> Sides:
    """Embeddings of length one of both sides' features."""
    return Sides(
        contrastive.unit(apply_linear(heads["student"], features(student, "student", objective))),
        contrastive.unit(apply_linear(heads["teacher"], features(teacher, "teacher", objective))),
    )


@partial(jax.jit, static_argnames=("examples", "size", "dtype", "sharding"))
def _fresh_bank(
    key: Array, *, examples: int, size: int, dtype: Any, sharding: jax.sharding.Sharding | None
) -> Float[Array, "examples size"]:
    """Uniform numbers whose vectors have a mean square length of one, made where they are to lie.

    Compiled, so that no single device has to hold a bank that is spread over several.
    """
    reach = (3 / size) ** 0.5
    bank = jax.random.uniform(key, (examples, size), dtype, -reach, reach)
    return bank if sharding is None else jax.lax.with_sharding_constraint(bank, sharding)


def contrast(
    embeddings: Sides,
    state: BankState,
    indices: Int[Array, " batch"],
    candidates: Int[Array, "batch candidates"],
    *,
    temperature: float,
    momentum: float,
) -> tuple[Float[Array, " batch"], BankState]:
    """One step of CRD with given candidates: the loss, and the banks after it.

    Args:
        embeddings: Of the batch.
        state: Before the step.
        indices: Row of each image in the banks.
        candidates: Rows to compare each image with, the positive first.
        temperature: As for `losses.crd`.
        momentum: Share of the old embedding that the banks keep.

    Returns:
        Loss of each example against the banks as they were, and the new state: the first step
        most of whose images count fixes the normalisers, and each step moves the rows of its
        batch. An image that does not count yet has a loss of zero, and its rows become its
        embeddings.
    """
    # Before the normalisers are fixed the similarities are found twice, once for them.
    fixed = jax.lax.stop_gradient(embeddings)
    seen = jnp.take(state.seen, indices)

    def first() -> Sides:
        logits = contrastive.bank_logits(*fixed, state.banks, candidates, temperature=temperature)
        examples = len(state.banks.student)
        return Sides(*(contrastive.log_normaliser(of, examples) for of in logits))

    log_normalisers = jax.lax.cond(state.started, lambda: state.log_normalisers, first)
    value = contrastive.crd(
        *embeddings, state.banks, candidates, log_normalisers, temperature=temperature
    )

    kept = jnp.where(seen, momentum, 0.0)[:, None]

    def moved(bank: Array, new: Array) -> Array:
        old = jnp.take(bank, indices, axis=0)
        return bank.at[indices].set(contrastive.unit(kept * old + (1 - kept) * new))

    return jnp.where(seen, value, 0.0), BankState(
        Sides(*map(moved, state.banks, fixed)),
        log_normalisers,
        state.started | (2 * seen.sum() > len(seen)),
        state.classes,
        state.seen.at[indices].set(True),
    )


def crd(
    labels: Int[Array | np.ndarray, " examples"],
    *,
    negatives: int = 16_384,
    positives: Positives = "exact",
    draw_from: Negatives = "other_classes",
    embedding_size: int = 128,
    temperature: float = 0.07,
    momentum: float = 0.5,
    unseen: Unseen = "wait",
    sharding: jax.sharding.Sharding | None = None,
) -> Objective:
    """Contrastive representation distillation with the paper's memory bank; see `losses.crd`.

    Student and teacher each get a linear head, trained with the student and thrown away
    afterwards, and a bank with one embedding for each example of the data. The student's own
    head learns nothing from it: add `cross_entropy`, beside which the paper weighs this by 0.8.

    Args:
        labels: Class of each example of the data, by `batch.indices`. Each unlabelled one (-1)
            stands for a class of its own, so that without any label all other images are
            negatives.
        negatives: Of each image, >= 1. The more, the better, up to the size of the data.
        positives: "exact" for the image itself, "relax" for any of its class.
        draw_from: "other_classes" or "anything"; see `candidates.draw`.
        embedding_size: Numbers in an embedding.
        temperature: > 0; 0.07 in the authors' code, 0.1 in the paper on CIFAR-100.
        momentum: Share in [0, 1) of its old embedding that an example keeps when it is seen.
        unseen: The banks begin as noise. With "wait" an example counts from the second time that
            it is seen: at the first, its embeddings take the place of the noise. With "noise",
            as in the authors' code, it counts at once, so that students are drawn towards noise
            for the whole first pass over the data; that is nothing to hundreds of passes, and
            spoils ten. A pass whose optimiser is `optax.set_to_zero()` fills the banks without
            any training.
        sharding: Where the two banks lie, such as a `NamedSharding` of their first axis over a
            mesh; None for one device.

    Returns:
        The objective, for outputs with features on both sides. Memory: two banks of
        examples * embedding_size and, unless they are 12 times as long as the negatives, about
        four times batch * examples in a step.

    Raises:
        InputError: If the bank is smaller than the negatives, a class has no other class, the
            bank does not divide among the devices, or a setting is out of range; later, if a
            side shows no features or the labels are not those of the data.

    References:
        Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020; the details
        follow the authors' code.
    """
    _check_settings(embedding_size, temperature)
    checks.choice("positives", positives, get_args(Positives))
    checks.choice("draw_from", draw_from, get_args(Negatives))
    checks.choice("unseen", unseen, get_args(Unseen))
    checks.positive("negatives", negatives)
    checks.require(0 <= momentum < 1, f"`momentum` must lie in [0, 1), got {momentum}.")
    checks.shape("labels", labels, (None,))
    examples = len(labels)
    checks.require(
        negatives <= examples,
        f"`negatives` is {negatives}, but the bank has only {examples} examples; ask for fewer, or "
        "choose `info_nce`, which takes those of the batch.",
    )
    checks.require(
        int(np.min(labels)) >= -1, f"`labels` must be at least -1, got {int(np.min(labels))}."
    )
    classes = sort_by_class(labels)
    checks.require(
        draw_from == "anything" or int(np.max(classes.size)) < examples,
        "every example is of one class, so none is a negative; give `labels` of two classes or "
        "more, or draw from anything.",
    )
    if sharding is not None:
        _check_sharding(sharding, (examples, embedding_size))

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        if checks.is_concrete(batch.indices):
            last = int(np.max(batch.indices))
            checks.require(
                last < examples,
                f"the batch has example {last} of the data, but `labels` has {examples}; give the "
                "labels of the whole data.",
            )
        head_key, *bank_keys = jax.random.split(key, 3)
        heads = _heads(head_key, student, teacher, embedding_size, "crd")
        dtype = heads["student"]["kernel"].dtype
        fresh = partial(_fresh_bank, examples=examples, size=embedding_size, dtype=dtype)
        banks = (fresh(one, sharding=sharding) for one in bank_keys)
        zeros = Sides(jnp.zeros((), dtype), jnp.zeros((), dtype))
        seen = jnp.full(examples, unseen == "noise")
        return heads, BankState(Sides(*banks), zeros, jnp.zeros((), bool), classes, seen)

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        candidates = draw(
            key, state.classes, batch.indices, negatives, positives=positives, negatives=draw_from
        )
        embeddings = embed(params, student, teacher, "crd")
        value, new = contrast(
            embeddings,
            state,
            batch.indices,
            candidates,
            temperature=temperature,
            momentum=momentum,
        )
        if sharding is not None:
            new = new._replace(banks=jax.lax.with_sharding_constraint(new.banks, sharding))
        return value, new

    return Objective(init, loss, listens=unseen == "wait")


def _check_settings(embedding_size: int, temperature: float) -> None:
    checks.positive("embedding_size", embedding_size)
    checks.positive("temperature", temperature)


def _check_sharding(sharding: jax.sharding.Sharding, shape: tuple[int, int]) -> None:
    """Refuses a sharding that does not divide the banks evenly."""
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        raise checks.InputError(
            f"the banks of {shape[0]} x {shape[1]} cannot be spread by `sharding` ({sharding}); "
            "choose a number of devices that divides the number of examples."
        ) from error


def _other_images(
    batch: Batch, labels: Int[Array, " others"], indices: Int[Array, " others"]
) -> Bool[Array, "batch others"]:
    """Where an image of the batch may take another as a negative: neither itself nor its class."""
    same_class = (batch.labels[:, None] == labels) & (labels >= 0)
    return (batch.indices[:, None] != indices) & (indices >= 0) & ~same_class


def _both_ways(
    embeddings: Sides,
    others: Sides,
    is_negative: Bool[Array, "batch others"],
    temperature: float,
) -> Float[Array, " batch"]:
    """The student among teachers' embeddings, and the teacher among students'."""
    return contrastive.info_nce(
        embeddings.student, embeddings.teacher, others.teacher, is_negative, temperature=temperature
    ) + contrastive.info_nce(
        embeddings.teacher, embeddings.student, others.student, is_negative, temperature=temperature
    )


def crd_queue(
    *, length: int = 16_384, embedding_size: int = 128, temperature: float = 0.07
) -> Objective:
    """CRD against the latest embeddings of either side, by `losses.info_nce`.

    For data too large for a bank: memory is 2 * length * embedding_size, whatever the size of
    the data. A batch joins the queue before it is compared with it, so that the first step has
    negatives as well. Neither the image itself nor one of its class is a negative.

    Args:
        length: Of the queue; at least a batch.
        embedding_size: Numbers in an embedding.
        temperature: > 0.

    Raises:
        InputError: If a setting is not positive; later, if the queue is shorter than a batch or
            a side shows no features.

    References:
        Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020; He et al.,
        Momentum Contrast, CVPR 2020 (the queue).
    """
    _check_settings(embedding_size, temperature)
    checks.positive("length", length)

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        batch_size = len(batch.labels)
        checks.require(
            batch_size <= length,
            f"the queue's `length` is {length}, less than a batch of {batch_size}; make it longer.",
        )
        heads = _heads(key, student, teacher, embedding_size, "crd_queue")
        empty = jnp.zeros((length, embedding_size), heads["student"]["kernel"].dtype)
        nothing = jnp.full(length, -1, jnp.int32)
        return heads, QueueState(Sides(empty, empty), nothing, nothing, jnp.zeros((), jnp.int32))

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        embeddings = embed(params, student, teacher, "crd_queue")
        new = enqueue(state, batch, jax.lax.stop_gradient(embeddings))
        is_negative = _other_images(batch, new.labels, new.indices)
        return _both_ways(embeddings, new.embeddings, is_negative, temperature), new

    return Objective(init, loss)


def enqueue(state: QueueState, batch: Batch, embeddings: Sides) -> QueueState:
    """The queue with a batch in the place of its oldest entries."""
    size = len(batch.labels)
    length = len(state.labels)
    rows = (state.position + jnp.arange(size)) % length

    def put(old: Array, new: Array) -> Array:
        return old.at[rows].set(new.astype(old.dtype))

    return QueueState(
        Sides(*map(put, state.embeddings, embeddings)),
        put(state.labels, batch.labels),
        put(state.indices, batch.indices),
        (state.position + size) % length,
    )


def info_nce(*, embedding_size: int = 128, temperature: float = 0.07) -> Objective:
    """CRD against the other images of the batch, by `losses.info_nce`; it remembers nothing.

    Gradients flow into positives and negatives alike. Images of one class are not negatives of
    each other, so a batch wants several classes.

    Args:
        embedding_size: Numbers in an embedding.
        temperature: > 0.

    Raises:
        InputError: If a setting is not positive; later, if a batch has one image only or a side
            shows no features.

    References:
        van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding,
        2018; Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020.
    """
    _check_settings(embedding_size, temperature)

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        return _heads(key, student, teacher, embedding_size, "info_nce"), ()

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        checks.require(
            len(batch.labels) > 1,
            "`info_nce` needs batches of two images or more; use larger ones, or `crd`.",
        )
        embeddings = embed(params, student, teacher, "info_nce")
        is_negative = _other_images(batch, batch.labels, batch.indices)
        return _both_ways(embeddings, embeddings, is_negative, temperature), state

    return Objective(init, loss)
