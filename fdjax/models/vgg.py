"""VGG networks for CIFAR: stages of 3x3 convolutions with max pooling between them."""

from flax import linen as nn

from fdjax.models.layers import SMALL, ConvNorm, Images, check_size, pooled_outputs
from fdjax.types import Outputs


class Vgg(nn.Module):
    """Five stages of normalised and rectified convolutions, mean over pixels, head.

    2x2 max pooling comes after each of the first three stages, and after the fourth for
    images of at least 64 pixels. Hidden maps: each stage's, after ReLU and before pooling; the
    first one stands for the stem's. The convolutions have biases, as the published ones.

    Attributes:
        num_classes: Labels that the network tells apart.
        convolutions_per_stage: 1 for vgg8, 2 for vgg13 (the published names count the three
            dense layers of the networks for large images, of which one is left here).
        dtype: Type in which maps are computed, one of `layers.DTYPES`.

    References:
        Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image
        Recognition, ICLR 2015, Table 1, with batch normalisation and one dense layer.
    """

    num_classes: int
    convolutions_per_stage: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Outputs:
        """Logits, features and hidden maps of a batch.

        Args:
            images: Preprocessed images.
            train: True normalises by the batch and updates the running statistics.

        Raises:
            InputError: If the images are too small to be halved three times.
        """
        check_size("VGG network", images, 8)
        maps = images
        hidden = []
        for stage, width in enumerate((64, 128, 256, 512, 512)):
            for index in range(self.convolutions_per_stage):
                layer = ConvNorm(
                    width, use_bias=True, dtype=self.dtype, name=f"stage_{stage}_layer_{index}"
                )
                maps = nn.relu(layer(maps, train))
            hidden.append(maps)
            if stage < 3 or (stage == 3 and images.shape[1] >= 64):
                maps = nn.max_pool(maps, (2, 2), strides=(2, 2))
        return pooled_outputs(maps, hidden, self.num_classes, kernel_init=SMALL)
