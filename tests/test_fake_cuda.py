"""The device made of host memory finds what a GPU would do wrong without a word.

PYTHONPATH=tests pytest -p fake_cuda tests/test_fake_cuda.py
"""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not hasattr(torch.cuda, "is_fake"), reason="of the fake device alone; make test-gpu-code has it"
)


def ones(*shape):
    return torch.ones(*shape, device="cuda")


def test_the_host_cannot_read_its_memory():
    address = ones(4).data_ptr()
    maps = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[:2] for line in maps if "fake_cuda" in line]
    (access,) = {
        access
        for span, access in spans
        if int(span.split("-")[0], 16) <= address < int(span.split("-")[1], 16)
    }
    assert access.startswith("---")


def test_devices_are_not_mixed():
    with pytest.raises(RuntimeError, match="same device"):
        torch.embedding(torch.ones(3, 2), ones(2).long())
    assert (ones(3) * torch.tensor(2.0)).tolist() == [2.0] * 3  # a number of the host may be


def test_memory_is_not_zero_when_it_is_given_out():
    assert torch.empty(5, device="cuda").isnan().all()


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("other", ["reads", "writes"])
def test_a_stream_that_did_not_wait(waits, other):
    stream, x = torch.cuda.Stream(), ones(3)
    torch.cuda.synchronize()
    x.add_(1)
    if waits:
        stream.wait_stream(torch.cuda.current_stream())

    def use():
        with torch.cuda.stream(stream):
            _ = x + 1 if other == "reads" else x.zero_()

    if waits:
        use()
    else:
        with pytest.raises(RuntimeError, match=f"{other} what stream 0 writes, and has not waited"):
            use()
    torch.cuda.synchronize()


def test_memory_that_another_stream_still_reads():
    stream, x = torch.cuda.Stream(), ones(3)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = x * 2
    with pytest.raises(RuntimeError, match=r"writes what stream \d+ reads"):
        x.add_(1)
    torch.cuda.current_stream().wait_stream(stream)
    x.add_(1)
    assert (x.tolist(), y.tolist()) == ([2.0] * 3, [2.0] * 3)


def test_a_copy_is_there_when_it_was_waited_for():
    x, host = ones(4), torch.zeros(4, pin_memory=True)
    host.copy_(x, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    assert host.isnan().all()
    done.synchronize()
    assert host.tolist() == [1.0] * 4


def test_host_memory_that_changes_on_the_way():
    x, host = ones(4), torch.zeros(4, pin_memory=True)
    x.copy_(host, non_blocking=True)
    host[0] = 7
    with pytest.raises(RuntimeError, match="changed while a copy of it was on its way"):
        torch.cuda.synchronize()


def test_a_graph_reads_its_inputs_again():
    graph, x = torch.cuda.CUDAGraph(), ones(3)
    with torch.cuda.graph(graph):
        y = x * 2
        x.add_(1)
    assert y.isnan().all() and x.tolist() == [1.0] * 3  # captured, not done
    graph.replay()
    graph.replay()
    assert (y.tolist(), x.tolist()) == ([4.0] * 3, [3.0] * 3)


def test_a_graph_whose_input_is_gone():
    graph, x = torch.cuda.CUDAGraph(), ones(3)
    with torch.cuda.graph(graph):
        y = x * 2
    del x
    with pytest.raises(RuntimeError, match="memory which was given back"):
        graph.replay()
    assert y.isnan().all()


@pytest.mark.parametrize("wait", ["item", "tolist", "nonzero", "cpu", "synchronize"])
def test_nothing_waits_while_a_graph_is_captured(wait):
    x = ones(1)
    with (
        pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        torch.cuda.synchronize() if wait == "synchronize" else getattr(x, wait)()


def test_memory_ends():
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.empty(1 << 40, device="cuda")
