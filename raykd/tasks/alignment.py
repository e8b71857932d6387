"""Linear centred kernel alignment from the rows of wide embeddings, in bounded memory.

Kornblith et al. 2019, arXiv 1905.00414, equation 5: ||X'Y||**2 / (||X'X|| ||Y'Y||) of centred
embeddings X [n, D] and Y [n, E]. That is <XX', YY'> / (||XX'|| ||YY'||), whose matrices are the
smaller ones where there are fewer rows than channels.

Shapes: n rows, D and E channels.
"""

import torch
from torch import Tensor

_WIDE = 1 << 24  # numbers of the products of features, 128 MB, up to which those are summed
_BLOCK = 1024  # rows of a block: 52 MB of float64 at 6,400 channels


def by_rows(rows: int, width: int, other: int) -> bool:
    """True where `cka` of n rows takes less work than the products of D and E wide features."""
    products = width * width + other * other + width * other
    return products > _WIDE and rows * (width + other) < products


def cka(x: Tensor, y: Tensor) -> float:
    """The alignment (0 to 1) of embeddings [n, D] and [n, E]; 0 where one does not vary.

    Computed in float64, in memory of a few blocks beside the embeddings.
    """
    pairs = [(value, value.mean(0, dtype=torch.float64)) for value in (x, y)]
    sums = torch.zeros(3, dtype=torch.float64, device=x.device)
    for start in range(0, len(x), _BLOCK):  # blocks of XX' and YY' above their diagonals
        here = [_centred(*pair, start) for pair in pairs]
        for beside in range(start, len(x), _BLOCK):
            there = [_centred(*pair, beside) for pair in pairs] if beside > start else here
            k, m = (a @ b.T for a, b in zip(here, there, strict=True))
            block = torch.stack([(k * m).sum(), k.square().sum(), m.square().sum()])
            sums += block if beside == start else 2 * block
    xy, xx, yy = sums.tolist()
    spread = (xx * yy) ** 0.5
    return min(1.0, max(0.0, xy / spread)) if spread else 0.0


def _centred(values: Tensor, mean: Tensor, start: int) -> Tensor:
    """A block of rows, float64."""
    return values[start : start + _BLOCK].double() - mean
