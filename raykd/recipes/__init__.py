"""Recipes: frozen values that determine a result; their fingerprint names the artefact.

How a run is carried out (workers, GPUs, paths, logging) is no part of them. Recipes nest by
value, so a change in the teacher's learning rate changes the name of everything downstream.
"""

from raykd.recipes.optim import Optim
from raykd.recipes.rco import RCO, Search, SearchedStudent
from raykd.recipes.student import (
    AnyTeacher,
    OutputsRun,
    PanelRun,
    PreludeRun,
    StudentRun,
    Teaching,
    training_of,
)
from raykd.recipes.teacher import TeacherRun

__all__ = [
    "RCO",
    "AnyStudent",
    "AnyTeacher",
    "Optim",
    "OutputsRun",
    "PanelRun",
    "PreludeRun",
    "Search",
    "SearchedStudent",
    "StudentRun",
    "TeacherRun",
    "Teaching",
    "Training",
    "training_of",
]

Training = TeacherRun | PreludeRun | StudentRun  # recipes that the loop trains
AnyStudent = StudentRun | SearchedStudent  # students that an experiment can have
