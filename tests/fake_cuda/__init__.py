"""A CUDA device made of host memory, where torch has none: the code for GPUs runs, and is checked.

`device.cpp` says what it finds. `pytest -p fake_cuda …` and `python -m fake_cuda -m MODULE …` run
with it, with this directory's parent on the path. Triton's kernels run in its interpreter.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

NAME = "Fake CUDA device"
SOURCE = Path(__file__).with_name("device.cpp")
TORCH = Path(importlib.util.find_spec("torch").origin).parent


def build() -> Path:
    """Compile the device for the installed torch, once for each state of both."""
    sources = [p.read_bytes() for p in sorted(SOURCE.parent.glob("*.[ch]*"))]
    state = [*sources, (TORCH / "version.py").read_bytes(), sys.version.encode()]
    name = hashlib.sha256(b"".join(state)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fake_cuda-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    built = folder / f"{name}.so"
    if not built.exists():
        includes = ["include", "include/torch/csrc/api/include"]
        partial = built.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [
                os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-shared", "-fPIC",
                "-DTORCH_EXTENSION_NAME=fake_cuda_device", f"-I{sysconfig.get_path('include')}",
                *[f"-I{TORCH / path}" for path in includes], str(SOURCE), f"-L{TORCH / 'lib'}",
                "-ltorch_python", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH / 'lib'}",
                "-o", str(partial),
            ],
            check=True,
        )  # fmt: skip
        partial.replace(built)
    return built


assert "torch" not in sys.modules, "the device is to be there before torch looks for one"
os.environ["TRITON_INTERPRET"] = "1"
BUILT = build()
ctypes.CDLL(str(BUILT), mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402

DEVICE = torch.device("cuda", 0)


class Stream:
    """A stream, which is in order of its own, and knows of others what it has waited for."""

    def __init__(self, device=None, priority=0, number=None):
        self.device, self.priority = DEVICE, priority
        self.stream_id = _device.new_stream() if number is None else number
        self.device_index, self.cuda_stream = 0, self.stream_id

    def __eq__(self, other):
        return isinstance(other, Stream) and self.stream_id == other.stream_id

    def __hash__(self):
        return hash(self.stream_id)

    def wait_stream(self, other):
        _device.stream_waits(self.stream_id, _device.clock_of(other.stream_id))

    def wait_event(self, event):
        event.wait(self)

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self):
        _device.host_waits(_device.clock_of(self.stream_id))

    def query(self):
        return True


class Event:
    """What a stream had done when it was recorded."""

    def __init__(self, enable_timing=False, **_):
        self.clock, self.seconds = None, None

    def record(self, stream=None):
        number = current_stream().stream_id if stream is None else stream.stream_id
        self.clock, self.seconds = _device.clock_of(number), time.perf_counter()

    def wait(self, stream=None):
        if self.clock is not None:
            _device.stream_waits((stream or current_stream()).stream_id, self.clock)

    def synchronize(self):
        if self.clock is not None:
            _device.host_waits(self.clock)

    def query(self):
        return True

    def elapsed_time(self, end):
        return 1000 * (end.seconds - self.seconds)


class StreamContext:
    """`torch.cuda.stream`."""

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        self.before = _device.current_stream()
        if self.stream is not None:
            _device.set_stream(self.stream.stream_id)

    def __exit__(self, *_):
        _device.set_stream(self.before)


class CUDAGraph:
    """What was done while it was captured, to be done again over the same memory."""

    def __init__(self, keep_graph=False):
        self._graph = None

    def capture_begin(self, pool=None, capture_error_mode="global"):
        self._graph = _device.begin_capture()

    def capture_end(self):
        _device.end_capture()

    def replay(self):
        self._graph.replay()

    def reset(self):
        self._graph = None

    def pool(self):
        return (0, 1)


@contextmanager
def graph(cuda_graph, pool=None, stream=None, capture_error_mode="global"):
    """`torch.cuda.graph`."""
    torch.cuda.synchronize()
    with StreamContext(stream or _capture_stream):
        cuda_graph.capture_begin(pool, capture_error_mode)
        try:
            yield
        finally:
            cuda_graph.capture_end()


def current_stream(device=None):
    """The stream of this thread."""
    return Stream(number=_device.current_stream())


class OnDevice:
    """`torch.cuda.device`."""

    def __init__(self, device):
        assert torch.device(device).index in (None, 0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def set_sync_debug_mode(mode):
    """Errors for what makes the host wait."""
    _device.set_sync_debug_mode({"default": 0, "warn": 1, "error": 2}.get(mode, mode))


def _install():
    properties = SimpleNamespace(
        name=NAME, major=9, minor=0, total_memory=_device.total(), multi_processor_count=132,
        L2_cache_size=50 << 20, shared_memory_per_block_optin=227 << 10, warp_size=32,
        max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536,
    )  # fmt: skip
    replaced = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": OnDevice,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: _device.synchronize(),
        "current_stream": current_stream,
        "default_stream": lambda device=None: Stream(number=0),
        "set_stream": lambda stream: _device.set_stream(stream.stream_id),
        "stream": StreamContext,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": _device.is_capturing,
        "set_sync_debug_mode": set_sync_debug_mode,
        "empty_cache": _device.empty_cache,
        "memory_allocated": lambda device=None: _device.used(),
        "memory_reserved": lambda device=None: _device.used() + _device.cached(),
        "max_memory_allocated": lambda device=None: _device.peak(),
        "max_memory_reserved": lambda device=None: _device.peak(),
        "reset_peak_memory_stats": lambda device=None: _device.reset_peak(),
        "mem_get_info": lambda device=None: (
            _device.total() - _device.used() - _device.cached(),
            _device.total(),
        ),
        "default_generators": (_device.default_generator(),),
        "manual_seed": lambda seed: _device.default_generator().manual_seed(seed),
        "manual_seed_all": lambda seed: _device.default_generator().manual_seed(seed),
        "get_rng_state": lambda device=None: _device.default_generator().get_state(),
        "set_rng_state": lambda state, device=None: _device.default_generator().set_state(state),
    }
    for name, value in replaced.items():
        assert hasattr(torch.cuda, name), name
        setattr(torch.cuda, name, value)
    torch.cuda.is_fake = True
    torch.backends.cuda.is_built = lambda: True
    torch.version.cuda = "fake"
    _install_triton()


def _install_triton():
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime.interpreter import GridExecutor

    interpret = GridExecutor.__call__

    def call(self, *args, **kwargs):
        given = [*args, *kwargs.values()]
        if any(isinstance(x, torch.Tensor) and x.is_cuda for x in given):
            return launch(lambda a, k: interpret(self, *a, **k), list(args), kwargs)
        return interpret(self, *args, **kwargs)

    GridExecutor.__call__ = call


def with_tensors(value, change):
    """The same value with other tensors, in lists, dictionaries and dataclasses too."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list):
        return [with_tensors(x, change) for x in value]
    if isinstance(value, dict):
        return {k: with_tensors(x, change) for k, x in value.items()}
    if is_dataclass(value):
        return replace(value, **with_tensors(vars(value), change))
    return value


def launch(kernel, *arguments):
    """Run a function as a kernel, with tensors of the host over the bytes of the device's."""
    arguments, tensors = list(arguments), []
    with_tensors(arguments, lambda x: tensors.append(x) or x)

    def on_host(tensors):
        found = iter(tensors)
        kernel(*with_tensors(arguments, lambda _: next(found)))

    _device.launch(on_host, [x.detach() for x in tensors])


_spec = importlib.util.spec_from_file_location("fake_cuda_device", BUILT)
_device = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_device)
_install()
if os.environ.get("FAKE_CUDA_KERNELS") == "twins":
    from fake_cuda import twins

    twins.install(launch)
_capture_stream = Stream()
