"""raykd: knowledge distillation on Ray, from a cache of the teacher's outputs."""

__version__ = "0.1.0"
