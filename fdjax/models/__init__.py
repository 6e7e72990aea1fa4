"""Networks for teachers and students, and how to initialise, run and train them.

Every network returns its logits, the features that enter its last layer, and the maps
between its stages, so that any loss or score finds what it needs:

    model = models.create("convnet", num_classes=10, widths=(16, 32))
    variables = models.initialise(model, jax.random.key(0), (28, 28, 1))
    outputs = models.predict(model, variables, images)

"mlp", "convnet" and "resnet" are small, and their sizes are options. The others are the
networks that contrastive representation distillation was compared on at CIFAR-100; their sizes
are settled by their names, and their hidden maps begin with the stem's.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn

from fdjax import checks
from fdjax.models.cifar_resnet import CifarResnet
from fdjax.models.layers import DTYPES
from fdjax.models.mobilenet import MobilenetV2
from fdjax.models.plain import Convnet, Mlp
from fdjax.models.residual import Resnet
from fdjax.models.running import (
    class_vectors,
    frozen,
    initialise,
    num_parameters,
    predict,
    trainable,
    with_new_head,
)
from fdjax.models.shufflenet import ShufflenetV1, ShufflenetV2
from fdjax.models.vgg import Vgg
from fdjax.models.wide_resnet import WideResnet

_narrow = partial(CifarResnet, widths=(16, 16, 32, 64), bottleneck=False)
_wide = partial(CifarResnet, widths=(32, 64, 128, 256), bottleneck=False)
_bottleneck = partial(CifarResnet, widths=(64, 64, 128, 256, 512), bottleneck=True)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": Mlp,
    "convnet": Convnet,
    "resnet": Resnet,
    "resnet8": partial(_narrow, blocks=(1, 1, 1)),
    "resnet14": partial(_narrow, blocks=(2, 2, 2)),
    "resnet20": partial(_narrow, blocks=(3, 3, 3)),
    "resnet32": partial(_narrow, blocks=(5, 5, 5)),
    "resnet44": partial(_narrow, blocks=(7, 7, 7)),
    "resnet56": partial(_narrow, blocks=(9, 9, 9)),
    "resnet110": partial(_narrow, blocks=(18, 18, 18)),
    "resnet8x4": partial(_wide, blocks=(1, 1, 1)),
    "resnet32x4": partial(_wide, blocks=(5, 5, 5)),
    "resnet50": partial(_bottleneck, blocks=(3, 4, 6, 3)),
    "wrn_16_1": partial(WideResnet, blocks_per_stage=2, widening=1),
    "wrn_16_2": partial(WideResnet, blocks_per_stage=2, widening=2),
    "wrn_40_1": partial(WideResnet, blocks_per_stage=6, widening=1),
    "wrn_40_2": partial(WideResnet, blocks_per_stage=6, widening=2),
    "vgg8": partial(Vgg, convolutions_per_stage=1),
    "vgg13": partial(Vgg, convolutions_per_stage=2),
    "mobilenet_v2": partial(MobilenetV2, width_multiplier=0.5, expansion=6),
    "shufflenet_v1": partial(ShufflenetV1, widths=(240, 480, 960), blocks=(4, 8, 4), groups=3),
    "shufflenet_v2": partial(ShufflenetV2, widths=(116, 232, 464), blocks=(4, 8, 4), last=1024),
}
"""Architectures by name: a class of networks, or one of which the settings bound here are no
longer options."""

__all__ = [
    "MODELS",
    "class_vectors",
    "create",
    "frozen",
    "initialise",
    "num_parameters",
    "options_of",
    "predict",
    "trainable",
    "with_new_head",
]


def options_of(name: str) -> dict[str, Any]:
    """The options of an architecture and their defaults.

    Args:
        name: One of `MODELS`.

    Raises:
        InputError: If there is no such architecture.
    """
    checks.choice("architecture", name, MODELS)
    network: Any = MODELS[name]
    not_options = {"num_classes", "parent", "name"}
    if isinstance(network, partial):
        network, not_options = network.func, not_options | set(network.keywords)
    return {
        field.name: field.default
        for field in dataclasses.fields(network)
        if field.name not in not_options
    }


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """A network without its weights.

    Args:
        name: One of `MODELS`.
        num_classes: Labels that the network tells apart, >= 1.
        **options: Those of `options_of(name)`, see the class of the architecture: sizes, where a
            list may stand for a tuple, or `dtype="bfloat16"`, which computes the maps in that
            type and leaves weights, features and logits in float32.

    Returns:
        A linen module with `(images, train) -> Outputs`. Equal arguments give equal,
        hashable modules, so a module can be a static argument of `jax.jit`.

    Raises:
        InputError: If the architecture or an option is unknown, a size is no positive integer, or
            `dtype` is not one of `layers.DTYPES`.
    """
    defaults = options_of(name)
    _size("num_classes", num_classes)
    for option, value in options.items():
        checks.choice(f"option of {name}", option, defaults)
        if option == "dtype":
            checks.choice("dtype", value, DTYPES)
        elif isinstance(defaults[option], tuple):
            listed = isinstance(value, tuple | list) and len(value) > 0
            checks.require(
                listed, f"`{option}` must list at least one positive integer, got {value!r}."
            )
            for size in value:
                _size(option, size)
        else:
            _size(option, value)
    sizes = {
        option: tuple(value) if isinstance(value, list) else value
        for option, value in options.items()
    }
    return MODELS[name](num_classes=num_classes, **sizes)


def _size(name: str, value: Any) -> None:
    """Refuses what is no positive whole number (True is none, though Python thinks so)."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    checks.require(whole and value > 0, f"`{name}` must be a positive integer, got {value!r}.")
