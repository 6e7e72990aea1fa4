"""What the CIFAR networks share: convolution, batch normalisation, and the way out to logits."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.models import grouped
from fdjax.types import Outputs

Images: TypeAlias = Float[Array, "batch height width channels"]
Maps: TypeAlias = Float[Array, "batch _ _ _"]
"""Maps of a batch, whose height, width and channels may change from layer to layer."""

DTYPES = ("float32", "bfloat16")
"""Types in which maps can be computed; weights, statistics, features and logits are float32."""

EPSILON = 1e-5
"""What batch normalisation adds to a variance."""

Initializer: TypeAlias = Callable[..., Any]

KAIMING: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal with variance 2 / (kernel area x output channels), as He et al., ICCV 2015, backward."""

PLAIN: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within 1 / sqrt(fan in), what PyTorch takes where nothing is said."""

SMALL: Initializer = nn.initializers.normal(0.01)
"""Normal with standard deviation 0.01."""


def convolution(
    width: int,
    size: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: Initializer = KAIMING,
    dtype: str,
    name: str,
) -> nn.Conv:
    """A square convolution of odd size, padded by half its size on every side.

    "SAME" would not do: where it strides over an even map it pads below and to the right
    only, so that its result is shifted against that of the published networks.
    """
    return nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=jnp.dtype(dtype),
        conv_general_dilated=grouped.convolve,
        name=name,
    )


def normalisation(train: bool, *, dtype: str, name: str) -> nn.BatchNorm:
    """Batch normalisation with the constants of the published networks.

    The running variance is that of the batch, without PyTorch's factor n / (n - 1), n being
    the pixels of the whole batch.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=EPSILON,
        dtype=jnp.dtype(dtype),
        name=name,
    )


class ConvNorm(nn.Module):
    """A convolution and the batch normalisation of its result.

    Attributes:
        width: Channels of the result.
        size: Height and width of the kernel, odd.
        stride: 2 halves the map (rounding up), 1 keeps it.
        groups: Parts into which the channels are split; as many as channels is depthwise.
        use_bias: True adds a bias, although the normalisation takes it away again.
        kernel_init: Distribution of the first weights.
        dtype: One of `DTYPES`.
    """

    width: int
    size: int = 3
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = KAIMING
    dtype: str = "float32"

    @nn.compact
    def __call__(self, maps: Maps, train: bool) -> Maps:
        """The normalised map, not rectified."""
        maps = convolution(
            self.width,
            self.size,
            stride=self.stride,
            groups=self.groups,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(maps)
        return normalisation(train, dtype=self.dtype, name="norm")(maps)


def pooled_outputs(
    maps: Maps, hidden: Sequence[Maps], num_classes: int, kernel_init: Initializer = PLAIN
) -> Outputs:
    """The end of a network: mean over pixels, then one dense layer, "head".

    All is float32 whatever the maps are, so losses on any of it are computed in float32; a
    hidden map that nobody reads costs nothing under `jit`.

    Args:
        maps: The last map.
        hidden: Maps to report, first one first.
        num_classes: Labels that the network tells apart.
        kernel_init: Distribution of the head's first weights; its biases begin at zero.
    """
    features = maps.astype(jnp.float32).mean(axis=(1, 2))
    logits = nn.Dense(num_classes, kernel_init=kernel_init, name="head")(features)
    return Outputs(logits, features, tuple(each.astype(jnp.float32) for each in hidden))


def check_size(network: str, images: Images, smallest: int) -> None:
    """Refuses images that a network would halve until nothing is left to halve.

    Raises:
        InputError: If height or width is below `smallest`.
    """
    height, width = images.shape[1:3]
    checks.require(
        min(height, width) >= smallest,
        f"a {network} needs images of at least {smallest}x{smallest} pixels, got "
        f"{height}x{width}; give larger images or take another architecture.",
    )
