"""The recipe of a student, and those of the caches and of the prelude that its training reads."""

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from raykd import models
from raykd.core.record import Limits, Recipe, Record
from raykd.core.types import CACHEABLE, Combination, Look, Signal
from raykd.data.recipe import AnyData, Data, Split
from raykd.data.transforms.mixing import Mix
from raykd.data.transforms.strong import Strong
from raykd.methods import METHODS, AnyMethod, AnyPrelude
from raykd.methods.base import Method, Schedule, value_at
from raykd.methods.columns import DERIVED, AnyDerived, FromColumns, read_by
from raykd.methods.label_only import LabelOnly
from raykd.methods.wrapper import Wrapper
from raykd.outputs.codecs import (
    CODECS,
    AnyCodec,
    AnyVectorCodec,
    Codec,
    CodecName,
    Dense,
    Float16,
    codec_of,
)
from raykd.recipes.optim import Optim, Precision
from raykd.recipes.teacher import Network, TeacherRun, Weights
from raykd.tasks import AnyTask, Classification, Faces, Features, Retrieval, probe_of
from raykd.teachers.anchor_route import Route

_Share = Annotated[float, Field(ge=0, le=Limits.WEIGHT)]
_OF_CLASSES = Signal.LOGITS | Signal.CLASSIFIER
Views = Annotated[int, Field(le=Limits.ROWS, json_schema_extra={"minimum": 1})]


class OutputsRun(Recipe):
    """Cache of the outputs of one teacher checkpoint over one split of one dataset.

    The views that are stored are no part of the recipe: a cache grows view by view.
    """

    kind: ClassVar[str] = "caches"
    teacher: "AnyTeacher"
    anchor: int = Field(ge=0, le=Limits.EPOCHS)  # the checkpoint's epoch
    data: AnyData
    split: Split = "train"
    codec: CodecName = "dense"
    k: int | None = Field(
        default=None, ge=1, le=Limits.WIDTH
    )  # logits per row, if the codec has it
    logits: bool = True  # False: embeddings alone, of a teacher whose classes are not the data's
    embedding: bool = False  # True: pooled features are stored
    embedding_codec: AnyVectorCodec = None  # None: float16
    maps: bool = False  # True: the last map is stored
    map_codec: AnyVectorCodec = None
    grid: int | None = Field(default=None, ge=1, le=Limits.PIXELS)  # cells per side of the map
    blocks: int = Field(default=1, ge=1, le=2)  # whose maps are stored side by side
    derived: tuple[AnyDerived, ...] = ()  # functions whose columns are stored
    derived_codec: AnyVectorCodec = None
    prelude: "PreludeRun | None" = None  # that trains the modules of those functions
    precision: Precision = "float32"  # in the teacher's forward

    @model_validator(mode="after")
    def _check(self) -> "OutputsRun":
        if ("k" in CODECS[self.codec].parameters) != (self.k is not None):
            raise ValueError(f"codec {self.codec!r} and k = {self.k} do not go together")
        if not (self.logits or self.embedding or self.maps or self.derived):
            raise ValueError("a cache has logits, embeddings, maps or derived columns")
        if any(function.trained for function in self.derived) != (self.prelude is not None):
            raise ValueError("a prelude, and functions whose modules it trains, go together")
        return self

    def stored(self) -> Codec:
        """Codec of the logits; students may use another of its readings."""
        return codec_of({"codec": self.codec, "k": self.k})

    def sources(self) -> "tuple[AnyTeacher | PreludeRun, ...]":
        """The trainings that its outputs are computed by."""
        return (self.teacher,) if self.prelude is None else (self.teacher, self.prelude)

    def wider(self) -> "OutputsRun":
        """Recipe of the cache that stores embeddings beside the same logits."""
        return self.model_copy(update={"embedding": True})

    def signals(self) -> Signal:
        """Signals that the cache has."""
        logits = Signal.LOGITS if self.logits else Signal(0)
        maps = Signal.MAP if self.maps else Signal(0)
        maps |= Signal.BLOCKS if self.blocks > 1 else Signal(0)
        maps |= Signal.DERIVED if self.derived else Signal(0)
        return logits | (Signal.EMBEDDING if self.embedding else Signal(0)) | maps

    @property
    def label(self) -> str:
        """The stored form, as in "dense" or "embedding int8, map pca 64"."""
        parts = [self.stored().label] if self.logits else []
        embedding, maps = (codec or Float16() for codec in (self.embedding_codec, self.map_codec))
        if self.embedding and not (self.logits and self.embedding_codec is None):
            parts.append(f"embedding {embedding.label}")
        if self.maps:
            parts.append(f"map {maps.label}" + (f" of {self.grid} x {self.grid}" * bool(self.grid)))
            parts += ["two blocks"] if self.blocks > 1 else []
        derived = (self.derived_codec or Float16()).label
        parts += [f"{function.label} {derived}" for function in self.derived]
        return ", ".join(parts)


class PanelRun(Record):
    """Several teachers that answer as one, by the weighted mean of what they say.

    `mean_probabilities` is the mean of their softmax at temperature 1, as log-probabilities: the
    gradient of a divergence at that temperature is then the mean of the divergences from each (the
    "average of losses" of Rorozhl/CA-MKD's baselines). `mean_logits` is the mean of their logits,
    so at every temperature the geometric mean of their probabilities, which is sharper. `none`
    hands each of them on, for methods that weigh teachers themselves; students are then compared
    with the mean of their probabilities.

    A panel has no artefact: each member has its own cache, which is that of the teacher alone.
    """

    panel: "tuple[AnyTeacher, ...]" = Field(min_length=1)
    """Teachers that answer as one."""
    combine: Combination = "mean_probabilities"
    """Mean over the members: of their probabilities at temperature 1, or of their logits; none:
    each of them, for a method that weighs several.
    """
    shares: tuple[_Share, ...] | None = None
    """Weight of each member, in any unit; null: equal."""

    @model_validator(mode="after")
    def _check(self) -> "PanelRun":
        if self.shares is not None:
            if self.combine == "none":
                raise ValueError("shares are those of a mean; leave them out with combine: none")
            if len(self.shares) != len(self.panel):
                raise ValueError(
                    f"{len(self.panel)} teachers need as many shares, got {len(self.shares)}"
                )
            if not any(self.shares):
                raise ValueError("shares: all are 0; give one teacher more")
        return self

    @property
    def model(self) -> str:
        """The members' networks, as in "resnet56 + resnet20"."""
        return " + ".join(member.model for member in self.panel)

    @property
    def answers_classes(self) -> bool:
        """True where all members' logits are those of their data's classes."""
        return all(member.answers_classes for member in self.panel)

    def anchors(self) -> tuple[int, ...]:
        """0 alone: it stands for the last epoch of each member."""
        return (0,)


class StudentRun(Recipe):
    """One student: its network, images, method and teacher.

    The teacher may be a student itself: the assistant of a chain (TAKD, Mirzadeh et al. 2020, arXiv
    1902.03393). A student with `after` starts from the weights of another one: the stage before it
    in route constrained optimisation.

    `label_smoothing` e makes (1 - e) * target + e / C of a target over C classes, mixed ones
    included. It applies to the cross entropy of the labels in training; the methods' own losses and
    all evaluations have none.

    Students that differ in their seed alone see the same views and so share a cache; a deviation
    over seeds then lacks what other augmentations would add. With `views_by_seed` the student's
    seed draws the views, and each seed needs a cache of its own.
    """

    kind: ClassVar[str] = "students"
    model: Network
    """Network, by a name of `raykd show models`, such as resnet20, torchvision/... or timm/...."""
    data: AnyData
    """Images, and how they are split, augmented and normalised."""
    teacher: "Teaching | None" = None
    """Teacher: a network, a student that has one itself, or a panel; null: none."""
    route: Route | None = None
    """Teacher epochs that teach in turn; null: the last one throughout."""
    after: "StudentRun | None" = None
    """Student whose final weights it starts from; null: none."""
    weights: Weights | None = None
    """Initial weights: a published name, hub:owner/name or a file; null: random ones."""
    first_epoch: int = Field(default=0, ge=0, le=Limits.ROWS)
    """Epoch at which the views, the order and the methods' schedules begin."""
    task: AnyTask = Classification()  # pyright: ignore[reportInvalidTypeForm]
    """Purpose of the student: its label loss, its metrics, and the one that compares."""
    method: AnyMethod = LabelOnly()  # pyright: ignore[reportInvalidTypeForm]
    """Distillation method; label_only reads no teacher."""
    label_weight: Schedule | None = None
    """Factor of the labels' cross entropy: a number, steps or a ramp; null: the method's own."""
    label_smoothing: float = Field(default=0.0, ge=0, le=1)
    """Label smoothing e, as in torch.nn.CrossEntropyLoss: targets (1 - e) * target + e / C."""
    optim: Optim = Optim()
    """Optimiser and schedule of the training."""
    views: Views | Literal["all"] = "all"
    """Different augmentations of a sample that the epochs go through in turn, or all there are."""
    views_by_seed: bool = False
    """Draw the views by `seed`, so that each seed has caches of its own."""
    source: Literal["auto", "cache", "live"] = "auto"
    """Source of the teacher's outputs: its cache, or the teacher itself; auto: a cache where the
    method can read one.
    """
    codec: AnyCodec = Dense()  # pyright: ignore[reportInvalidTypeForm]
    """Form of the logits in the cache of the training images."""
    embedding_codec: AnyVectorCodec = None
    """Form of the embeddings in the cache of the training images; null: float16."""
    map_codec: AnyVectorCodec = None
    """Form of the maps in that cache, of a method that reads the last map; null: float16."""
    derived_codec: AnyVectorCodec = None
    """Form of the columns in that cache, of a method with `source: cache`; null: float16."""
    strong: Strong = Strong()
    """Augmentation of the strong view, for a method that reads one."""
    teacher_precision: Precision = "float32"
    """Number format of the teacher's forward."""
    precision: Precision = "float32"
    """Number format of the student's forward and backward."""
    seed: int = Field(default=0, ge=0, le=Limits.SEED)
    """Seed of the initial weights and of the order of samples."""

    @model_validator(mode="after")
    def _check(self) -> "StudentRun":
        check_student(self)
        return self

    def origins(self) -> Iterator[str]:
        """The digest of the plugin of its network."""
        yield models.origin(self.model)

    @property
    def head(self) -> int:
        """Number of classes of the student's classifier; 0 for a backbone without one."""
        return self.data.resolved().classes if self.task.labelled else 0

    def reads_classes(self) -> bool:
        """True where the teacher's logits are those of the student's classes."""
        reads = (self.method.needs() | self.method.student_needs()) & _OF_CLASSES
        if not self.task.labelled or not (self.task.keeps_logits or reads):
            return False
        return self.teacher is not None and self.teacher.answers_classes

    @property
    def answers_classes(self) -> bool:
        """True where its logits, as a teacher's, are those of its data's classes."""
        return self.task.labelled

    def cached(self) -> bool:
        """True if the teacher's outputs come from a cache."""
        return self.source != "live" and not self.method.needs() & ~CACHEABLE

    def shown(self, look: Look = "given") -> Data:
        """The data as one look at the training batches shows them."""
        augment, mixing = self.data.augment, self.method.mixing()
        if look in ("clean", "partner", "strong"):
            augment = augment.unmixed()
        elif mixing is not None:
            kind, alpha = mixing
            augment = augment.model_copy(update={"mix": Mix(kind=kind, alpha=alpha)})
        if look == "strong":
            augment = augment.model_copy(update={"strong": self.strong})
        seed = self.seed if self.views_by_seed else self.data.view_seed
        return self.data.model_copy(update={"augment": augment, "view_seed": seed})

    def looks(self) -> Mapping[Look, Data]:
        """The looks that student or teacher read besides the given one."""
        looks = self.method.looks()
        others = dict.fromkeys((*looks.student, *looks.teacher))
        shown: dict[Look, Data] = {
            look: self.shown(look) for look in others if look not in ("given", "view_mean")
        }
        if self.asked_at_another_size():
            shown["teacher"] = self.as_teacher_sees(self.shown())
        return shown

    def members(self) -> "tuple[AnyTeacher, ...]":
        """The members of its panel, or its one teacher, or none."""
        if isinstance(self.teacher, PanelRun):
            return self.teacher.panel
        return () if self.teacher is None else (self.teacher,)

    def as_teacher_sees(self, data: Data, member: "AnyTeacher | None" = None) -> Data:
        """Streamed data at the teacher's resolution: the same parts of the same pictures.

        `member`: the one of a panel; None: its first.
        """
        member = next(iter(self.members()), None) if member is None else member
        stream = member.data.stream if member is not None else None
        if stream is None or data.stream is None or stream == data.stream:
            return data
        return data.model_copy(update={"stream": stream, "size": (stream.size, stream.size)})

    def asked_at_another_size(self) -> bool:
        """True if a live teacher runs in training, at another resolution than the student."""
        live = bool(self.method.needs()) and not self.cached()
        return live and self.as_teacher_sees(self.data) != self.data

    def prelude(self) -> "PreludeRun | None":
        """Recipe of the training before this one; None if the method needs none."""
        before = self.method.prelude()
        if before is None:
            return None
        teacher = self.teacher
        assert teacher is not None and not isinstance(teacher, PanelRun)
        alone = before.method.trains == "helpers"  # the student's network takes no part
        shared = self.shown().model_copy(update={"view_seed": self.data.view_seed})
        plain = {"schedule": "constant", "milestones": None, "warmup_epochs": 0, "ema": None}
        plain |= {"parts": (), "freeze": ()} if alone else {}  # they are parts of the student
        rates = {"epochs": before.epochs, "lr": before.lr or self.optim.lr}
        return PreludeRun(
            model=None if alone else self.model,
            teacher=teacher,
            data=shared if alone else self.shown(),
            method=before.method,
            optim=self.optim.model_copy(update=plain | rates),
            views=self.views,
            teacher_precision=self.teacher_precision,
            precision=self.precision,
            weights=None if alone else self.weights,
            seed=0 if alone else self.seed,
        )

    def anchors(self) -> tuple[int, ...]:
        """The epochs at which its weights are saved: the last one alone."""
        return (self.optim.epochs,)

    def stages(self) -> tuple["StudentRun", ...]:
        """The students before this one in its route, in order, and itself."""
        return (*(self.after.stages() if self.after else ()), self)

    def all_epochs(self) -> int:
        """The epochs of its stages together."""
        return sum(stage.optim.epochs for stage in self.stages())

    def view_count(self) -> int:
        """Number of different views that the epochs go through."""
        distinct = self.shown().augment.views() if self.views == "all" else self.views
        return min(distinct, self.first_epoch + self.optim.epochs)

    def view_at(self, epoch: int) -> int:
        """The view that an epoch (from 0) shows."""
        return (self.first_epoch + epoch) % self.view_count()

    def anchor_at(self, epoch: int) -> int:
        """The teacher's epoch that supervises a student epoch (from 0).

        0 without a teacher, and with a panel.
        """
        if self.route is not None:
            return self.route.at(epoch)
        return self.teacher.anchors()[-1] if self.teacher is not None else 0

    def label_weight_at(self, epoch: int) -> float:
        """The weight of the labels' cross entropy in an epoch (from 0)."""
        weight = self.label_weight
        return value_at(self.method.weight_of_labels() if weight is None else weight, epoch)

    def outputs_at(self, epoch: int) -> OutputsRun:
        """The cache that an epoch (from 0) of a cached run with one teacher reads."""
        (cache,) = self.caches_at(epoch)
        return cache

    def caches_at(self, epoch: int, look: Look = "given") -> tuple[OutputsRun, ...]:
        """The caches of all members that an epoch (from 0) of a cached run reads for one look."""
        needs, grid = self.method.needs(), self.method.map_grid()
        fields = self.codec.recipe() | {"embedding_codec": self.embedding_codec}
        if Signal.MAP in needs:
            blocks = 2 if Signal.BLOCKS in needs else 1
            fields |= {"maps": True, "map_codec": self.map_codec, "grid": grid, "blocks": blocks}
        if derived := self.method.derived():
            trained = any(function.trained for function in derived)
            fields |= {"derived": derived, "derived_codec": self.derived_codec}
            fields |= {"prelude": self.prelude() if trained else None}
        return self._caches(self.shown(look), self._anchors_at(epoch), **fields)

    def _anchors_at(self, epoch: int) -> list[int]:
        """The epoch of each member that supervises a student epoch (from 0)."""
        if isinstance(self.teacher, PanelRun):
            return [member.anchors()[-1] for member in self.teacher.panel]
        return [self.anchor_at(epoch) for _ in self.members()]

    def test_caches(self) -> tuple[OutputsRun, ...]:
        """The caches of all members' outputs for the test images, to compare answers with."""
        if self.task.labelled and not self.reads_classes():
            return ()
        anchors = self._anchors_at(self.optim.epochs - 1)
        return self._caches(self.data.test(), anchors, split="test", embedding=False)

    def probe_caches(self) -> Mapping[Split, tuple[OutputsRun, ...]]:
        """The caches of all members' embeddings of its probe's images that its task reads."""
        judge, parts = probe_of(self.task), self.task.teacher_embeds()
        if judge is None:
            return {}
        anchors = self._anchors_at(self.optim.epochs - 1)
        # Training rows are those that a share for validation leaves.
        shown: dict[Split, Data] = {"train": judge.data.held_out(), "test": judge.data.test()}
        return {part: self._caches(shown[part], anchors, split=part) for part in parts}

    def validation_outputs(self, anchor: int) -> OutputsRun:
        """The cache of the outputs of one teacher checkpoint for the validation images."""
        (cache,) = self._caches(self.data.held_out(), [anchor], split="validation")
        return cache

    def _caches(self, data: Data, anchors: list[int], **fields: Any) -> tuple[OutputsRun, ...]:
        """The caches of the members' checkpoints for `data`, each at its own resolution."""
        values: dict[str, Any] = {"embedding": Signal.EMBEDDING in self.method.needs()} | fields
        if not self.reads_classes():
            needed = values["embedding"] or not (values.get("maps") or values.get("derived"))
            values |= {"codec": "dense", "k": None, "logits": False, "embedding": needed}
        if not values["embedding"]:
            values.pop("embedding_codec", None)
        return tuple(
            OutputsRun(
                teacher=member,
                anchor=anchor,
                data=self.as_teacher_sees(data, member),
                precision=self.teacher_precision,
                **values,
            )
            for member, anchor in zip(self.members(), anchors, strict=True)
        )


class PreludeRun(Recipe):
    """Training that some methods need before their own: a paraphraser, or a student's first stages.

    Students with equal preludes share the artefact.
    """

    kind: ClassVar[str] = "preludes"
    model: Network | None  # None: the student's network takes no part
    teacher: "AnyTeacher"
    data: AnyData
    method: AnyPrelude  # pyright: ignore[reportInvalidTypeForm]
    optim: Optim
    views: Views | Literal["all"]
    teacher_precision: Precision
    precision: Precision
    weights: str | None = None  # that its network starts from, as the student's
    seed: int = Field(ge=0, le=Limits.SEED)

    def origins(self) -> Iterator[str]:
        """The digest of the plugin of its network."""
        yield models.origin(self.model)

    def training(self) -> StudentRun:
        """The training as a student's recipe, though no user may give a student this method."""
        run = StudentRun(
            model=self.model or self.teacher.model,
            data=self.data,
            teacher=self.teacher,
            optim=self.optim,
            views=self.views,
            source="live",
            teacher_precision=self.teacher_precision,
            precision=self.precision,
            weights=self.weights,
            seed=self.seed,
        )
        return run.model_copy(update={"method": self.method})


def _kind_of_teacher(value: Any) -> str:
    """Name of a teacher's class: a teacher that has a teacher itself is a student."""
    if isinstance(value, dict):
        value = StudentRun if value.get("teacher") else TeacherRun
        return value.__name__
    return type(value).__name__


def _kind_of_teaching(value: Any) -> str:
    """Name of the class of what teaches: a panel has members."""
    if isinstance(value, PanelRun) or (isinstance(value, dict) and "panel" in value):
        return "PanelRun"
    return _kind_of_teacher(value)


AnyTeacher = Annotated[
    Annotated[TeacherRun, Tag("TeacherRun")] | Annotated[StudentRun, Tag("StudentRun")],
    Discriminator(_kind_of_teacher),
]
Teaching = Annotated[
    Annotated[TeacherRun, Tag("TeacherRun")]
    | Annotated[StudentRun, Tag("StudentRun")]
    | Annotated[PanelRun, Tag("PanelRun")],
    Discriminator(_kind_of_teaching),
]
for _record in (PanelRun, OutputsRun, StudentRun, PreludeRun):
    _types = {"AnyTeacher": AnyTeacher, "StudentRun": StudentRun, "Teaching": Teaching}
    _types |= {"PreludeRun": PreludeRun}
    _record.model_rebuild(_types_namespace=_types)


def training_of(run: "TeacherRun | PreludeRun | StudentRun") -> StudentRun:
    """The training of any recipe, as a student's; a teacher is a student without a teacher."""
    if isinstance(run, StudentRun):
        return run
    if isinstance(run, PreludeRun):
        return run.training()
    fields: dict[str, Any] = {
        "model": run.model,
        "data": run.data,
        "task": run.task,
        "label_smoothing": run.label_smoothing,
        "optim": run.optim,
        "precision": run.precision,
        "weights": run.weights if run.fine_tune else None,
        "seed": run.seed,
    }
    if run.data.labels == "none":  # a given teacher, which is never trained
        fields["task"] = Features()
        return StudentRun.model_construct(**fields)
    return StudentRun(**fields)


def check_student(run: StudentRun) -> None:
    """Raise `ValueError` where two parts of the recipe contradict each other."""
    _check_task(run)
    _check_panel(run)
    _check_teacher(run)
    _check_columns(run)
    _check_samples(run)
    _check_networks(run)
    _check_values(run)
    _check_size(run)
    _check_route(run)
    _check_chain(run)


def _check_task(run: StudentRun) -> None:
    """Raise `ValueError` where task, data and method do not suit each other."""
    method, data = run.method, run.data
    if run.task.labelled:
        if data.labels == "none":
            raise ValueError(
                f"task {run.task.name!r} learns from labels, and data.labels is none; choose task: "
                "features, or data with class folders or a label column"
            )
        if isinstance(run.task, Faces):
            _check_faces(run, run.task)
        return
    if reason := _label_reason(method):
        raise ValueError(
            f"task {run.task.name!r} compares embeddings, and method {method.label!r} {reason}; "
            f"choose one of {', '.join(_label_free())}"
        )
    for field in ("label_weight", "label_smoothing"):
        if getattr(run, field):
            raise ValueError(f"task {run.task.name!r} has no label loss; leave {field} out")
    if data.validation is not None:
        raise ValueError(
            f"task {run.task.name!r} validates by its probe; leave data.validation out, or set "
            "task.probe"
        )
    if isinstance(run.task, Retrieval):
        _check_retrieval(run, run.task)


def _check_faces(run: StudentRun, task: Faces) -> None:
    """Raise `ValueError` where a method mixes images, or reads logits that a step has not."""
    if run.data.augment.mix or run.method.mixing():
        raise ValueError(
            "task 'faces' has a margin at each image's own label, and mixed images have two; "
            "leave mixing out"
        )
    if task.partial < 1 and Signal.LOGITS in run.method.student_needs():
        raise ValueError(
            f"task.partial: {task.partial:g} leaves a step without the logits of all people, which "
            f"method {run.method.label!r} reads; set it to 1, or choose a method of embeddings"
        )


def _check_retrieval(run: StudentRun, task: Retrieval) -> None:
    """Raise `ValueError` where rankings have no labels, or a gallery is in no common space."""
    if task.gallery == "teacher" and not run.method.matches:
        names = ", ".join(name for name in _label_free() if METHODS[name].matches)
        raise ValueError(
            "task 'retrieval' with gallery: teacher ranks the teacher's embeddings by the "
            f"student's, which method {run.method.label!r} does not bring into one space; choose "
            f"one of {names}, or gallery: student"
        )
    if run.data.labels == "none" and task.probe is None:
        raise ValueError(
            "task 'retrieval' is judged by labels, and data.labels is none; give data with labels, "
            "which no loss reads, or a probe"
        )


def _label_reason(method: Method) -> str | None:
    """The reason why a method cannot train a backbone without labels; None where it can."""
    if not method.needs():
        return "learns from the labels alone"
    read = method.needs() | method.student_needs()
    if read & (Signal.LOGITS | Signal.CLASSIFIER | Signal.PIXELS):
        return "reads logits, of which a backbone has none"
    if method.reads_labels():
        return "reads labels"
    return "begins with a training of its own that reads labels" if method.prelude() else None


def _label_free() -> Iterator[str]:
    """The names of methods that read embeddings or feature maps, and no labels."""
    for name, kind in METHODS.items():
        required = any(field.is_required() for field in kind.model_fields.values())
        if not required and _label_reason(kind.read({"name": name})) is None:
            yield name


def _check_panel(run: StudentRun) -> None:
    """Raise `ValueError` where a method, a codec or a size does not suit several teachers."""
    if not isinstance(run.teacher, PanelRun):
        return
    method = run.method
    before = method.prelude()
    reads = (method.needs() | (before.method.needs() if before else Signal(0))) & ~Signal.LOGITS
    if method.panel:
        reads &= ~(Signal.EMBEDDING | Signal.MAP | Signal.CLASSIFIER)
    if reads:
        raise ValueError(
            f"method {method.label!r} reads {reads}, of which a panel has several; choose a method "
            "that reads logits alone, panel_distillation, or one teacher"
        )
    if isinstance(method, Wrapper) and any(part.panel for part in method.parts().values()):
        raise ValueError(
            f"method {method.label!r} wraps one that weighs several teachers; choose that one alone"
        )
    if method.needs() and method.panel != (run.teacher.combine == "none"):
        reads, combine = "one teacher", "a mean"
        if method.panel:
            reads, combine = "each of several teachers", "none"
        raise ValueError(
            f"method {method.label!r} reads {reads}, and run.teacher.combine is "
            f"{run.teacher.combine}; set it to {combine}"
        )
    if method.trains_teacher():
        raise ValueError(
            f"method {method.label!r} trains the teacher, and a panel is several; choose one"
        )
    if run.cached() and method.needs() and run.codec.coverage().classes != "all":
        raise ValueError(
            f"codec {run.codec.name!r} keeps other classes of each member of a panel, whose mean "
            "is over all; use codec: dense or int8"
        )
    first, *others = [run.as_teacher_sees(run.data, member) for member in run.members()]
    if method.needs() and not run.cached() and any(seen != first for seen in others):
        raise ValueError(
            "a live panel sees the images at one resolution, and its members' data.stream differ; "
            "leave run.source out, so that each answers from its cache"
        )


def _check_teacher(run: StudentRun) -> None:
    """Raise `ValueError` where a method has no teacher, or a cache lacks what it reads."""
    needs, name = run.method.needs(), run.method.label
    if run.teacher is None and (needs or run.method.prelude()):
        raise ValueError(f"method {name!r} needs a teacher; add run.teacher")
    if run.source == "cache" and needs & ~CACHEABLE:
        stored = ", or method.source to cache" if isinstance(run.method, FromColumns) else ""
        raise ValueError(
            f"method {name!r} reads {needs & ~CACHEABLE}, which a cache does not hold; "
            f"leave run.source out, or set it to live{stored}"
        )


def _check_columns(run: StudentRun) -> None:
    """Raise `ValueError` where a method's columns, or its mean over views, cannot be stored."""
    needs, name = run.method.needs(), run.method.label
    from_cache = any(not function.trained for function in run.method.derived())
    if from_cache and needs & ~CACHEABLE:
        raise ValueError(
            f"method {name!r}: a part has source: cache, and another reads {needs & ~CACHEABLE} of "
            "the teacher's network; give all of them source: cache, or none"
        )
    for function in run.method.derived():
        if type(function) not in DERIVED.values():
            raise ValueError(
                f"method {name!r} stores columns of {type(function).__name__}, which raykd does "
                'not know; put @raykd.register.column("a_name") above that class'
            )
    if "view_mean" in run.method.looks().teacher:
        if not run.cached():
            raise ValueError(
                f"method {name!r} compares with the mean over views, which is read from a cache; "
                "leave run.source out, or choose target: view"
            )
        if run.shown().augment.mix:
            raise ValueError(
                f"method {name!r} compares with the mean over views, and mixed samples have other "
                "partners in each; leave mixing out, or choose target: view"
            )


def _check_samples(run: StudentRun) -> None:
    """Raise `ValueError` where a method, or the order of samples, does not suit the data."""
    name = run.method.label
    if run.method.mixing() and run.data.augment.mix:
        raise ValueError(
            f"method {name!r} mixes the samples itself; leave run.data.augment.mix out"
        )
    if run.method.has_memory() and (run.data.augment.mix or run.method.mixing()):
        raise ValueError(
            f"method {name!r} remembers each training sample by what it was seen as, and a mixed "
            "one is two samples; leave run.data.augment.mix and methods that mix out"
        )
    if run.optim.per_class > 1 and run.data.labels == "none":
        raise ValueError(
            "optim.per_class puts samples of one class together, and data.labels is none; leave it "
            "out"
        )


def _check_networks(run: StudentRun) -> None:
    """Raise `ValueError` where a method reads what a network of a library does not say."""
    name = run.method.label
    before = run.method.prelude()
    methods = (run.method, before.method) if before else (run.method,)
    for model, reads in (
        (run.model, [method.student_needs() for method in methods]),
        (
            run.teacher.model if run.teacher else "",
            [method.needs() | read_by(method.derived()) for method in methods],
        ),
    ):
        if any(Signal.PREACTIVATIONS in signals for signals in reads) and "/" in model:
            raise ValueError(
                f"method {name!r} reads what stages are before their last ReLU, which "
                f"{model} does not say; choose another method, or networks of "
                "`raykd show models` whose names have no slash"
            )


def _check_values(run: StudentRun) -> None:
    """Raise `ValueError` where a weight, the views or the codec do not suit the method."""
    if isinstance(run.method, LabelOnly) and run.label_weight is not None:
        raise ValueError(
            "label_weight scales the only loss of method 'label_only'; leave it out, or give "
            "the weight with the method that it is for"
        )
    if isinstance(run.views, int) and run.views < 1:
        raise ValueError(f"views: {run.views} is not a number of views; use 1 or more")
    if run.cached() and run.reads_classes():  # else no logits are stored
        refusal = run.codec.refusal(run.method, run.data.classes)
        if refusal is not None:
            raise ValueError(refusal)


def _check_size(run: StudentRun) -> None:
    """Raise `ValueError` where a live teacher would have to run at the student's resolution."""
    if run.teacher is None or run.as_teacher_sees(run.data) == run.data:
        return
    several = len(run.method.looks().teacher) > 1 or run.method.mixing() is not None
    same_pixels = several or Signal.LIVE in run.method.needs()
    if run.method.trains_teacher() or (same_pixels and run.asked_at_another_size()):
        raise ValueError(
            f"method {run.method.label!r} asks its teacher in person at the student's resolution; "
            "give both data the same stream (a given teacher: the student's size as teacher.size), "
            "or choose a method that a cache answers"
        )


def _check_route(run: StudentRun) -> None:
    """Raise `ValueError` where the route names epochs that teacher or student do not have."""
    if run.route is None:
        return
    if run.method.trains_teacher():
        raise ValueError(
            f"method {run.method.label!r} trains the teacher, and a route would change it on the "
            "way; leave run.route out"
        )
    if run.teacher is None:
        raise ValueError("a route leads through a teacher's epochs; add run.teacher")
    if isinstance(run.teacher, PanelRun):
        raise ValueError(
            "a route leads through one teacher's epochs, and run.teacher is a panel; leave "
            "run.route out"
        )
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


def _check_chain(run: StudentRun) -> None:
    """Raise `ValueError` where the stage before this one, or its assistant, does not suit it."""
    if run.after is not None and run.weights is not None:
        raise ValueError(
            "it starts from the weights of the student that it goes on after, and from "
            f"{run.weights!r}; leave run.weights or run.after out"
        )
    for field in ("model", "data.digest", "data.classes") if run.after is not None else ():
        mine, before = attrgetter(field)(run), attrgetter(field)(run.after)
        if mine != before:
            raise ValueError(
                f"it goes on after a student whose {field} is {before!r}, and its own is {mine!r}; "
                "give both the same"
            )
    for teacher in run.members():
        if isinstance(teacher, StudentRun):
            _check_assistant(run, teacher)


def _check_assistant(run: StudentRun, teacher: StudentRun) -> None:
    """Raise `ValueError` where a student cannot teach this one."""
    method: Method = teacher.method
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
