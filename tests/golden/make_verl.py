"""Writes verl.json: log-probs, entropies and their gradients as verl's own functions give them.

`python tests/golden/make_verl.py` in an environment with verl. Its `linear_cross_entropy` is a
Triton kernel, which no CPU runs. The same values from whole logits are `logprobs_from_logits` and
`entropy_from_logits` of verl.utils.torch_functional, here in fp64; from hidden states
`FusedLinearForPPO`, which verl calls in the kernel's place and which computes in fp32.
B: sequences, L: tokens, D: hidden width, V: vocabulary.
"""

import importlib.metadata
import json
from pathlib import Path

import torch

B, L, D, V = 2, 5, 8, 13
TEMPERATURE = 0.7


def inputs():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "hidden": draw(B, L, D),
        "weight": draw(V, D),
        "labels": torch.randint(V, (B, L), generator=generator),
        "by_logprobs": draw(B, L),  # dL/dlogprob and dL/dentropy of the loss that is derived
        "by_entropy": draw(B, L),
    }


def derived(x, logprobs, entropy, **leaves):
    """The results, and the gradients of the leaves by name."""
    loss = (logprobs * x["by_logprobs"]).sum() + (entropy * x["by_entropy"]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = zip((f"{name}_gradient" for name in leaves), gradients, strict=True)
    return {"logprobs": logprobs.detach(), "entropy": entropy.detach(), **dict(named)}


def main():
    from verl.utils.experimental.torch_functional import FusedLinearForPPO
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    x = inputs()
    hidden, weight = (x[name].clone().requires_grad_() for name in ("hidden", "weight"))
    logits = hidden @ weight.T / TEMPERATURE
    whole = derived(
        x, logprobs_from_logits(logits, x["labels"]), entropy_from_logits(logits), logits=logits,
        hidden=hidden, weight=weight,
    )  # fmt: skip
    hidden, weight = (x[name].float().requires_grad_() for name in ("hidden", "weight"))
    fused = derived(
        x, *FusedLinearForPPO()(hidden, weight, x["labels"], TEMPERATURE), hidden=hidden,
        weight=weight,
    )  # fmt: skip
    parts = {"inputs": x, "from_logits": whole, "from_hidden": fused}
    lines = [
        f'"versions": {{"verl": "{importlib.metadata.version("verl")}"}}',
        f'"temperature": {TEMPERATURE}',
    ]
    for part, values in parts.items():
        entries = ",\n  ".join(f'"{k}": {json.dumps(v.tolist())}' for k, v in values.items())
        lines.append(f'"{part}": {{\n  {entries}\n }}')
    path = Path(__file__).with_name("verl.json")
    path.write_text("{\n " + ",\n ".join(lines) + "\n}\n")
    print(path)


if __name__ == "__main__":
    main()
