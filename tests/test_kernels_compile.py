"""Every Triton kernel compiled ahead of time for five GPUs: no spills, no fp64, shared memory fits.

A launch depends on the vocabulary by its block and by whether 16 divides it; both kinds are here.
"""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastrl.kernels import (  # noqa: E402
    online,
    policy_loss,
    row_extras,
    row_gradient,
    row_statistics,
    sample,
    scale,
)

SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
LOGITS = {"x", "out"}
LONGS = {"targets", "argmaxes", "counters", "tokens"}
INTS = {"top_ks"}
COUNTS = {"stride", "out_stride", "valid", "vocab", "count"}
WORDS = {"key0", "key1"}
NUMBERS = {
    "temperature", "logit_scale", "softcap", "low", "high", "dual", "cap", "entropy_coef",
}  # fmt: skip

KERNELS = {
    "row_statistics": (row_statistics._kernel, {"mask": "*i1", "temperatures": "*fp32"}),
    "row_statistics, capped": (row_statistics._kernel, {"CAPPED": True}),
    "row_extras": (row_extras._kernel, {"mask": "*i1"}),
    "row_extras, capped": (row_extras._kernel, {"CAPPED": True, "thresholds": None}),
    "row_gradient": (row_gradient._kernel, {"mask": "*i1"}),
    "row_gradient, capped": (row_gradient._kernel, {"CAPPED": True}),
    "policy_loss": (policy_loss._kernel, {"LOSS": 0, "CORRECTION": 0}),
    # from hidden states in half precision: fp32 logits, a gradient in the products' dtype
    "row_gradient, of fp32": (row_gradient._kernel, {"mask": "*i1", "x": "*fp32"}),
    "policy_loss, of fp32": (policy_loss._kernel, {"LOSS": 1, "CORRECTION": 0, "x": "*fp32"}),
    "policy_loss, clip": (policy_loss._kernel, {"LOSS": 1, "CORRECTION": 1, "mask": "*i1"}),
    "policy_loss, cispo, capped": (
        policy_loss._kernel,
        {"LOSS": 2, "CORRECTION": 2, "CAPPED": True},
    ),
    "sample": (sample._kernel, {"FILTERED": False, "temperatures": "*fp32"}),
    "sample, filtered": (sample._kernel, {"FILTERED": True, "temperatures": "*fp32"}),
    "sample, filtered, capped": (
        sample._kernel,
        {"FILTERED": True, "CAPPED": True, "temperatures": "*fp32"},
    ),
    "scale": (scale._kernel, {"BLOCK": scale.BLOCK}),
}


def compile_ahead(kernel, chosen, arch, dtype, vocab):
    settings = online.launch_settings(vocab)
    constants = {"CAPPED": False, "BLOCK": settings.pop("BLOCK"), "mask": None}
    constants |= {"temperatures": None} | chosen
    constants = {k: v for k, v in constants.items() if not isinstance(v, str)}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in LOGITS:
            signature[name] = chosen.get(name) or f"*{dtype}"
        elif name in COUNTS:
            signature[name] = "i64" if name == "count" else "i32"
        elif name in WORDS:
            signature[name] = "i32"
        elif name in NUMBERS:
            signature[name] = "fp32"
        else:
            pointer = "*i64" if name in LONGS else "*i32" if name in INTS else "*fp32"
            signature[name] = chosen.get(name) or pointer
        aligned = signature[name].startswith("*") or (name in COUNTS and vocab % 16 == 0)
        if aligned:
            attributes[i,] = [["tt.divisibility", 16]]
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=settings)


def resources(compiled, tmp_path):
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    done = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    )
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout))
    return {name: int(value) for name, value in found.items()}


def check(compiled, arch, tmp_path):
    assert ".f64" not in compiled.asm["ptx"]
    assert compiled.metadata.shared <= SHARED_BYTES[arch]
    used = resources(compiled, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0, used
    assert used["REG"] <= 255
    return used


@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("name", KERNELS)
def test_bf16_at_a_real_vocabulary(name, arch, tmp_path):
    compiled = compile_ahead(*KERNELS[name], arch, "bf16", 151936)
    check(compiled, arch, tmp_path)
    wide = r"(ld|st)\.global\S*\.v[48]\.b(32|16)"
    assert name == "scale" or re.search(wide, compiled.asm["ptx"]), "no 128-bit access"
    assert name == "scale" or "ex2.approx" in compiled.asm["ptx"]


@pytest.mark.parametrize("dtype, vocab", [("fp32", 128256), ("fp16", 50257)])
@pytest.mark.parametrize("name", KERNELS)
def test_other_dtypes_and_a_vocabulary_that_16_does_not_divide(name, dtype, vocab, tmp_path):
    check(compile_ahead(*KERNELS[name], 90, dtype, vocab), 90, tmp_path)


@pytest.mark.parametrize("vocab", [1, 2, 123, 1000, 32000, 49152])
def test_launches_of_every_vocabulary(vocab, tmp_path):
    check(compile_ahead(*KERNELS["policy_loss, clip"], 90, "fp32", vocab), 90, tmp_path)


CHOICES = {"CAPPED", "BLOCK", "LOSS", "CORRECTION", "FILTERED"}


def test_10_nothing_that_varies_from_call_to_call_is_compiled_in():
    """Sizes, bounds and coefficients are arguments; only choices of code are constants."""
    for kernel, _ in KERNELS.values():
        constants = {p.name for p in kernel.params if p.is_constexpr}
        assert constants <= CHOICES, kernel
        assert not constants & (COUNTS | NUMBERS | WORDS)
