"""MobileNetV2 for CIFAR: narrow maps, widened only for a convolution of each channel by itself."""

import functools

from flax import linen as nn

from fdjax.models.layers import SMALL, ConvNorm, Images, Maps, check_size, pooled_outputs
from fdjax.types import Outputs

STAGES = (
    # (widened?, channels, blocks, stride of the first block, is its map reported?)
    (False, 16, 1, 1, False),
    (True, 24, 2, 1, True),
    (True, 32, 3, 2, True),
    (True, 64, 4, 2, False),
    (True, 96, 3, 1, True),
    (True, 160, 3, 2, False),
    (True, 320, 1, 1, True),
)


class InvertedBlock(nn.Module):
    """1x1 convolution to more channels, 3x3 of each channel by itself, 1x1 to fewer channels.

    The input is added where it has the shape of the result.

    Attributes:
        width: Channels of the result.
        expansion: Channels between the convolutions, in multiples of the input's.
        stride: 2 halves the map, 1 keeps it.
        dtype: One of `layers.DTYPES`.
    """

    width: int
    expansion: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, maps: Maps, train: bool) -> Maps:
        """The next map, not rectified."""
        layer = functools.partial(ConvNorm, dtype=self.dtype)
        wide = self.expansion * maps.shape[-1]
        change = nn.relu(layer(wide, 1, name="widen")(maps, train))
        each = layer(wide, stride=self.stride, groups=wide, name="each")
        change = nn.relu(each(change, train))
        change = layer(self.width, 1, name="narrow")(change, train)
        return maps + change if maps.shape == change.shape else change


class MobilenetV2(nn.Module):
    """3x3 stem that halves the image, seven stages of inverted blocks, 1x1 convolution, head.

    The third, fourth and sixth stage halve the map again, the second does not, which is the
    change for small images. Hidden maps: the stem's after ReLU, then those of the second,
    third, fifth and seventh stage, which are not rectified.

    Attributes:
        num_classes: Labels that the network tells apart.
        width_multiplier: Channels of stem and stages, in multiples of the paper's, rounded
            down; at most 1, as the features are 1,280 in any case.
        expansion: Widening of all blocks but the first.
        dtype: Type in which maps are computed, one of `layers.DTYPES`.

    References:
        Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018,
        Table 2; Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020,
        for this form.
    """

    num_classes: int
    width_multiplier: float
    expansion: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Outputs:
        """Logits, features and hidden maps of a batch.

        Args:
            images: Preprocessed images.
            train: True normalises by the batch and updates the running statistics.

        Raises:
            InputError: If the images are too small to be halved four times.
        """
        check_size("MobileNetV2", images, 16)
        stem = ConvNorm(int(32 * self.width_multiplier), stride=2, dtype=self.dtype, name="stem")
        maps = nn.relu(stem(images, train))
        hidden = [maps]
        for stage, (widened, channels, blocks, stride, reported) in enumerate(STAGES):
            for block in range(blocks):
                maps = InvertedBlock(
                    width=int(channels * self.width_multiplier),
                    expansion=self.expansion if widened else 1,
                    stride=stride if block == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(maps, train)
            if reported:
                hidden.append(maps)
        maps = nn.relu(ConvNorm(1280, 1, dtype=self.dtype, name="last")(maps, train))
        return pooled_outputs(maps, hidden, self.num_classes, kernel_init=SMALL)
