"""What does a training step cost with each objective, beside plain distillation?

    python -m benchmarks.steps --out=steps.json

One jitted step of a small convnet on images of 28 x 28 pixels: 128 images a batch, a quarter of
them labelled, 20 student labels, a teacher of 100 labels whose outputs are computed beforehand.
The first row is plain distillation, with a teacher of the student's own 20 labels; `ratio` is the
time as a multiple of it. Steps are timed in turns. About a minute on two cores.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from benchmarks import _timing
from fdjax import costs, models, objectives, reports, training
from fdjax.types import Batch, Outputs

COLUMNS = ("objective", "ratio", "milliseconds", "teachers", "teacher labels", "compile_seconds")


class Config(NamedTuple):
    """Sizes of the step."""

    batch: int = 128
    labelled: int = 32
    classes: int = 20
    teacher_labels: int = 100
    size: int = 28
    features: int = 64
    repeats: int = 30
    out: str | None = None


def _objectives(config: Config, data: Mapping[str, jax.Array]) -> dict[str, tuple[Any, int]]:
    """What stands beside cross-entropy in each row, and how many teachers it hears."""
    labels, beliefs, seen = data["labels"], data["beliefs"], data["probabilities"]
    cost = costs.from_predictions(seen[0], labels, config.classes)
    centres = costs.class_centres(data["features"], labels, config.classes)
    made = objectives.create
    return {
        "kd": (made("kd"), 1),
        "(none)": (objectives.cross_entropy(), 0),
        "transport": (made("transport", cost=cost, epsilon=0.1), 1),
        "reference": (objectives.trusted_reference(seen[:1], labels, beliefs), 1),
        "reference, 3 teachers": (objectives.trusted_reference(seen, labels, beliefs), 3),
        "projected_kl": (made("projected_kl", cost=cost), 1),
        "uld": (made("uld"), 1),
        "extra_head": (made("extra_head"), 1),
        "feature_matching": (made("feature_matching"), 1),
        "refilled_relations": (made("refilled_relations"), 1),
        "refilled_classifier": (made("refilled_classifier", centres=centres), 1),
        "gkd_classifier": (made("gkd_classifier", centres=centres), 1),
        "pseudo_labels": (made("pseudo_labels"), 0),
    }


def random_data(config: Config, teachers: int = 3) -> dict[str, jax.Array]:
    """Images, labels, beliefs, and what three teachers say of them; all random."""
    keys = jax.random.split(jax.random.key(0), 5)
    number = 4 * config.batch
    spoken = (teachers, number, config.teacher_labels)
    return {
        "images": jax.random.normal(keys[0], (number, config.size, config.size, 1)),
        "labels": jnp.where(
            jnp.arange(number) < config.labelled * 4, jnp.arange(number) % config.classes, -1
        ),
        "beliefs": jax.nn.log_softmax(jax.random.normal(keys[1], (number, config.classes))),
        "logits": 3 * jax.random.normal(keys[2], spoken),
        "probabilities": jax.nn.softmax(3 * jax.random.normal(keys[2], spoken)),
        "features": jax.random.normal(keys[3], (number, config.features)),
        "same": 3 * jax.random.normal(keys[4], (number, config.classes)),
    }


def run(config: Config) -> dict[str, Any]:
    """Times a step of every objective; prints, writes and returns the rows."""
    data = random_data(config)
    model = models.create("convnet", config.classes)
    variables = models.initialise(model, jax.random.key(1), (config.size, config.size, 1))
    student, optimiser = models.trainable(model), optax.adam(1e-3)
    unlabelled = config.batch - config.labelled
    first = 4 * config.labelled
    rows = jnp.concatenate([jnp.arange(config.labelled), first + jnp.arange(unlabelled)])
    batch = Batch(data["images"][rows], data["labels"][rows], rows)
    calls = []
    chosen = _objectives(config, data)
    widths = []
    for name, (term, teachers) in chosen.items():
        logits = data["same"] if name == "kd" else data["logits"][:teachers]
        if name != "kd":
            logits = jnp.moveaxis(logits, 0, 1).reshape(len(data["labels"]), -1)
        widths.append(logits.shape[-1] // max(teachers, 1))
        teacher = Outputs(logits if teachers else jnp.zeros((len(logits), 1)), data["features"])
        goal = objectives.weighted_sum((1.0, objectives.cross_entropy()), (1.0, term))
        step = training.make_step(student, training.observed, goal, optimiser)
        state = training.init_state(
            jax.random.key(2),
            variables,
            student,
            training.observed,
            goal,
            optimiser,
            batch,
            teacher,
        )
        # The step gives its state away; one that keeps it can be timed again and again.
        calls.append((jax.jit(lambda *arrays, step=step: step(*arrays)), state, batch, teacher))
    timings = _timing.measure_together(calls, repeats=config.repeats, budget=600.0)
    table = _timing.with_ratios(
        [
            {
                "objective": name,
                "seconds": timing.seconds,
                "milliseconds": 1e3 * timing.seconds,
                "teachers": teachers,
                "teacher labels": width,
                "compile_seconds": timing.compile_seconds,
            }
            for (name, (_, teachers)), width, timing in zip(
                chosen.items(), widths, timings, strict=True
            )
        ]
    )
    entry = {**_timing.surroundings(), "settings": config._asdict(), "rows": table}
    print(reports.table(table, columns=COLUMNS))
    if config.out is not None:
        reports.write_json(config.out, entry)
    return entry


def define_flags() -> None:
    """Defines the flags; called from the command line only, so that importing changes nothing."""
    for name, size in Config._field_defaults.items():
        if name != "out":
            text = f"{name.replace('_', ' ').capitalize()}; see the first lines of the module."
            flags.DEFINE_integer(name, size, text, lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file to write.")


def main(_: list[str]) -> None:
    """Runs the benchmark with the flags' values."""
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in Config._fields}
    run(Config(**values))


if __name__ == "__main__":
    define_flags()
    app.run(main)
