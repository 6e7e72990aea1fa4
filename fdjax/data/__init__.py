"""Tasks to learn from: found, cut to size, and dealt out in batches."""

from fdjax.data.batching import batches, order, resident_batches
from fdjax.data.mixing import mix
from fdjax.data.modalities import brightness_edges, luminance_chrominance
from fdjax.data.preprocessing import Preprocessing, augment, native_preprocessing, preprocess
from fdjax.data.resizing import resize
from fdjax.data.sources import load
from fdjax.data.tasks import Split, Task, digest, few_shot, restrict, split, synthetic
from fdjax.data.varying import vary

__all__ = [
    "Preprocessing",
    "Split",
    "Task",
    "augment",
    "batches",
    "brightness_edges",
    "digest",
    "few_shot",
    "load",
    "luminance_chrominance",
    "mix",
    "native_preprocessing",
    "order",
    "preprocess",
    "resident_batches",
    "resize",
    "restrict",
    "split",
    "synthetic",
    "vary",
]
