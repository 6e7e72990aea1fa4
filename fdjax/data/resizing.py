"""A task at another image size, for a budget that the stored size does not fit."""

import dataclasses

import numpy as np

from fdjax import checks
from fdjax.data.preprocessing import Preprocessing, preprocess
from fdjax.data.tasks import Split, Task


def resize(task: Task, size: int) -> Task:
    """The task with square images of another size.

    Bilinear, smoothed where it shrinks, and rounded to 256 levels, as if they had been stored so:
    teachers and students see the same images.

    Args:
        task: With uint8 images, or float32 ones in [0, 1].
        size: Pixels of a side, >= 1.

    Raises:
        InputError: If the size is not positive or the images were standardised before.
    """
    checks.positive("size", size)

    def smaller(part: Split) -> Split:
        if len(part) == 0:
            return Split(np.zeros((0, size, size, part.images.shape[-1]), np.uint8), part.labels)
        channels = part.images.shape[-1]
        plain = Preprocessing(size, size, channels, [0.0] * channels, [1.0] * channels)
        brightness = np.clip(preprocess(part.images, plain), 0.0, 1.0)
        return Split(np.rint(255 * brightness).astype(np.uint8), part.labels)

    return dataclasses.replace(task, train=smaller(task.train), test=smaller(task.test))
