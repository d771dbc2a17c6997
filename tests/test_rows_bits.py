"""The bits of results on every path: where they must agree, and how they round.

Of the list in `test_rows.py`: 9 floats under the compiler, 11 synchronisation, 18 the same bits
across runs, rows in the call, threads and the two ways to a result.
"""

from dataclasses import replace

import pytest
import torch
from row_backends import INF, NAN, first, integers, logit_rows, normal, same_bits, upstream
from row_backends import row_path as row_path

from fastrl import ops
from fastrl.losses import LossSpec, Rows

HALVES = [torch.bfloat16, torch.float16]
SEEN_ONCE = "the compiler sees the operator, whatever instruction set is under it"
ONE_PROGRAM = "a row is one program, however many threads torch has"
ON_THE_HOST = "the definition looks at values on the host; only Triton promises not to"
DOES_NOT_APPLY = {
    ("test_9_a_float_under_the_compiler_keeps_the_bits", "cpu-avx2"): SEEN_ONCE,
    ("test_9_a_float_under_the_compiler_keeps_the_bits", "cpu-plain"): SEEN_ONCE,
    ("test_18_threads_do_not_change_bits", "triton"): ONE_PROGRAM,
    ("test_11_nothing_waits_for_the_gpu", "torch"): ON_THE_HOST,
    ("test_11_nothing_waits_for_the_gpu", "cpu"): "there is no GPU to wait for",
}


def loss_rows(rows):
    return Rows(
        advantages=normal(rows, seed=4, scale=1.0),
        mask=torch.ones(rows, dtype=torch.bool),
        old_logprobs=normal(rows, seed=5, scale=0.3) - 6.0,
        sampler_logprobs=normal(rows, seed=6, scale=0.3) - 6.0,
        row_weights=normal(rows, seed=7, scale=1.0).abs(),
    )


SPEC = LossSpec(loss="cispo", entropy_coef=0.5, sampler_correction="token_truncate")


def by_loss(path, x, rows, spec=SPEC):
    """Losses, log-probs, entropies and the gradient."""
    x = path.place(x)
    out = torch.full(x.logits_NV.shape, NAN, dtype=x.logits_NV.dtype, device=path.device)
    moved = Rows(**{k: path.place(v) for k, v in vars(rows).items()})
    one = torch.ones((), device=path.device)
    return [v.cpu() for v in (*path.kernels.policy_loss(x, moved, spec, one, out), out)]


def everything(path, x, a, g, rows):
    return [*path.everything(x, a, g), *by_loss(path, x, rows)]


def bits_case(path, width, dtype=torch.float32, **settings):
    few = 5 if path.interpreted or width > 10000 else 70
    x = logit_rows(normal(few, width, dtype=dtype), integers(width, few), **settings)
    a, g = upstream(few)
    g[1::2] = 0.0  # rows without an entropy gradient beside rows with one
    return x, a, g, loss_rows(few)


CASES = {
    "123": (123, torch.float32, {}),
    "1000": (1000, torch.float16, {"temperature": 0.7}),
    "2500, capped": (2500, torch.bfloat16, {"softcap": 5.0}),
    "49152": (49152, torch.float32, {}),
}


@pytest.mark.parametrize("width, dtype, settings", CASES.values(), ids=CASES)
def test_18_two_runs_give_the_same_bits(row_path, width, dtype, settings):
    case = bits_case(row_path, width, dtype, **settings)
    assert same_bits(everything(row_path, *case), everything(row_path, *case))


@pytest.mark.parametrize("width, dtype, settings", CASES.values(), ids=CASES)
def test_18_the_rows_in_the_call_do_not_change_bits(row_path, width, dtype, settings):
    x, a, g, rows = bits_case(row_path, width, dtype, **settings)
    whole = everything(row_path, x, a, g, rows)
    for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
        some = logit_rows(x.logits_NV[part], x.targets_N[part], **settings)
        got = everything(row_path, some, a[part], g[part], rows.select(part))
        assert same_bits(got, [v[part] for v in whole])


@pytest.mark.parametrize("width, dtype, settings", CASES.values(), ids=CASES)
def test_18_threads_do_not_change_bits(row_path, width, dtype, settings):
    x, a, g, rows = bits_case(row_path, width, dtype, **settings)
    one = slice(0, 1)  # alone: torch shares a long row between threads
    alone = first(x, 1), a[one], g[one], rows.select(one)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(everything(row_path, x, a, g, rows) + everything(row_path, *alone))
    finally:
        torch.set_num_threads(before)
    assert same_bits(results[1], results[0]) and same_bits(results[2], results[0])


@pytest.mark.parametrize("width, dtype, settings", CASES.values(), ids=CASES)
def test_18_both_ways_to_a_result_give_the_same_bits(row_path, width, dtype, settings):
    """Log-probs with and without a gradient; a gradient from the loss and from a and g."""
    x, _, _, rows = bits_case(row_path, width, dtype, **settings)
    a, g = -rows.advantages, torch.full_like(rows.advantages, -0.5)
    spec, plain_rows = LossSpec(entropy_coef=0.5), Rows(rows.advantages, rows.mask)
    _, logprobs, entropy, gradient = by_loss(row_path, x, plain_rows, spec)
    assert same_bits([logprobs, entropy, gradient], row_path.everything(x, a, g))


@pytest.mark.parametrize("mask", [False, True], ids=["no mask", "mask"])
def test_18_public_operations_have_the_bits_of_the_kernels(row_path, mask):
    x, a, g, rows = bits_case(row_path, 1000, temperature=0.7)
    if mask:
        kept = torch.arange(len(a)) % 3 != 1
        x, rows = replace(x, mask_N=kept), replace(rows, mask=kept)
    leaf = row_path.place(x.logits_NV.clone()).requires_grad_()
    settings = {"temperature": 0.7, "mask": x.mask_N}
    outputs = row_path.call("logprobs_and_entropy", leaf, x.targets_N, **settings)
    torch.autograd.backward(outputs, [row_path.place(v) for v in (a, g)])
    got = [*(v.detach().cpu() for v in outputs), leaf.grad.cpu()]
    assert same_bits(got, row_path.everything(x, a, g))

    leaf = row_path.place(x.logits_NV.clone()).requires_grad_()
    vectors = {k: v for k, v in vars(rows).items() if v is not None and k not in settings}
    out = row_path.call(
        "policy_loss", leaf, x.targets_N, spec=SPEC, mask=x.mask_N, temperature=0.7, **vectors
    )
    out.loss_sum.backward()
    expected = by_loss(row_path, x, rows)
    assert same_bits([out.logprobs.cpu(), out.entropy.cpu(), leaf.grad.cpu()], expected[1:])
    assert torch.equal(out.loss_sum.detach(), row_path.place(expected[0]).sum())


def test_9_a_float_under_the_compiler_keeps_the_bits(row_path):
    logits, targets = normal(3, 123), row_path.place(integers(123, 3))
    advantages = row_path.place(normal(3, seed=4, scale=1.0))

    def both(logits, temperature):
        settings = {"temperature": temperature, "backend": row_path.backend}
        logprobs, entropy = ops.logprobs_and_entropy(logits, targets, **settings)
        spec = LossSpec(entropy_coef=0.1)
        loss = ops.policy_loss(logits, targets, advantages, spec=spec, grad_scale=0.3, **settings)
        return logprobs, entropy, loss.loss_sum

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for temperature in (0.7, 1.3, 2.9):
        results = []
        for run in (compiled, both):
            leaf = row_path.place(logits.clone()).requires_grad_()
            outputs = run(leaf, temperature)
            sum(v.sum() for v in outputs).backward()
            assert all(v.dtype == torch.float32 for v in outputs)
            results.append([*(v.detach() for v in outputs), leaf.grad])
        assert same_bits(*results)


def test_11_nothing_waits_for_the_gpu(row_path):
    if row_path.device != "cuda":
        pytest.skip("a wait can be seen on a GPU only")
    x, a, g, rows = (row_path.place(v) for v in bits_case(row_path, 1000))
    logits = x.logits_NV.requires_grad_()
    vectors = {k: row_path.place(v) for k, v in vars(rows).items() if v is not None}

    def step():
        outputs = row_path.call("logprobs_and_entropy", logits, x.targets_N, temperature=0.7)
        torch.autograd.backward(outputs, [a, g])
        loss = row_path.call("policy_loss", logits, x.targets_N, spec=SPEC, **vectors).loss_sum
        (0.5 * loss).backward()

    step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_11_a_graph_is_captured_and_replayed_on_other_logits(row_path):
    """Both operations, forward and backward; replays have the bits of calls one by one."""
    if row_path.device != "cuda":
        pytest.skip("graphs are captured on a GPU")
    x, a, g, rows = (row_path.place(v) for v in bits_case(row_path, 1000))
    logits = x.logits_NV.clone().requires_grad_()
    vectors = {k: row_path.place(v) for k, v in vars(rows).items() if v is not None}

    def step():
        outputs = row_path.call("logprobs_and_entropy", logits, x.targets_N, temperature=0.7)
        (first,) = torch.autograd.grad(outputs, logits, [a, g])
        loss = row_path.call("policy_loss", logits, x.targets_N, spec=SPEC, **vectors).loss_sum
        (second,) = torch.autograd.grad(0.5 * loss, logits)
        return [*(v.detach() for v in (*outputs, loss)), first, second]

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # compiles
        step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        with torch.no_grad():
            logits.copy_(normal(*logits.shape, seed=seed))
        graph.replay()
        replayed = [v.cpu() for v in captured]
        assert same_bits(replayed, [v.cpu() for v in step()])


def truncates(path, dtype):
    """The interpreter cuts fp32 to bf16 where a GPU rounds."""
    return path.interpreted and dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("settings", [{}, {"softcap": 4.0}, {"logit_scale": -1.5}], ids=str)
@pytest.mark.parametrize("width", [5, 123, 2500])
def test_low_precision_rounds_the_gradient_of_fp32_once(row_path, width, settings, dtype):
    """Logits that both dtypes hold; gradients of every size, some below the normal numbers."""
    if truncates(row_path, dtype):
        pytest.skip("the interpreter truncates fp32 to bf16")
    rows = 6 if row_path.interpreted else 40
    logits, targets = normal(rows, width, dtype=dtype), integers(width, rows)
    a, g = upstream(rows)
    size = 10.0 ** (torch.arange(rows) % 14 - 8)
    a, g = a * size, g * size
    x = logit_rows(logits, targets, **settings)
    wide = logit_rows(logits.float(), targets, **settings)
    assert same_bits(row_path.statistics(x), row_path.statistics(wide))
    gradient = row_path.gradient(wide, a, g)
    assert same_bits([row_path.gradient(x, a, g)], [gradient.to(dtype)])


def between(dtype, count=None):
    """fp32 numbers of `dtype`, halfway between two, and next to halfway; of both signs, NaN too."""
    every = torch.arange(0, 0x8000, dtype=torch.int32).to(torch.int16).view(dtype).float()
    finite = every[every.isfinite()]
    half = finite[:-1] + finite.diff() / 2
    near = [torch.nextafter(half, torch.tensor(s)) for s in (INF, -INF)]
    largest = finite[-1] + finite.diff()[-1] / 2
    past = torch.tensor([largest, largest * 1.01, 3e38, INF, NAN])
    values = torch.cat([finite, half, *near, past])
    if count:
        values = values[torch.linspace(0, len(values) - 1, count).long()]
    return torch.cat([values, -values])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("width", [2, 32])
def test_stores_round_to_nearest_even(row_path, width, dtype):
    """Equal logits: every column but the target's has the gradient -a / V, exactly."""
    if truncates(row_path, dtype):
        pytest.skip("the interpreter truncates fp32 to bf16")
    values = between(dtype, count=30 if row_path.interpreted else None)
    # -a = V value must be finite, and exact
    values = values[((values * width).isfinite() | ~values.isfinite()) & (values != 0)]
    rows = len(values)
    x = logit_rows(torch.zeros(rows, width, dtype=dtype), torch.full((rows,), width - 1))
    gradient = row_path.gradient(x, -width * values, torch.zeros(rows))
    expected = values.to(dtype)[:, None].expand(-1, width - 1)
    assert same_bits([gradient[:, :-1]], [expected])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("temperature", [2.0**-24, 1.0, 2.0**10])
def test_loads_are_exact(row_path, temperature, dtype):
    """Every number of the dtype, in a whole vector and in its tail, against the same in fp32."""
    every = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(dtype)
    if row_path.interpreted:
        every = every[::8191]
    for width in (2, 20, 1024 + 3):
        if width > 20 and not row_path.interpreted:
            every = every[::37]  # whole chunks, straight from memory
        logits = torch.zeros(len(every), width, dtype=dtype)
        logits[:, 0], logits[:, -1] = every, every.flip(0)
        targets = torch.full((len(every),), width // 2)
        x = logit_rows(logits, targets, temperature=temperature)
        wide = logit_rows(logits.float(), targets, temperature=temperature)
        assert same_bits(row_path.statistics(x), row_path.statistics(wide))


def test_scaling_in_place(row_path):
    """The upstream gradient's factor, by a kernel on a GPU."""
    if row_path.backend != "triton":
        pytest.skip("the other paths multiply with torch")
    for dtype in (torch.float32, torch.float16):
        for shape in ((3, 123), (4096,), (4097,), (0, 5), ()):
            x = normal(*shape, dtype=dtype)
            for factor in (1.0, 0.3, -2.0, NAN):
                got = row_path.place(x.clone())
                row_path.kernels.scale_(got, row_path.place(torch.tensor(factor)))
                assert same_bits([got.cpu()], [(x.float() * factor).to(dtype)])
