"""Inputs of each distillation loss at the sizes of CIFAR networks, and the loss of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fdjax import losses
from fdjax.losses import Sides
from fdjax.objectives.candidates import draw, sort_by_class
from fdjax.objectives.contrastive import BankState, contrast, embed
from fdjax.objectives.layers import linear
from fdjax.types import Outputs

Tree = Mapping[str, Any]


class Sizes(NamedTuple):
    """Of what the losses compare.

    Attributes:
        batch: Images.
        maps: Height, width and channels of each stage.
        classes: Labels.
        embedding: Numbers of a CRD embedding, and of a correlation one.
        examples: Images of the data, rows of CRD's banks.
        negatives: Of each image in CRD.
    """

    batch: int = 64
    maps: tuple[tuple[int, int, int], ...] = ((32, 32, 16), (16, 16, 32), (8, 8, 64))
    classes: int = 100
    embedding: int = 128
    examples: int = 50_000
    negatives: int = 16_384


class Case(NamedTuple):
    """A loss and what it is given.

    Attributes:
        loss: `(trained, teacher) -> scalar`, or for CRD `(scalar, banks)`.
        trained: What gradients are taken of.
        teacher: The rest.
    """

    loss: Callable[[Tree, Tree], Any]
    trained: Tree
    teacher: Tree


def cases(sizes: Sizes) -> dict[str, Case]:
    """Every loss by name, on random inputs; maps are above zero in half of the places."""
    keys = iter(jax.random.split(jax.random.key(0), 64))

    def normal(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape)

    def maps() -> list[Array]:
        return [jax.nn.relu(normal(sizes.batch, *shape)) for shape in sizes.maps]

    width = sizes.maps[-1][-1]
    own, given = maps(), maps()
    features = normal(sizes.batch, width), normal(sizes.batch, width)
    embedded = normal(sizes.batch, sizes.embedding), normal(sizes.batch, sizes.embedding)
    logits = normal(sizes.batch, sizes.classes), 3 * normal(sizes.batch, sizes.classes)
    labels = jnp.arange(sizes.batch) % sizes.classes
    cost = jnp.abs(normal(sizes.classes, sizes.classes)) * (1 - jnp.eye(sizes.classes))
    sides: dict[str, tuple[Tree, Tree]] = {
        "logits": ({"logits": logits[0]}, {"logits": logits[1], "labels": labels, "cost": cost}),
        "map": ({"map": own[-1]}, {"map": given[-1]}),
        "maps": ({"maps": own}, {"maps": given}),
        "features": ({"features": features[0]}, {"features": features[1]}),
        "embedded": ({"features": embedded[0]}, {"features": embedded[1]}),
    }
    regressors = [
        {
            "kernels": [normal(channels, channels) * channels**-0.5 for _ in range(3)],
            "log_scale": jnp.full(channels, 5.0),
        }
        for *_, channels in sizes.maps
    ]

    def mean(loss: Callable[..., Array], *names: str, **settings: Any) -> Callable[..., Array]:
        def value(trained: Tree, teacher: Tree) -> Array:
            own = [trained[name] for name in names if name in trained]
            given = [teacher[name] for name in names]
            return loss(*own, *given, **settings).mean()

        return value

    def summed(loss: Callable[..., Array]) -> Callable[..., Array]:
        def value(trained: Tree, teacher: Tree) -> Array:
            pairs = zip(trained["maps"], teacher["maps"], strict=True)
            return jnp.stack([loss(*pair) for pair in pairs]).sum(axis=0).mean()

        return value

    def vid(trained: Tree, teacher: Tree) -> Array:
        layers = zip(trained["maps"], teacher["maps"], trained["regressors"], strict=True)
        parts = [losses.vid(own, given, *layer.values()) for own, given, layer in layers]
        return jnp.stack(parts).sum(axis=0).mean()

    def rkd(student: Array, teacher: Array) -> Array:
        distance = losses.rkd_distance(student, teacher)
        return 25 * distance + 50 * losses.rkd_angle(student, teacher)

    found = {
        "kd": Case(mean(losses.kd, "logits"), *sides["logits"]),
        "hint": Case(mean(losses.hint, "map"), *sides["map"]),
        "attention": Case(summed(losses.attention), *sides["maps"]),
        "similarity": Case(mean(losses.similarity, "map"), *sides["map"]),
        "correlation": Case(mean(losses.correlation, "features"), *sides["embedded"]),
        "vid": Case(vid, {"maps": own, "regressors": regressors}, {"maps": given}),
        "rkd": Case(mean(rkd, "features"), *sides["features"]),
        "pkt": Case(mean(losses.pkt, "features"), *sides["features"]),
        "abound": Case(mean(losses.abound, "maps"), *sides["maps"]),
        "factor": Case(mean(losses.factor, "map"), *sides["map"]),
        "fsp": Case(mean(losses.fsp, "maps"), *sides["maps"]),
        "nst": Case(summed(losses.nst), *sides["maps"]),
        "kdsvd": Case(mean(losses.kdsvd, "maps"), *sides["maps"]),
        "dkd": Case(mean(losses.dkd, "logits", "labels"), *sides["logits"]),
        "dist": Case(mean(losses.dist, "logits"), *sides["logits"]),
        "wkd_logits": Case(
            mean(losses.wkd_logits, "logits", "labels", "cost", iterations=10), *sides["logits"]
        ),
        "wkd_features": Case(mean(losses.wkd_features, "map"), *sides["map"]),
        "uld": Case(mean(losses.uld, "logits"), *sides["logits"]),
    }
    return found | {"crd": _crd(sizes, features, next(keys))}


def _crd(sizes: Sizes, features: tuple[Array, Array], key: Array) -> Case:
    """CRD with its heads and its bank, candidates and constants being given."""
    keys = jax.random.split(key, 3)
    classes = sort_by_class(jnp.arange(sizes.examples) % sizes.classes)
    indices = jnp.arange(sizes.batch)
    candidates = draw(keys[0], classes, indices, sizes.negatives)
    shape = (sizes.examples, sizes.embedding)
    banks = [losses.contrastive.unit(jax.random.normal(one, shape)) for one in keys[1:]]
    heads = {
        side: linear(key, each.shape[-1], sizes.embedding)
        for side, each, key in zip(("student", "teacher"), features, keys[1:], strict=True)
    }
    teacher = {
        "features": features[1],
        "candidates": candidates,
        "indices": indices,
        "banks": banks,
        # Near the mean score of unit vectors by chance, times the size of the data.
        "log_normalisers": [jnp.log(sizes.examples * 2.0)] * 2,
    }

    def loss(trained: Tree, teacher: Tree) -> tuple[Array, list[Array]]:
        heads = {side: trained[side] for side in ("student", "teacher")}
        student, given = (
            Outputs(each["features"], each["features"]) for each in (trained, teacher)
        )
        state = BankState(
            Sides(*teacher["banks"]),
            Sides(*teacher["log_normalisers"]),
            jnp.array(True),
            classes,
            jnp.ones(sizes.examples, bool),
        )
        value, new = contrast(
            embed(heads, student, given, "crd"),
            state,
            teacher["indices"],
            teacher["candidates"],
            temperature=0.07,
            momentum=0.5,
        )
        return value.mean(), list(new.banks)

    return Case(loss, {"features": features[0], **heads}, teacher)
