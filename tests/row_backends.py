"""The paths that compute rows of logits, one at a time, and what their tests compare with.

A path is a backend, for C++ with an instruction set. `row_path` runs a test on each of them and
skips those that this machine lacks, or that the test's module excludes with its reason in
`DOES_NOT_APPLY`. Legend: N: rows, V: vocabulary.
"""

import importlib
import importlib.util
from dataclasses import dataclass, replace

import naive
import pytest
import torch

from fastrl import ops
from fastrl.ops import library
from fastrl.ops.library import INTERPRETED
from fastrl.ops.rows import LogitRows

PATHS = ("torch", "cpu-avx512", "cpu-avx2", "cpu-plain", "triton")
MODULES = {"torch": "definition", "cpu": "native", "triton": "fused"}
NAN = float("nan")
INF = float("inf")
# the interpreter takes tensors of the CPU, and of the device that is made of its memory
TRITON_DEVICE = "cpu" if INTERPRETED and not hasattr(torch.cuda, "is_fake") else "cuda"


@dataclass(frozen=True)
class Path:
    """A way to compute rows: its name, the backend, and the instruction set of C++."""

    name: str

    @property
    def backend(self) -> str:
        return self.name.partition("-")[0]

    @property
    def interpreted(self) -> bool:
        return self.backend == "triton" and INTERPRETED

    @property
    def device(self) -> str:
        return TRITON_DEVICE if self.backend == "triton" else "cpu"

    @property
    def block(self) -> int:
        """The columns that are taken at a time in long rows."""
        if self.backend == "triton":
            return importlib.import_module("fastrl.kernels.online").MAX_BLOCK
        return 1024  # CHUNK of csrc/loss_kernel.h

    @property
    def kernels(self):
        return importlib.import_module(f"fastrl.ops.{MODULES[self.backend]}")

    def obstacle(self) -> str | None:
        """What this machine lacks for the path."""
        if self.backend == "triton":
            if not library.HAS_TRITON:
                return "triton is not installed"
            if not INTERPRETED and not torch.cuda.is_available():
                return "TRITON_INTERPRET=1 runs it on a CPU; make test does"
        if self.backend == "cpu" and not library.HAS_EXTENSION:
            return "the extension fastrl._C is not built"
        if self.backend == "cpu" and not self._use():
            return f"this processor or this build has no {self.name.partition('-')[2]}"
        return None

    def _use(self) -> bool:
        from fastrl import _C

        return _C.use_instruction_set(self.name.partition("-")[2])

    def place(self, value):
        """A tensor, or rows of logits, on the device of the path."""
        if isinstance(value, torch.Tensor):
            return value.to(self.device)
        if not isinstance(value, LogitRows):
            return value
        moved = {name: self.place(v) for name, v in vars(value).items()}
        if value.logits_NV.device.type == self.device:
            moved["logits_NV"] = value.logits_NV  # its strides too
        return replace(value, **moved)

    def statistics(self, x):
        """Log-probs and entropies of rows of logits."""
        return [v.cpu() for v in self.kernels.statistics(self.place(x))]

    def gradient(self, x, a, g, out=None):
        """The gradient of rows of logits, by default over a memory of NaN."""
        x = self.place(x)
        out = torch.full(x.logits_NV.shape, NAN, dtype=x.logits_NV.dtype) if out is None else out
        out = self.place(out)
        self.kernels.gradient(x, self.place(a), self.place(g), out)
        return out.cpu()

    def everything(self, x, a, g):
        return [*self.statistics(x), self.gradient(x, a, g)]

    def call(self, name, *inputs, **settings):
        """A public operation of `fastrl.ops` that ran on this path's backend and on no other."""
        before = library.launches.copy()
        inputs = [self.place(v) for v in inputs]
        settings = {k: self.place(v) for k, v in settings.items()}
        result = getattr(ops, name)(*inputs, backend=self.backend, **settings)
        assert library.launches - before == {self.backend: 1}
        return result


@pytest.fixture(params=PATHS)
def row_path(request):
    """Each path in turn; the instruction set is put back afterwards."""
    path = Path(request.param)
    table = getattr(request.module, "DOES_NOT_APPLY", {})
    test = request.node.originalname
    if reason := table.get((test, path.name)) or table.get((test, path.backend)):
        pytest.skip(reason)
    if path.backend != "cpu" or not library.HAS_EXTENSION:
        if reason := path.obstacle():
            pytest.skip(reason)
        yield path
        return
    from fastrl import _C

    before = _C.instruction_set()
    if reason := path.obstacle():
        pytest.skip(reason)
    yield path
    assert _C.use_instruction_set(before)


def normal(*shape, seed=0, scale=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def integers(high, *shape, seed=1):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def logit_rows(logits, targets, **settings):
    """LogitRows of all columns at temperature 1 without anything else, but for `settings`."""
    defaults = {"mask_N": None, "temperature": 1.0, "valid": logits.shape[1]}
    return LogitRows(logits, targets, **(defaults | settings))


def upstream(rows, scale=1.0):
    """a and g of rows."""
    return [normal(rows, seed=seed, scale=scale) for seed in (2, 3)]


def by_formula(x, a, g, dtype):
    """Log-probs, entropies and the gradient by autograd of the naive definition in `dtype`."""
    leaf = x.logits_NV.detach().to(dtype).requires_grad_()
    t = x.temperature
    outputs = naive.logprobs_and_entropy(
        leaf, x.targets_N, temperature=t.to(dtype) if isinstance(t, torch.Tensor) else t,
        mask=x.mask_N, valid_vocab=x.valid, softcap=x.softcap, logit_scale=x.logit_scale,
    )  # fmt: skip
    pairs = zip(outputs, (a.to(dtype), g.to(dtype)), strict=True)
    sum(torch.where(u != 0, o * u, 0.0).sum() for o, u in pairs).backward()
    return [*(o.detach() for o in outputs), leaf.grad]


def assert_near(got, plain, truth, ulps=1):
    """No further from the truth than twice plain torch, and one rounding of the result's dtype."""
    for x, torch_x, true in zip(got, plain, truth, strict=True):
        floor = ulps * torch.finfo(x.dtype).eps * float(true.abs().max())
        torch_x = torch_x.to(x.dtype)  # plain torch rounds its result too
        error, torch_error = (float((v.double() - true).abs().max()) for v in (x, torch_x))
        limit = 2 * torch_error + floor
        assert error <= limit, f"{error} > {limit}; torch: {torch_error}, {tuple(true.shape)}"


def first(x, rows):
    """The first of some rows of logits."""
    t = x.temperature
    return replace(
        x,
        logits_NV=x.logits_NV[:rows],
        targets_N=x.targets_N[:rows],
        mask_N=None if x.mask_N is None else x.mask_N[:rows],
        temperature=t[:rows] if isinstance(t, torch.Tensor) else t,
    )


def assert_near_the_truth(path, x, a, g, interpret=None):
    """Values and gradient of rows of logits, as `path` computes them, after a look at their errors.

    The slow interpreter takes the first `interpret` rows; torch's own error is that of all.
    """
    rows = interpret if path.interpreted and interpret else len(a)
    got = path.everything(first(x, rows), a[:rows], g[:rows])
    assert [v.dtype for v in got] == [torch.float32, torch.float32, x.logits_NV.dtype]
    truth, plain = (by_formula(x, a, g, dtype) for dtype in (torch.float64, torch.float32))
    # the interpreter truncates fp32 to bf16 where a GPU rounds
    truncated = path.interpreted and x.logits_NV.dtype == torch.bfloat16
    padded = [torch.cat([v, p[rows:].to(v.dtype)]) for v, p in zip(got, plain, strict=True)]
    assert_near(padded, plain, truth, ulps=2 if truncated else 1)
    return got


def same_bits(got, expected):
    """Equal, a NaN of any bits with a NaN."""
    return all(
        x.dtype == y.dtype and torch.equal(torch.nan_to_num(x, 7.0, INF, -INF),
                                           torch.nan_to_num(y, 7.0, INF, -INF))
        and torch.equal(x.isnan(), y.isnan())
        for x, y in zip(got, expected, strict=True)
    )  # fmt: skip
