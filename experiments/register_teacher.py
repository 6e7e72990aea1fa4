r"""How does a teacher that was trained elsewhere get into a faculty?

    python -m experiments.register_teacher --root=runs/faculty --name=net --onnx=net.onnx \
        --image_shape=32,32,3 --mean=0.49,0.48,0.45 --std=0.25,0.24,0.26 --class_names=names.txt
    python -m experiments.register_teacher --safetensors=net.safetensors --architecture=resnet20 ...
    python -m experiments.register_teacher --outputs=net.npz --class_names=names.txt

An ONNX file is run by onnxruntime (pip install 'fdjax[onnx]'). A safetensors file (pip install
'fdjax[safetensors]') holds the `state_dict` of one of the published networks for CIFAR, which then
is one of our own. With PyTorch, for a network `net` in evaluation mode:

    torch.onnx.export(net, torch.zeros(1, 3, 32, 32), "net.onnx", dynamo=False,
                      input_names=["images"], output_names=["logits"],
                      dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}})
    safetensors.torch.save_file(net.state_dict(), "net.safetensors")

An outputs file is all that is known of a teacher: an .npz with `probabilities`, where known
`features`, `class_vectors`, `source_accuracy`, `num_parameters`, and `images` as they were
loaded, on which they were made, or `images_digest`, what `fdjax.data.digest` says of them.

Nothing in these files is run as code. It takes a few seconds.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import _outputs, _run
from fdjax import checks, data, faculty, reports
from fdjax.faculty.cards import is_name
from fdjax.models import state_dicts

KINDS = ("onnx", "safetensors", "outputs")


@dataclasses.dataclass(frozen=True)
class Config:
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/register_teacher", "Folder of the record of the run.")
    root: str = _run.flag("runs/faculty", "Folder of the faculty; made if it is missing.")
    name: str | None = _run.flag(None, "Of the teacher; by default that of the file.")
    onnx: str | None = _run.flag(None, "An ONNX file, with its weights in it.")
    safetensors: str | None = _run.flag(None, "A safetensors file of a published network.")
    outputs: str | None = _run.flag(None, "An .npz of what the teacher said of some images.")
    architecture: str | None = _run.flag(
        None, f"Of the safetensors file: {', '.join(state_dicts.architectures())}."
    )
    class_names: str | None = _run.flag(
        None, "Text file with the name of each label, one a line; by default their numbers."
    )
    num_classes: int | None = _run.flag(
        None, "Number of labels, where --class_names does not tell.", low=1
    )
    image_shape: tuple[int, ...] = _run.flag(
        (32, 32, 3), "Height, width and channels of what the network reads.", low=1
    )
    mean: tuple[float, ...] = _run.flag(
        (0.5,), "What is subtracted from each channel of an image in [0, 1], or from all."
    )
    std: tuple[float, ...] = _run.flag(
        (0.5,), "What each channel, or all, is divided by afterwards.", low=1e-6
    )
    says: Literal["logits", "probabilities"] = _run.flag(
        "logits", "What the output of the ONNX file holds."
    )
    output: str | None = _run.flag(None, "Name of that output; by default the first.")
    features: str | None = _run.flag(
        None, "Name of the output of the ONNX file with the input of the last layer, if any."
    )
    source_task: str = _run.flag("unknown", "What the teacher was trained for.")
    source_accuracy: float | None = _run.flag(
        None, "Its accuracy there, where known.", low=0.0, high=1.0
    )
    licence: str | None = _run.flag(None, "Of the teacher, where known.")
    replace: bool = _run.flag(False, "Whether a teacher of this name makes way.")


def given(config: Config) -> tuple[str, Path]:
    """Which kind of file it is, and where.

    Raises:
        InputError: If not exactly one is given, or flags of another kind.
    """
    found = {kind: getattr(config, kind) for kind in KINDS if getattr(config, kind) is not None}
    checks.require(
        len(found) == 1, f"give exactly one of {', '.join(f'--{kind}' for kind in KINDS)}."
    )
    kind = next(iter(found))
    owners = {"architecture": "safetensors", "output": "onnx", "features": "onnx"}
    for flag, owner in owners.items():
        checks.require(
            getattr(config, flag) is None or kind == owner, f"--{flag} goes with --{owner}."
        )
    checks.require(
        kind != "safetensors" or config.architecture is not None,
        f"--safetensors needs --architecture, one of {', '.join(state_dicts.architectures())}.",
    )
    path = Path(found[kind])
    checks.require(path.is_file(), f"--{kind}: there is no file {path}.")
    return kind, path


def names_of(config: Config, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the labels.

    Args:
        config: The flags.
        known: What the file itself says, where it does.

    Raises:
        InputError: If neither flags nor file tell, or the text file is none.
    """
    if config.class_names is None:
        checks.require(
            bool(known) or config.num_classes is not None,
            "name the teacher's labels by --class_names, or count them by --num_classes.",
        )
        return known or tuple(map(str, range(config.num_classes or 0)))
    path = Path(config.class_names)
    checks.require(path.is_file(), f"--class_names: there is no file {path}.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise checks.InputError(f"--class_names: {path} is no text file ({error}).") from error
    names = tuple(line.strip() for line in lines if line.strip())
    number = config.num_classes
    checks.require(
        number is None or len(names) == number,
        f"--class_names: {path} names {len(names)} labels, but --num_classes={number}.",
    )
    return names


def preprocessing(config: Config) -> data.Preprocessing:
    """How images are fed to the teacher.

    Raises:
        InputError: If the numbers do not fit each other.
    """
    checks.require(
        len(config.image_shape) == 3, "--image_shape must be height, width and channels."
    )
    height, width, channels = config.image_shape
    moments = []
    for flag in ("mean", "std"):
        values = getattr(config, flag)
        checks.require(
            len(values) in (1, channels), f"--{flag} must give one number, or {channels}."
        )
        moments.append(values if len(values) == channels else values * channels)
    return data.Preprocessing(height, width, channels, *moments)


def card(config: Config, path: Path, names: tuple[str, ...], **more: Any) -> faculty.Card:
    """What the flags tell of the teacher.

    Raises:
        InputError: If it cannot be.
    """
    name = path.stem if config.name is None else config.name
    checks.require(
        config.name is not None or is_name(name),
        f"the file's name {name!a} cannot be that of a teacher; give one by --name.",
    )
    known: dict[str, Any] = {
        "architecture": config.architecture or "unknown",
        "source_task": config.source_task,
        "source_accuracy": config.source_accuracy,
        "licence": config.licence,
    }
    more = {key: value for key, value in more.items() if value is not None}
    return faculty.Card(name=name, class_names=names, **known | more)


def add_outputs(config: Config, path: Path) -> faculty.Card:
    """Registers a teacher by its outputs.

    Raises:
        InputError: If the file is damaged or does not tell of which images they are.
    """
    found, known, digest = _outputs.of_images(path)
    accuracy, number = float(found.source_accuracy), float(found.num_parameters)
    told = card(
        config,
        path,
        names_of(config, known),
        source_accuracy=accuracy if config.source_accuracy is None and accuracy >= 0 else None,
        num_parameters=int(number) if number >= 0 and np.isfinite(number) else None,
    )
    return faculty.register_outputs(config.root, told, found, digest, replace=config.replace)


def run(config: Config) -> dict[str, Any]:
    """Registers the teacher; returns what results.json holds."""
    record = _run.Run(config)
    kind, path = given(config)
    faculty.create(config.root)
    with record.stage("register"):
        if kind == "outputs":
            made = add_outputs(config, path)
        elif kind == "onnx":
            options = {"says": config.says, "output": config.output, "features": config.features}
            options = {key: value for key, value in options.items() if value is not None}
            told = card(
                config,
                path,
                names_of(config),
                preprocessing=preprocessing(config),
                options=options,
            )
            made = faculty.register_onnx(config.root, told, path, replace=config.replace)
        else:
            told = card(config, path, names_of(config), preprocessing=preprocessing(config))
            made = faculty.register_state_dict(config.root, told, path, replace=config.replace)
    row = {
        "teacher": made.name,
        "labels": len(made.class_names),
        "parameters": made.num_parameters,
        "digest": made.digest[:16],
    }
    reports.print_table([row], f"Registered at {config.root}")
    return record.finish({"teacher": row})


if __name__ == "__main__":
    _run.main(run, Config)
