"""The head as a module, alone and sharded by FSDP2 over two processes."""

import os
import tempfile

import pytest
import torch
import torch.multiprocessing as mp

from fastrl import ops

N, D, V = 8, 6, 40


def data():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator)
    targets = torch.randint(V, (N,), generator=generator)
    return hidden, targets, torch.randn(N, generator=generator)


def make_head():
    torch.manual_seed(0)
    return ops.Head(D, V)


def run(head, kind):
    """The value and the gradient of hidden states; gradients of the head stay there."""
    hidden, targets, advantages = data()
    hidden.requires_grad_()
    if kind == "loss":
        value = head(hidden, targets, advantages, temperature=0.7).loss_sum
    elif kind == "statistics":
        logprobs, entropy = head(hidden, targets, temperature=0.7)
        value = (advantages * logprobs).sum() + 0.1 * entropy.sum()
    else:
        value = (head(hidden).log_softmax(-1)[:, 3] * advantages).sum()
    value.backward()
    return value.detach(), hidden.grad


@pytest.mark.parametrize("kind", ["loss", "statistics", "logits"])
def test_it_is_the_operation(kind):
    hidden, targets, advantages = data()
    head = make_head()
    value, by_hidden = run(head, kind)
    h, w, b = (x.detach().clone().requires_grad_() for x in (hidden, head.weight, head.bias))
    if kind == "loss":
        settings = {"bias": b, "temperature": 0.7}
        expected = ops.linear_policy_loss(h, w, targets, advantages, **settings).loss_sum
    elif kind == "statistics":
        logprobs, entropy = ops.linear_logprobs_and_entropy(h, w, targets, bias=b, temperature=0.7)
        expected = (advantages * logprobs).sum() + 0.1 * entropy.sum()
    else:
        logits = torch.nn.functional.linear(h, w, b)
        expected = (logits.log_softmax(-1)[:, 3] * advantages).sum()
    expected.backward()
    assert torch.equal(value, expected.detach())
    for x, y in ((by_hidden, h.grad), (head.weight.grad, w.grad), (head.bias.grad, b.grad)):
        torch.testing.assert_close(x, y)


def process(rank, world, store, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {}
    for kind in ("loss", "statistics", "logits"):
        head = make_head()
        fully_shard(head, mesh=init_device_mesh("cpu", (world,)))
        assert head.weight.to_local().shape[0] == V // world
        value, by_hidden = run(head, kind)
        gradients = head.weight.grad.full_tensor(), head.bias.grad.full_tensor()
        found[kind] = [value, by_hidden, *gradients]
    if rank == 0:
        torch.save(found, os.path.join(folder, "found.pt"))
    dist.destroy_process_group()


def test_it_works_under_fsdp2():
    """The same data on both processes: FSDP2's mean of the gradients is that of one."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo, which two processes on a CPU need")
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        mp.spawn(process, args=(2, store, folder), nprocs=2)
        found = torch.load(os.path.join(folder, "found.pt"), weights_only=True)
    for kind, (value, by_hidden, by_weight, by_bias) in found.items():
        head = make_head()
        expected, expected_hidden = run(head, kind)
        pairs = (
            (value, expected),
            (by_hidden, expected_hidden),
            (by_weight, head.weight.grad),
            (by_bias, head.bias.grad),
        )
        for x, y in pairs:
            torch.testing.assert_close(x, y, msg=lambda text, kind=kind: f"{kind}: {text}")
