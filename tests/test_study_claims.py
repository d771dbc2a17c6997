"""Verdicts of the four claims against figures that are made up: each comes out each way."""

import math

import pytest

from fastrl.study.claims import above, claims, decided

ERROR = 0.01


def figure(mean: float, error: float = ERROR) -> dict[str, float]:
    return {"mean": mean, "error": error}


def arm(model, kind, alpha=None, *, gain=0.0, predicted=0.0, wording=0.0, less=None, **values):
    """An arm as in study.json; `less`: flipped, lost_from_best, accuracy_of_best less task's."""
    row = {
        "model": model,
        "kind": kind,
        "arm": kind,
        "values": ({} if alpha is None else {"objective.alpha": alpha}) | values,
        "last": {"gain": figure(gain), "wording": {} if wording is None else
                 {"gain": figure(wording)}},
    }  # fmt: skip
    if predicted is not None:
        row["predicted"] = {"gain": figure(predicted)}
    if less is not None:
        row["less_task"] = {k: figure(v) for k, v in less.items() if v is not None}
    return row


def less(flipped=0.0, lost=0.0, best=0.0):
    return {"flipped": flipped, "lost_from_best": lost, "accuracy_of_best": best}


def study(*arms, models=None):
    return {"arms": list(arms), "models": dict.fromkeys(models or [a["model"] for a in arms])}


def verdicts(*arms, models=None):
    return [c["verdict"] for c in claims(study(*arms, models=models))]


def test_nothing_was_run():
    assert verdicts() == ["not run"] * 4
    assert verdicts(models=["a"]) == ["not run"] * 4
    assert [c["number"] for c in claims(study())] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("optimum", "trained", "verdict"),
    [
        (-0.3, -0.2, "supported"),
        (-0.3, 0.1, "contradicted"),  # the optimum alone is not enough
        (0.1, -0.3, "contradicted"),
        (-0.3, -0.03, "undecided"),  # -0.03 is within its error of the threshold
        (None, -0.3, "undecided"),  # no prediction was made
        (-0.01, -0.02, "undecided"),
    ],
)
def test_claim_1(optimum, trained, verdict):
    row = arm("a", "sharpen", 4.0, gain=trained, predicted=optimum)
    assert verdicts(row)[0] == verdict


def test_claim_1_asks_for_one_model():
    bad = arm("a", "sharpen", 4.0, gain=-0.2, predicted=-0.2)
    good = arm("b", "sharpen", 4.0, gain=0.2, predicted=0.2)
    vague = arm("c", "sharpen", 4.0, gain=-0.02, predicted=-0.02)
    assert verdicts(bad, good)[0] == "supported"
    assert verdicts(good)[0] == "contradicted"
    assert verdicts(good, vague)[0] == "undecided"
    assert verdicts(good, models=["b", "d"])[0] == "undecided"  # of d nothing is known
    # the optimum of one and the trained policy of another are no one model's
    halves = [
        arm("a", "sharpen", 4.0, gain=-0.2, predicted=0.2),
        arm("b", "sharpen", 4.0, gain=0.2, predicted=-0.2),
    ]
    assert verdicts(*halves)[0] == "contradicted"


def test_claim_1_is_about_the_largest_alpha_above_1():
    small = arm("a", "sharpen", 1.25, gain=0.2, predicted=0.2)
    large = arm("a", "sharpen", 4.0, gain=-0.2, predicted=-0.2)
    assert verdicts(small, large)[0] == verdicts(large, small)[0] == "supported"
    flat = arm("a", "sharpen", 0.5, gain=-0.2, predicted=-0.2)
    assert verdicts(flat)[0] == "not run"
    for values in ({"sampling.ignore_eos": True}, {"objective.length_norm": "mean"}):
        other = arm("a", "sharpen", 8.0, gain=0.2, predicted=0.2, **values)
        assert verdicts(large, other)[0] == "supported"
    noisy = arm("a~0.1", "sharpen", 4.0, gain=-0.2, predicted=-0.2)
    assert verdicts(noisy)[0] == "not run"


@pytest.mark.parametrize(
    ("flipped", "lost", "verdict"),
    [
        (0.1, 0.0, "supported"),
        (0.0, 0.1, "supported"),
        (-0.1, 0.1, "supported"),
        (-0.1, -0.1, "contradicted"),
        (-0.1, 0.02, "undecided"),
        (None, -0.1, "undecided"),  # the half that was not asked may hold
        (None, 0.1, "supported"),
    ],
)
def test_claim_2(flipped, lost, verdict):
    assert verdicts(arm("a", "sharpen", 4.0, less=less(flipped, lost)))[1] == verdict


def test_claim_2_asks_for_every_model_in_the_same_way():
    of = [arm("a", "sharpen", 4.0, less=less(0.1, -0.1)),
          arm("b", "sharpen", 4.0, less=less(-0.1, 0.1))]  # fmt: skip
    assert verdicts(*of)[1] == "contradicted"
    of[1] = arm("b", "sharpen", 4.0, less=less(0.1, -0.1))
    assert verdicts(*of)[1] == "supported"
    assert verdicts(*of, models=["a", "b", "c"])[1] == "undecided"


@pytest.mark.parametrize(
    ("best", "verdict"),
    [(-0.2, "supported"), (-0.06, "undecided"), (-0.01, "contradicted"), (0.2, "contradicted")],
)
def test_claim_3(best, verdict):
    assert verdicts(arm("a", "sharpen", 4.0, less=less(best=best)))[2] == verdict


def test_a_missing_arm_supports_nothing():
    whole = arm("a", "sharpen", 4.0, less=less(0.2, 0.2, -0.2))
    assert verdicts(whole)[1:3] == ["supported", "supported"]
    for others in ([arm("b", "sharpen", 4.0)], [arm("b", "task", gain=0.3, wording=0.3)], []):
        assert verdicts(whole, *others, models=["a", "b"])[1:3] == ["undecided", "undecided"]
    against = arm("b", "sharpen", 4.0, less=less(-0.2, -0.2, 0.2))
    assert verdicts(whole, against)[1:3] == ["contradicted", "contradicted"]


@pytest.mark.parametrize(
    ("gain", "wording", "verdict"),
    [
        (0.2, 0.2, "supported"),
        (0.2, -0.2, "contradicted"),
        (0.02, 0.2, "contradicted"),
        (0.06, 0.2, "undecided"),
        (0.2, 0.01, "undecided"),
        (0.2, None, "undecided"),  # not asked in other words
        (0.0, None, "contradicted"),
    ],
)
def test_claim_4(gain, wording, verdict):
    assert verdicts(arm("a", "task", gain=gain, wording=wording))[3] == verdict


def test_claim_4_asks_for_every_model():
    good = arm("a", "task", gain=0.3, wording=0.3)
    assert verdicts(good, arm("b", "task", gain=0.3, wording=0.3))[3] == "supported"
    assert verdicts(good, arm("b", "task", gain=0.0, wording=0.3))[3] == "contradicted"
    assert verdicts(good, models=["a", "b"])[3] == "undecided"
    assert verdicts(arm("a", "random", gain=0.3, wording=0.3))[3] == "not run"


def test_intervals_are_widened_for_all_comparisons():
    one = decided(1, "", "", [[above("x", "a", figure(0.5), 0.0)]])["evidence"][0]
    assert one["high"] - 0.5 == pytest.approx(1.959964 * ERROR)
    assert one["detectable"] == pytest.approx((1.959964 + 0.841621) * ERROR)
    kinds = [[above("x", m, figure(0.5), 0.0) for m in "ab"] for _ in range(2)]
    four = decided(1, "", "", kinds)["evidence"]
    assert len(four) == 4
    assert all(e["high"] - 0.5 == pytest.approx(2.497705 * ERROR) for e in four)  # 2.5 % / 4
    # and decide by it: 2.2 errors are enough for one figure, and not for two
    near = above("x", "a", figure(2.2 * ERROR), 0.0)
    assert decided(1, "", "", [[near]])["verdict"] == "supported"
    far = above("x", "b", figure(1.0), 0.0)
    assert decided(1, "", "", [[near, far]])["verdict"] == "undecided"


def test_what_is_exact_needs_no_interval():
    row = decided(1, "", "", [[above("x", "a", figure(0.021, 0.0), 0.02, exact=True)]], some=True)
    assert row["verdict"] == "supported"
    assert row["evidence"][0]["low"] == row["evidence"][0]["high"] == 0.021
    assert not math.isnan(row["evidence"][0]["detectable"])


def test_a_figure_without_spread_decides_nothing_unless_it_is_computed():
    alike = {"mean": 0.5, "error": 0.0}
    assert above("all alike", "m", alike, 0.1).verdict(1) == "undecided"
    assert above("computed", "m", alike, 0.1, exact=True).verdict(1) == "supported"
    assert above("computed", "m", alike, 0.9, exact=True).verdict(1) == "contradicted"
