"""ShuffleNets for CIFAR: cheap grouped or halved convolutions whose channels are then mixed."""

import functools

import jax.numpy as jnp
from flax import linen as nn

from fdjax.models.layers import PLAIN, ConvNorm, Images, Maps, check_size, pooled_outputs
from fdjax.types import Outputs

_Layer = functools.partial(ConvNorm, kernel_init=PLAIN)


def shuffled(maps: Maps, groups: int) -> Maps:
    """Channels in a new order: the first of each group, then the second of each, and so on."""
    *batch, channels = maps.shape
    grouped = maps.reshape(*batch, groups, channels // groups)
    return grouped.swapaxes(-1, -2).reshape(maps.shape)


class GroupedBlock(nn.Module):
    """Grouped 1x1, shuffle, 3x3 of each channel by itself, grouped 1x1 (ShuffleNetV1, Figure 2).

    Attributes:
        width: Channels of the result.
        groups: Of the 1x1 convolutions; the first is not grouped where the stem's map comes in.
        stride: 1 adds the input, 2 appends it as channels, averaged to half its size.
        from_stem: True for the first block of the network.
        dtype: One of `layers.DTYPES`.
    """

    width: int
    groups: int
    stride: int
    from_stem: bool
    dtype: str

    @nn.compact
    def __call__(self, maps: Maps, train: bool) -> Maps:
        """The sum or the longer map, before the last ReLU."""
        layer = functools.partial(_Layer, dtype=self.dtype)
        new = self.width - maps.shape[-1] if self.stride == 2 else self.width
        narrow = new // 4
        first_groups = 1 if self.from_stem else self.groups
        change = nn.relu(layer(narrow, 1, groups=first_groups, name="narrow")(maps, train))
        change = shuffled(change, first_groups)
        each = layer(narrow, stride=self.stride, groups=narrow, name="each")
        change = nn.relu(each(change, train))
        change = layer(new, 1, groups=self.groups, name="widen")(change, train)
        if self.stride == 1:
            return maps + change
        # Pixels outside count as zeros, also in the average.
        halved = nn.avg_pool(maps, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return jnp.concatenate([change, halved], axis=-1)


class ShufflenetV1(nn.Module):
    """1x1 stem of 24 channels, three stages of grouped blocks, mean over pixels, head.

    Each stage halves the map. Hidden maps: the stem's, then each stage's, all after ReLU.

    Attributes:
        num_classes: Labels that the network tells apart.
        widths: Channels of each stage.
        blocks: Blocks in each stage.
        groups: Of the 1x1 convolutions.
        dtype: Type in which maps are computed, one of `layers.DTYPES`.

    References:
        Zhang, Zhou, Lin, Sun, ShuffleNet: An Extremely Efficient Convolutional Neural Network
        for Mobile Devices, CVPR 2018, Table 1, with a stem that keeps the size.
    """

    num_classes: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    groups: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Outputs:
        """Logits, features and hidden maps of a batch.

        Args:
            images: Preprocessed images.
            train: True normalises by the batch and updates the running statistics.

        Raises:
            InputError: If the images are too small to be halved at each stage.
        """
        check_size("ShuffleNet", images, 2 ** len(self.blocks))
        maps = nn.relu(_Layer(24, 1, dtype=self.dtype, name="stem")(images, train))
        hidden = [maps]
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(blocks):
                before = GroupedBlock(
                    width=width,
                    groups=self.groups,
                    stride=2 if block == 0 else 1,
                    from_stem=stage == 0 and block == 0,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{block}",
                )(maps, train)
                maps = nn.relu(before)
            hidden.append(maps)
        return pooled_outputs(maps, hidden, self.num_classes)


class HalvedBlock(nn.Module):
    """A branch on half of the channels, or, to halve the map, two on all of them; then a shuffle.

    Attributes:
        width: Channels of the result.
        stride: 1 keeps the map and leaves the first half of its channels as it is; 2 halves it
            and needs no equal number of channels.
        dtype: One of `layers.DTYPES`.

    References:
        ShuffleNetV2 (see `ShufflenetV2`), Figure 3 c and d.
    """

    width: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, maps: Maps, train: bool) -> Maps:
        """The next map; its parts are rectified where they were computed."""
        layer = functools.partial(_Layer, dtype=self.dtype)
        half = self.width // 2
        if self.stride == 1:
            kept, changed = maps[..., :half], maps[..., half:]
        else:
            channels = maps.shape[-1]
            kept = layer(channels, stride=2, groups=channels, name="kept_each")(maps, train)
            kept = nn.relu(layer(half, 1, name="kept_mix")(kept, train))
            changed = maps
        changed = nn.relu(layer(half, 1, name="mix_0")(changed, train))
        changed = layer(half, stride=self.stride, groups=half, name="each")(changed, train)
        changed = nn.relu(layer(half, 1, name="mix_1")(changed, train))
        return shuffled(jnp.concatenate([kept, changed], axis=-1), 2)


class ShufflenetV2(nn.Module):
    """1x1 stem of 24 channels, three stages of halved blocks, 1x1 convolution, head.

    Each stage halves the map. Hidden maps: the stem's, then each stage's, all after ReLU.

    Attributes:
        num_classes: Labels that the network tells apart.
        widths: Channels of each stage, even.
        blocks: Blocks in each stage, with the one that halves the map.
        last: Channels of the last convolution, the features.
        dtype: Type in which maps are computed, one of `layers.DTYPES`.

    References:
        Ma, Zhang, Zheng, Sun, ShuffleNet V2: Practical Guidelines for Efficient CNN
        Architecture Design, ECCV 2018, Table 5, with a stem that keeps the size.
    """

    num_classes: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    last: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Outputs:
        """Logits, features and hidden maps of a batch.

        Args:
            images: Preprocessed images.
            train: True normalises by the batch and updates the running statistics.

        Raises:
            InputError: If the images are too small to be halved at each stage.
        """
        check_size("ShuffleNet", images, 2 ** len(self.blocks))
        maps = nn.relu(_Layer(24, 1, dtype=self.dtype, name="stem")(images, train))
        hidden = [maps]
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(blocks):
                stride = 2 if block == 0 else 1
                name = f"stage_{stage}_block_{block}"
                maps = HalvedBlock(width, stride, self.dtype, name=name)(maps, train)
            hidden.append(maps)
        maps = nn.relu(_Layer(self.last, 1, dtype=self.dtype, name="last")(maps, train))
        return pooled_outputs(maps, hidden, self.num_classes)
