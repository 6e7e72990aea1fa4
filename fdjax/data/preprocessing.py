"""From stored pixels to what a network reads, and random changes that keep the class."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, PRNGKeyArray, UInt32

from fdjax import checks
from fdjax.data.tasks import Images, Task

# Brightness of a colour: weights of red, green and blue in ITU-R BT.601.
_LUMA = (0.299, 0.587, 0.114)

# Bytes of float32 that are worked on at once.
_CHUNK_BYTES = 64 * 2**20

# Numbers of an image: some 4,700 x 4,700 pixels in colour.
_LARGEST_IMAGE = 2**26


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a network expects of an image.

    Attributes:
        height: In pixels.
        width: In pixels.
        channels: 1 for grey, 3 for colour.
        mean: What is subtracted from each channel, whose brightness lies in [0, 1].
        std: What each channel is divided by afterwards; positive.
    """

    height: int
    width: int
    channels: int
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        # JSON gives lists, which could not be a static argument of `jit`.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        for name in ("height", "width", "channels", "std"):
            checks.positive(name, getattr(self, name))
        checks.require(
            self.height * self.width * self.channels <= _LARGEST_IMAGE,
            f"`height`, `width` and `channels` must give at most {_LARGEST_IMAGE} numbers, got "
            f"{self.height} x {self.width} x {self.channels}.",
        )
        for name in ("mean", "std"):
            checks.shape(name, getattr(self, name), (self.channels,))
            checks.finite(name, getattr(self, name))


def native_preprocessing(task: Task) -> Preprocessing:
    """The task's own image size, with mean and deviation of its train images.

    A channel that never changes is divided by 1.
    """
    images = task.train.images
    checks.require(len(images) > 0, f"task {task.name!r} has no train images to take a mean of.")
    _check_brightness(images)
    *_, height, width, channels = images.shape
    moments = [_mean_and_std(images[..., channel]) for channel in range(channels)]
    mean = tuple(mean for mean, _ in moments)
    std = tuple(std if std > 0 else 1.0 for _, std in moments)
    return Preprocessing(height, width, channels, mean, std)


def preprocess(
    images: Images, preprocessing: Preprocessing
) -> Float32[np.ndarray, "examples height_out width_out channels_out"]:
    """Images as a network expects them.

    Brightness is scaled to [0, 1]; the size changes by bilinear interpolation, smoothed
    where it shrinks; grey is repeated for a network that wants colour, and colour becomes
    its luma (ITU-R BT.601) for one that wants grey; last comes (x - mean) / std.

    Args:
        images: uint8 in 0..255, or float32 in [0, 1].
        preprocessing: What the network expects.

    Returns:
        The images in memory of the host; worked on in pieces, so that nothing larger than
        the result is held.

    Raises:
        InputError: If the images were standardised before, or their channels do not fit.
    """
    _check_brightness(images)
    _check_channels(images.shape[-1], preprocessing.channels)
    shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
    result = np.empty((len(images), *shape), np.float32)
    pixels = max(np.prod(shape), np.prod(images.shape[1:]))
    chunk = max(1, _CHUNK_BYTES // (4 * int(pixels)))
    for start in range(0, len(images), chunk):
        piece = images[start : start + chunk]
        count = len(piece)
        if start > 0 and count < chunk:
            # Filled up to the size of the others, the last piece needs no second compilation.
            filling = np.zeros((chunk - count, *piece.shape[1:]), piece.dtype)
            piece = np.concatenate([piece, filling])
        result[start : start + count] = np.asarray(_preprocess(piece, preprocessing))[:count]
    return result


def brightness(
    preprocessed: Float[Array, "batch height width channels"], preprocessing: Preprocessing
) -> Float[Array, "batch height width channels"]:
    """Brightness, in [0, 1] up to rounding, of images that were preprocessed at their own size."""
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    std = jnp.asarray(preprocessing.std, jnp.float32)
    return preprocessed * std + mean


def fit_shape(
    images: Float[Array, "batch height width channels"], shape: tuple[int, int, int]
) -> Float[Array, "batch height_out width_out channels_out"]:
    """Images of another size and colour, as `preprocess` makes them before it standardises.

    Args:
        images: Their brightness.
        shape: Height, width and channels wanted.

    Raises:
        InputError: If the channels do not fit.
    """
    height, width, channels = shape
    _check_channels(images.shape[-1], channels)
    if images.shape[-1] == 3 and channels == 1:
        images = jnp.sum(images * jnp.asarray(_LUMA, jnp.float32), axis=-1, keepdims=True)
    if images.shape[1:3] != (height, width):
        size = (len(images), height, width, images.shape[-1])
        images = jax.image.resize(images, size, "bilinear", antialias=True)
    return jnp.broadcast_to(images, (len(images), *shape))


def augment(
    images: Float[Array, "batch height width channels"],
    key: PRNGKeyArray | UInt32[Array, "2"],
    *,
    padding: int = 4,
    flip: bool = True,
    edge: bool = False,
) -> Float[Array, "batch height width channels"]:
    """Each image moved at random and perhaps mirrored.

    The image is framed with zeros, which after preprocessing is the mean colour, or with
    its own edge, and a window of its old size is cut out of the whole.

    Args:
        images: Preprocessed images.
        key: Randomness.
        padding: Width of the frame in pixels, so the largest move; 0 moves nothing.
        flip: Whether to mirror left and right, with probability 1/2. Not for characters.
        edge: Whether the frame repeats the outermost pixels instead of being zero.

    Returns:
        Images of the same shape.

    References:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2.
    """
    checks.require(padding >= 0, f"`padding` must not be negative, got {padding}.")
    move_key, flip_key = jax.random.split(key)
    batch, height, width, channels = images.shape
    if padding:
        frame = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        corners = jax.random.randint(move_key, (batch, 2), 0, 2 * padding + 1)

        def window(image: Array, corner: Array) -> Array:
            return jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), (height, width, channels)
            )

        framed = jnp.pad(images, frame, mode="edge" if edge else "constant")
        images = jax.vmap(window)(framed, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


@functools.partial(jax.jit, static_argnums=1)
def _preprocess(images: Array, preprocessing: Preprocessing) -> Array:
    scale = 255.0 if images.dtype == jnp.uint8 else 1.0
    shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
    x = fit_shape(jnp.asarray(images, jnp.float32) / scale, shape)
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    std = jnp.asarray(preprocessing.std, jnp.float32)
    return (x - mean) / std


def _mean_and_std(channel: np.ndarray) -> tuple[float, float]:
    if channel.dtype != np.uint8:
        constant = channel.min() == channel.max()  # Rounding would leave a tiny deviation.
        std = 0.0 if constant else float(channel.std(dtype=np.float64))
        return float(channel.mean(dtype=np.float64)), std
    # Exact, and without a float copy of the images.
    weight = np.bincount(channel.reshape(-1), minlength=256) / channel.size
    levels = np.arange(256) / 255
    mean = float(weight @ levels)
    return mean, float(np.sqrt(weight @ (levels - mean) ** 2))


def _check_channels(given: int, wanted: int) -> None:
    checks.require(
        given == wanted or {given, wanted} == {1, 3},
        f"images with {given} channels cannot become images with {wanted}: only grey (1) and "
        "colour (3) convert into each other.",
    )


def _check_brightness(images: np.ndarray) -> None:
    if images.dtype == np.uint8 or images.size == 0:
        return
    # NaN fails the comparison too.
    checks.require(
        bool(images.min() >= 0) and bool(images.max() <= 1),
        "`images` must be uint8 in 0..255 or float32 in [0, 1]; these are neither, so they "
        "look preprocessed already: hand in the images as they were loaded.",
    )
