"""Images for a teacher to speak of where there are none but the labelled ones."""

import dataclasses

import numpy as np

from fdjax import checks
from fdjax.data.tasks import Split, Task, generator
from fdjax.types import UNLABELLED


def mix(task: Task, count: int, *, seed: int) -> Task:
    """The task with `count` mixtures of its labelled images added as unlabelled ones.

    Each is a pair of labelled images laid over each other, the share of the first uniform
    between 0 and 1. What a teacher says of them tells how it sees, also between the few images
    that have a label: a student may learn to see alike, though it has no other images.

    Args:
        task: With labelled train images.
        count: Mixtures to add, >= 1.
        seed: Which pairs and shares; >= 0.

    Raises:
        InputError: If `count` is not positive or fewer than two train images have a label.

    References:
        Zhang, Cisse, Dauphin, Lopez-Paz, mixup, ICLR 2018 (the images, without their labels);
        Beyer et al., Knowledge Distillation: A Good Teacher is Patient and Consistent, CVPR 2022
        (a teacher's function matched on mixed images).
    """
    checks.positive("count", count)
    train = task.train
    known = np.flatnonzero(train.labels >= 0)
    checks.require(
        len(known) >= 2,
        f"mixtures of task {task.name!r} need two labelled train images, got {len(known)}.",
    )
    random = generator(seed, "mix")
    first = random.choice(known, count)
    # Another than the first: a step of 1 to len - 1 round the circle of the labelled images.
    places = np.searchsorted(known, first) + random.integers(1, len(known), count)
    second = known[places % len(known)]
    share = random.uniform(size=(count, 1, 1, 1)).astype(np.float32)
    mixed = share * train.images[first] + (1 - share) * train.images[second]
    if train.images.dtype == np.uint8:
        mixed = np.rint(mixed)
    images = np.concatenate([train.images, mixed.astype(train.images.dtype)])
    labels = np.concatenate([train.labels, np.full(count, UNLABELLED, np.int32)])
    return dataclasses.replace(task, train=Split(images, labels))
