"""Wide residual networks for CIFAR, WRN-depth-widening: normalised before each convolution."""

import functools

from flax import linen as nn

from fdjax.models.layers import (
    Images,
    Maps,
    check_size,
    convolution,
    normalisation,
    pooled_outputs,
)
from fdjax.types import Outputs


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each of a normalised and rectified map, added to their input.

    Attributes:
        width: Channels of the result.
        stride: 2 halves the map, 1 keeps it.
        dtype: One of `layers.DTYPES`.
    """

    width: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, maps: Maps, train: bool) -> Maps:
        """The sum, which no ReLU follows."""
        conv = functools.partial(convolution, self.width, dtype=self.dtype)
        norm = functools.partial(normalisation, train, dtype=self.dtype)
        ready = nn.relu(norm(name="norm_0")(maps))
        change = conv(stride=self.stride, name="conv_0")(ready)
        change = conv(name="conv_1")(nn.relu(norm(name="norm_1")(change)))
        if maps.shape != change.shape:
            # Unlike the identity, this shortcut begins at the normalised map.
            maps = conv(1, stride=self.stride, name="shortcut")(ready)
        return maps + change


class WideResnet(nn.Module):
    """3x3 stem, three stages of pre-activated blocks, norm, mean over pixels, head.

    The second and third stage halve the map; n blocks a stage make 6 n + 4 layers. Hidden
    maps: the stem's, then each stage's sum. None of them is rectified: the next block's
    normalisation and ReLU come after them.

    Attributes:
        num_classes: Labels that the network tells apart.
        blocks_per_stage: Blocks in each stage.
        widening: Stages have 16, 32 and 64 times this many channels.
        dtype: Type in which maps are computed, one of `layers.DTYPES`.

    References:
        Zagoruyko, Komodakis, Wide Residual Networks, BMVC 2016, Table 1 (no dropout).
    """

    num_classes: int
    blocks_per_stage: int
    widening: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Outputs:
        """Logits, features and hidden maps of a batch.

        Args:
            images: Preprocessed images.
            train: True normalises by the batch and updates the running statistics.

        Raises:
            InputError: If the images are too small to be halved twice.
        """
        check_size("wide residual network", images, 4)
        maps = convolution(16, dtype=self.dtype, name="stem")(images)
        hidden = [maps]
        for stage, width in enumerate((16, 32, 64)):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage_{stage}_block_{block}"
                layer = WideBlock(self.widening * width, stride, self.dtype, name=name)
                maps = layer(maps, train)
            hidden.append(maps)
        maps = nn.relu(normalisation(train, dtype=self.dtype, name="norm")(maps))
        return pooled_outputs(maps, hidden, self.num_classes)
