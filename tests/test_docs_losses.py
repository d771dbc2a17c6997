"""The table of docs/losses.md says what the presets are."""

from pathlib import Path

from fastrl.losses import PRESETS

TEXT = (Path(__file__).parents[1] / "docs" / "losses.md").read_text()


def row(name, spec):
    bounds = f"{1 - spec.clip_low:g} .. {1 + spec.clip_high:g}"
    likelihood = spec.loss == "reinforce"
    kl = f"{spec.kl_estimator} x {spec.kl_coef:g}" if spec.kl_coef else "-"
    correction = spec.sampler_correction
    cells = [
        f"`{name}`",
        "-A logprob" if likelihood else spec.loss,
        "no ratio" if likelihood else bounds,
        "-" if spec.dual_clip is None else f"{spec.dual_clip:g}",
        kl,
        spec.loss_agg_mode,
        f"{correction} at {spec.sampler_correction_cap:g}" if correction else "-",
    ]
    return f"| {' | '.join(cells)} |"


def test_every_preset_has_its_row():
    assert [line for line in TEXT.splitlines() if line.startswith("| `")] == [
        row(name, spec) for name, spec in PRESETS.items()
    ]
    assert not any(spec.entropy_coef for spec in PRESETS.values())
