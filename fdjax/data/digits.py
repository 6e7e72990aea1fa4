"""Scikit-learn's handwritten digits as a data set of tensorflow-datasets, needing no network.

The one builder of our own: it makes the records that every other data set has, so what
runs offline and in the tests is the way by which MNIST comes in too.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fdjax.data.tasks import Split, split

_TRAIN_FRACTION = 0.7


class FdjaxDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 digits of 8 x 8 pixels, 70 % of each class to learn from.

    The original counts, in 0..16, how many of 4 x 4 scanned pixels are dark; they are
    stretched to 0..255 by 255 / 16 and rounding. The parts are drawn once and for all.

    References:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
        Learning Repository 1998 (its test part, as scikit-learn ships it).
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8 x 8 pixels, shipped with scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    # A Tensor, for Image would need TensorFlow to encode the pixels.
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # Nothing is downloaded.
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images[..., np.newaxis] * (255 / 16)).astype(np.uint8)
        everything = Split(images, digits.target.astype(np.int32))
        train, test = split(everything, _TRAIN_FRACTION, seed=0)
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, part: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in range(len(part)):
            yield row, {"image": part.images[row], "label": int(part.labels[row])}
