"""How good does one student become, taught by one teacher or several?

    python -m experiments.distil_student --root=runs/faculty --teacher=best
    python -m experiments.distil_student --teacher=mixture
    python -m experiments.distil_student --augmentation=shift --validation=0.2 --patience=5
    python -m experiments.distil_student --objective=fine_tune --teacher=NAME

Trains one student on a few-shot task by cross-entropy on the labelled images and the chosen
objective on all images, from the best teacher by the transport score, from one named, or from
the leading teachers together. What the teachers say is read from the faculty; with
--augmentation they are run in every training step, on the changed images that the student sees.
The objective fine_tune is the upper reference: the teacher's own network with a new last layer,
trained on the labelled images. With --validation some labelled images only judge the student,
and the best state it went through is kept. It saves checkpoints; a run that was killed goes on
with --resume to the same result bit for bit. With --devices=0 each batch is spread over all
devices, those of several hosts by one command a host, see README.md beside this file. About twenty
seconds for the defaults on two cores; expect a test accuracy of 0.97.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from experiments import _course, _devices, _goals, _run, _student, _task, _validation
from fdjax import checks, data, objectives, processes, reports, training
from fdjax.data.augmentation import AUGMENTATIONS


@dataclasses.dataclass(frozen=True)
class Config(_goals.ObjectiveConfig, _devices.DevicesConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/distil_student", "Folder of results and checkpoints.")
    root: str = _run.flag("runs/faculty", "Folder of the faculty.")
    teacher: str = _run.flag(
        "best",
        "Name of a teacher, or best: the first by transport score, or mixture: the leading ones.",
    )
    mixture: int = _run.flag(3, "Teachers of --teacher=mixture.", low=2)
    objective: str = _run.flag(
        "reference",
        f"What is minimised beside cross-entropy: {', '.join(_goals.GOALS)}; with settings as "
        f"name:setting=value:setting=value. {_goals.FINE_TUNE} is the teacher's own network with "
        "a new last layer, by cross-entropy alone.",
    )
    augmentation: Literal["none", "shift", "crop_flip"] = _run.flag(
        "none",
        "Random change of the images in each step, seen by student and teachers alike: shift by "
        "up to 2 pixels; crop_flip, for photographs, moves by up to 4 and mirrors.",
    )
    validation: float = _run.flag(
        0.0,
        "Share of the labelled images of each class, at least one, that judge the student instead "
        "of teaching it by their labels, so that the best state is kept; 0 keeps the last.",
        low=0.0,
        high=0.5,
    )
    judge_every: int = _run.flag(10, "Steps between judgements.", low=1)
    patience: int | None = _run.flag(
        None,
        "Judgements without a better one after which training ends; never if not given.",
        low=1,
    )
    save_every: int = _run.flag(100, "Steps between checkpoints.", low=1)
    keep: str = _run.flag(_task.KEEP, _task.KEEP_HELP)
    resume: bool = _run.flag(False, "Whether to go on from the workdir's latest checkpoint.")


def chosen(config: Config, seen: _task.Observed, task: data.Task) -> dict[str, float]:
    """The teachers to be heard, each with its share."""
    if config.teacher not in ("best", "mixture"):
        return {config.teacher: 1.0}
    functions = {"transport": _task.score_functions(cost=config.cost)["transport"]}
    values = _task.score(seen, task, functions)["transport"]
    return _goals.mixture(values, seen.names, config.mixture if config.teacher == "mixture" else 1)


def parsed(config: Config) -> _goals.Choice:
    """The objective with its settings.

    Raises:
        InputError: If the objective is unknown or cannot hear such teachers, a setting is wrong,
            or flags do not go together.
    """
    checks.require(
        config.patience is None or config.validation > 0,
        "--patience counts judgements on images held out; give --validation too.",
    )
    _task.keep_of(config.keep)
    choice = _goals.chosen(config)
    _goals.check_copies(choice, config)
    _goals.check_teachers(choice, config.mixture if config.teacher == "mixture" else 1)
    checks.require(
        choice.goal.hears != "nobody" or config.teacher == "best",
        f"the objective `{choice.name}` hears no teacher; leave out --teacher={config.teacher}.",
    )
    return choice


def with_validation(
    config: Config, task: data.Task
) -> tuple[data.Task, _student.Budget, _validation.Validation | None]:
    """The task without the labels that judge, the budget, and how the student is judged."""
    budget = _student.budget(config)
    if config.validation == 0:
        return task, budget, None
    if not (task.train.labels < 0).any():
        # Images held out would be the only ones without a label, and fill most of a batch.
        budget = budget._replace(labelled=budget.batch_size)
    task, held_out = _validation.hold_out(task, config.validation, seed=config.seed)
    return task, budget, _validation.Validation(held_out, config.judge_every, config.patience)


def run(config: Config) -> dict[str, Any]:
    """Trains the student; returns what results.json holds."""
    record = _run.Run(config)
    _student.check(config)
    mesh = _devices.mesh(config, config.batch_size)
    choice = parsed(config)
    target = _task.target(config)
    processes.agree("data", target.digest)
    task, budget, validation = with_validation(config, target)
    with record.stage("observe"):
        seen = _task.observe(config.root, task, keep=_task.keep_of(config.keep))
    checks.choice("--teacher", config.teacher, ("best", "mixture", *seen.names))
    with record.stage("score"):
        shares = {} if choice.goal.hears == "nobody" else chosen(config, seen, task)
    augment = AUGMENTATIONS[config.augmentation]
    school = _student.School(
        task,
        config.student,
        budget,
        objectives.cross_entropy(),
        teach=training.observed if augment is None else training.no_teacher,
        augment=augment,
        mesh=mesh,
    )
    with record.stage("distil"):
        lesson = _goals.Lesson(school, seen, config.cost, shares, config.seed)
        choice, school, objective, teacher = _course.course(choice, lesson)
        state, history = school.teach_one(
            config.seed,
            teacher,
            objective,
            folder=record.workdir,
            resume=config.resume,
            save_every=config.save_every,
            validation=validation,
        )
    accuracy, kept = school.accuracy(state.variables), int(state.step)
    name = ", ".join(shares) or "none"
    points = [(entry["step"], entry["loss"]) for entry in history]
    judged = {entry["step"]: entry["judged"] for entry in history if "judged" in entry}
    sections: list[str | Path] = [
        f"`{_run.command_line('experiments.distil_student', config)}`",
        f"Teacher {name}; test accuracy {accuracy:.3f} on {len(task.test.labels)} images.",
        reports.plot_curves(record.workdir / "loss.png", {config.objective: points}, "loss (nats)"),
    ]
    if validation is not None:
        sections.insert(
            2,
            f"The state of step {kept} was kept, judged {judged.get(kept, float('nan')):.3f} on "
            f"{len(validation.held_out)} labelled images held out from training.",
        )
    reports.write(record.workdir, "One student", sections)
    print(f"teacher: {name}\ntest accuracy: {accuracy:.3f}")
    return record.finish(
        {
            "teacher": name,
            "shares": shares,
            "accuracy": accuracy,
            "step": kept,
            "judged": judged.get(kept),
            "history": history,
            "classes": task.class_names,
        }
    )


if __name__ == "__main__":
    _run.main(run, Config)
