"""Random sketches: short vectors that preserve inner products on average."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from c2f_zoo.ops.groups import sum_groups
from c2f_zoo.ops.precision import without_autocast


def draw_hashes(count: int, channels: int, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw count sketches: a hash and a sign for each channel.

    Args:
        count: number of sketches.
        channels: number of channels C of the sketched vectors.
        dim: length d of a sketch.
        generator: the random generator.

    Returns:
        Hashes in [0, d), (count, C), int64, and signs -1 or 1, (count, C), int8.
    """
    hashes = torch.randint(dim, (count, channels), generator=generator, device="cpu")
    return hashes, draw_signs((count, channels), generator)


def draw_signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw independent signs -1 or 1, int8."""
    return torch.randint(2, shape, generator=generator, device="cpu", dtype=torch.int8) * 2 - 1


def sketch_matrix(a: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], dim: int) -> Tensor:
    """Return the Tensor Sketch of matrices.

    Entry (i, j) is added, with its two signs, to entry (h_i + h_j) mod d. For x y^T this is the circular convolution of
    the count sketches of x and y (Pham & Pagh, KDD 2013). It is linear: the sketch of a Gram matrix is the sum of the
    sketches of its locations (Gao et al. 2016, alg. 2).

    Args:
        a: matrices (N, C_1, C_2).
        rows: hashes (C_1,) and signs (C_1,) of the rows.
        columns: hashes (C_2,) and signs (C_2,) of the columns.
        dim: length d of the sketch.

    Returns:
        (N, d), in `a`'s dtype.

    Examples:
        >>> rows, columns = (torch.tensor([0, 2]), torch.tensor([1, 1])), (torch.tensor([1]), torch.tensor([-1]))
        >>> sketch_matrix(torch.tensor([[[5.0], [7.0]]]), rows, columns, dim=3)
        tensor([[-7., -5.,  0.]])
    """
    entries = (rows[0][:, None] + columns[0]) % dim
    signed = a * (rows[1][:, None] * columns[1]).to(a.dtype)
    return sum_groups(signed.flatten(1), entries.flatten(), dim)


def tensor_sketch_sums(x: Tensor, hashes: Tensor, signs: Tensor, dim: int) -> list[Tensor]:
    """Return sums over locations of the Tensor Sketches of x, x (x) x, ...

    The sketch of order m is the circular convolution of the first m count sketches, by FFT (Pham & Pagh, KDD 2013).

    Args:
        x: vectors in columns, (N, C, L), float32 or float64.
        hashes: (orders, C), int64, in [0, d).
        signs: (orders, C), -1 or 1.
        dim: length d of a sketch.

    Returns:
        A tensor (N, d) for each order 1, 2, ... For two maps of one location, the inner product estimates
        (x . y)^order.
    """
    if x.shape[0] == 0:  # the FFT raises an error for it
        return [x.new_zeros(0, dim) for _ in hashes]
    with without_autocast(x):
        counted = (sum_groups(x * sign.to(x.dtype)[:, None], at, dim) for at, sign in zip(hashes, signs, strict=True))
        # ONNX's exporter by tracing has no complex numbers.
        by_matrices = torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()
        return _convolve_by_matrices(counted) if by_matrices else _convolve_by_fft(counted)


def _convolve_by_fft(vectors: Iterable[Tensor]) -> list[Tensor]:
    """Return sums over locations of the circular convolutions of the first 1, 2, ... vectors, each (N, d, L)."""
    sums: list[Tensor] = []
    spectrum = None
    for x in vectors:
        turned = torch.fft.rfft(x, dim=1)
        spectrum = turned if spectrum is None else spectrum * turned
        sums.append(torch.fft.irfft(spectrum.sum(dim=2), n=x.shape[1], dim=1))
    return sums


def _convolve_by_matrices(vectors: Iterable[Tensor]) -> list[Tensor]:
    """As `_convolve_by_fft`, with products of real matrices as the Fourier transform."""
    sums: list[Tensor] = []
    product = None
    for x in vectors:
        cos, sin, shares = _fourier_matrices(x)
        real, imaginary = cos @ x, sin @ x
        if product is not None:
            real, imaginary = product[0] * real - product[1] * imaginary, product[0] * imaginary + product[1] * real
        product = real, imaginary
        sums.append((shares * real.sum(dim=2)) @ cos + (shares * imaginary.sum(dim=2)) @ sin)
    return sums


def _fourier_matrices(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the transform's matrices (d // 2 + 1, d), and the share (d // 2 + 1,) of each frequency in the inverse."""
    dim = x.shape[1]
    frequencies = torch.arange(dim // 2 + 1, device=x.device)
    angles = (torch.outer(frequencies, torch.arange(dim, device=x.device)) % dim).to(x.dtype) * (2 * math.pi / dim)
    # Each frequency but 0 and d / 2 stands for its negative too.
    shares = torch.where((2 * frequencies) % dim == 0, 1, 2).to(x.dtype) / dim
    return angles.cos(), angles.sin(), shares
