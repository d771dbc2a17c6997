"""RMSNorm, rotation and SwiGLU of rows in C++ against torch, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from instruction_sets import INSTRUCTION_SETS, instruction_set

from fastrl.attention import Rotary
from fastrl.ops import layer_rows

WIDTHS = [1, 3, 16, 17, 64, 100]
DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape, seed, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def compare(operation, definition, inputs, dtype, seed=9):
    """Results and gradients: at most twice torch's distance from fp64, and a rounding."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = operation(*leaves)
    upstream = normal(*out.shape, seed=seed, dtype=dtype).to(out.device)
    found = [out, *torch.autograd.grad(out, leaves, upstream)]
    assert out.grad_fn is not None and all(x.dtype == dtype for x in found)
    kinds = []
    for kind in (dtype, torch.float64):
        others = [x.detach().to(kind).requires_grad_() for x in inputs]
        value = definition(*others)
        kinds.append([value, *torch.autograd.grad(value, others, upstream.to(kind))])
    for ours, plain, truth in zip(found, *kinds, strict=True):
        assert ours.shape == truth.shape
        far = (ours.double() - truth).abs()
        allowed = 2 * (plain.double() - truth).abs().max() + torch.finfo(dtype).eps * (
            truth.abs() + truth.abs().mean()
        )
        assert (far <= allowed).all(), (far - allowed).max()


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    with instruction_set(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_norm(isa, rows, width, dtype):
    inputs = [normal(rows, width, seed=1, dtype=dtype), normal(width, seed=2, dtype=dtype)]

    def definition(x, weight):
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = (x.to(wide).square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        return (x.to(wide) * scale * weight.to(wide)).to(x.dtype)

    compare(lambda x, w: layer_rows.rms_norm(x, w, 1e-5), definition, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu(isa, width, dtype):
    def definition(x):
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    inputs = [normal(50, 2 * width, seed=3, dtype=dtype, scale=4.0)]
    compare(layer_rows.swiglu, definition, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 12, 64, 66])
def test_rotation_of_some_heads_of_wider_rows(isa, dim, dtype):
    positions = torch.arange(40) * 7
    rotary = Rotary.at(positions, 10_000.0 ** -(torch.arange(dim // 2) / (dim // 2)))

    def definition(x):
        kind = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (a[:, None].to(kind) for a in (rotary.cos_Na, rotary.sin_Na))
        first, second = x[:, 1:4].to(kind).chunk(2, -1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        return turned.to(x.dtype)

    compare(
        lambda x: rotary(x[:, 1:4]), definition, [normal(40, 5, dim, seed=4, dtype=dtype)], dtype
    )


def test_norms_of_heads_that_lie_apart():
    x = normal(9, 5, 8, seed=5).requires_grad_()
    weight = normal(8, seed=6).requires_grad_()
    out = layer_rows.rms_norm(x[:, 1:3], weight, 1e-6)
    expected = F.rms_norm(x[:, 1:3], (8,), weight, 1e-6)
    torch.testing.assert_close(out, expected)
    ours = torch.autograd.grad(out.square().sum(), (x, weight))
    theirs = torch.autograd.grad(expected.square().sum(), (x, weight))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_bits_do_not_depend_on_threads():
    x, weight = normal(500, 96, seed=1), normal(96, seed=2)
    upstream = normal(500, 96, seed=3)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
            out = layer_rows.rms_norm(*leaves, 1e-5)
            found.append([out, *torch.autograd.grad(out, leaves, upstream)])
    finally:
        torch.set_num_threads(before)
    assert all(
        torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True)
    )


def test_nan_and_infinity_are_not_hidden():
    gates = torch.tensor([[float("nan"), float("inf"), -100.0, 1.0, 2.0, 3.0]])
    out = layer_rows.swiglu(gates)
    assert out[0, 0].isnan() and out[0, 1] == float("inf") and out[0, 2].abs() < 1e-30
    assert layer_rows.rms_norm(torch.full((1, 4), float("nan")), torch.ones(4), 1e-6).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_torchs(dtype):
    x = normal(4, 8, seed=1, dtype=dtype)
    assert layer_rows.rms_norm(x, torch.ones(8, dtype=dtype), 1e-6).dtype == dtype
    assert layer_rows.swiglu(x).shape == (4, 4)


def test_a_second_derivative_is_refused():
    x = normal(4, 8, seed=1).requires_grad_()
    (first,) = torch.autograd.grad(layer_rows.swiglu(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        first.sum().backward()
