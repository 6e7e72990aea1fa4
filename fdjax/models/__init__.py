"""Small networks for teachers and students, and how to initialise, run and train them.

Every network returns its logits, the features that enter its last layer, and the maps
between its stages, so that any loss or score finds what it needs:

    model = models.create("convnet", num_classes=10, widths=(16, 32))
    variables = models.initialise(model, jax.random.key(0), (28, 28, 1))
    outputs = models.predict(model, variables, images)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

from flax import linen as nn

from fdjax import checks
from fdjax.models.plain import Convnet, Mlp
from fdjax.models.residual import Resnet
from fdjax.models.running import (
    class_vectors,
    frozen,
    initialise,
    num_parameters,
    predict,
    trainable,
)

MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": Mlp, "convnet": Convnet, "resnet": Resnet}
"""Architectures by name."""

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
]


def options_of(name: str) -> dict[str, Any]:
    """The options of an architecture and their defaults.

    Args:
        name: One of `MODELS`.

    Raises:
        InputError: If there is no such architecture.
    """
    checks.choice("architecture", name, MODELS)
    not_options = ("num_classes", "parent", "name")
    return {
        field.name: field.default
        for field in dataclasses.fields(cast(Any, MODELS[name]))
        if field.name not in not_options
    }


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """A network without its weights.

    Args:
        name: One of `MODELS`.
        num_classes: Labels that the network tells apart, >= 1.
        **options: Sizes of the architecture, see its class; a list may stand for a tuple.

    Returns:
        A linen module with `(images, train) -> Outputs`. Equal arguments give equal,
        hashable modules, so a module can be a static argument of `jax.jit`.

    Raises:
        InputError: If the architecture or an option is unknown, or a size is no positive integer.
    """
    defaults = options_of(name)
    _size("num_classes", num_classes)
    for option, value in options.items():
        checks.choice(f"option of {name}", option, defaults)
        if isinstance(defaults[option], tuple):
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
