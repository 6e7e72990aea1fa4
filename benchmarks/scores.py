"""How long does it take to score a faculty, score by score?

    python -m benchmarks.scores --out=scores.json
    python -m benchmarks.scores --suite=large --out=large.json

Two hundred teachers of 10 to 100 labels on 500 examples of a task of 20 classes with hard
labels, in one compiled pass a score. About two minutes on two cores. Beside the seconds it
says how far padding moves a score: each teacher is scored again alone, without padding.

`--suite=large` is a thousand teachers of 100 labels on 1,000 examples of 20 classes, with 256
features: 1.5 GB of outputs. It judges two claims: that transport, leep and nce take less than
two seconds each, and that LogME is five times as fast as its authors' algorithm on NumPy, looped
over the same teachers (timed on some of them in the same run), with equal values.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import _logme, _timing
from fdjax import checks, reports, scores, selection
from fdjax.types import TeacherOutputs


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the faculty.

    Attributes:
        fewest_labels: Of a teacher; `most_labels` of all where they are equal.
        teacher_batch: Teachers at a time; None for the default of `selection.score_faculty`.
        repeats: Timed passes of each score; one where a pass takes more than `budget` seconds.
        budget: Seconds after which no further pass starts.
        alone: Teachers scored again alone.
        reference: Teachers on which the reference LogME is timed; 0 for none.
    """

    teachers: int = 200
    examples: int = 500
    fewest_labels: int = 10
    most_labels: int = 100
    classes: int = 20
    features: int = 64
    teacher_batch: int | None = None
    repeats: int = 5
    budget: float = 60.0
    alone: int = 3
    reference: int = 0
    scores: tuple[str, ...] = tuple(scores.SCORES)
    out: str | None = None


SUITES = {
    "small": Config(),
    "large": Config(
        teachers=1000,
        examples=1000,
        fewest_labels=100,
        features=256,
        repeats=3,
        budget=20.0,
        reference=20,
    ),
}

QUICK = ("transport", "leep", "nce")
SECONDS, TIMES = 2.0, 5.0


def faculty(config: Config) -> list[TeacherOutputs]:
    """Teachers of random sizes with random predictions and features."""
    random = np.random.default_rng(0)
    teachers = []

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    for size in random.integers(config.fewest_labels, config.most_labels + 1, config.teachers):
        logits = 3 * normal(config.examples, size)
        exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
        teachers.append(
            TeacherOutputs(
                jnp.asarray(exponential / exponential.sum(axis=1, keepdims=True)),
                jnp.asarray(normal(config.examples, config.features)),
                jnp.asarray(normal(size, config.features)),
                np.ones(size, bool),
                random.uniform(),
                float(size * config.features),
            )
        )
    return teachers


def _reference(
    teachers: Sequence[TeacherOutputs], labels: np.ndarray, classes: int, ours: dict[str, Any]
) -> dict[str, Any]:
    """The authors' LogME on some teachers, beside ours on all: seconds of all and agreement."""
    features = [np.asarray(one.features) for one in teachers]
    _logme.logme(features[0], labels, classes)
    start = time.perf_counter()
    values = [_logme.logme(one, labels, classes) for one in features]
    seconds = (time.perf_counter() - start) / len(features) * ours["teachers"]
    # The fixed point stops on its way to the maximum: ours is no lower.
    gaps = np.asarray(ours["values"][: len(features)]) - values
    return {
        "timed on": len(features),
        "seconds": seconds,
        "times ours": seconds / ours["seconds"],
        "ours above it, least": float(gaps.min()),
        "ours above it, most": float(gaps.max()),
    }


def run(config: Config) -> dict[str, Any]:
    """Times every score on the whole faculty; returns and records the rows."""
    for name in config.scores:
        checks.choice("scores", name, scores.SCORES)
    teachers = faculty(config)
    stacked = selection.stack(teachers)
    labels = np.arange(config.examples) % config.classes
    chosen = np.random.default_rng(1).choice(config.teachers, config.alone, replace=False)
    kept = [teachers[place] for place in chosen]
    compared = teachers[: config.reference]
    teachers.clear()  # the stack holds them once more
    rows: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for name in config.scores:

        def score(outputs: TeacherOutputs, function: Any = scores.SCORES[name]) -> jax.Array:
            return selection.score_faculty(
                function, outputs, labels, config.classes, batch_size=config.teacher_batch
            )

        start = time.perf_counter()
        jax.block_until_ready(score(stacked))
        first = time.perf_counter() - start
        seconds: list[float] = []
        while len(seconds) < config.repeats and (not seconds or sum(seconds) < config.budget):
            start = time.perf_counter()
            values = np.asarray(score(stacked))
            seconds.append(time.perf_counter() - start)
        middle = float(np.median(seconds))
        alone = [float(score(selection.stack([one]))[0]) for one in kept]
        rows.append(
            {
                "score": name,
                "seconds": middle,
                "passes": len(seconds),
                "compile seconds": first - middle,
                "teachers per second": config.teachers / middle,
                "moved by padding": float(np.abs(values[chosen] - alone).max()),
            }
        )
        if name in QUICK:
            claim = f"{name} < {SECONDS:g} s"
            claims.append({"claim": claim, "value": middle, "holds": middle < SECONDS})
        if name == "logme" and compared:
            ours = {"seconds": middle, "values": values, "teachers": config.teachers}
            result["reference"] = _reference(compared, labels, config.classes, ours)
            times = result["reference"]["times ours"]
            claims.append(
                {"claim": f"NumPy LogME takes >= {TIMES:g} times as long", "value": times}
            )
            claims[-1]["holds"] = times >= TIMES
    title = f"{config.teachers} teachers, {config.examples} examples"
    reports.print_table(rows, title, digits=4)
    if compared:
        reports.print_table(claims, "Claims", digits=2)
        reports.print_table([result.get("reference", {})], "LogME of its authors", digits=5)
    result |= {"rows": rows, "claims": claims, "config": dataclasses.asdict(config)}
    result |= _timing.surroundings()
    if config.out is not None:
        reports.write_json(config.out, result)
    return result


def _main(arguments: list[str]) -> None:
    del arguments
    config = SUITES[flags.FLAGS.suite]
    run(
        dataclasses.replace(
            config,
            out=flags.FLAGS.out,
            scores=tuple(flags.FLAGS.scores) or config.scores,
            teachers=flags.FLAGS.teachers or config.teachers,
        )
    )


if __name__ == "__main__":
    flags.DEFINE_enum("suite", "small", list(SUITES), "Sizes of the faculty.")
    flags.DEFINE_list("scores", [], "Scores to time; all if empty.")
    flags.DEFINE_integer("teachers", None, "Teachers, instead of the suite's.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file to write.")
    app.run(_main)
