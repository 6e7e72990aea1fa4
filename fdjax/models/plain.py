"""Networks without shortcuts: a perceptron, and convolutions with pooling."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.types import Outputs


class Mlp(nn.Module):
    """Dense layers with ReLU on the flattened image.

    The hidden layers count as stages; as maps they are one pixel large.

    Attributes:
        num_classes: Labels that the network tells apart.
        widths: Units of each hidden layer; the last ones are the features.
    """

    num_classes: int
    widths: tuple[int, ...] = (128, 64)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Outputs:
        """Logits, features and hidden layers of a batch; `train` changes nothing here."""
        features = images.reshape(images.shape[0], -1)
        hidden = []
        for index, width in enumerate(self.widths):
            features = nn.relu(nn.Dense(width, name=f"dense_{index}")(features))
            hidden.append(features[:, None, None, :])
        logits = nn.Dense(self.num_classes, name="head")(features)
        return Outputs(logits.astype(jnp.float32), features, tuple(hidden))


class Convnet(nn.Module):
    """3x3 convolutions, each with ReLU and 2x2 max pooling, then one dense layer.

    Attributes:
        num_classes: Labels that the network tells apart.
        widths: Channels of each convolution; every one halves the image.
        dense: Units of the dense layer, the features.
    """

    num_classes: int
    widths: tuple[int, ...] = (16, 32)
    dense: int = 64

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Outputs:
        """Logits, features and pooled maps of a batch; `train` changes nothing here.

        Raises:
            InputError: If the image is too small to be halved once for each width.
        """
        height, width = images.shape[1:3]
        smallest = 2 ** len(self.widths)
        checks.require(
            min(height, width) >= smallest,
            f"a convnet with {len(self.widths)} `widths` needs images of at least "
            f"{smallest}x{smallest} pixels, got {height}x{width}; give fewer widths or larger "
            "images.",
        )
        maps = images
        hidden = []
        for index, channels in enumerate(self.widths):
            maps = nn.relu(nn.Conv(channels, (3, 3), name=f"conv_{index}")(maps))
            maps = nn.max_pool(maps, (2, 2), strides=(2, 2))
            hidden.append(maps)
        flat = maps.reshape(maps.shape[0], -1)
        features = nn.relu(nn.Dense(self.dense, name="dense")(flat))
        logits = nn.Dense(self.num_classes, name="head")(features)
        return Outputs(logits.astype(jnp.float32), features, tuple(hidden))
