"""ONNX files as teachers: looked through before they are run, and run by onnxruntime.

The card of such a teacher has the architecture "onnx" and these options, which `completed`
fills in:

    layout      channels_first (what PyTorch exports) or channels_last
    output      name of the output that tells the labels
    says        logits or probabilities, what that output holds
    features    name of the output with the input of the last layer, if there is one

A file is a program of onnxruntime's own operators. It reads no other file and runs no other
code; how long and in how much memory it runs is up to it.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace as with_values
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from fdjax import checks, data
from fdjax.faculty.cards import Card, preprocessing_of

LAYOUTS = ("channels_first", "channels_last")
SAYS = ("logits", "probabilities")

# Operators of the standard. Those of other domains may read files.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")

Images = Float32[np.ndarray, "batch height width channels"]


class OnnxNetwork(NamedTuple):
    """An ONNX file, ready to run.

    Attributes:
        answer: From preprocessed images to probabilities and features.
        batch_size: The only number of images that it takes at once; None for any.
    """

    answer: Callable[[Images], tuple[np.ndarray, np.ndarray | None]]
    batch_size: int | None


def completed(card: Card, content: bytes) -> Card:
    """The card of an ONNX teacher with all options, found out by one run on grey images.

    Raises:
        InputError: If the file does not load, or does not do what the card says.
    """
    what = f"the ONNX file of teacher {card.name!r}"
    session = _session(content, what)
    given = preprocessing_of(card)
    shape = _input_shape(session, what)
    options = {
        "layout": _layout(shape, given),
        "output": session.get_outputs()[0].name,
        "says": SAYS[0],
    } | card.options
    completed = with_values(card, options=options)
    ready = network(completed, content)
    images = np.zeros(
        (ready.batch_size or 2, given.height, given.width, given.channels), np.float32
    )
    probabilities, features = ready.answer(images)
    checks.shape(f"answer of {what}", probabilities, (len(images), len(card.class_names)))
    if features is not None:
        checks.shape(f"features of {what}", features, (len(images), None))
    return completed


def network(card: Card, content: bytes) -> OnnxNetwork:
    """An ONNX teacher, ready to run.

    Raises:
        InputError: If the file does not load, or its inputs and outputs are not those of the card.
    """
    what = f"the ONNX file of teacher {card.name!r}"
    options = dict(card.options)
    known = {"layout", "output", "says", "features"}
    for option in options:
        checks.choice(f"option of {what}", option, sorted(known))
    checks.choice(f"layout of {what}", options.get("layout"), LAYOUTS)
    checks.choice(f"says of {what}", options.get("says"), SAYS)
    session = _session(content, what)
    outputs = [output.name for output in session.get_outputs()]
    wanted = [options[role] for role in ("output", "features") if role in options]
    for name in wanted:
        checks.choice(f"output of {what}", name, outputs)
    checks.require("output" in options, f"the card of {what} names no `output`.")
    shape, source = _input_shape(session, what), session.get_inputs()[0].name

    def answer(images: Images) -> tuple[np.ndarray, np.ndarray | None]:
        if options["layout"] == LAYOUTS[0]:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        try:
            said, *features = session.run(wanted, {source: images})
        except Exception as error:  # of onnxruntime, whose errors have no common type
            raise checks.InputError(f"{what} cannot be run ({_short(error)}).") from error
        for role, array in zip(("answer", "features"), (said, *features), strict=False):
            checks.shape(f"{role} of {what}", array, (len(images), None))
            checks.require(
                array.dtype.kind == "f",
                f"the {role} of {what} must be fractions, not {array.dtype}.",
            )
        said = said.astype(np.float32)
        if options["says"] == SAYS[0]:
            said = np.exp(said - said.max(axis=1, keepdims=True))
            said /= said.sum(axis=1, keepdims=True)
        # NaN is blamed on the teacher later, as it is for any other.
        wrong = (said < 0).any() or (np.abs(said.sum(axis=1) - 1) > 1e-3).any()
        checks.require(
            not wrong, f"{what} says no probabilities; give the option `says` as logits."
        )
        return said, features[0].astype(np.float32) if features else None

    return OnnxNetwork(answer, shape[0] if isinstance(shape[0], int) else None)


def num_parameters(content: bytes) -> int:
    """Numbers in the weights of a file."""
    onnx = _library("onnx")
    model = onnx.load_model_from_string(content)
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type in kinds]
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in tensors)


def _layout(shape: list[Any], given: data.Preprocessing) -> str:
    fits = {
        "channels_first": (given.channels, given.height, given.width),
        "channels_last": (given.height, given.width, given.channels),
    }
    for layout, sizes in fits.items():
        if all(not isinstance(a, int) or a == b for a, b in zip(shape[1:], sizes, strict=True)):
            return layout
    raise checks.InputError(
        f"the ONNX file reads images of {shape[1:]}, but `preprocessing` gives "
        f"{given.height} x {given.width} pixels of {given.channels} channels; mend it."
    )


def _check(content: bytes, what: str) -> None:
    """Refuses a file that is none, that would read others, or has foreign operators."""
    onnx = _library("onnx")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, whatever hostile bytes make it raise
        raise checks.InputError(f"{what} is no ONNX file ({_short(error)}).") from error
    checks.require(
        len(model.graph.node) > 0 and len(model.graph.output) > 0, f"{what} is an empty ONNX file."
    )
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto):
            checks.require(
                message.data_location != onnx.TensorProto.EXTERNAL and not message.external_data,
                f"{what} keeps weights in another file; save it as one, such as by "
                "`onnx.save(model, path, save_as_external_data=False)`.",
            )
    own = {function.domain for function in model.functions}
    foreign = {opset.domain for opset in model.opset_import} - {*_DOMAINS, *own}
    checks.require(
        not foreign,
        f"{what} has operators of {', '.join(map(ascii, sorted(foreign)))}, which are outside the "
        "standard of ONNX; export it without them.",
    )


def _session(content: bytes, what: str) -> Any:
    _check(content, what)
    runtime = _library("onnxruntime")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4  # what fails is told by our own message
    try:
        return runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # of onnxruntime, whose errors have no common type
        raise checks.InputError(f"{what} does not load ({_short(error)}).") from error


def _input_shape(session: Any, what: str) -> list[Any]:
    inputs = session.get_inputs()
    checks.require(
        len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(inputs[0].shape) == 4,
        f"{what} must have one input, images of float32 with four axes; it has "
        f"{', '.join(f'{one.type}{one.shape}' for one in inputs) or 'none'}.",
    )
    return list(inputs[0].shape)


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all within it, whatever the fields are called."""
    waiting = [message]
    while waiting:
        one = waiting.pop()
        yield one
        for field, value in one.ListFields():
            if field.message_type is not None:
                waiting += value if field.is_repeated else [value]


def _short(error: Exception) -> str:
    return ascii(str(error).split("\n")[0][:200])


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise checks.InputError(
            f"ONNX files need the package {name}; install it by `pip install 'fdjax[onnx]'`."
        ) from error
