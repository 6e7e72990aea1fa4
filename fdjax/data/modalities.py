"""Two views of one image side by side in its channels, so that one sense can teach another."""

import numpy as np
from jaxtyping import Float32

from fdjax import checks
from fdjax.data.tasks import Images

# Linear light of sRGB's red, green and blue in X, Y and Z, where white is (0.95047, 1, 1.08883).
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def _brightness(images: Images) -> np.ndarray:
    """In [0, 1]."""
    return images / 255.0 if images.dtype == np.uint8 else np.asarray(images, np.float64)


def luminance_chrominance(
    images: Images,
) -> Float32[np.ndarray, "examples height width 3"]:
    """Lightness, then the two axes of colour, of CIE L*a*b*, each scaled to [0, 1].

    What a grey picture shows is the first channel; the other two are what it does not show.

    Args:
        images: In sRGB, three channels.

    Returns:
        L / 100, (a + 128) / 255 and (b + 128) / 255, for daylight white (D65).

    Raises:
        InputError: If the images are not of three channels.
    """
    checks.require(
        images.shape[-1] == 3,
        f"lightness and colour are of images with red, green and blue, but these have "
        f"{images.shape[-1]} channels; take a data set of colour images.",
    )
    colour = _brightness(images)
    linear = np.where(colour > 0.04045, ((colour + 0.055) / 1.055) ** 2.4, colour / 12.92)
    ratio = linear @ _TO_XYZ.T / _WHITE
    edge = 6 / 29
    x, y, z = np.moveaxis(
        np.where(ratio > edge**3, np.cbrt(ratio), ratio / (3 * edge**2) + 4 / 29), -1, 0
    )
    scaled = [(116 * y - 16) / 100, (500 * (x - y) + 128) / 255, (200 * (y - z) + 128) / 255]
    return np.clip(np.stack(scaled, axis=-1), 0.0, 1.0).astype(np.float32)


def brightness_edges(images: Images) -> Float32[np.ndarray, "examples height width 2"]:
    """Brightness, the mean of the channels, then the length of its gradient, both in [0, 1].

    Args:
        images: Of at least 2 x 2 pixels and any number of channels.

    Raises:
        InputError: If the images are smaller.
    """
    checks.require(
        min(images.shape[1:3]) >= 2,
        f"edges need images of at least 2 x 2 pixels, got {images.shape[1]} x {images.shape[2]}.",
    )
    grey = _brightness(images).mean(axis=-1)
    # A step from black to white along both axes is the largest there is.
    edges = np.hypot(*np.gradient(grey, axis=(1, 2))) / np.sqrt(2)
    return np.stack([grey, edges], axis=-1).astype(np.float32)
