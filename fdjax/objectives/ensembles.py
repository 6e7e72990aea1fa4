"""One objective with several teachers of one label space at once."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.objectives.base import Objective
from fdjax.types import Batch, Outputs

Tree = Any


class Part(NamedTuple):
    """What one teacher adds to outputs that stand side by side.

    Attributes:
        classes: Logits.
        features: Numbers of its features; zero if it shows none.
        maps: Hidden layers.
    """

    classes: int
    features: int
    maps: int


def part_of(outputs: Outputs) -> Part:
    """Sizes of one teacher's outputs, which may be shapes only."""
    features = 0 if outputs.features is None else outputs.features.shape[-1]
    return Part(outputs.logits.shape[-1], features, len(outputs.hidden))


def side_by_side(outputs: Sequence[Outputs]) -> Outputs:
    """Outputs of several teachers as those of one, for a `teach` of `training.make_step`.

    Features are left out unless all teachers show some.
    """
    features = [each.features for each in outputs if each.features is not None]
    return Outputs(
        jnp.concatenate([each.logits for each in outputs], axis=-1),
        jnp.concatenate(features, axis=-1) if len(features) == len(outputs) else None,
        tuple(itertools.chain.from_iterable(each.hidden for each in outputs)),
    )


def apart(outputs: Outputs, parts: Sequence[Part]) -> list[Outputs]:
    """The outputs of each teacher that `side_by_side` put together.

    Raises:
        InputError: If the parts are not those of the outputs.
    """
    total = Part(*(sum(sizes) for sizes in zip(*parts, strict=True)))
    checks.require(
        part_of(outputs) == total,
        f"the teachers' parts add up to {total}, but their outputs are {part_of(outputs)}; give "
        "the `part_of` each teacher, in the order of `side_by_side`.",
    )

    def pieces(array: Array, sizes: Sequence[int]) -> list[Array]:
        return jnp.split(array, list(itertools.accumulate(sizes))[:-1], axis=-1)

    features: Sequence[Array | None] = [None] * len(parts)
    if outputs.features is not None:
        features = pieces(outputs.features, [part.features for part in parts])
    maps = iter(outputs.hidden)
    return [
        Outputs(logits, own, tuple(itertools.islice(maps, part.maps)))
        for logits, own, part in zip(
            pieces(outputs.logits, [part.classes for part in parts]), features, parts, strict=True
        )
    ]


def ensemble(objective: Objective, parts: Sequence[Part]) -> Objective:
    """The sum of one objective over several teachers, with arrays of its own for each.

    Args:
        objective: Of a student and one teacher.
        parts: Of the teachers whose outputs stand `side_by_side`.

    Raises:
        InputError: If there is no teacher; later, if the outputs are not those of the parts.

    References:
        Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020
        (the loss of an ensemble is the sum of the losses of its pairs).
    """
    checks.require(len(parts) > 0, "`parts` is empty: an ensemble needs at least one teacher.")

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        keys = jax.random.split(key, len(parts))
        begun = [
            objective.init(own, batch, student, each)
            for own, each in zip(keys, apart(teacher, parts), strict=True)
        ]
        return [params for params, _ in begun], [state for _, state in begun]

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        keys = jax.random.split(key, len(parts))
        found = [
            objective.loss(*own, batch, student, each)
            for own, each in zip(
                zip(params, state, keys, strict=True), apart(teacher, parts), strict=True
            )
        ]
        return jnp.stack([value for value, _ in found]).sum(axis=0), [new for _, new in found]

    return Objective(init, loss, objective.listens)
