"""Training networks by one recipe: data on the devices, one compiled step for all seeds."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _devices
from experiments._recipe import TEACHER_RATE, RecipeConfig
from fdjax import checks, data, metrics, models, objectives, processes, sharding, training
from fdjax.data.augmentation import AUGMENTATIONS
from fdjax.types import Batch, Network, Outputs, TrainableNetwork, Variables


class Learner(NamedTuple):
    """A network as it is trained and as it is used.

    Attributes:
        train: `(variables, images) -> (Outputs, variables)`.
        use: `(variables, images) -> Outputs`.
        fresh: Key to new variables.
    """

    train: TrainableNetwork
    use: Network
    fresh: Callable[[jax.Array], Variables]


def learner(
    architecture: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    *,
    dtype: str = "float32",
    channels: tuple[int, int] | None = None,
) -> Learner:
    """A network by name.

    Args:
        architecture: One of `models.MODELS`.
        num_classes: Of its task.
        image_shape: Of the images of the workshop.
        dtype: In which it computes.
        channels: First and end of those of the images that it sees; all if None.

    Raises:
        InputError: If there is no such network, it cannot compute in that type, or the images
            do not fit it.
    """
    checks.choice("network", architecture, models.MODELS)
    checks.require(
        dtype == "float32" or "dtype" in models.options_of(architecture),
        f"--dtype={dtype} is not for {architecture!r}, which computes in float32 only; choose one "
        "of the CIFAR networks, such as resnet20.",
    )
    options = {} if dtype == "float32" else {"dtype": dtype}
    model = models.create(architecture, num_classes, **options)
    first, end = channels or (0, image_shape[-1])
    seen = (*image_shape[:2], end - first)
    train = models.trainable(model)
    found = Learner(
        lambda variables, images: train(variables, images[..., first:end]),
        lambda variables, images: models.predict(model, variables, images[..., first:end]),
        functools.partial(models.initialise, model, image_shape=seen),
    )
    # Shapes alone: an image that is too small for the network is refused here.
    jax.eval_shape(found.fresh, jax.random.key(0))
    return found


class Workshop:
    """The images of one task on the devices, and the recipe of all who are trained on them."""

    def __init__(self, given: data.Task, config: RecipeConfig):
        """Preprocesses the images by the mean and deviation of those that teach.

        Raises:
            InputError: If there are not so many devices, or they do not divide a batch.
        """
        processes.agree("data", given.digest)
        self.task, self.config = given, config
        self.preprocessing = data.native_preprocessing(given)
        train = data.preprocess(given.train.images, self.preprocessing)
        self.image_shape: tuple[int, int, int] = train.shape[1:]
        self.mesh = _devices.mesh(config, config.batch_size)
        resident = train, given.train.labels
        self.images, self.labels = (
            jax.device_put(resident)
            if self.mesh is None
            else sharding.put(resident, sharding.everywhere(self.mesh))
        )
        self.test = data.preprocess(given.test.images, self.preprocessing)

    @property
    def num_devices(self) -> int:
        """Devices that share a batch."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def by_rows(self) -> Any:
        """How an array with a row for each image of a batch, or of the data, is spread."""
        return None if self.mesh is None else sharding.by_rows(self.mesh)

    def learner(self, architecture: str) -> Learner:
        """A network for the task of this workshop, see `learner`."""
        classes, shape = self.task.num_classes, self.image_shape
        return learner(architecture, classes, shape, dtype=self.config.dtype)

    def unlabelled(self) -> "Workshop":
        """The same images, of none of which the label is known."""
        other = object.__new__(Workshop)
        other.__dict__.update(self.__dict__)
        other.labels = jnp.full_like(self.labels, -1)
        return other

    def steps(self, epochs: int) -> int:
        """Steps of so many passes over the images."""
        return max(1, round(epochs * len(self.labels) / self.config.batch_size))

    def batches(self, seed: int, start: int, *, whole: bool = False) -> Iterator[Batch]:
        """Batches from step `start` on; `whole` on each device, so that any process can look."""
        return data.resident_batches(
            self.images,
            self.labels,
            self.config.batch_size,
            seed=seed,
            start=start,
            sharding=sharding.everywhere(self.mesh) if whole and self.mesh else self.by_rows,
        )

    def optimiser(self, rate: float, epochs: int | None = None) -> optax.GradientTransformation:
        """SGD with momentum; the weight decay goes through the momentum, as it does in PyTorch.

        Args:
            rate: First learning rate.
            epochs: Of the training, at shares of which the rate drops; None for never.
        """
        drops = {} if epochs is None else dict.fromkeys(self._drops(epochs), 0.1)
        schedule = optax.piecewise_constant_schedule(rate, drops)
        decay = optax.add_decayed_weights(self.config.weight_decay)
        return optax.chain(decay, optax.sgd(schedule, momentum=0.9))

    def _drops(self, epochs: int) -> list[int]:
        """Steps after which the rate falls to a tenth."""
        return [round(share * self.steps(epochs)) for share in self.config.drops]

    def outputs(
        self, network: Network, variables: Variables, images: np.ndarray, *, batch_size: int = 512
    ) -> Iterator[Outputs]:
        """What a network says of preprocessed images, batch by batch."""
        use = jax.jit(network)
        for start in range(0, len(images), batch_size):
            yield use(variables, jnp.asarray(images[start : start + batch_size]))

    def accuracy(self, network: Network, variables: Variables) -> float:
        """Share of the judging images that a network gets right."""
        logits = [each.logits for each in self.outputs(network, variables, self.test)]
        return float(metrics.accuracy(jnp.concatenate(logits), jnp.asarray(self.task.test.labels)))

    def features(self, network: Network, variables: Variables, images: np.ndarray) -> np.ndarray:
        """Features of preprocessed images."""
        found = [each.features for each in self.outputs(network, variables, images)]
        return np.concatenate([np.asarray(each) for each in found])


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
    """A step, compiled once, that trains networks of several seeds one after the other.

    Attributes:
        workshop: Where they are trained.
        student: Network in training.
        fresh: Key to new variables.
        objective: What is minimised.
        teach: As for `training.make_step`.
        teacher: What `teach` reads.
        optimiser: Of all trained numbers.
        epochs: Passes over the images; where the objective listens, as CRD does to fill its
            banks, one pass goes before them in which nothing is trained.
    """

    workshop: Workshop
    student: TrainableNetwork
    fresh: Callable[[jax.Array], Variables]
    objective: objectives.Objective
    teach: training.Teach
    teacher: Any
    optimiser: optax.GradientTransformation
    epochs: int

    @functools.cached_property
    def step(self) -> training.Step:
        """The compiled step; it gives its state away."""
        return self._step(self.optimiser)

    @functools.cached_property
    def _still(self) -> training.Step:
        """The step that trains nothing; the gradients are not even computed."""
        return self._step(optax.set_to_zero())

    def _step(self, optimiser: optax.GradientTransformation) -> training.Step:
        augment = AUGMENTATIONS[self.workshop.config.augmentation]
        return training.make_step(
            self.student, self.teach, self.objective, optimiser, augment=augment
        )

    def check(self) -> None:
        """Refuses what the objective cannot learn from; only shapes are computed.

        Raises:
            InputError: As the objective says.
        """
        jax.eval_shape(self._first_loss, jax.random.key(0), self.teacher)

    def _first_loss(self, key: jax.Array, teacher: Any) -> jax.Array:
        batch = jax.eval_shape(lambda: next(self.workshop.batches(0, 0)))
        batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)
        outputs, _ = self.student(self.fresh(key), batch.images)
        signal = self.teach(teacher, batch)
        begun = self.objective.init(key, batch, outputs, signal)
        return self.objective.loss(*begun, key, batch, outputs, signal)[0]

    def start(self, seed: int, variables: Variables | None = None) -> training.TrainState:
        """The state before the first step, on every device.

        Args:
            seed: Of everything that is drawn.
            variables: Of the network; fresh ones if None.
        """
        key = jax.random.key(seed)
        state = training.init_state(
            jax.random.fold_in(key, 1),
            self.fresh(key) if variables is None else variables,
            self.student,
            self.teach,
            self.objective,
            self.optimiser,
            next(self.workshop.batches(seed, 0, whole=True)),
            self.teacher,
        )
        mesh = self.workshop.mesh
        if mesh is not None:
            state = sharding.put_rest(state, sharding.everywhere(mesh))
        return self._after_listening(state, seed) if self.objective.listens else state

    def _after_listening(self, state: training.TrainState, seed: int) -> training.TrainState:
        """The state with what the objective remembers after a pass in which nothing is trained."""
        # A copy, since the step gives its state away.
        heard = jax.tree.map(jnp.copy, state._replace(optimiser_state=optax.EmptyState()))
        for batch in itertools.islice(self.workshop.batches(seed, 0), self.workshop.steps(1)):
            heard, _ = self._still(heard, batch, self.teacher)
        return state._replace(objective_state=heard.objective_state)

    def train(
        self, seed: int, folder: Path | None, name: str, variables: Variables | None = None
    ) -> training.TrainState:
        """One network after all epochs: the last, not the best, as published.

        Args:
            seed: As for `start`.
            folder: Of its checkpoints, from which it goes on if it was begun; None saves nothing.
            name: For the progress bar.
            variables: As for `start`.
        """
        state, _ = training.fit(
            self.step,
            self.start(seed, variables),
            functools.partial(self.workshop.batches, seed),
            self.teacher,
            steps=self.workshop.steps(self.epochs),
            folder=folder,
            resume=True,
            save_every=self.workshop.steps(self.workshop.config.save_epochs),
            log_every=self.workshop.steps(1),
            name=name,
        )
        return state


def labels_only(workshop: Workshop, pupil: Learner, *, rate: float, epochs: int) -> Course:
    """The course of a network that hears no teacher."""
    return Course(
        workshop,
        pupil.train,
        pupil.fresh,
        objectives.cross_entropy(),
        training.no_teacher,
        None,
        workshop.optimiser(rate, epochs),
        epochs,
    )


def train_teacher(
    workshop: Workshop, network: Learner, folder: Path, *, number: int = 0
) -> Variables:
    """Variables of a teacher, which are found again in its checkpoints.

    Args:
        workshop: Whose labels it learns.
        network: Its own.
        folder: Of its checkpoints.
        number: Of several teachers.
    """
    config = workshop.config
    epochs = config.teacher_epochs or config.epochs
    course = labels_only(workshop, network, rate=TEACHER_RATE, epochs=epochs)
    return course.train(_teacher_seed(config, number), folder, "teacher").variables


def untrained_teacher(workshop: Workshop, network: Learner) -> Variables:
    """Variables from which the training of the first teacher starts."""
    return network.fresh(jax.random.key(_teacher_seed(workshop.config, 0)))


def _teacher_seed(config: RecipeConfig, number: int) -> int:
    """None of the students' seeds, so that no student starts as a teacher did."""
    return config.seed + 1_000_003 + number


def shapes(network: Learner) -> Variables:
    """Shapes of a network's variables, for checks before it is trained."""
    return jax.eval_shape(network.fresh, jax.random.key(0))
