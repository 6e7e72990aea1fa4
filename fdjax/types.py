"""The few data types that every room of fdjax shares."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Float, Int

UNLABELLED = -1
"""Label of an example whose class is unknown."""

Variables: TypeAlias = dict[str, Any]
"""A network's arrays by collection; "params" is trained, the rest is carried along."""


class Batch(NamedTuple):
    """Examples of one training step.

    Attributes:
        images: Preprocessed images.
        labels: Class of each image; `UNLABELLED` where it is unknown.
        indices: Row of each image in the data it was drawn from.
    """

    images: Float[Array, "batch height width channels"]
    labels: Int[Array, " batch"]
    indices: Int[Array, " batch"]


class Outputs(NamedTuple):
    """What a network says of a batch.

    Attributes:
        logits: Unnormalised log-probabilities of the network's own labels.
        features: Input of the last linear layer.
        hidden: Maps between the stages, first stage first; empty where unknown.
    """

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch features"] | None = None
    hidden: tuple[Float[Array, "batch height width channels"], ...] = ()


class TeacherOutputs(NamedTuple):
    """What one teacher, or with one more leading axis a whole faculty, says of a task.

    Labels, features and teachers of different number stand side by side by padding:
    a label that a teacher lacks has probability zero and is False in `class_mask`, a
    feature that it lacks is zero everywhere.

    Attributes:
        probabilities: Predicted distribution over the teacher's labels.
        features: Input of the teacher's last layer; None for a black box.
        class_vectors: One vector of feature space for each teacher label (the rows of
            the last layer); None for a black box.
        class_mask: True for the labels that the teacher has.
        source_accuracy: Accuracy in [0, 1] on the task that the teacher was trained
            for; NaN where unknown.
        num_parameters: Trained numbers in the teacher; NaN where unknown.
    """

    probabilities: Float[Array, "*teachers examples teacher_classes"]
    features: Float[Array, "*teachers examples features"] | None
    class_vectors: Float[Array, "*teachers teacher_classes features"] | None
    class_mask: Any
    source_accuracy: Any = float("nan")
    num_parameters: Any = float("nan")


Network: TypeAlias = Callable[[Variables, Any], Outputs]
"""A frozen network: `(variables, images) -> Outputs`."""

TrainableNetwork: TypeAlias = Callable[[Variables, Any], tuple[Outputs, Variables]]
"""A network in training: also returns its variables with running statistics updated."""
