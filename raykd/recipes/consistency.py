"""Checks that the parts of a student's recipe agree with each other."""

from operator import attrgetter
from typing import TYPE_CHECKING

from raykd.core.types import CACHEABLE, Signal
from raykd.methods.base import Method
from raykd.methods.label_only import LabelOnly

if TYPE_CHECKING:
    from raykd.recipes.student import StudentRun


def check_student(run: "StudentRun") -> None:
    """Raise `ValueError` where two parts of the recipe contradict each other."""
    needs, name = run.method.needs(), run.method.label
    if run.teacher is None and (needs or run.method.prelude()):
        raise ValueError(f"method {name!r} needs a teacher; add run.teacher")
    if run.source == "cache" and needs & ~CACHEABLE:
        raise ValueError(
            f"method {name!r} reads {needs & ~CACHEABLE}, which a cache does not hold; "
            "leave run.source out, or set it to live"
        )
    if run.method.mixing() and run.data.augment.mix:
        raise ValueError(
            f"method {name!r} mixes the samples itself; leave run.data.augment.mix out"
        )
    if run.method.has_memory() and (run.data.augment.mix or run.method.mixing()):
        raise ValueError(
            f"method {name!r} remembers each training sample by what it was seen as, and a mixed "
            "one is two samples; leave run.data.augment.mix and methods that mix out"
        )
    if Signal.PREACTIVATIONS in needs | _prelude_needs(run.method):
        for model in (run.model, run.teacher.model if run.teacher else ""):
            if "/" in model:
                raise ValueError(
                    f"method {name!r} reads what stages are before their last ReLU, which "
                    f"{model} does not say; choose another method, or networks of "
                    "`raykd show models` whose names have no slash"
                )
    if isinstance(run.method, LabelOnly) and run.label_weight is not None:
        raise ValueError(
            "label_weight scales the only loss of method 'label_only'; leave it out, or give "
            "the weight with the method that it is for"
        )
    if isinstance(run.views, int) and run.views < 1:
        raise ValueError(f"views: {run.views} is not a number of views; use 1 or more")
    _check_size(run)
    _check_codec(run)
    _check_route(run)
    _check_chain(run)


def _check_size(run: "StudentRun") -> None:
    """Raise `ValueError` where the teacher wants a resolution at which it cannot be asked."""
    if run.teacher is None or run.as_teacher_sees(run.data) == run.data:
        return
    several = len(run.method.looks().teacher) > 1 or run.method.mixing() is not None
    in_person = several or Signal.LIVE in run.method.needs()
    if run.method.trains_teacher() or (in_person and run.asked_at_another_size()):
        raise ValueError(
            f"method {run.method.label!r} asks its teacher in person at the student's resolution; "
            "give both data the same stream, or choose a method that a cache answers"
        )


def _check_codec(run: "StudentRun") -> None:
    """Raise `ValueError` where the method reads what the cache's codec does not keep."""
    if run.teacher is None or not run.cached():
        return
    if why := run.codec.refusal(run.method, run.data.classes):
        raise ValueError(why)


def _check_route(run: "StudentRun") -> None:
    """Raise `ValueError` where the route asks for what teacher or student do not have."""
    if run.route is None:
        return
    if run.method.trains_teacher():
        raise ValueError(
            f"method {run.method.label!r} trains the teacher, and a route would change it on the "
            "way; leave run.route out"
        )
    if run.teacher is None:
        raise ValueError("a route leads through a teacher's epochs; add run.teacher")
    saved = run.teacher.anchors()
    for anchor in run.route.anchors:
        if anchor > saved[-1]:
            raise ValueError(f"anchor {anchor} lies beyond the teacher's {saved[-1]} epochs")
        if anchor not in saved:
            raise ValueError(
                f"anchor {anchor} is not among the teacher's saved epochs {list(saved)}; "
                "choose teacher.save_every so that it is"
            )
    if run.route.starts[-1] >= run.optim.epochs:
        raise ValueError(
            f"the last anchor starts at epoch {run.route.starts[-1]} of {run.optim.epochs}"
        )


def _check_chain(run: "StudentRun") -> None:
    """Raise `ValueError` where the student before, or an assistant, does not suit this one."""
    before, assistant = run.after, run.teacher
    for what in ("model", "data.digest", "data.classes") if before is not None else ():
        mine, theirs = (attrgetter(what)(each) for each in (run, before))
        if mine != theirs:
            raise ValueError(
                f"it goes on after a student whose {what} is {theirs!r}, and its own is {mine!r}; "
                "give both the same"
            )
    method = getattr(assistant, "method", None)
    if not isinstance(method, Method):
        return
    if method.trains != "student":
        raise ValueError(
            f"a student of method {method.label!r} cannot be used without parts of its teacher, so "
            "it can teach no one; choose another method for it"
        )
    if method.released and method.label != run.method.label:
        raise ValueError(
            f"the teacher is a student of method {method.label!r}, whose logits alone are not its "
            "answers; choose another method for it, or the same for both"
        )


def _prelude_needs(method: Method) -> Signal:
    """The signals that what comes before a method reads."""
    before = method.prelude()
    return before.method.needs() if before else Signal(0)
