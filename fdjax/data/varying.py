"""The labelled images seen a little differently, for a teacher to speak of."""

import dataclasses

import numpy as np
from scipy import ndimage

from fdjax import checks
from fdjax.data.tasks import Split, Task, generator
from fdjax.types import UNLABELLED

# Largest turn in radians, logarithm of a zoom, slant, and moves along both sides as shares of
# them: small enough for characters to stay what they are.
_LARGEST = (0.2, 0.2, 0.2, 0.1, 0.1)


def vary(task: Task, count: int, *, seed: int, labelled: bool = False) -> Task:
    """The task with `count` changed copies of its labelled images added to the train images.

    Each is one labelled image turned, zoomed, slanted and moved a little, its edge repeated
    behind it. Unlike mixtures (`mix`) they look like images of the data. Unlabelled, what is
    learned from them is what teachers say; labelled, it is augmentation, which needs no teacher,
    but then the copies of one image must not judge each other.

    Args:
        task: With labelled train images.
        count: Copies to add, >= 1.
        seed: Which images and changes; >= 0.
        labelled: Whether each copy has the label of its image, or none.

    Raises:
        InputError: If `count` is not positive or no train image has a label.

    References:
        Simard, Steinkraus, Platt, Best Practices for Convolutional Neural Networks Applied to
        Visual Document Analysis, ICDAR 2003 (affine changes of characters).
    """
    checks.positive("count", count)
    train = task.train
    known = np.flatnonzero(train.labels >= 0)
    checks.require(len(known) > 0, f"no train image of task {task.name!r} has a label to vary.")
    random = generator(seed, "vary")
    # Each labelled image equally often, as far as they go.
    chosen = np.resize(random.permutation(known), count)
    changes = random.uniform(-1, 1, (count, len(_LARGEST))) * _LARGEST
    pairs = zip(train.images[chosen], changes, strict=True)
    varied = np.stack([_changed(image, *change) for image, change in pairs])
    if train.images.dtype == np.uint8:
        varied = np.rint(varied)
    images = np.concatenate([train.images, varied.astype(train.images.dtype)])
    given = train.labels[chosen] if labelled else np.full(count, UNLABELLED, np.int32)
    labels = np.concatenate([train.labels, given])
    return dataclasses.replace(task, train=Split(images, labels))


def _changed(
    image: np.ndarray, turn: float, zoom: float, slant: float, down: float, right: float
) -> np.ndarray:
    """One image by an affine map about its centre, between pixels by straight lines."""
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = np.exp(zoom) * np.array([[cosine, -sine], [sine, cosine]]) @ [[1.0, slant], [0.0, 1.0]]
    sides = np.array(image.shape[:2])
    centre = (sides - 1) / 2
    offset = centre - matrix @ centre + np.array([down, right]) * sides
    channels = [
        ndimage.affine_transform(channel, matrix, offset, order=1, mode="nearest")
        for channel in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    return np.stack(channels, axis=-1)
