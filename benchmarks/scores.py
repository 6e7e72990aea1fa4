"""How long does it take to score a faculty, score by score?

    python -m benchmarks.scores --out=scores.json

Two hundred teachers of 10 to 100 labels on 500 examples of a task of 20 classes with hard
labels, in one compiled pass a score. About two minutes on two cores. Beside the seconds it
says how far padding moves a score: each teacher is scored again alone, without padding.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import _timing
from fdjax import reports, scores, selection
from fdjax.types import TeacherOutputs


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the faculty."""

    teachers: int = 200
    examples: int = 500
    most_labels: int = 100
    classes: int = 20
    features: int = 64
    teacher_batch: int = 20
    repeats: int = 5
    alone: int = 3
    out: str | None = None


def faculty(config: Config) -> list[TeacherOutputs]:
    """Teachers of random sizes with random predictions and features."""
    random = np.random.default_rng(0)
    teachers = []

    def single(array: np.ndarray) -> jax.Array:
        return jnp.asarray(array, jnp.float32)

    for size in random.integers(10, config.most_labels + 1, config.teachers):
        logits = 3 * random.normal(size=(config.examples, size))
        exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
        features = random.normal(size=(config.examples, config.features))
        teachers.append(
            TeacherOutputs(
                single(exponential / exponential.sum(axis=1, keepdims=True)),
                single(features),
                single(random.normal(size=(size, config.features))),
                np.ones(size, bool),
                random.uniform(),
                float(size * config.features),
            )
        )
    return teachers


def run(config: Config) -> dict[str, Any]:
    """Times every score on the whole faculty; returns and records the rows."""
    teachers = faculty(config)
    stacked = selection.stack(teachers)
    labels = np.arange(config.examples) % config.classes
    chosen = np.random.default_rng(1).choice(config.teachers, config.alone, replace=False)
    rows = []
    for name, function in scores.SCORES.items():
        # k-NN holds examples x examples distances a teacher.
        batch = config.teacher_batch if name == "knn" else None

        def score(
            outputs: TeacherOutputs, function: Any = function, batch: int | None = batch
        ) -> jax.Array:
            return selection.score_faculty(
                function, outputs, labels, config.classes, batch_size=batch
            )

        timing = _timing.measure(score, stacked, repeats=config.repeats)
        alone = [float(score(selection.stack([teachers[i]]))[0]) for i in chosen]
        together = np.asarray(timing.result)[chosen]
        rows.append(
            {
                "score": name,
                "seconds": timing.seconds,
                "teachers per second": config.teachers / timing.seconds,
                "moved by padding": float(np.abs(together - alone).max()),
            }
        )
    reports.print_table(rows, f"{config.teachers} teachers, {config.examples} examples", digits=4)
    result = {"rows": rows, "config": dataclasses.asdict(config)} | _timing.surroundings()
    if config.out is not None:
        reports.write_json(config.out, result)
    return result


def _main(arguments: list[str]) -> None:
    del arguments
    run(Config(out=flags.FLAGS.out))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "JSON file to write.")
    app.run(_main)
