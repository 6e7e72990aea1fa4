"""Weights of the published PyTorch networks for CIFAR, by their names there, as our variables."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fdjax import checks, models
from fdjax.models.cifar_resnet import CifarResnet
from fdjax.models.layers import EPSILON
from fdjax.models.vgg import Vgg
from fdjax.models.wide_resnet import WideResnet
from fdjax.types import Variables

Rule = tuple[str, Callable[..., str]]

# Where a layer of theirs, its numbers in groups, stands among ours. The names are those of
# RepDistiller and of the many CIFAR-10 and CIFAR-100 collections that were made after it.
_HEAD: Rule = (r"fc|linear|classifier", lambda: "head")
_RULES: Mapping[Any, tuple[Rule, ...]] = {
    CifarResnet: (
        (r"conv1", lambda: "stem/conv"),
        (r"bn1", lambda: "stem/norm"),
        (r"layer(\d+)\.(\d+)\.conv(\d+)", lambda s, b, i: f"{_block(s, b)}/layer_{i - 1}/conv"),
        (r"layer(\d+)\.(\d+)\.bn(\d+)", lambda s, b, i: f"{_block(s, b)}/layer_{i - 1}/norm"),
        (
            r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.([01])",
            lambda s, b, i: f"{_block(s, b)}/shortcut/{('conv', 'norm')[i]}",
        ),
        _HEAD,
    ),
    WideResnet: (
        (r"conv1", lambda: "stem"),
        (r"bn1", lambda: "norm"),
        (r"block(\d+)\.layer\.(\d+)\.conv(\d+)", lambda s, b, i: f"{_block(s, b)}/conv_{i - 1}"),
        (r"block(\d+)\.layer\.(\d+)\.bn(\d+)", lambda s, b, i: f"{_block(s, b)}/norm_{i - 1}"),
        (r"block(\d+)\.layer\.(\d+)\.convShortcut", lambda s, b: f"{_block(s, b)}/shortcut"),
        _HEAD,
    ),
    Vgg: (
        # Each layer is three modules: convolution, normalisation, ReLU.
        (
            r"block(\d+)\.(\d+)",
            lambda s, i: f"stage_{s}_layer_{i // 3}/{('conv', 'norm', 'relu')[i % 3]}",
        ),
        _HEAD,
    ),
}

_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_LINEAR = {"weight": ("params", "kernel"), "bias": ("params", "bias")}


def architectures() -> tuple[str, ...]:
    """Names of `models.MODELS` whose published weights can be read."""
    return tuple(name for name in models.MODELS if _family(name) in _RULES)


def variables_of(architecture: str, arrays: Mapping[str, np.ndarray]) -> Variables:
    """The variables of a network from what PyTorch's `state_dict` calls them.

    Residual networks whose shortcuts have no weights (option A of the paper: every second pixel,
    new channels of zeros before and after the old ones) get shortcuts that do the same.

    Args:
        architecture: One of `architectures()`.
        arrays: By name, as of the public code; a leading "module." is dropped.

    Returns:
        Collections "params" and "batch_stats" in float32. Whether they are complete and of the
        right shapes is for the caller to compare with `initialise`.

    Raises:
        InputError: If the architecture is none of these, or an array has an unknown name or type.
    """
    checks.choice("architecture of a state dict", architecture, architectures())
    family = _family(architecture)
    found: Variables = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked"):
            continue
        layer, _, leaf = name.removeprefix("module.").rpartition(".")
        place = _place(_RULES[family], layer)
        kinds = _NORM if place is not None and "norm" in place.split("/")[-1] else _LINEAR
        if place is None or leaf not in kinds:
            raise checks.InputError(
                f"the state dict has an array {name!a}, which no published {architecture} has; "
                "choose the architecture that it is of."
            )
        checks.require(
            array.dtype.kind == "f" or array.dtype.name == "bfloat16",
            f"{name!a} of the state dict must be fractions, got {array.dtype}.",
        )
        collection, ours = kinds[leaf]
        branch = found[collection]
        for part in place.split("/"):
            branch = branch.setdefault(part, {})
        branch[ours] = _turned(np.asarray(array, np.float32))
    if family is CifarResnet:
        _complete_shortcuts(found)
    return found


def _family(architecture: str) -> Any:
    network = models.MODELS[architecture]
    return network.func if isinstance(network, functools.partial) else network


def _block(stage: int, block: int) -> str:
    return f"stage_{stage - 1}_block_{block}"


def _place(rules: tuple[Rule, ...], layer: str) -> str | None:
    for pattern, place in rules:
        match = re.fullmatch(pattern, layer)
        if match:
            return place(*map(int, match.groups()))
    return None


def _turned(array: np.ndarray) -> np.ndarray:
    """From PyTorch's order of axes, outputs first, to ours, outputs last."""
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
    return np.ascontiguousarray(array.T)


def _complete_shortcuts(variables: Variables) -> None:
    """Gives every block that changes the number of channels the shortcut that it lacks."""
    for name, block in variables["params"].items():
        if not name.startswith("stage_") or "shortcut" in block:
            continue
        kernels = [
            layer.get("conv", {}).get("kernel", np.zeros(0)) for _, layer in sorted(block.items())
        ]
        if any(kernel.ndim != 4 for kernel in kernels):
            continue
        before, after = kernels[0].shape[2], kernels[-1].shape[3]
        if before >= after:
            continue
        kernel = np.zeros((1, 1, before, after), np.float32)
        kernel[0, 0, :, (after - before) // 2 :][:, :before] = np.eye(before)
        # A normalisation that changes nothing, up to rounding.
        scale = np.full(after, np.sqrt(1 + EPSILON), np.float32)
        zeros, ones = np.zeros(after, np.float32), np.ones(after, np.float32)
        block["shortcut"] = {"conv": {"kernel": kernel}, "norm": {"scale": scale, "bias": zeros}}
        statistics = variables["batch_stats"].setdefault(name, {})
        statistics["shortcut"] = {"norm": {"mean": zeros, "var": ones}}
