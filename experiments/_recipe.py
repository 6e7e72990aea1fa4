"""The recipe of every network of a study, as flags, and the images that it is applied to."""

import dataclasses
from typing import Literal

from experiments import _devices, _run, _task
from fdjax import data, models

_DRAW_SEED = 191010699
_SLOW_NETWORKS = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
_TEACHING_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class RecipeConfig(_devices.DevicesConfig):
    """Flags of every experiment in one label space."""

    dataset: str = _run.flag(
        "digits", "TFDS name, the embedded digits, a file NAME.npz, or a folder of class folders."
    )
    data_dir: str | None = _run.flag(None, "Where TFDS keeps its data, and npz files may lie.")
    image_size: int = _run.flag(
        0, "Side in pixels to which images are resized, for speed; 0 leaves them.", low=0
    )
    shots: int = _run.flag(0, "Training images of each class; 0 for all there are.", low=0)
    judge: Literal["test", "validation"] = _run.flag(
        "test",
        "Images that judge: test, or for choosing settings a fifth of the training images, which "
        "then teach nobody.",
    )
    student: str = _run.flag("resnet8", f"Student network: {', '.join(models.MODELS)}.")
    epochs: int = _run.flag(20, "Passes over the training images; 240 as published.", low=1)
    teacher_epochs: int = _run.flag(
        0, "Passes over the images to train a teacher; 0 for as many as for students.", low=0
    )
    batch_size: int = _run.flag(64, "Images a step.", low=1)
    learning_rate: float | None = _run.flag(
        None,
        "Of SGD with momentum 0.9, at first; by default 0.05, but 0.01 for a student that is a "
        "mobilenet or shufflenet, as published.",
        low=0.0,
    )
    drops: tuple[float, ...] = _run.flag(
        (0.625, 0.75, 0.875),
        "Shares of the epochs after which it falls to a tenth: of 240 after 150, 180 and 210.",
        low=0.0,
        high=1.0,
    )
    weight_decay: float = _run.flag(5e-4, "Of all trained numbers.", low=0.0)
    first_epochs: int = _run.flag(
        0,
        "Passes of the first stage, of the methods abound, factor and fsp; 0 for an eighth of "
        "--epochs, as 30 are of 240.",
        low=0,
    )
    augmentation: Literal["none", "shift", "crop_flip", "shift_flip"] = _run.flag(
        "none",
        "Random change of the images in each step, seen by student and teachers alike: crop_flip, "
        "for photographs of 32 pixels, moves by up to 4 and mirrors, shift_flip by up to 2 for "
        "smaller ones; shift, for characters, does not mirror.",
    )
    dtype: Literal["float32", "bfloat16"] = _run.flag(
        "float32", "Type in which networks compute their maps; weights and losses are float32."
    )
    negatives: int = _run.flag(
        0,
        "Negatives of each image in crd, the length of the queue in crd_queue; 0 for a third of "
        "the training images, as 16,384 are of CIFAR's.",
        low=0,
    )
    seeds: int = _run.flag(
        3, "Students of each method. More can be asked of a finished run.", low=1
    )
    seed: int = _run.flag(0, "First seed of the students, and seed of the teachers.", low=0)
    save_epochs: int = _run.flag(20, "Epochs between checkpoints of a network.", low=1)


def task(config: RecipeConfig, dataset: str | None = None) -> data.Task:
    """A data set as the flags cut it; by default the one that they name."""
    whole = _task.load(dataset or config.dataset, config.data_dir, config.image_size)
    if config.shots:
        whole = data.few_shot(whole, config.shots, seed=_DRAW_SEED, unlabelled=0)
    return judged(whole, config.judge)


def judged(whole: data.Task, judge: Literal["test", "validation"]) -> data.Task:
    """The task with the images that judge in the place of its test images."""
    if judge == "test":
        return whole
    teaching, held = data.split(whole.train, _TEACHING_SHARE, seed=_DRAW_SEED)
    return dataclasses.replace(whole, train=teaching, test=held)


def student_rate(config: RecipeConfig) -> float:
    """First learning rate of the students."""
    if config.learning_rate is not None:
        return config.learning_rate
    return 0.01 if config.student in _SLOW_NETWORKS else 0.05


TEACHER_RATE = 0.05
"""First learning rate of the teachers."""
