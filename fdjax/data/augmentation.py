"""Random changes of a batch of images by name, made inside the compiled training step."""

from collections.abc import Callable, Mapping

from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from fdjax.data.preprocessing import augment

Key = PRNGKeyArray | UInt32[Array, "2"]
Images = Float[Array, "batch height width channels"]


def shift(key: Key, images: Images) -> Images:
    """Each image moved by up to two pixels along either axis, its edge repeated behind it.

    For characters and other small images, whose left and right matter.

    Args:
        key: Randomness.
        images: Preprocessed images.
    """
    return augment(images, key, padding=2, flip=False, edge=True)


def crop_flip(key: Key, images: Images) -> Images:
    """Each image moved by up to four pixels, the mean colour behind it, and perhaps mirrored.

    The usual change of photographs of 32 pixels.

    Args:
        key: Randomness.
        images: Preprocessed images.

    References:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2.
    """
    return augment(images, key, padding=4, flip=True)


def shift_flip(key: Key, images: Images) -> Images:
    """Each image moved by up to two pixels, the mean colour behind it, and perhaps mirrored.

    `crop_flip` for photographs of about 16 pixels.

    Args:
        key: Randomness.
        images: Preprocessed images.
    """
    return augment(images, key, padding=2, flip=True)


AUGMENTATIONS: Mapping[str, Callable[[Key, Images], Images] | None] = {
    "none": None,
    "shift": shift,
    "crop_flip": crop_flip,
    "shift_flip": shift_flip,
}
"""Changes by name, as `augment` of `training.make_step` takes them; None changes nothing."""
