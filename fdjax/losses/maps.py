"""Losses on the maps of one layer: how like the teacher's the student's are, image by image."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.losses.pairs import EXACT, Maps, check_layers, check_maps, of_one_size, unit


def hint(student_maps: Maps, teacher_maps: Maps) -> Float[Array, " batch"]:
    """Squared distance of the student's maps, brought to the teacher's shape, to the teacher's.

    Args:
        student_maps: After a regressor, as the objective of this name learns it.
        teacher_maps: Of the same shape.

    Returns:
        Mean squared difference over positions and channels, for each example. RepDistiller's
        weight is 100.

    Raises:
        InputError: If the shapes differ.

    References:
        Romero et al., FitNets, ICLR 2015, eq. 3 (mean for sum, as in RepDistiller).
    """
    check_maps("hint", student_maps, teacher_maps)
    checks.require(
        student_maps.shape == teacher_maps.shape,
        f"`hint` compares maps of one shape, got {student_maps.shape} of the student and "
        f"{teacher_maps.shape} of the teacher; bring the student's to the teacher's by a "
        "regressor, as the objective of this name does.",
    )
    return jnp.mean((student_maps - teacher_maps) ** 2, axis=(1, 2, 3))


def _attention_map(maps: Maps) -> Float[Array, "batch height width"]:
    """Mean square over the channels at each position, of length one for each image."""
    return unit(jnp.mean(maps**2, axis=-1), axis=(1, 2))


def attention(student_maps: Maps, teacher_maps: Maps) -> Float[Array, " batch"]:
    """Attention transfer: the student is active at the positions where the teacher is.

    Channels may differ in number; the larger maps are averaged to the size of the smaller
    before they are squared. An image whose maps are all zero has zero attention, and no
    gradient.

    Args:
        student_maps: Of one layer.
        teacher_maps: Of the teacher's layer beside it.

    Returns:
        Mean squared difference of the attention maps, which have length one, for each
        example. RepDistiller sums it over the stages, with weight 1000.

    Raises:
        InputError: If the maps do not fit each other.

    References:
        Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, eq. 2, with
        squared distances averaged over positions, as in their code.
    """
    check_maps("attention", student_maps, teacher_maps)
    student, teacher = of_one_size("attention", student_maps, teacher_maps)
    return jnp.mean((_attention_map(student) - _attention_map(teacher)) ** 2, axis=(1, 2))


def factor(
    student_factors: Maps, teacher_factors: Maps, *, exponent: Literal[1, 2] = 1
) -> Float[Array, " batch"]:
    """Factor transfer: the student's translated maps are active where the teacher's factors are.

    Args:
        student_factors: Maps of the student through its translator.
        teacher_factors: Maps of the teacher through the encoder of its paraphraser.
        exponent: Of the difference of the two activity maps.

    Returns:
        Mean absolute (or squared) difference of the activity maps, those of `attention`, for
        each example. RepDistiller's weight is 200, the paper's 500.

    Raises:
        InputError: If the maps do not fit each other or `exponent` is neither 1 nor 2.

    References:
        Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor
        Transfer, NeurIPS 2018. There factors are compared entry by entry; their activity
        maps are RepDistiller's choice.
    """
    check_maps("factor", student_factors, teacher_factors)
    checks.choice("exponent", exponent, (1, 2))
    student, teacher = of_one_size("factor", student_factors, teacher_factors)
    gap = jnp.abs(_attention_map(student) - _attention_map(teacher))
    return jnp.mean(gap**exponent, axis=(1, 2))


def vid(
    student_maps: Maps,
    teacher_maps: Maps,
    kernels: Sequence[Float[Array, "_ _"]],
    log_scale: Float[Array, " channels"],
    *,
    epsilon: float = 1e-5,
) -> Float[Array, " batch"]:
    """Variational information: surprise of the teacher's maps, given the student's.

    At each position a regressor, 1x1 convolutions with ReLU between, predicts the mean of
    the teacher's channels; each channel has a variance of its own.

    Args:
        student_maps: Of one layer; averaged before the regressor if larger.
        teacher_maps: Of the teacher's layer beside it; averaged if larger.
        kernels: Of the regressor, from the student's channels to the teacher's.
        log_scale: Of the variance softplus(log_scale) + `epsilon` of each teacher channel.
        epsilon: Least variance, > 0.

    Returns:
        Mean over positions and channels of (error^2 / variance + log variance) / 2, for each
        example: nats, up to a constant; it may be negative. RepDistiller sums it over the
        stages, with weight 1.

    Raises:
        InputError: If the kernels do not lead from the student's channels to the teacher's,
            or the maps do not fit each other.

    References:
        Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019.
    """
    check_maps("vid", student_maps, teacher_maps)
    checks.positive("epsilon", epsilon)
    channels = teacher_maps.shape[-1]
    width = student_maps.shape[-1]
    for i, kernel in enumerate(kernels):
        outputs = channels if i == len(kernels) - 1 else None
        checks.shape(f"kernels[{i}]", kernel, (width, outputs))
        width = kernel.shape[1]
    checks.require(len(kernels) > 0, "`vid` needs at least one of `kernels`, got none.")
    checks.shape("log_scale", log_scale, (channels,))
    student, teacher = of_one_size("vid", student_maps, teacher_maps)
    # One long list of positions: on a CPU its products cost half of those of the maps.
    predicted = student.reshape(-1, student.shape[-1])
    for i, kernel in enumerate(kernels):
        predicted = jax.nn.relu(predicted) if i > 0 else predicted
        predicted = predicted @ kernel
    variance = jax.nn.softplus(log_scale) + epsilon
    # The mean of log variance over positions is itself: no need to spread it over the map.
    error = jnp.mean((predicted.reshape(teacher.shape) - teacher) ** 2 / variance, axis=(1, 2, 3))
    return 0.5 * (error + jnp.mean(jnp.log(variance)))


def nst(student_maps: Maps, teacher_maps: Maps) -> Float[Array, " batch"]:
    """Neuron selectivity transfer: channels pick out positions as the teacher's channels do.

    Each channel is a sample: a vector over positions, of length one. The two sets of samples
    are compared by their maximum mean discrepancy with the kernel (x . y)^2. A dead channel
    is zero, and no gradient passes.

    Args:
        student_maps: Of one layer; averaged to the teacher's size if larger.
        teacher_maps: Of the teacher's layer beside it, with any number of channels; averaged
            if larger.

    Returns:
        Squared discrepancy of each example. RepDistiller sums it over the stages, with
        weight 50.

    Raises:
        InputError: If the maps do not fit each other.

    References:
        Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
        2017, with their polynomial kernel for d = 2, c = 0.
    """
    check_maps("nst", student_maps, teacher_maps)
    student, teacher = (
        unit(maps.reshape(maps.shape[0], -1, maps.shape[-1]), axis=1)
        for maps in of_one_size("nst", student_maps, teacher_maps)
    )

    def kernel(
        one: Float[Array, "batch positions channels"], other: Float[Array, "batch positions more"]
    ) -> Float[Array, " batch"]:
        inner = jnp.einsum("bpc,bpd->bcd", one, other, precision=EXACT)
        return jnp.mean(inner**2, axis=(1, 2))

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def abound(
    student_maps: Sequence[Maps], teacher_maps: Sequence[Maps], *, margin: float = 1.0
) -> Float[Array, " batch"]:
    """Activation boundaries: the student's neurons are on where the teacher's are, by a margin.

    Before the activation, a neuron should be above `margin` where the teacher's is above
    zero, and below -`margin` elsewhere; how far the teacher's is from zero does not matter.

    Args:
        student_maps: Before the activation, of each layer, brought to the teacher's shape by
            connectors.
        teacher_maps: Before the activation, of the same shapes. Those after a ReLU serve as
            well: only where they are above zero is read.
        margin: > 0.

    Returns:
        For each example, the sum over neurons of the squared lack, times 3 / 1000 and
        2^(i - L + 1) for layer i of L, so that the last one weighs most. RepDistiller
        minimises it, with weight 1, in a first stage only.

    Raises:
        InputError: If shapes differ or `margin` is not positive.

    References:
        Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by
        Hidden Neurons, AAAI 2019 (weights of layers as in RepDistiller).
    """
    check_layers("abound", student_maps, teacher_maps)
    checks.positive("margin", margin)
    lacks = []
    for i, (student, teacher) in enumerate(zip(student_maps, teacher_maps, strict=True)):
        checks.require(
            student.shape == teacher.shape,
            f"`abound` compares neuron by neuron, but in pair {i} the student's maps have shape "
            f"{student.shape} and the teacher's {teacher.shape}; bring them together by a "
            "connector, as the objective of this name does.",
        )
        lack = jax.nn.relu(margin + jnp.where(teacher > 0, -student, student))
        weight = 2.0 ** (i - len(student_maps) + 1)
        lacks.append(weight * jnp.sum(lack**2, axis=(1, 2, 3)))
    return 3 / 1000 * jnp.stack(lacks).sum(axis=0)
