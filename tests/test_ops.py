import math

import pytest
import torch

from c2f_zoo.ops import covariance, gram, matrix_sqrt, multilinear_sums, signed_sqrt, signed_sqrt_l2


def test_the_root_is_exact_forward() -> None:
    x = torch.tensor([-4.0, -1e-8, 0.0, 1e-8, 2.25, 1e10], dtype=torch.float64)
    expected = torch.tensor([-2.0, -1e-4, 0.0, 1e-4, 1.5, 1e5], dtype=torch.float64)
    torch.testing.assert_close(signed_sqrt(x, grad_eps=0.03), expected, rtol=1e-15, atol=0)


def test_the_gradient_of_the_root_equals_that_of_the_caffe_release() -> None:
    x = torch.tensor([-4.0, 0.0, 0.01], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(signed_sqrt(x, grad_eps=0.03).sum(), x)
    expected = torch.tensor([0.5 / 2.03, 0.5 / 0.03, 0.5 / 0.13], dtype=torch.float64)
    torch.testing.assert_close(grad, expected)


def test_the_gradients_of_the_root_without_the_bound() -> None:
    x = torch.tensor([-3.0, -0.2, 0.5, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: signed_sqrt(x, 0.0), x)
    assert torch.autograd.gradgradcheck(lambda x: signed_sqrt(x, 0.0), x)


def test_sums_of_products_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    channels, dim, height, width = (2, 3, 4), 5, 3, 2
    maps = [torch.randn(2, c, height, width, generator=generator, dtype=torch.float64) for c in channels]
    weights = [torch.randn(dim, c, generator=generator, dtype=torch.float64) for c in channels]
    biases = [torch.randn(dim, generator=generator, dtype=torch.float64) for c in channels]
    terms = [(0, 1), (0, 1, 2), (2,)]
    found = multilinear_sums(maps, weights, biases, terms)

    def projection(i: int, n: int, k: int, y: int, x: int) -> float:
        terms = (float(weights[i][k, c]) * float(maps[i][n, c, y, x]) for c in range(channels[i]))
        return sum(terms) + float(biases[i][k])

    for term, sums in zip(terms, found, strict=True):
        for n in range(2):
            for k in range(dim):
                expected = sum(
                    math.prod(projection(i, n, k, y, x) for i in term) for y in range(height) for x in range(width)
                )
                assert float(sums[n, k]) == pytest.approx(expected, rel=1e-12)


def test_products_are_made_in_float32_under_autocast() -> None:
    # Each projection is 300: representable in bf16 (as 300), but the triple product overflows fp16 by far.
    x = torch.full((1, 3, 2, 2), 100.0)
    weight, bias = torch.ones(1, 3), torch.zeros(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (total,) = multilinear_sums([x] * 3, [weight] * 3, [bias] * 3, [(0, 1, 2)])
    assert total.dtype == torch.float32
    assert total.item() == 4 * 300.0**3


def test_root_and_norm_by_hand() -> None:
    x = torch.tensor([[-9.0, 16.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    y = signed_sqrt_l2(x, grad_eps=0.5)
    torch.testing.assert_close(y.detach(), torch.tensor([[-0.6, 0.8, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64))
    # Upstream (1, 0, 1): its tangent is (1, 0, 1) - y (-0.6) = (0.64, 0.48, 1); over the norm 5, x 0.5 / (|r| + 0.5).
    upstream = torch.tensor([[1.0, 0.0, 1.0]] * 2, dtype=torch.float64)
    expected = [0.64 / 5 * 0.5 / 3.5, 0.48 / 5 * 0.5 / 4.5, 1 / 5 * 0.5 / 0.5]
    for create_graph in (False, True):
        (grad,) = torch.autograd.grad(y, x, upstream, create_graph=create_graph, retain_graph=True)
        torch.testing.assert_close(grad[0].detach(), torch.tensor(expected, dtype=torch.float64))
        assert grad[1].eq(0).all(), "a row of zeros has no direction"


def test_root_and_norm_have_correct_derivatives() -> None:
    x = torch.tensor([[-3.0, 0.2, 0.5], [7.0, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: signed_sqrt_l2(x, 0.0), x)
    assert torch.autograd.gradgradcheck(lambda x: signed_sqrt_l2(x, 0.0), x)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e34])
def test_root_and_norm_do_not_overflow_or_vanish(scale: float) -> None:
    x = (scale * torch.tensor([[9.0, -16.0]])).requires_grad_()
    y = signed_sqrt_l2(x)
    torch.testing.assert_close(y.detach(), torch.tensor([[0.6, -0.8]]))
    (grad,) = torch.autograd.grad(y[0, 0], x)
    assert grad.isfinite().all()


def test_the_first_steps_of_newton_and_schulz_by_hand() -> None:
    # For a number a the trace is a itself: y = z = 1 from the start, and the root is exact after any step.
    a = torch.tensor([[[9.0]]], dtype=torch.float64)
    assert matrix_sqrt(a, iterations=1).item() == 3.0
    # diag(1, 3) / 4: one step gives y = a (3 - a) / 2 elementwise, times the root of the trace, 2.
    found = matrix_sqrt(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))[None], iterations=1)
    expected = [2 * q * (3 - q) / 2 for q in (0.25, 0.75)]
    torch.testing.assert_close(found[0].diagonal(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_gram_matrix_of_one_map_by_loops(channels: int) -> None:
    x = torch.randn(2, channels, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([sum(torch.outer(v, v) for v in image.flatten(1).T) for image in x])
    torch.testing.assert_close(gram(x, x), expected)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gram(x, x), x)
    assert torch.autograd.gradgradcheck(lambda x: gram(x, x), x)


def test_the_covariance_is_that_of_torch() -> None:
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([torch.cov(vectors, correction=0) for vectors in x])
    torch.testing.assert_close(covariance(x), expected)
    x.requires_grad_()
    assert torch.autograd.gradcheck(covariance, x)
    assert torch.autograd.gradgradcheck(covariance, x)
