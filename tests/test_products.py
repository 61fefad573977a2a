"""Matrix products by oneDNN equal those in float64, in any memory layout."""

import pytest
import torch
from torch import Tensor

from c2f_zoo.ops import products
from c2f_zoo.ops.products import add_product, bmm, matmul

SHAPES = [(1, 1, 1), (3, 5, 2), (1, 7, 300), (130, 1, 33), (64, 257, 129)]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.slow
def test_any_shape_and_layout(m: int, k: int, n: int, dtype: torch.dtype) -> None:
    for a in (draw(m, k, dtype=dtype), draw(k, m, dtype=dtype).T, draw(m, 2 * k, dtype=dtype)[:, ::2]):
        for b in (draw(k, n, dtype=dtype), draw(n, k, dtype=dtype).T, draw(k + 1, n + 3, dtype=dtype)[1:, 3:]):
            expected = a.double() @ b.double()
            assert_close(matmul(a, b), expected)
            total = draw(m, n + 1, dtype=dtype)[:, 1:]
            before = total.clone().double()
            add_product(total, a, b)
            assert_close(total, before + expected)
            total.fill_(torch.nan)  # as in uninitialized memory
            add_product(total, a, b, is_first=True)
            assert_close(total, expected)


def test_rows_that_share_memory() -> None:
    windows = draw(227).unfold(0, 128, 1)  # (100, 128)
    for a, b in ((windows, windows.T), (windows.T, windows), (windows, draw(1, 1).expand(128, 64))):
        expected = a.double() @ b.double()
        assert_close(matmul(a, b), expected)
        assert_close(bmm(a[None], b[None]), expected[None])


def test_the_fallback_without_onednn_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = draw(2, 128, 128), draw(2, 128, 128)
    expected = a.double() @ b.double()
    assert_close(bmm(a, b), expected)
    monkeypatch.setattr(products, "_onednn_linear", None)
    assert_close(bmm(a, b), expected)
    assert_close(matmul(a[0], b[0]), expected[0])


def test_empty_matrices_give_zeros() -> None:
    assert matmul(torch.ones(2, 0), torch.ones(0, 3)).tolist() == [[0.0] * 3] * 2
    assert matmul(torch.ones(0, 2), torch.ones(2, 3)).shape == (0, 3)


needs_onednn = pytest.mark.skipif(products._onednn_linear is None, reason="this PyTorch was built without oneDNN")


@needs_onednn
def test_gradients_of_first_and_second_order() -> None:
    # Large enough for oneDNN, which serves float32 only: gradcheck wants float64, so the reference is its own graph.
    inputs = [draw(2, 96, 112), draw(2, 112, 104)]
    weights = draw(2, 96, 104)
    found = []
    for dtype, product in ((torch.float32, bmm), (torch.float64, torch.bmm)):
        a, b = (x.to(dtype).requires_grad_() for x in inputs)
        value = (product(a, b).square() * weights.to(dtype)).sum() / 1e3
        first = torch.autograd.grad(value, (a, b), create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first) / 1e3, (a, b))
        found.append([value.detach(), *(x.detach() for x in (*first, *second))])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@needs_onednn
@pytest.mark.slow
def test_opcheck_and_vmap() -> None:
    a, b = draw(2, 104, 104).requires_grad_(), draw(2, 104, 104).requires_grad_()
    torch.library.opcheck(products._onednn_bmm, (a, b))
    many = draw(3, 2, 104, 104)
    for in_dims, left in (((0, None), many), ((1, None), many.transpose(0, 1))):
        found = torch.func.vmap(bmm, in_dims=in_dims)(left, b.detach())
        assert_close(found, many.double() @ b.detach().double())
