"""Residual networks for CIFAR: resnet8 to resnet110, their wide forms, and resnet50."""

import functools

from flax import linen as nn

from fdjax.models.layers import ConvNorm, Images, Maps, check_size, pooled_outputs
from fdjax.types import Outputs


class ResidualBlock(nn.Module):
    """Convolutions added to their input.

    Attributes:
        plan: Channels, kernel size and stride of each convolution.
        dtype: One of `layers.DTYPES`.
    """

    plan: tuple[tuple[int, int, int], ...]
    dtype: str

    @nn.compact
    def __call__(self, maps: Maps, train: bool) -> Maps:
        """The sum, before the last ReLU."""
        layer = functools.partial(ConvNorm, dtype=self.dtype)
        change = maps
        for index, (width, size, stride) in enumerate(self.plan):
            change = nn.relu(change) if index > 0 else change
            change = layer(width, size, stride, name=f"layer_{index}")(change, train)
        if maps.shape != change.shape:
            width, stride = change.shape[-1], max(stride for *_, stride in self.plan)
            maps = layer(width, 1, stride, name="shortcut")(maps, train)
        return maps + change


class CifarResnet(nn.Module):
    """3x3 stem that keeps the size, stages of residual blocks, mean over pixels, head.

    All stages but the first halve the map. With basic blocks, n in each of three stages, it
    has 6 n + 2 layers. Hidden maps: the stem's, then each stage's, all after ReLU.

    Attributes:
        num_classes: Labels that the network tells apart.
        widths: Channels of the stem, then of each stage.
        blocks: Blocks in each stage.
        bottleneck: False for blocks of two 3x3 convolutions; True for 1x1, 3x3 and a 1x1
            that widens the stage to four times its `widths`.
        dtype: Type in which maps are computed, one of `layers.DTYPES`.

    References:
        He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016, section
        4.2, with shortcuts by 1x1 convolutions; Tian, Krishnan, Isola, Contrastive
        Representation Distillation, ICLR 2020, for the wide forms.
    """

    num_classes: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    bottleneck: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Outputs:
        """Logits, features and hidden maps of a batch.

        Args:
            images: Preprocessed images.
            train: True normalises by the batch and updates the running statistics
                (collection "batch_stats"); False normalises by the running statistics.

        Raises:
            InputError: If the images are too small to be halved at each stage but the first.
        """
        check_size("residual network", images, 2 ** (len(self.blocks) - 1))
        maps = nn.relu(ConvNorm(self.widths[0], dtype=self.dtype, name="stem")(images, train))
        hidden = [maps]
        for stage, (width, blocks) in enumerate(zip(self.widths[1:], self.blocks, strict=True)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                plan: tuple[tuple[int, int, int], ...] = ((width, 3, stride), (width, 3, 1))
                if self.bottleneck:
                    plan = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
                name = f"stage_{stage}_block_{block}"
                maps = nn.relu(ResidualBlock(plan, self.dtype, name=name)(maps, train))
            hidden.append(maps)
        return pooled_outputs(maps, hidden, self.num_classes)
