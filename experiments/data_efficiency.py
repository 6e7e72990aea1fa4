"""How few samples does a student need to back-propagate for the accuracy of full distillation?

    python -m experiments.data_efficiency --datasets=digits

Trains self-regulated teachers (kept for the next run), then students in the modes `none` (full
distillation), `significance` (samples weigh as often as they took part in the teacher's training),
`regulated` (only samples that the student gets wrong or is unsure of) and `hybrid` (both), and by
the ways of others to spend the same share of the samples: smaller random batches (`uniform`), fewer
steps (`shorter`), a random subset, the hardest, the least certain, the most often forgotten, and so
on. A step looks at a full batch and back-propagates --shares of it, so that its time falls with
them. Where several --confidences are given, each mode takes the one with the best accuracy on
images held out from training; test images choose nothing. With --across the student learns other
labels than the teacher's, on images that the teacher never saw, and the significance of an image is
the cost of carrying what the teacher says of it to its label.

Each finished student is a line of runs.jsonl: a run that was killed goes on by the same command.
Writes report.md, pictures and results.json. The defaults train 45 students on the embedded digits,
in 13 minutes on two cores that three other people were using. Expect a test accuracy of 0.973 ±
0.004 of full distillation, the same within half a point from all modes and smaller batches at half
and at a quarter of the samples, and a loss of 2.7 points from a quarter of the steps. README.md
beside this file is a study made with it, on data where the ways differ more.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import (
    _economy,
    _economy_report,
    _goals,
    _ledger,
    _run,
    _student,
    _task,
    build_faculty,
)
from experiments._economy import Job, Outcome
from fdjax import checks, data, faculty, models, objectives, regulation, transport


@dataclasses.dataclass(frozen=True)
class Config:
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/data_efficiency", "Folder of results and report.")
    root: str | None = _run.flag(
        None, "Folder of self-regulated teachers, one a data set; in the workdir if not given."
    )
    datasets: tuple[str, ...] = _run.flag(
        ("digits",), "Data sets: TFDS names, digits, NAME.npz files or folders of class folders."
    )
    data_dir: str | None = _run.flag(None, "Where TFDS keeps its data.")
    image_size: int = _run.flag(
        0, "Side in pixels to which images are resized, for speed; 0 leaves them.", low=0
    )
    teacher: str = _run.flag("convnet", "Teacher network: mlp, convnet, resnet.")
    teacher_steps: int = _run.flag(600, "Training steps of each teacher.", low=1)
    teacher_confidence: float = _run.flag(
        0.9, "Confidence at which an image rests while the teacher learns.", low=0.0, high=1.0
    )
    student: str = _run.flag("convnet", "Student network: mlp, convnet, resnet.")
    objective: str = _run.flag(
        "kd", "What is minimised beside cross-entropy, with settings as name:setting=value."
    )
    across: bool = _run.flag(
        False,
        "Whether the student learns a random half of the classes from few labels, on images that "
        "the teacher never saw; else the teacher's own task and images.",
    )
    shots: int = _run.flag(10, "Labelled images of each class, with --across.", low=1)
    labelled: int = _run.flag(32, "Labelled images of a full batch, with --across.", low=1)
    modes: tuple[str, ...] = _run.flag(
        _economy.MODES, "Modes: significance, regulated, hybrid; none, the full run, is always one."
    )
    peers: tuple[str, ...] = _run.flag(
        ("uniform", "shorter"), f"Other ways to spend a share: {', '.join(_economy.PEERS)}."
    )
    shares: tuple[float, ...] = _run.flag(
        (0.5, 0.25), "Shares of the samples that may be back-propagated.", low=0.0, high=1.0
    )
    confidences: tuple[str, ...] = _run.flag(
        ("0.9", "share"),
        "Confidences at which a sample rests while the student learns, in [0, 1]; START:END goes "
        "from one to the other, share adapts it until as many take part as may be used, error lets "
        "it fall with the student's errors.",
    )
    refreshes: tuple[int, ...] = _run.flag(
        (1,),
        "Steps from one fresh look at the candidates to the next; 1 looks at every step.",
        low=1,
    )
    form: regulation.Form = _run.flag("mean_one", "Form of the weights by significance.")
    steps: int = _run.flag(600, "Steps of each student.", low=1)
    batch_size: int = _run.flag(64, "Candidates a step; all are used in the full run.", low=2)
    learning_rate: float = _run.flag(2e-3, "Of Adam, at the start of a half cosine.", low=0.0)
    seeds: int = _run.flag(3, "Students of each kind, from different seeds.", low=1)
    seed: int = _run.flag(0, "First seed of students; seed of teachers and few-shot tasks.", low=0)


def check(config: Config) -> None:
    """Refuses what could only fail later, before anything is computed."""
    _run.check(config)
    for name, given, known in (
        ("--modes", config.modes, _economy.MODES),
        ("--peers", config.peers, _economy.PEERS),
        ("--teacher", (config.teacher,), models.MODELS),
        ("--student", (config.student,), models.MODELS),
    ):
        for one in given:
            checks.choice(name, one, known)
    for name in ("datasets", "modes", "peers", "shares", "confidences", "refreshes"):
        values = getattr(config, name)
        checks.require(len(set(values)) == len(values), f"--{name} names one value twice.")
    stems = [Path(name).stem for name in config.datasets]
    checks.require(
        0 < len(set(stems)) == len(stems),
        f"--datasets must name at least one, all of different file names; got {stems}.",
    )
    needs_share = set(config.modes) - {"none"} or config.peers
    checks.require(
        bool(config.shares) or not needs_share, "--shares is empty; name one, or no mode and peer."
    )
    for share in config.shares:
        checks.require(
            share > 0 and round(share * config.batch_size) >= 1,
            f"--shares={share:g} of --batch_size={config.batch_size} is no sample; raise one.",
        )
    for text in config.confidences:
        _economy.check_confidence(text)
    checks.require(
        bool(config.confidences) or not set(config.modes) & set(_economy.REGULATED),
        "--modes=regulated and hybrid need --confidences.",
    )
    choice = _goals.parse(config.objective)
    checks.require(
        choice.goal.hears != "nobody" and choice.name != _goals.FINE_TUNE,
        f"the objective `{choice.name}` hears no teacher; choose one that does.",
    )
    checks.require(
        not config.across or choice.goal.hears != "namesake",
        f"the objective `{choice.name}` is for one label space; leave out --across, or choose "
        "another with --objective, such as transport.",
    )
    checks.require(
        not config.across or config.labelled < config.batch_size,
        f"--labelled={config.labelled} leaves no unlabelled image in a batch of "
        f"{config.batch_size}; lower it or raise --batch_size.",
    )


def teachers(config: Config, root: str) -> list[str]:
    """Trains the teachers that are missing; their names, one a data set."""
    built = build_faculty.Config(
        workdir=str(Path(config.workdir) / "teachers"),
        root=root,
        datasets=config.datasets,
        data_dir=config.data_dir,
        image_size=config.image_size,
        num_teachers=1,
        class_shares=(1.0,),
        architectures=(config.teacher,),
        steps=config.teacher_steps,
        confidence=config.teacher_confidence,
        seed=config.seed,
    )
    build_faculty.run(built)
    loaded = [_task.load(name, config.data_dir, config.image_size) for name in config.datasets]
    return [build_faculty.plan(task, built)[0][0] for task in loaded]


def task_of(config: Config, dataset: str) -> tuple[data.Task, data.Split]:
    """The student's task, and images held out from it."""
    if not config.across:
        own, other = _task.halves(_task.load(dataset, config.data_dir, config.image_size))
        return own, other.train
    few = _task.TaskConfig(
        dataset=dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        shots=config.shots,
        seed=config.seed,
    )
    return _task.target(few), _task.target(few, judge="unlabelled").test


def costs_of(seen: _task.Observed, task: data.Task, teacher: str) -> jnp.ndarray:
    """Cost of carrying what a teacher says of each image to its label, in nats.

    Of an unlabelled image it is the cost to the label that is nearest.
    """
    cost = _task.cost(seen, task, teacher, "predictions")
    said = seen.outputs.probabilities[seen.names.index(teacher)]
    labels = jnp.asarray(task.train.labels)
    known = transport.transport_cost_to_labels(cost, said, labels)
    return jnp.where(labels >= 0, known, (said @ cost).min(axis=1))


def place_of(config: Config, dataset: str, root: str, teacher: str) -> _economy.Place:
    """Where the students of a data set are trained."""
    task, held_out = task_of(config, dataset)
    seen = _task.observe(root, task, (teacher,))
    budget = _student.Budget(config.steps, config.batch_size, config.labelled, config.learning_rate)
    school = _student.School(task, config.student, budget, objectives.cross_entropy())
    lesson = _goals.Lesson(school, seen, "predictions", {teacher: 1.0}, config.seed)
    if config.across:
        worth = costs_of(seen, task, teacher)
    else:
        worth = jnp.asarray(faculty.participation(root, teacher, task))
    weights = regulation.significance(worth, form=config.form)
    return _economy.Place(_goals.parse(config.objective), lesson, held_out, weights)


def jobs_of(config: Config, task: str, teacher: str) -> list[Job]:
    """The students of a task, all of one seed after another.

    Whatever else slows a machine down then slows the full run and what is held against it.
    """
    kinds = [("none", 1.0, "", 0)]
    for share in config.shares:
        for mode in config.modes:
            if mode == "significance":
                kinds.append((mode, share, "", 0))
            elif mode in _economy.REGULATED:
                kinds += [
                    (mode, share, confidence, refresh)
                    for confidence in config.confidences
                    for refresh in config.refreshes
                ]
        for peer in config.peers:
            looks = config.refreshes if peer in _economy.CHOSEN else (0,)
            kinds += [(peer, share, "", refresh) for refresh in looks]
    seeds = range(config.seed, config.seed + config.seeds)
    return [Job(task, teacher, *kind, seed) for seed in seeds for kind in kinds]


# Flags that change no student, or that each job names: a grid can go on with more of them.
_NAMED = (
    *("workdir", "root", "data_dir", "datasets", "modes", "peers", "shares", "confidences"),
    *("refreshes", "seeds"),
)


def run(config: Config) -> dict[str, Any]:
    """Trains the grid; returns what results.json holds."""
    check(config)
    root = config.root or str(Path(config.workdir) / "faculty")
    record = _run.Run(config)
    with record.stage("teachers"):
        names = teachers(config, root)
    flags = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NAMED}
    digests = {card.name: card.digest for card in faculty.cards(root)}
    path = Path(config.workdir) / "runs.jsonl"
    ledger = _ledger.Ledger(path, Job, flags, lambda value: Outcome(*value))
    ledger.begin()
    jobs: list[Job] = []
    significant: dict[str, float] = {}
    for dataset, teacher in zip(config.datasets, names, strict=True):
        task = Path(dataset).stem
        mine = jobs_of(config, task, digests[teacher][:12])
        with record.stage("observe"):
            place = place_of(config, dataset, root, teacher)
        significant[task] = float(np.mean(np.asarray(place.weights) > 0))
        for job in mine:
            if job not in ledger.values:
                with record.stage(job.method):
                    ledger.add(job, place.train(job))
        jobs += mine
    outcomes = {job: ledger.values[job] for job in jobs}
    results = {
        "rows": _economy_report.summary(outcomes),
        "significant": significant,
        "runs": [job._asdict() | value._asdict() for job, value in outcomes.items()],
    }
    command = _run.command_line("experiments.data_efficiency", config)
    _economy_report.report(command, record.workdir, results)
    return record.finish(results)


if __name__ == "__main__":
    _run.main(run, Config)
