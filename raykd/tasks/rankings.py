"""Rankings of a gallery by similarity to queries, and what they are worth.

All functions are pure and work where the embeddings are, some queries at a time, so that the memory
beside the embeddings is bounded: `_CELLS` similarities, sorted, and one row of a large gallery at
least.

Shapes: M queries, N rows of the gallery, D width of an embedding, q queries of a block.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RANKS = (1, 5, 10)  # k of recall@k
_CELLS = 1 << 21  # similarities of a block
_QUERIES = 1 << 14  # whose nearest rows are compared at a time


class Retrieval(NamedTuple):
    """Means over queries that have a relevant row, as fractions of 1."""

    recall: dict[int, float]  # k -> share of queries with a relevant row among the first k
    mean_average_precision: float  # mAP: precision at each relevant row, averaged
    map_at_r: float  # MAP@R: the same sum over the first R rows, over the number R of relevant ones
    r_precision: float  # relevant rows among the first R, over R
    queries: int  # that have a relevant row
    left_out: int  # queries that have none


class Lists(NamedTuple):
    """Pairs of a query's row and one of the gallery's, as lists name them.

    In the order of the queries. Rows that no list names are irrelevant.
    """

    relevant: Tensor  # int64 [P, 2]
    junk: Tensor  # int64 [J, 2]: rows that are no part of the query's ranking


def retrieval(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    alike: bool = False,
    ranks: Sequence[int] = RANKS,
    trapezoid: bool = False,
) -> Retrieval:
    """Worth of the rankings of `gallery` [N, D] by cosine to each of `queries` [M, D].

    A row of the gallery is relevant where its label (int64 [N]) is the query's (int64 [M]). With
    `alike` the queries are the gallery, and each ranks all rows but itself. Between equal cosines
    the earlier row comes first. MAP@R is from Musgrave et al. 2020 (arXiv 2003.08505, equation 4).
    `trapezoid`: average precision is the mean of the precision before and after each relevant row,
    as in the evaluation of the Oxford and Paris buildings. Raises `ValueError` for embeddings that
    do not fit or are not finite, and where no query has a relevant row.
    """
    labels = query_labels.to(gallery.device), gallery_labels.to(gallery.device)
    _check(queries, gallery, *labels, alike)

    def judge(start: int, similarity: Tensor) -> Tensor:
        index = torch.arange(start, start + len(similarity), device=similarity.device)
        relevant = labels[0][index, None] == labels[1]
        if alike:
            similarity.scatter_(1, index[:, None], -torch.inf)  # itself: last, and of no account
            relevant.scatter_(1, index[:, None], False)
        return relevant

    return _worth(queries, gallery, judge, ranks, trapezoid)


def listed_retrieval(
    queries: Tensor,
    gallery: Tensor,
    lists: Lists,
    *,
    ranks: Sequence[int] = RANKS,
    trapezoid: bool = False,
) -> Retrieval:
    """Worth of the rankings of `gallery` [N, D] to each of `queries` [M, D], by lists.

    As `retrieval`, but lists say what is relevant, and junk is taken out of a ranking before it is
    judged, as in the evaluation of the revisited Oxford and Paris buildings (Radenovic et al. 2018,
    arXiv 1803.11285). Raises `ValueError` as `retrieval` does.
    """
    check_rows("queries", queries, gallery.shape[-1])
    check_rows("gallery", gallery, gallery.shape[-1])
    relevant, junk = (pairs.to(gallery.device) for pairs in lists)

    def judge(start: int, similarity: Tensor) -> Tensor:
        hits = torch.zeros_like(similarity, dtype=torch.bool)
        hits[_of_block(relevant, start, len(similarity))] = True
        similarity[_of_block(junk, start, len(similarity))] = -torch.inf  # last, and no hit
        return hits

    return _worth(queries, gallery, judge, ranks, trapezoid)


def _of_block(pairs: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, in a block of `count` queries from `start` on, of pairs [P, 2]."""
    edges = torch.tensor([start, start + count], device=pairs.device)
    first, last = torch.searchsorted(pairs[:, 0].contiguous(), edges).tolist()
    return pairs[first:last, 0] - start, pairs[first:last, 1]


def _worth(
    queries: Tensor,
    gallery: Tensor,
    judge: Callable[[int, Tensor], Tensor],
    ranks: Sequence[int],
    trapezoid: bool,
) -> Retrieval:
    """Worth of rankings, some queries at a time.

    `judge` says which rows are relevant, bool [q, N], to the queries from a place on, given their
    similarities [q, N], in which it marks those of no account by minus infinity.
    """
    gallery = _unit(gallery)
    total = torch.zeros(len(ranks) + 4, dtype=torch.float64, device=gallery.device)
    for start, rows in _blocks(queries, len(gallery)):
        similarity = _unit(rows.to(gallery.device)) @ gallery.T
        relevant = judge(start, similarity)
        total += ranked(similarity, relevant, ranks, trapezoid=trapezoid)
    return _means(total, len(queries), ranks)


def ranked(
    similarity: Tensor, relevant: Tensor, ranks: Sequence[int], *, trapezoid: bool
) -> Tensor:
    """Sums over queries with a relevant row: float64 [len(ranks) + 4].

    Hits at each of `ranks`, average precision, MAP@R, R-precision, and the number of such queries.
    """
    order = similarity.argsort(dim=1, descending=True, stable=True)
    hits = relevant.gather(1, order)
    count = hits.sum(1)
    hits, count = hits[count > 0], count[count > 0].double()
    place = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    seen = hits.cumsum(1)
    precision = seen.double() / place
    first_r = place <= count[:, None]
    at_r = (precision * (hits & first_r)).sum(1) / count
    if trapezoid:
        before = (seen - 1).double() / (place - 1).clamp_min(1)
        before[:, :1] = 1.0
        precision = (precision + before) / 2
    average = (precision * hits).sum(1) / count
    r_precision = (hits & first_r).sum(1) / count
    recalls = [hits[:, :k].any(1).double().sum() for k in ranks]
    others = [average.sum(), at_r.sum(), r_precision.sum(), torch.ones_like(count).sum()]
    return torch.stack([*recalls, *others])


def nearest(queries: Tensor, gallery: Tensor, k: int = 10, *, alike: bool = True) -> Tensor:
    """The k nearest rows of a gallery [N, D] to each query [M, D].

    int32 [M, k], on the CPU: 40 bytes a query. With `alike` both are of the same images, and each
    ranks all but itself. Raises `ValueError` where there is no row to rank.
    """
    k = min(k, len(gallery) - alike)
    if k < 1:
        raise ValueError(f"expected {1 + alike} or more rows to rank, got {len(gallery)}")
    gallery, parts = _unit(gallery), list[Tensor]()
    for start, rows in _blocks(queries, len(gallery)):
        similarity = _unit(rows) @ gallery.T
        if alike:
            index = torch.arange(start, start + len(rows), device=gallery.device)
            similarity.scatter_(1, index[:, None], -torch.inf)
        parts.append(similarity.topk(k, dim=1).indices.int().cpu())
    return torch.cat(parts)


def agreement(mine: Tensor, theirs: Tensor) -> float:
    """Mean share of the `nearest` rows [N, k] that two networks have in common, of 1; no labels."""
    blocks = zip(mine.split(_QUERIES), theirs.split(_QUERIES), strict=True)
    common = sum(int((a[:, :, None] == b[:, None, :]).sum()) for a, b in blocks)
    return common / mine.numel()


def _means(total: Tensor, queries: int, ranks: Sequence[int]) -> Retrieval:
    """Means of what `ranked` sums up."""
    *sums, count = total.tolist()
    if not count:
        raise ValueError("no query has a relevant row in the gallery")
    *recalls, average, at_r, r_precision = (value / count for value in sums)
    recall = dict(zip(ranks, recalls, strict=True))
    return Retrieval(recall, average, at_r, r_precision, int(count), queries - int(count))


def _blocks(queries: Tensor, width: int) -> list[tuple[int, Tensor]]:
    """The queries some at a time, with the place of the first, for rows of `width` numbers."""
    size = max(1, _CELLS // width)
    return [(start, queries[start : start + size]) for start in range(0, len(queries), size)]


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.float(), dim=1)


def _check(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, alike: bool
) -> None:
    """Raise `ValueError` for embeddings and labels that do not fit each other."""
    width = gallery.shape[-1]
    named = (("queries", queries, query_labels), ("gallery", gallery, gallery_labels))
    for name, rows, labels in named:
        check_rows(name, rows, width, labels)
    if alike and len(queries) != len(gallery):
        raise ValueError(f"{len(queries)} queries are not the {len(gallery)} rows of the gallery")


def check_rows(name: str, rows: Tensor, width: int, labels: Tensor | None = None) -> None:
    """Raise `ValueError` for embeddings of another width than `width`, or not finite ones, and for
    labels that are not one a row.
    """
    if rows.dim() != 2 or not len(rows) or rows.shape[1] != width:
        raise ValueError(f"{name}: expected rows of {width} numbers, got {list(rows.shape)}")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{name}: some embeddings are not finite")
    if labels is not None and labels.shape != rows.shape[:1]:
        raise ValueError(f"{name}: {len(rows)} rows, but labels {list(labels.shape)}")
