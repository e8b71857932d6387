"""What determines a result: frozen values whose fingerprint names the artefact.

How a run is carried out (workers, GPUs, paths, logging) is no part of them. Recipes nest by
value, so a change in the teacher's learning rate changes the name of everything downstream.
"""

from raykd.recipes.optim import Optim
from raykd.recipes.student import PreludeRun, StudentRun, training_of
from raykd.recipes.teacher import LogitsRun, TeacherRun

__all__ = [
    "LogitsRun",
    "Optim",
    "PreludeRun",
    "StudentRun",
    "TeacherRun",
    "Training",
    "training_of",
]

Training = TeacherRun | PreludeRun | StudentRun  # what the loop trains
