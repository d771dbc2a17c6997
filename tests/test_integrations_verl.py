"""Inside verl itself: what is replaced, what comes back, its forward and its reward loader."""

import importlib
import importlib.util
import sys

import pytest
import torch

if importlib.util.find_spec("verl") is None:  # one that cannot be imported is a failure
    pytest.skip("verl is not installed; pip install 'fastrl[verl]'", allow_module_level=True)

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM
from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl
from verl.models.transformers import dense_common
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils import torch_functional
from verl.utils.experimental.torch_functional import FusedLinearForPPO
from verl.utils.import_utils import import_external_libs
from verl.utils.kernel import linear_cross_entropy as kernel

from fastrl.integrations import grader
from fastrl.integrations import linear_cross_entropy as replacements

BY_NAME = "verl.workers.engine.fsdp.transformer_impl"  # imports logprobs_from_logits by name
ORIGINALS = {
    (kernel, "linear_cross_entropy"),
    (torch_functional, "logprobs_from_logits"),
    (torch_functional, "entropy_from_logits"),
    (torch_functional, "entropy_from_logits_with_chunking"),
}
ORIGINALS = {(module, name): getattr(module, name) for module, name in ORIGINALS}


@pytest.fixture
def patched(monkeypatch):
    """As verl's workers do it: the module is imported by its name."""
    monkeypatch.delitem(sys.modules, "fastrl.integrations.verl", raising=False)
    import_external_libs("fastrl.integrations.verl")
    integration = sys.modules["fastrl.integrations.verl"]
    yield integration
    integration.unpatch_verl()


def test_every_name_is_replaced_and_comes_back(patched):
    user = importlib.import_module(BY_NAME)
    for module, name in ORIGINALS:
        assert getattr(module, name) is getattr(replacements, name)
    assert user.logprobs_from_logits is replacements.logprobs_from_logits
    patched.patch_verl()  # nothing more
    patched.unpatch_verl()
    for (module, name), original in ORIGINALS.items():
        assert getattr(module, name) is original
    assert user.logprobs_from_logits is torch_functional.logprobs_from_logits
    patched.unpatch_verl()
    patched.patch_verl()  # also where a module is loaded already
    assert user.logprobs_from_logits is replacements.logprobs_from_logits


def test_the_same_results_and_gradients_as_verls_functions():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(50, (3, 7), generator=generator)
    upstream = torch.randn(3, 7, generator=generator)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        values = 3 * torch.randn(3, 7, 50, generator=generator, dtype=dtype)
        found = []
        for module in (torch_functional, replacements):
            logits = values.clone().requires_grad_()
            logprobs = module.logprobs_from_logits(logits, labels)
            entropy = module.entropy_from_logits(logits)
            ((logprobs + 0.3 * entropy) * upstream).sum().backward()
            found.append((logprobs, entropy, logits.grad))
        for right, ours in zip(*found, strict=True):
            torch.testing.assert_close(ours, right, rtol=tolerance, atol=tolerance)


def test_linear_cross_entropy_is_verls_torch_version():
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    hidden, weight, upstream = draw(2, 9, 16), draw(50, 16), draw(18)
    labels = torch.randint(50, (2, 9), generator=generator)
    found = []
    for function in (FusedLinearForPPO(), replacements.linear_cross_entropy):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        logprobs, entropy = (x.flatten() for x in function(*leaves, labels, 0.8))
        ((logprobs - 0.2 * entropy) * upstream).sum().backward()
        found.append((logprobs, entropy, *(x.grad for x in leaves)))
    for right, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)


def test_verls_fused_forward_runs_through_it(patched):
    """On a CPU, where verl's own kernel cannot; against its torch backend."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        )
    )  # fmt: skip
    tokens = torch.randint(64, (1, 12))
    found = []
    for backend in ("torch", "triton"):
        model.zero_grad()
        forward = getattr(dense_common, f"forward_with_{backend}_backend")
        output = forward(model, input_ids=tokens, temperature=0.9, return_dict=True)
        logprobs, entropy = output.log_probs.flatten(), output.entropy.flatten()
        (logprobs.sum() + 0.1 * entropy.sum()).backward()
        gradients = [model.lm_head.weight.grad, model.model.layers[0].mlp.up_proj.weight.grad]
        found.append((logprobs, entropy, *(g.clone() for g in gradients)))
    for right, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


def test_verls_configuration_takes_the_settings_of_the_docstrings():
    path = grader.__file__
    for key in ("reward.custom_reward_function", "custom_reward_function"):
        overrides = [
            f"{key}.path={path}",
            f"{key}.name=compute_score",
            f"+{key}.reward_kwargs.mode=box_or_anchor",
            "actor_rollout_ref.model.external_lib=fastrl.integrations.verl",
            "actor_rollout_ref.model.use_fused_kernels=True",
            "actor_rollout_ref.model.fused_kernel_options.impl_backend=triton",
        ]
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose("ppo_trainer", overrides)
        score = get_custom_reward_fn(migrate_legacy_reward_impl(config))
        columns = {"data_source": "math", "ground_truth": "7", "extra_info": {"num_turns": None}}
        assert score(solution_str=r"so \boxed{7}", **columns) == 1.0
        assert score(solution_str="#### 8", **columns) == 0.0
        assert config.actor_rollout_ref.model.external_lib == "fastrl.integrations.verl"


def test_verls_loader_says_of_a_setting_that_there_is_not():
    config = OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {
                    "path": grader.__file__,
                    "name": "compute_score",
                    "reward_kwargs": {"shotguns": "last"},
                }
            }
        }
    )
    with pytest.raises(TypeError, match="shotguns"):
        get_custom_reward_fn(config)(data_source="", solution_str="", ground_truth="7")
