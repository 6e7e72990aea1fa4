"""A repository on disk of trained teachers, and what each says of a task.

    faculty.create(root)
    faculty.register(root, faculty.Card(name="digits-even", ...), variables)
    faculty.register_outputs(root, faculty.Card(name="someone-else", ...), outputs, digest)
    teachers = faculty.observe_all(root, images)        # one TeacherOutputs a teacher

The folder holds

    manifest.json                            names of the teachers, written last
    teachers/NAME/card.json                  what the teacher is
    teachers/NAME/variables/                 its weights, or
    teachers/NAME/outputs.npz                its outputs, where nothing else is known
    teachers/NAME/participation.npz          where its training was self-regulated
    teachers/NAME/sketch.npz                 its sketch, once it was searched; safe to delete
    outputs/IMAGES DIGEST/NAME-DIGEST.npz    observations kept for next time; safe to delete

One process writes into a faculty at a time; any number may read.
"""

from fdjax.faculty.cards import Card
from fdjax.faculty.observations import observe, observe_all
from fdjax.faculty.records import Participation
from fdjax.faculty.repository import (
    cards,
    create,
    load,
    participation,
    register,
    register_outputs,
)
from fdjax.faculty.sketches import sketch_all

__all__ = [
    "Card",
    "Participation",
    "cards",
    "create",
    "load",
    "observe",
    "observe_all",
    "participation",
    "register",
    "register_outputs",
    "sketch_all",
]
