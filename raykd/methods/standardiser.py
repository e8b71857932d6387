"""Standardisation of a teacher's vectors: affine maps, fitted once to outputs for training images.

Shapes: B batch, D channels, T places.
"""

from typing import Literal

import torch
from torch import Tensor

from raykd.core import keyed_random
from raykd.methods.helper_kinds import Fitted

# none: as they are. global: one factor for all channels, such that their mean variance is 1.
# channel: each channel to variance 1. phi_s: a rotation and that one factor, after which each
# channel has variance 1 (PHI-S, Ranzinger et al. 2024, arXiv 2410.01680). All shift the mean to 0.
Standardisation = Literal["none", "global", "channel", "phi_s"]
_AT_ONCE = 1 << 16  # vectors in float64 at a time
_SMALLEST = 1e-12  # variance of a channel that is taken for constant


class Standardiser(Fitted):
    """x -> A (x - mean), for vectors with D channels; the identity until it is calibrated.

    A is diag(1 / deviation) for `channel`, 1 / phi for `global`, and H U' / phi for `phi_s`: U are
    eigenvectors of the covariance, phi**2 the mean of its eigenvalues, and H an orthogonal
    Hadamard matrix. Which matrix `hadamard` chooses, that eigenvectors keep the signs that the
    solver gives them, and that `channel` gives a channel which did not vary 1 / phi (in other views
    it may) are ours.
    """

    mean: Tensor
    factor: Tensor  # [D, 1], or [D, D]

    def __init__(self, width: int, kind: Standardisation) -> None:
        super().__init__()
        self.kind = kind
        self._sums: tuple[int, Tensor, Tensor] | None = None  # number, sum, squares or products
        self.register_buffer("mean", torch.zeros(width, 1))
        identity = torch.eye(width) if kind == "phi_s" else torch.ones(width, 1)
        self.register_buffer("factor", identity)
        self.register_buffer("known", torch.tensor(False))

    def forward(self, vectors: Tensor) -> Tensor:
        """The standardised vectors [B, D, T]."""
        centred = vectors - self.mean.to(vectors)
        factor = self.factor.to(vectors)
        return factor @ centred if self.kind == "phi_s" else factor * centred

    def observe(self, vectors: Tensor) -> None:
        """Add vectors [B, D, T] to the sums, in float64."""
        for rows in vectors.detach().mT.flatten(0, 1).split(_AT_ONCE):
            rows = rows.cpu().double()
            more = rows.T @ rows if self.kind == "phi_s" else rows.square().sum(0)
            if self._sums is None:
                self._sums = len(rows), rows.sum(0), more
            else:
                count, total, products = self._sums
                self._sums = count + len(rows), total + rows.sum(0), products + more

    def settle(self) -> None:
        """Set mean and factor by the sums."""
        assert self._sums is not None, "no outputs to calibrate with"
        count, total, products = self._sums
        self._sums = None
        mean = total / count
        if self.kind == "phi_s":
            factor = phi_s(products / count - torch.outer(mean, mean))
        else:
            variance = (products / count - mean.square()).clamp_min(_SMALLEST)
            mean_variance = variance.mean().expand_as(variance)
            own = (variance > _SMALLEST) & (self.kind == "channel")
            factor = torch.where(own, variance, mean_variance).rsqrt()[:, None]
        self.mean.copy_(mean[:, None])
        self.factor.copy_(factor)
        self.known.fill_(True)


def phi_s(covariance: Tensor) -> Tensor:
    """The matrix [D, D] that PHI-S multiplies by, from a covariance float64 [D, D]."""
    values, vectors = torch.linalg.eigh(covariance)
    phi = values.clamp_min(0).mean().clamp_min(_SMALLEST).sqrt()
    return hadamard(len(values)) @ vectors.T / phi


def hadamard(size: int) -> Tensor:
    """An orthogonal matrix float64 [D, D] whose entries have equal magnitudes, 1 / sqrt(D).

    By Sylvester's and Paley's constructions; of a size for which those give none, signs are drawn
    and made orthogonal, so that magnitudes are equal only about.
    """
    halvings = 0
    while True:
        core = size >> halvings
        matrix = _paley(core)
        if matrix is not None:
            break
        if core % 2:
            bits = keyed_random.draw(size, torch.arange(size * size), 0, keyed_random.SIGNS)
            signs = torch.where(bits >= 0, 1.0, -1.0).double().view(size, size)
            return torch.linalg.qr(signs)[0]
        halvings += 1
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for _ in range(halvings):
        matrix = torch.kron(two, matrix)
    return matrix / size**0.5


def _paley(size: int) -> Tensor | None:
    """A matrix of signs [D, D] with orthogonal rows for D = 1, q + 1 or 2 (q + 1), q a prime."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if size % 4:
        return None
    if _is_prime(size - 1):  # 3 modulo 4
        skew = _bordered(size - 1, antisymmetric=True)
        return skew + torch.eye(size, dtype=torch.float64)
    prime = size // 2 - 1
    if prime % 4 == 1 and _is_prime(prime):
        symmetric, one = _bordered(prime), torch.eye(prime + 1, dtype=torch.float64)
        signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(symmetric, signs) + torch.kron(one, other)
    return None


def _bordered(prime: int, *, antisymmetric: bool = False) -> Tensor:
    """Paley's matrix of quadratic residues modulo a prime, with a border of ones."""
    squares = {number * number % prime for number in range(1, prime)}
    residue = torch.tensor([0.0] + [1.0 if n in squares else -1.0 for n in range(1, prime)])
    places = torch.arange(prime)
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[1:, 1:] = residue[(places[:, None] - places) % prime]
    matrix[0, 1:] = 1
    matrix[1:, 0] = -1 if antisymmetric else 1
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % part for part in range(2, int(number**0.5) + 1))
