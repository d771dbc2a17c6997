"""The products of a layer in C++ against torch, both against fp64, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from instruction_sets import INSTRUCTION_SETS, instruction_set

from fastrl.ops.dense import dense, fits_cpu

# rows, width in, width out: below, at and above panels of 24 and 32 rows, tiles of 4, 12 and 32
# results, sums of 128 terms, chunks of 256 rows
SHAPES = (
    (1, 64, 64), (5, 576, 96), (16, 130, 24), (17, 32, 70), (24, 98, 130), (25, 128, 34),
    (32, 2, 26), (33, 160, 36), (47, 258, 44), (255, 64, 48), (300, 96, 194),
)  # fmt: skip
KINDS = ("plain", "bias", "norm", "residual", "gated", "gated, bias", "wide")


def inputs(shape, kind, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, width, out = shape

    def normal(*size):
        return torch.randn(size, generator=generator).to(dtype)

    x, weight = normal(rows, width), normal(out, width) * width**-0.5
    settings = {"gated": True} if kind.startswith("gated") else {}
    if "bias" in kind or kind == "wide":
        settings["bias_O"] = normal(out)
    if kind in ("norm", "gated"):
        settings |= {"norm_D": normal(width), "eps": 1e-5}
    if kind == "residual":
        settings["residual_NO"] = normal(rows, out)
    if kind == "wide":
        settings["dtype"] = torch.float32
    return x, weight, settings


def doubled(x, weight, settings):
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    return x.double(), weight.double(), wide | ({"dtype": None} if "dtype" in wide else {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", INSTRUCTION_SETS)
def test_it_is_no_further_from_the_truth_than_torch(which, kind, dtype):
    with instruction_set(which):
        for shape in SHAPES:
            x, weight, settings = inputs(shape, kind, dtype)
            if not fits_cpu(weight, settings.get("gated", False)):
                continue
            x_truth, weight_truth, wide = doubled(x, weight, settings)
            truth = dense(x_truth, weight_truth, **wide)
            ours = dense(x, weight, **settings, backend="cpu")
            theirs = dense(x, weight, **settings)
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            error, torch_error = ((y.double() - truth).abs().max() for y in (ours, theirs))
            floor = 4 * torch.finfo(ours.dtype).eps * truth.abs().max()
            assert error <= 2 * torch_error + floor, (shape, error, torch_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", INSTRUCTION_SETS)
def test_a_row_has_the_same_bits_alone_and_on_any_number_of_threads(which, dtype):
    threads = torch.get_num_threads()
    with instruction_set(which):
        for kind in KINDS:
            x, weight, settings = inputs((301, 96, 1200), kind, dtype)
            together = dense(x, weight, **settings, backend="cpu")
            try:
                torch.set_num_threads(3)
                assert torch.equal(dense(x, weight, **settings, backend="cpu"), together)
            finally:
                torch.set_num_threads(threads)
            for first, last in ((0, 1), (7, 40), (255, 257), (300, 301)):
                some = dict(settings)
                if "residual_NO" in some:
                    some["residual_NO"] = some["residual_NO"][first:last]
                part = dense(x[first:last], weight, **some, backend="cpu")
                assert torch.equal(part, together[first:last])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", INSTRUCTION_SETS)
def test_nothing_but_its_memory_is_read_and_written(which, dtype):
    """Tensors lie in a memory of NaN, which a read would spread and a write would change."""
    with instruction_set(which):
        x, weight, settings = inputs((19, 66, 86), "gated, bias", dtype)
        rows, width = x.shape
        around = torch.full((rows + 2, width + 10), torch.nan, dtype=dtype)
        around[1:-1, :width] = x
        weights = torch.full((len(weight) + 2, width), torch.nan, dtype=dtype)
        weights[1:-1] = weight
        bias = torch.full((len(weight) + 64,), torch.nan, dtype=dtype)
        bias[: len(weight)] = settings["bias_O"]
        strided = dense(
            around[1:-1, :width], weights[1:-1], bias[: len(weight)], gated=True, backend="cpu"
        )
        assert torch.equal(strided, dense(x, weight, **settings, backend="cpu"))
        assert around[0].isnan().all() and around[:, width:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", INSTRUCTION_SETS)
def test_a_broken_row_breaks_no_other(which, dtype):
    with instruction_set(which):
        for kind in ("plain", "norm", "gated, bias"):
            x, weight, settings = inputs((40, 64, 96), kind, dtype)
            clean = dense(x, weight, **settings, backend="cpu")
            for broken in (torch.nan, torch.inf):
                bad = x.clone()
                bad[11, 5] = broken
                out = dense(bad, weight, **settings, backend="cpu")
                assert not out[11].isfinite().all()
                keep = torch.arange(40) != 11
                assert torch.equal(out[keep], clean[keep])


@pytest.mark.parametrize("which", INSTRUCTION_SETS)
def test_silu_of_every_size_of_gate(which):
    with instruction_set(which):
        gates = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([0.0, -0.0, 3e38, -3e38])])
        x = torch.stack([gates, torch.ones_like(gates)], 1)
        weight = torch.zeros(24, 2)
        weight[:12, 0], weight[12:, 1] = 1.0, 1.0  # silu(gate) * 1
        ours = dense(x, weight, gated=True, backend="cpu").double()
        truth = torch.nn.functional.silu(gates.double())[:, None]
        # e^-|gate| from a rounded |gate| log2(e)
        relative = 2.0**-22 * (1 + gates.abs().clamp(max=90)[:, None])
        assert ((ours - truth).abs() <= relative * truth.abs() + 1e-35).all()


def test_what_it_does_not_take_is_said():
    assert fits_cpu(torch.zeros(12, 7)) and not fits_cpu(torch.zeros(11, 8))
    assert fits_cpu(torch.zeros(24, 8), gated=True) and not fits_cpu(torch.zeros(22, 8), gated=True)
    assert not fits_cpu(torch.zeros(12, 7, dtype=torch.bfloat16))
    assert not fits_cpu(torch.zeros(12, 8, dtype=torch.float64))
    assert not fits_cpu(torch.zeros(8, 12).T)
    with pytest.raises(AssertionError):
        dense(torch.zeros(2, 8), torch.zeros(11, 8), backend="cpu")
