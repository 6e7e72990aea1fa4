"""A small residual network for images of 8 to 64 pixels."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fdjax.types import Outputs


class Block(nn.Module):
    """Two 3x3 convolutions added to their input (the basic block).

    Attributes:
        width: Channels of the result.
        stride: 2 halves the map, 1 keeps it.
    """

    width: int
    stride: int

    @nn.compact
    def __call__(
        self, maps: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        """The next map, after the last ReLU."""
        strides = (self.stride, self.stride)
        change = nn.relu(_norm(train, "norm_0")(_conv(self.width, strides, "conv_0")(maps)))
        change = _norm(train, "norm_1")(_conv(self.width, (1, 1), "conv_1")(change))
        if maps.shape != change.shape:
            shortcut = nn.Conv(
                self.width, (1, 1), strides=strides, use_bias=False, name="shortcut_conv"
            )
            maps = _norm(train, "shortcut_norm")(shortcut(maps))
        return nn.relu(maps + change)


class Resnet(nn.Module):
    """Stem, stages of basic blocks, global average pooling, head.

    With `blocks_per_stage` n and three stages it has 6 n + 2 layers. All stages but the
    first halve the map.

    Attributes:
        num_classes: Labels that the network tells apart.
        widths: Channels of each stage; the last ones are the features.
        blocks_per_stage: Basic blocks in each stage.

    References:
        He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2
        (there with shortcuts that pad by zeros; here by 1x1 convolutions).
    """

    num_classes: int
    widths: tuple[int, ...] = (16, 32, 64)
    blocks_per_stage: int = 1

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Outputs:
        """Logits, features and the map after each stage.

        Args:
            images: Preprocessed images.
            train: True normalises by the batch and updates the running statistics
                (collection "batch_stats"); False normalises by the running statistics.
        """
        maps = _conv(self.widths[0], (1, 1), "stem_conv")(images)
        maps = nn.relu(_norm(train, "stem_norm")(maps))
        hidden = []
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                maps = Block(width, stride, name=f"stage_{stage}_block_{block}")(maps, train)
            hidden.append(maps)
        features = maps.mean(axis=(1, 2))
        logits = nn.Dense(self.num_classes, name="head")(features)
        return Outputs(logits.astype(jnp.float32), features, tuple(hidden))


def _conv(width: int, strides: tuple[int, int], name: str) -> nn.Conv:
    """A 3x3 convolution; a norm follows, so it needs no bias."""
    return nn.Conv(width, (3, 3), strides=strides, use_bias=False, name=name)


def _norm(train: bool, name: str) -> nn.BatchNorm:
    """Batch normalisation whose statistics forget in about 10 steps, for short training."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)
