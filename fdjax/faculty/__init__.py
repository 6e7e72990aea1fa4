"""A repository on disk of trained teachers, and what each says of a task.

    faculty.create(root)
    faculty.register(root, faculty.Card(name="digits-even", ...), variables)
    faculty.register_outputs(root, faculty.Card(name="someone-else", ...), outputs, digest)
    faculty.register_onnx(root, faculty.Card(name="exported", ...), "model.onnx")
    faculty.register_state_dict(root, faculty.Card(name="published", ...), "net.safetensors")
    teachers = faculty.observe_all(root, images)        # one TeacherOutputs a teacher

The folder holds

    manifest.json                            names of the teachers, written last
    teachers/NAME/card.json                  what the teacher is
    teachers/NAME/variables/                 its weights, or
    teachers/NAME/model.onnx                 the file it is, for onnxruntime, or
    teachers/NAME/outputs.npz                its outputs, where nothing else is known
    teachers/NAME/participation.npz          where its training was self-regulated
    teachers/NAME/sketch.npz                 its sketch, once it was searched; safe to delete
    outputs/IMAGES DIGEST/NAME-DIGEST/       observations kept for next time; safe to delete

Any number of processes may read, observe and register at the same time. Nothing that is read is
run as code; an ONNX file is a program of onnxruntime's own operators.
"""

from fdjax.faculty.cards import Card
from fdjax.faculty.foreign import register_onnx, register_state_dict
from fdjax.faculty.kept import Keep
from fdjax.faculty.observations import observe, observe_all
from fdjax.faculty.pruning import Holding, holdings, prune
from fdjax.faculty.recalled import participation
from fdjax.faculty.records import Participation
from fdjax.faculty.repository import (
    cards,
    create,
    load,
    register,
    register_outputs,
)
from fdjax.faculty.sketches import sketch_all

__all__ = [
    "Card",
    "Holding",
    "Keep",
    "Participation",
    "cards",
    "create",
    "holdings",
    "load",
    "observe",
    "observe_all",
    "participation",
    "prune",
    "register",
    "register_onnx",
    "register_outputs",
    "register_state_dict",
    "sketch_all",
]
