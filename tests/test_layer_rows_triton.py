"""RMSNorm, rotation and SwiGLU in Triton against torch in fp64, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from row_backends import INTERPRETED, normal, same_bits
from row_backends import TRITON_DEVICE as DEVICE
from test_layer_rows import compare

pytest.importorskip("triton", reason="triton is not installed")

from fastrl.kernels.rms_norm import norm_reference  # noqa: E402
from fastrl.kernels.rotary import rotate_reference  # noqa: E402
from fastrl.kernels.swiglu import swiglu_reference  # noqa: E402
from fastrl.ops import layer_rows  # noqa: E402

NO_GPU = "TRITON_INTERPRET=1 runs it on a CPU; make test does"
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason=NO_GPU)
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(INTERPRETED, reason="the interpreter truncates to bf16"),
    ),
]


@pytest.fixture(autouse=True)
def in_triton(monkeypatch):
    """What a GPU takes, on a CPU in the interpreter."""
    kernels = layer_rows.triton_kernels()
    assert kernels is not None
    monkeypatch.setattr(layer_rows, "kernels_for", lambda *_: kernels)


def made(*shape, seed, dtype, scale=1.0):
    return normal(*shape, seed=seed, scale=scale).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, width", [(5, 1), (33, 7), (70, 64), (9, 576), (3, 3000), (700, 16)])
def test_norm(rows, width, dtype):
    inputs = [made(rows, width, seed=1, dtype=dtype), made(width, seed=2, dtype=dtype)]
    compare(
        lambda x, w: layer_rows.rms_norm(x, w, 1e-5),
        lambda x, w: norm_reference(x, w, 1e-5),
        inputs,
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_of_heads_that_lie_apart(dtype):
    inputs = [made(40, 7, 24, seed=5, dtype=dtype), made(24, seed=6, dtype=dtype)]
    for heads in (slice(0, 4), slice(4, 6), slice(6, 7)):
        compare(
            lambda x, w, heads=heads: layer_rows.rms_norm(x[:, heads], w, 1e-6),
            lambda x, w, heads=heads: norm_reference(x[:, heads], w, 1e-6),
            inputs,
            dtype,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads, dim", [(1, 2), (3, 12), (9, 64), (5, 66), (33, 128)])
def test_rotation_of_some_heads_of_wider_rows(heads, dim, dtype):
    positions = torch.arange(11, device=DEVICE) * 7
    angles = positions[:, None] * 10_000.0 ** -(torch.arange(dim // 2, device=DEVICE) / (dim // 2))
    cos, sin = angles.cos(), angles.sin()

    def definition(x):
        wide = torch.promote_types(x.dtype, torch.float32)
        return rotate_reference(x[:, 1 : 1 + heads], cos.to(wide), sin.to(wide))

    compare(
        lambda x: layer_rows.rotate(x[:, 1 : 1 + heads], cos, sin),
        definition,
        [made(11, heads + 2, dim, seed=4, dtype=dtype)],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, width", [(5, 1), (17, 100), (3, 1024), (2, 2500)])
def test_swiglu(rows, width, dtype):
    inputs = [made(rows, 2 * width, seed=3, dtype=dtype, scale=4.0)]
    compare(layer_rows.swiglu, swiglu_reference, inputs, dtype)


def test_extreme_gates_have_no_overflow():
    gates = torch.tensor([[-1e4, -90.0, 0.0, 90.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0]], device=DEVICE)
    leaf = gates.clone().requires_grad_()
    out = layer_rows.swiglu(leaf)
    torch.testing.assert_close(out, F.silu(gates[:, :5]))
    out.sum().backward()
    assert leaf.grad.isfinite().all()


def test_no_rows():
    x, w = torch.empty(0, 8, device=DEVICE, requires_grad=True), torch.ones(8, device=DEVICE)
    w.requires_grad_()
    layer_rows.rms_norm(x, w, 1e-6).sum().backward()
    assert x.grad.shape == (0, 8) and torch.equal(w.grad, torch.zeros_like(w))
    assert layer_rows.swiglu(x).shape == (0, 4)
    angles = torch.empty(0, 4, device=DEVICE)
    assert layer_rows.rotate(x.view(0, 1, 8), angles, angles).shape == (0, 1, 8)


def test_the_same_bits_again_and_the_rows_beside_do_not_matter():
    x, w = made(90, 48, seed=1, dtype=torch.float32), made(48, seed=2, dtype=torch.float32)
    upstream = made(90, 48, seed=3, dtype=torch.float32)
    found = []
    for _ in range(2):
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        out = layer_rows.rms_norm(*leaves, 1e-5)
        found.append([out, *torch.autograd.grad(out, leaves, upstream)])
    assert same_bits(*found)
    assert same_bits([layer_rows.rms_norm(x[7:9], w, 1e-5)], [found[0][0][7:9]])
