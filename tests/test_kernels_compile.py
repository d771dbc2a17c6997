"""Every Triton kernel compiled ahead of time for five GPUs: no spills, no fp64, shared memory fits.

A launch depends on the vocabulary by its block and by whether 16 divides it; both kinds are here.
Attention depends on the model's heads, whose shapes are those of `HEADS`.
"""

import itertools
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastrl.kernels import (  # noqa: E402
    online,
    paged_attention,
    policy_loss,
    rms_norm,
    rotary,
    row_extras,
    row_gradient,
    row_statistics,
    sample,
    scale,
    swiglu,
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


HEADS = {  # query heads, key/value heads, head dimension
    "Qwen2.5-3B": (16, 2, 128),
    "Llama-3.2-3B": (24, 8, 128),
    "Qwen3-4B": (32, 8, 128),
    "SmolLM2-135M": (9, 3, 64),
}
OTHER_HEADS = [(4, 4, 32), (32, 32, 80), (32, 32, 96), (8, 1, 256), (71, 1, 64), (4, 2, 12)]
ATTENTION = {
    "one kernel": (paged_attention._split_kernel, {"partial", "peaks", "totals"}),
    "splits": (paged_attention._split_kernel, set()),
    "merge": (paged_attention._merge_kernel, set()),
}


def compile_attention(kernel, absent, arch, dtype, heads, block_size=16):
    """As `paged_attention` launches it; `absent` pointers are None."""
    query_heads, kv_heads, dim = heads
    group = query_heads // kv_heads
    settings = paged_attention.launch_settings(dim, group, 4 if dtype == "fp32" else 2)
    if kernel is paged_attention._merge_kernel:
        settings = paged_attention.MERGE_SETTINGS
    constants = {
        "DIM": dim,
        "WIDTH": paged_attention.width_of(dim),
        "GROUP": paged_attention.width_of(group),
        "BLOCK_SIZE": block_size,
        "SPLIT": paged_attention.SPLIT,
        "TILE": settings.get("TILE"),
        **dict.fromkeys(absent),
        **({"group": 1} if group == 1 else {}),  # as Triton takes an argument of 1
        **({"kv_heads": 1} if kv_heads == 1 else {}),
    }
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in {"q", "k_cache", "v_cache", "out"}:
            signature[name] = f"*{dtype}"
        elif name in {"tables", "row_table", "context"}:
            signature[name] = "*i32"
        elif name in {"partial", "peaks", "totals"}:
            signature[name] = "*fp32"
        else:
            signature[name] = "fp32" if name == "k" else "i32"
        strides = {"q_stride", "q_head_stride", "block_stride", "slot_stride"}
        strides |= {"out_stride", "out_head_stride"}
        if signature[name].startswith("*") or (name in strides and dim % 16 == 0):
            attributes[i,] = [["tt.divisibility", 16]]
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {k: v for k, v in settings.items() if k != "TILE"}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


@pytest.mark.parametrize(
    "dtype, arch", [*itertools.product(["bf16", "fp32"], SHARED_BYTES), ("fp16", 90)]
)
@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_of_real_models(name, model, dtype, arch, tmp_path):
    compiled = compile_attention(*ATTENTION[name], arch, dtype, HEADS[model])
    used = check(compiled, arch, tmp_path)
    ptx = compiled.asm["ptx"]
    assert "ex2.approx" in ptx
    if name == "merge":
        assert re.search(r"ld\.global\S*\.v4\.b32", ptx), "no 128-bit access"
        return
    # keys and values go straight to shared memory, 16 bytes at a time
    assert re.search(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10", ptx)
    # two programs at a time on each of the chip's processors
    assert 2 * compiled.metadata.shared <= SHARED_BYTES[arch]
    assert 2 * used["REG"] * 32 * compiled.metadata.num_warps <= 65536
    if dtype == "fp32":
        assert "tf32" not in ptx
    else:
        assert f"f32.{dtype}.{dtype}.f32".replace("fp16", "f16") in ptx, "no tensor cores"


@pytest.mark.parametrize("heads", OTHER_HEADS, ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["splits", "merge"])
def test_attention_of_other_heads(name, dtype, heads, tmp_path):
    for arch in (80, 90, 120):
        check(compile_attention(*ATTENTION[name], arch, dtype, heads), arch, tmp_path)


@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_attention_of_other_block_sizes(block_size, tmp_path):
    kernel = ATTENTION["splits"]
    check(compile_attention(*kernel, 90, "bf16", (16, 2, 128), block_size), 90, tmp_path)


# width, heads and head dimension, width of the feed-forward layer
LAYERS = {
    "Qwen2.5-3B": (2048, 16, 128, 11008),
    "Llama-3.2-3B": (3072, 24, 128, 8192),
    "Qwen3-4B": (2560, 32, 128, 9728),
    "SmolLM2-135M": (576, 9, 64, 1536),
    "embedded": (64, 4, 16, 192),
}
LAYER_KERNELS = {
    "norm": rms_norm._forward,
    "norm, backward": rms_norm._backward,
    "head norm": rms_norm._forward,
    "head norm, backward": rms_norm._backward,
    "rotary": rotary._kernel,
    "swiglu": swiglu._forward,
    "swiglu, backward": swiglu._backward,
}
LAYER_DATA = {"x", "weight", "y", "dy", "dx", "out", "gate_up", "dout", "dgate_up"}


def compile_layer_rows(name, arch, dtype, model):
    hidden, heads, dim, inner = LAYERS[model]
    if "norm" in name:
        settings = rms_norm.launch_settings(dim if "head" in name else hidden)
    elif name == "rotary":
        settings = rotary.launch_settings(heads, dim // 2)
    else:
        settings = {"BLOCK": swiglu.BLOCK, "num_warps": 4}
    warps = settings.pop("num_warps")
    kernel, signature, attributes = LAYER_KERNELS[name], {}, {}
    constants = settings if "head" in name or "norm" not in name else settings | {"heads": 1}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in LAYER_DATA:
            signature[argument] = f"*{dtype}"
        elif argument in {"cos", "sin", "scales", "partial"}:
            signature[argument] = "*fp32"
        else:
            signature[argument] = "fp32" if argument in {"eps", "sign"} else "i32"
        if signature[argument].startswith("*") or argument in {"stride", "width", "half"}:
            attributes[i,] = [["tt.divisibility", 16 if dim > 16 else 8]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})


@pytest.mark.parametrize(
    "dtype, arch", [*itertools.product(["bf16"], SHARED_BYTES), ("fp32", 90), ("fp16", 90)]
)
@pytest.mark.parametrize("model", LAYERS)
@pytest.mark.parametrize("name", LAYER_KERNELS)
def test_rows_of_layers(name, model, dtype, arch, tmp_path):
    compiled = compile_layer_rows(name, arch, dtype, model)
    check(compiled, arch, tmp_path)
    if model != "embedded":
        wide = r"(ld|st)\.global\S*\.v[248]\.b(32|16)"
        assert re.search(wide, compiled.asm["ptx"]), "a number at a time"


CHOICES = {"CAPPED", "BLOCK", "LOSS", "CORRECTION", "FILTERED"}
# what a model, its cache and the launch table settle once
MODEL = {"DIM", "WIDTH", "GROUP", "BLOCK_SIZE", "SPLIT", "TILE"}


def test_10_nothing_that_varies_from_call_to_call_is_compiled_in():
    """Sizes, bounds and coefficients are arguments; only choices of code are constants."""
    for kernel, _ in KERNELS.values():
        constants = {p.name for p in kernel.params if p.is_constexpr}
        assert constants <= CHOICES, kernel
        assert not constants & (COUNTS | NUMBERS | WORDS)
    for kernel in LAYER_KERNELS.values():
        assert {p.name for p in kernel.params if p.is_constexpr} <= {"ROWS", "HEADS", "BLOCK"}
        assert all(p.do_not_specialize for p in kernel.params if p.name == "rows")
    for kernel, _ in ATTENTION.values():
        assert {p.name for p in kernel.params if p.is_constexpr} <= MODEL, kernel
        # a batch or a table of another width is no other kernel, whatever divides it
        varying = {"table_stride", "rows", "splits"}
        assert all(p.do_not_specialize for p in kernel.params if p.name in varying)
