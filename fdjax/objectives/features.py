"""Objectives on the maps between stages and on the last features, with what they learn.

Layers are counted as the student and the teacher list them in `Outputs.hidden`. The defaults are
those of Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, for networks
that list the stem's map first, as the CIFAR networks of `models` do. The student's own head
learns nothing from any of these: add `cross_entropy`, with the weights of `presets`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.losses import flow, maps, relations
from fdjax.losses.pairs import Maps, check_layers, check_maps
from fdjax.objectives import layers as learned
from fdjax.objectives.base import Objective, stateless
from fdjax.objectives.rivals import Side, features
from fdjax.types import Batch, Outputs

Tree = Any
Pair = tuple[Maps, Maps]


def _hidden(outputs: Outputs, side: Side, objective: str) -> tuple[Maps, ...]:
    checks.require(
        len(outputs.hidden) > 0,
        f"the objective `{objective}` needs maps between the stages of the {side}, but it shows "
        "none; take a network of `models`, or an objective that needs none, such as `kd`.",
    )
    return outputs.hidden


def maps_at(outputs: Outputs, side: Side, layer: int, objective: str) -> Maps:
    """Maps of one side at a layer; a negative one counts from the last.

    Raises:
        InputError: If that side shows no maps or has no such layer.
    """
    hidden = _hidden(outputs, side, objective)
    checks.require(
        -len(hidden) <= layer < len(hidden),
        f"the objective `{objective}` is to take layer {layer}, but the {side} has {len(hidden)} "
        f"layers; choose one from {-len(hidden)} to {len(hidden) - 1}.",
    )
    return hidden[layer]


def one_layer(student: Outputs, teacher: Outputs, layer: int, objective: str) -> Pair:
    """Maps of both sides at a layer.

    Raises:
        InputError: If a side shows no maps or has no such layer, or the batches differ.
    """
    own = maps_at(student, "student", layer, objective)
    given = maps_at(teacher, "teacher", layer, objective)
    check_maps(objective, own, given)
    return own, given


def many_layers(
    student: Outputs,
    teacher: Outputs,
    layers: Sequence[int] | None,
    objective: str,
    *,
    first: int = 1,
    fewest: int = 1,
) -> tuple[list[Maps], list[Maps]]:
    """Maps of both sides at several layers.

    Args:
        student: With hidden maps.
        teacher: With hidden maps.
        layers: Which; all from `first` on if None.
        objective: For messages.
        first: Where the layers begin that None stands for.
        fewest: How many there must be.

    Raises:
        InputError: If a side shows no maps or has no such layer, or the sides have different
            numbers of layers.
    """
    if layers is None:
        own = list(_hidden(student, "student", objective)[first:])
        given = list(_hidden(teacher, "teacher", objective)[first:])
    else:
        pairs = [one_layer(student, teacher, layer, objective) for layer in layers]
        own, given = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    check_layers(objective, own, given, fewest=fewest)
    return own, given


def hint(*, layer: int = 2) -> Objective:
    """FitNets: a learned regressor of a middle layer guesses the teacher's; see `losses.hint`.

    The regressor is a convolution, batch normalisation and ReLU.

    Args:
        layer: Whose maps are compared.

    Raises:
        InputError: Later, if a side has no such layer or the sizes have no regressor.
    """

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        return learned.regressor(key, *one_layer(student, teacher, layer, "hint")), ()

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        own, given = one_layer(student, teacher, layer, "hint")
        guess = jax.nn.relu(learned.apply_regressor(params, own, given))
        return maps.hint(guess, given), state

    return Objective(init, loss)


def _summed(
    loss: Callable[[Maps, Maps], Float[Array, " batch"]],
    layers: Sequence[int] | None,
    objective: str,
) -> Objective:
    """Objective of a loss of one layer, summed over several."""

    def total(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        own, given = many_layers(student, teacher, layers, objective)
        return jnp.stack([loss(*pair) for pair in zip(own, given, strict=True)]).sum(axis=0)

    return stateless(total)


def attention(*, layers: Sequence[int] | None = None) -> Objective:
    """Attention transfer, summed over layers; see `losses.attention`.

    Args:
        layers: Whose maps are compared; all but the first if None.

    Raises:
        InputError: Later, if the sides' layers do not fit each other.
    """
    return _summed(maps.attention, layers, "attention")


def nst(*, layers: Sequence[int] | None = None) -> Objective:
    """Neuron selectivity transfer, summed over layers; see `losses.nst`.

    Args:
        layers: As for `attention`.

    Raises:
        InputError: As for `attention`.
    """
    return _summed(maps.nst, layers, "nst")


def kdsvd(*, layers: Sequence[int] | None = None, count: int = 1) -> Objective:
    """Relations of singular vectors of neighbouring layers; see `losses.kdsvd`.

    Args:
        layers: As for `attention`; at least two, of the same channels on both sides.
        count: Vectors of each layer, >= 1.

    Raises:
        InputError: If `count` is below 1; later, if the sides' layers do not fit each other.
    """
    checks.positive("count", count)

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        sides = many_layers(student, teacher, layers, "kdsvd", fewest=2)
        return flow.kdsvd(*sides, count=count)

    return stateless(loss)


def vid(*, layers: Sequence[int] | None = None) -> Objective:
    """Variational information, summed over layers; see `losses.vid`.

    Each layer has a regressor of three 1x1 convolutions and a variance for each of the
    teacher's channels, 5 at first.

    Args:
        layers: As for `attention`.

    Raises:
        InputError: As for `attention`.
    """

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        own, given = many_layers(student, teacher, layers, "vid")
        keys = jax.random.split(key, len(own))
        params = []
        for one, wanted, each in zip(own, given, keys, strict=True):
            width, channels = one.shape[-1], wanted.shape[-1]
            kernels = learned.pointwise(each, (width, channels, channels, channels))
            log_scale = jnp.full(channels, jnp.log(jnp.expm1(5.0 - 1e-5)))
            params.append({"kernels": kernels, "log_scale": log_scale})
        return params, ()

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        own, given = many_layers(student, teacher, layers, "vid")
        parts = [
            maps.vid(one, wanted, layer["kernels"], layer["log_scale"])
            for one, wanted, layer in zip(own, given, params, strict=True)
        ]
        return jnp.stack(parts).sum(axis=0), state

    return Objective(init, loss)


def similarity(*, layer: int = -1) -> Objective:
    """Similarity preserving, on the maps of one layer; see `losses.similarity`.

    Args:
        layer: Whose maps are compared.

    Raises:
        InputError: Later, if a side has no such layer or a batch fewer than two images.
    """
    return stateless(
        lambda batch, student, teacher: relations.similarity(
            *one_layer(student, teacher, layer, "similarity")
        )
    )


def _features(
    student: Outputs, teacher: Outputs, objective: str
) -> tuple[Float[Array, "batch student_features"], Float[Array, "batch teacher_features"]]:
    return features(student, "student", objective), features(teacher, "teacher", objective)


def correlation(*, embedding_size: int = 128) -> Objective:
    """Correlation congruence of linear embeddings, both learned; see `losses.correlation`.

    Args:
        embedding_size: Numbers in an embedding.

    Raises:
        InputError: If `embedding_size` is not positive; later, if a side shows no features or
            a batch has fewer than two images.
    """
    checks.positive("embedding_size", embedding_size)

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        own, given = _features(student, teacher, "correlation")
        keys = jax.random.split(key)
        return {
            "student": learned.linear(keys[0], own.shape[-1], embedding_size),
            "teacher": learned.linear(keys[1], given.shape[-1], embedding_size),
        }, ()

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        own, given = _features(student, teacher, "correlation")
        value = relations.correlation(
            learned.apply_linear(params["student"], own),
            learned.apply_linear(params["teacher"], given),
        )
        return value, state

    return Objective(init, loss)


def rkd(
    *, distance_weight: float = 25.0, angle_weight: float = 50.0, shortest: float = 1e-3
) -> Objective:
    """Relational distillation; see `losses.rkd_distance` and `losses.rkd_angle`.

    Args:
        distance_weight: Of the distances, >= 0; at zero they are not computed.
        angle_weight: Of the angles, >= 0; at zero they are not computed.
        shortest: As for `losses.rkd_angle`, but far more than there, so that two images which
            the student takes for one cannot blow up the training.

    Raises:
        InputError: If a weight is negative, both are zero or `shortest` is not positive;
            later, if a side shows no features or a batch has fewer than three images.
    """
    for name, weight in (("distance_weight", distance_weight), ("angle_weight", angle_weight)):
        checks.require(weight >= 0, f"`{name}` must be >= 0, got {weight}.")
    checks.require(
        distance_weight + angle_weight > 0,
        "`rkd` needs a `distance_weight` or an `angle_weight` above zero, got two zeros.",
    )
    checks.positive("shortest", shortest)

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        sides = _features(student, teacher, "rkd")
        parts = []
        if distance_weight > 0:
            parts.append(distance_weight * relations.rkd_distance(*sides))
        if angle_weight > 0:
            parts.append(angle_weight * relations.rkd_angle(*sides, shortest=shortest))
        return jnp.stack(parts).sum(axis=0)

    return stateless(loss)


def pkt() -> Objective:
    """Probabilistic knowledge transfer between features; see `losses.pkt`.

    Raises:
        InputError: Later, if a side shows no features or a batch has fewer than two images.
    """
    return stateless(
        lambda batch, student, teacher: relations.pkt(*_features(student, teacher, "pkt"))
    )
