"""Teacher outputs for a batch, from the network itself or from its cache.

Shapes: B batch, C classes, H, W pixels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from raykd.core.record import canonical
from raykd.core.types import Batch, Combination, Look, Outputs, Signal
from raykd.methods.columns import read_by, with_columns
from raykd.methods.derived import Derived
from raykd.models.staged import Staged
from raykd.outputs.codecs import Codec
from raykd.outputs.reader import OutputsCache

Triple = tuple[float, float, float]


class Source(Protocol):
    """A source of a network's outputs, as a rule the teacher's."""

    def __call__(self, batch: Batch) -> Outputs:
        """The network's outputs for the samples of a batch, as they look in its view."""
        ...


class LiveTeacher:
    """The network, with its own normalisation of the pixels.

    It is frozen and in evaluation mode, unless it is `trained` beside the student: then its outputs
    have gradients and come with the pixels that it saw, and its mode is the caller's to choose.
    """

    def __init__(
        self,
        network: Staged,
        supplies: Signal,
        *,
        bfloat16: bool = False,
        student: tuple[Triple, Triple] | None = None,
        own: tuple[Triple, Triple] | None = None,
        trained: bool = False,
        derived: Sequence[Derived] = (),
        modules: nn.ModuleDict | None = None,
    ) -> None:
        """`derived` are the functions behind `Signal.DERIVED`, `modules` those that they run.

        `student` and `own` are the (mean, std) that the batches have, and that it wants.
        """
        self.network = network.eval().requires_grad_(trained)
        self.supplies = supplies
        self.bfloat16 = bfloat16
        self.trained = trained
        self.derived = tuple(derived)
        self.modules = nn.ModuleDict() if modules is None else modules
        self._asked = supplies & ~(Signal.PIXELS | Signal.DERIVED) | read_by(self.derived)
        self._scale, self._shift = _affine(student, own, next(network.parameters()).device)

    def __call__(self, batch: Batch) -> Outputs:
        """The network's outputs; logits as float32."""
        pixels = batch.pixels
        differentiable = Signal.PIXELS in self.supplies
        if differentiable:
            pixels = pixels.detach().requires_grad_()
        source_pixels = pixels
        if self._scale is not None and self._shift is not None:
            pixels = pixels * self._scale + self._shift
        # Not inference_mode: the student's losses save these tensors for backward.
        with (
            torch.set_grad_enabled(differentiable or (self.trained and torch.is_grad_enabled())),
            torch.autocast(pixels.device.type, torch.bfloat16, self.bfloat16),
        ):
            outputs = self.network.outputs(pixels, self._asked)
        if outputs.has_logits:
            outputs.logits = outputs.logits.float()
        if Signal.DERIVED in self.supplies:
            outputs = with_columns(outputs, self.derived, self.supplies, self.modules)
        if self.trained:
            return outputs.replace(pixels=self.network.resized(pixels))
        return outputs.replace(pixels=source_pixels) if differentiable else outputs


def _affine(
    student: tuple[Triple, Triple] | None, own: tuple[Triple, Triple] | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift from one normalisation to the other; Nones where they are equal."""
    if student is None or own is None or student == own:
        return None, None
    (mean, std), (mean_own, std_own) = (
        torch.tensor(pair, dtype=torch.float64, device=device).view(2, 3, 1, 1)
        for pair in (student, own)
    )
    return (std / std_own).float(), ((mean - mean_own) / std_own).float()


class CachedTeacher:
    """The cache of a teacher's outputs, and its last layer where a method runs it."""

    def __init__(
        self,
        cache: OutputsCache,
        signals: Signal = Signal.LOGITS,
        classifier: nn.Module | None = None,
        codec: Codec | None = None,
    ) -> None:
        """`codec`: the way to read the cache; None: its own."""
        self.cache = cache
        self.signals = signals
        self.classifier = classifier
        self.codec = codec

    def __call__(self, batch: Batch) -> Outputs:
        """The stored outputs, as float32."""
        outputs = self.cache.take(batch.ids, batch.view, self.signals, self.codec)
        return outputs.replace(classifier=self.classifier) if self.classifier else outputs


class ViewMean:
    """The mean of a teacher's stored outputs over some views of each sample.

    It is computed once, and held: N rows of D floats for the embedding and of C for the logits.
    """

    def __init__(
        self,
        cache: OutputsCache,
        views: Sequence[int],
        signals: Signal,
        codec: Codec | None = None,
    ) -> None:
        """`signals` are of LOGITS and EMBEDDING; `codec` reads the cache, None: its own."""
        self.cache, self.views, self.signals, self.codec = cache, views, signals, codec
        sums: dict[str, list[Tensor]] = {}
        for number, view in enumerate(views):
            for part, ids in enumerate(cache.ids()):
                for name, values in _averaged(cache.take(ids, view, signals, codec), signals):
                    if number:
                        sums[name][part] += values
                    else:
                        sums.setdefault(name, []).append(values)
        self._means = {name: torch.cat(parts) / len(views) for name, parts in sums.items()}
        if "logits" in self._means:
            tiny = torch.finfo(
                torch.float32
            ).tiny  # a class that no view expects has a finite logit
            self._means["logits"] = self._means["logits"].clamp_min(tiny).log()

    def __call__(self, batch: Batch) -> Outputs:
        """The means, as float32: embeddings, and log-probabilities of the mean softmax at T = 1."""
        rows = {name: means.index_select(0, batch.ids) for name, means in self._means.items()}
        return Outputs(rows.get("logits"), embedding=rows.get("embedding"))


def _averaged(outputs: Outputs, signals: Signal) -> Iterable[tuple[str, Tensor]]:
    """The outputs of a view that are averaged, by name."""
    if Signal.LOGITS in signals:
        yield "logits", outputs.logits.softmax(1)
    if Signal.EMBEDDING in signals:
        yield "embedding", outputs.embedding


class PanelTeacher:
    """Several teachers as one: the weighted mean of their logits, or of their probabilities.

    With `none`, the first one's outputs, with those of each beside them.
    """

    def __init__(
        self, members: Sequence[Source], combine: Combination, shares: Sequence[float] | None = None
    ) -> None:
        """`shares` of the members, none of them negative, in any unit; None: equal ones."""
        shares = [1.0] * len(members) if shares is None else shares
        self.combine: Combination = combine
        self.shared = [(m, share / sum(shares)) for m, share in zip(members, shares, strict=True)]

    def __call__(self, batch: Batch) -> Outputs:
        """The combined logits as float32, and nothing else; with `none`, whatever all have.

        Those of `mean_probabilities` are log-probabilities, whose softmax is the mean at
        temperature 1.
        """
        if self.combine == "none":
            answers = tuple(member(batch) for member, _ in self.shared)
            return answers[0].replace(panel=answers)
        pairs = [(member(batch).logits, share) for member, share in self.shared]
        if self.combine == "mean_logits":
            return Outputs(torch.stack([share * logits for logits, share in pairs]).sum(0))
        parts = [logits.log_softmax(1) + _log(share) for logits, share in pairs]
        return Outputs(torch.stack(parts).logsumexp(0))


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf


_NOT_SHOWN = ("given", "view_mean")  # looks without a batch of their own


class SourceByLook:
    """The outputs of a network for several looks at the same samples."""

    def __init__(self, sources: Mapping[Look, Source]) -> None:
        """`sources` answer for a look each; the first is the main one."""
        self.sources = sources

    def __call__(self, batch: Batch) -> Outputs:
        """The outputs for the main look, with those for all looks beside them."""
        outputs: dict[Look, Outputs] = {
            look: source(batch if look in _NOT_SHOWN else batch.looks[look])
            for look, source in self.sources.items()
        }
        return next(iter(outputs.values())).with_looks(outputs)


def by_look(sources: Mapping[Look, Source]) -> Source:
    """One source from those of each look; of the given look alone, that one itself."""
    return sources["given"] if [*sources] == ["given"] else SourceByLook(sources)


def caches_of(source: Source, view: int) -> list[tuple[OutputsCache, str]]:
    """The caches that hold a source's outputs for a view, each with words on what is read how.

    Sources whose words are equal answer alike. Empty where a network answers.
    """
    if isinstance(source, CachedTeacher | ViewMean):
        views = [view] if isinstance(source, CachedTeacher) else source.views
        codec = canonical(source.codec or source.cache.codec)
        how = f"{type(source).__name__} {source.signals.value} {codec}"
        return [(source.cache, f"{how} {source.cache.content(views)}")]
    if isinstance(source, PanelTeacher):
        parts = [(f"{source.combine} {share!r}", member) for member, share in source.shared]
    elif isinstance(source, SourceByLook):
        parts = [*source.sources.items()]
    else:
        return []
    found = [(how, caches_of(part, view)) for how, part in parts]
    if not all(caches for _, caches in found):
        return []
    return [(cache, f"{how}: {words}") for how, caches in found for cache, words in caches]
