"""Objectives of methods that have a first stage, and what runs that stage.

Two stages are two runs of `training.make_step` and `training.fit`; what the first one made is
handed to the second. Both are thirty epochs against two hundred and forty in the public code.

Activation boundaries (`abound`) and flow (`fsp`) train the student's maps alone, then the labels
alone:

    still = except_head(optimiser)
    step = training.make_step(student, teach, abound(), still)
    state = training.init_state(key, variables, student, teach, abound(), still, batch, teacher)
    state, _ = training.fit(step, state, batches, teacher, steps=first_steps)
    # then as usual with cross_entropy(), from state.variables

Factor transfer trains a paraphraser of the teacher alone, without any student, then the student
and its translator beside the labels:

    nobody = bystander(num_classes)
    step = training.make_step(nobody, teach, factor_paraphraser(), optimiser)
    state = training.init_state(key, NOTHING, nobody, teach, factor_paraphraser(), ...)
    state, _ = training.fit(step, state, batches, teacher, steps=first_steps)
    # then as usual with weighted_sum((1.0, cross_entropy()),
    #                                 (200.0, factor(state.objective_params)))
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.losses import flow, maps
from fdjax.losses.pairs import Maps
from fdjax.objectives import layers as learned
from fdjax.objectives.base import Objective, stateless
from fdjax.objectives.features import many_layers, maps_at, one_layer
from fdjax.types import Batch, Outputs, TrainableNetwork, Variables

Tree = Any

NOTHING: Variables = {"params": {}}
"""Variables of a `bystander`."""


def abound(*, layers: Sequence[int] | None = None, margin: float = 1.0) -> Objective:
    """First stage of activation boundaries; see `losses.abound`.

    Where the shapes differ, a connector (a convolution and batch normalisation) brings the
    student's maps to the teacher's shape. The published method compares maps before their
    activation: give `training.make_step` a student whose `hidden` are those. The teacher's
    may be the usual ones, if a ReLU made them. With a student's usual maps, after the ReLU,
    this is a weaker form: a neuron that is off passes no gradient, so unless a connector
    stands between it can be pushed towards zero but never switched on.

    Args:
        layers: Whose maps are compared; all but the first if None.
        margin: > 0.

    Raises:
        InputError: If `margin` is not positive; later, if the sides' layers do not fit each
            other.
    """
    checks.positive("margin", margin)

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        own, given = many_layers(student, teacher, layers, "abound")
        keys = jax.random.split(key, len(own))
        return [
            {} if one.shape == wanted.shape else learned.regressor(each, one, wanted)
            for one, wanted, each in zip(own, given, keys, strict=True)
        ], ()

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        own, given = many_layers(student, teacher, layers, "abound")
        connected = [
            learned.apply_regressor(layer, one, wanted) if layer else one
            for one, wanted, layer in zip(own, given, params, strict=True)
        ]
        return maps.abound(connected, given, margin=margin), state

    return Objective(init, loss)


def fsp(*, layers: Sequence[int] | None = None) -> Objective:
    """First stage of the flow of solution procedure; see `losses.fsp`.

    Args:
        layers: Whose maps are taken, two or more; all, the first included, if None.

    Raises:
        InputError: Later, if the sides' layers do not fit each other or differ in channels.
    """

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        return flow.fsp(*many_layers(student, teacher, layers, "fsp", first=0, fewest=2))

    return stateless(loss)


def factor_paraphraser(*, layer: int = -1, share: float = 0.5) -> Objective:
    """First stage of factor transfer: an autoencoder of the teacher's maps.

    Its loss is the mean squared error of the maps it gives back, for each example. It needs
    no student; `state.objective_params` is what `factor` takes.

    Args:
        layer: Of the teacher.
        share: Channels of the factors, as a share in (0, 1] of the teacher's.

    Raises:
        InputError: If `share` is out of range; later, if the teacher has no such layer, or
            the share leaves no channel.

    References:
        Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor
        Transfer, NeurIPS 2018, section 3.1.
    """
    checks.require(0 < share <= 1, f"`share` must lie in (0, 1], got {share}.")

    def given(teacher: Outputs) -> Maps:
        return maps_at(teacher, "teacher", layer, "factor_paraphraser")

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        channels = given(teacher).shape[-1]
        factors = int(share * channels)
        checks.require(
            factors > 0,
            f"`share` is {share}, which leaves none of the teacher's {channels} channels; raise "
            "it.",
        )
        keys = jax.random.split(key)
        return {
            "encoder": learned.stack(keys[0], channels, factors, normalised=False),
            "decoder": learned.stack(keys[1], factors, channels, normalised=False),
        }, ()

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        wanted = given(teacher)
        factors = learned.apply_stack(params["encoder"], wanted)
        return maps.hint(learned.apply_stack(params["decoder"], factors), wanted), state

    return Objective(init, loss)


def factor(paraphraser: Tree, *, layer: int = -1) -> Objective:
    """Factor transfer: a learned translator makes the teacher's factors; see `losses.factor`.

    The paraphraser is carried in the state, and stays as it is.

    Args:
        paraphraser: The objective's parameters at the end of `factor_paraphraser`.
        layer: Of both sides; the teacher's as in the first stage.

    Raises:
        InputError: If `paraphraser` is none; later, if a side has no such layer or the
            teacher's maps are not those that were paraphrased.
    """
    checks.require(
        isinstance(paraphraser, dict) and "encoder" in paraphraser,
        "`paraphraser` must be the objective's parameters at the end of a first stage with "
        "`factor_paraphraser`.",
    )
    encoder = paraphraser["encoder"]
    channels, factors = encoder[0]["kernel"].shape[-2], encoder[-1]["kernel"].shape[-1]

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        own, given = one_layer(student, teacher, layer, "factor")
        checks.require(
            given.shape[-1] == channels,
            f"the paraphraser is of maps with {channels} channels, but the teacher's have "
            f"{given.shape[-1]} at layer {layer}; paraphrase this teacher, at this layer.",
        )
        return learned.stack(key, own.shape[-1], factors, normalised=True), encoder

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        own, given = one_layer(student, teacher, layer, "factor")
        factors = learned.apply_stack(params, own), learned.apply_stack(state, given)
        return maps.factor(*factors), state

    return Objective(init, loss)


FIRST_STAGES: dict[str, Callable[..., Objective]] = {
    "abound": abound,
    "factor": factor_paraphraser,
    "fsp": fsp,
}
"""Objective of the first stage, by method; in the second, `abound` and `fsp` have none."""


def bystander(num_classes: int) -> TrainableNetwork:
    """A student that learns nothing, for a first stage without one; its variables are `NOTHING`.

    Args:
        num_classes: Of the task, so that its labels are accepted.
    """
    checks.positive("num_classes", num_classes)

    def network(variables: Variables, images: Any) -> tuple[Outputs, Variables]:
        return Outputs(jnp.zeros((len(images), num_classes))), variables

    return network


def except_head(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser, leaving the student's last layer as it is.

    In a first stage no gradient reaches it, but weight decay would shrink it.

    Raises:
        InputError: Later, if the student has no layer named "head".
    """

    def still(trained: tuple[Variables, Tree]) -> tuple[dict[str, str], str]:
        params, _ = trained
        checks.require(
            "head" in params,
            "`except_head` leaves the layer params/head as it is, but the student has none; name "
            "its last layer so, as the networks of `models` do, or give the plain optimiser.",
        )
        return {name: "still" if name == "head" else "moving" for name in params}, "moving"

    return optax.multi_transform({"moving": optimiser, "still": optax.set_to_zero()}, still)
