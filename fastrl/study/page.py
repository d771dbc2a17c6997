"""study.json as sections of a report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import tomli_w

from fastrl.page import (
    Block,
    Code,
    Figures,
    Plot,
    SamplePrompt,
    SampleResponse,
    Samples,
    Section,
    Series,
    Table,
    Text,
    Verdict,
)
from fastrl.study.plan import ARMS
from fastrl.study.tables import percent, points, share

Study = Mapping[str, Any]
BASE = "base"
WITHOUT_TRAINING = {
    "greedy": "greedy",
    "temperature": "temperature",
    "power": "power sampling",
    "best": "likeliest of k",
    "majority": "majority of k",
}
CURVES = (
    ("task_accuracy", "Accuracy of the rollouts", "share of responses", True),
    ("kl", "KL to the base", "nats a response", False),
    ("length_mean", "Response length", "tokens", False),
    ("entropy", "Entropy", "nats a token", False),
    ("reward_group_std", "Spread of the reward in a group", "0 at the optimum", False),
    ("reward_mean", "Reward", "mean", False),
)


def groups(study: Study) -> dict[str, str]:
    """The switches of the page: the base, each arm, and what sampling alone gives."""
    found = {BASE: "base"} | {row["arm"]: row["arm"] for row in study["arms"]}
    kinds = [_kind(row) for row in study["baselines"]]
    return found | {kind: kind for kind in kinds}


def _kind(row: Mapping[str, Any]) -> str:
    """How a baseline samples."""
    return WITHOUT_TRAINING[row["name"].partition("-")[0]]


def sections(study: Study) -> list[Section]:
    """What a study found, in the order of the questions that it asks."""
    command = _study_command(study)
    found = [
        Section("What came out", list(_summary(study)), "summary"),
        Section("The four claims", list(claim_cards(study["claims"], command)), "claims"),
        Section("Predicted from the base alone", list(_predictions(study)), "predictions"),
        Section("Training", list(_training(study)), "training"),
        Section("More samples a prompt", list(_more_samples(study)), "samples-a-prompt"),
        Section("What sampling alone gives", list(_sampling_alone(study)), "baselines"),
        Section("Accuracy bought with KL", list(_frontier(study)), "frontier"),
        Section("By difficulty", list(_difficulty(study)), "difficulty"),
        Section("New skills", list(_skills(study)), "skills"),
        Section("The same question in other words", list(_wording(study)), "wording"),
        Section("A perturbed reference", list(_perturbed(study)), "perturbed"),
        Section("Responses side by side", list(_texts(study)), "responses"),
        Section("To repeat it", list(_repeat(study)), "repeat"),
    ]
    return [section for section in found if section.blocks]


def _models(study: Study) -> list[str]:
    """The models without the perturbed ones."""
    return [m for m in study["models"] if "~" not in m]


def _arms(study: Study, model: str) -> list[Mapping[str, Any]]:
    return [row for row in study["arms"] if row["model"] == model]


def _of(study: Study, model: str) -> str:
    """What a title ends with where there are several models."""
    return f", {model}" if len(_models(study)) > 1 else ""


def _series(
    name: str,
    x: Sequence[float],
    figures: Sequence[Mapping[str, float]],
    *,
    mark: Literal["line", "points"] = "points",
    group: str = "",
    labels: Sequence[str] = (),
) -> Series:
    """Means with their intervals."""
    y, low, high = ([f[key] for f in figures] for key in ("mean", "low", "high"))
    return Series(name, x, y, low, high, mark=mark, group=group, labels=labels)


def _summary(study: Study) -> Iterator[Block]:
    seeds = study["settings"]["seeds"]
    cells = study["cells"]
    if cells["measured"] < cells["planned"]:
        yield Text(f"{cells['measured']} of {cells['planned']} cells are measured so far.")
    for model in _models(study):
        base = study["models"][model]
        items = [("base", percent(base["accuracy"]) + " %", f"{base['prompts']} test prompts")]
        items += [
            (row["arm"], percent(row["last"]["accuracy"]) + " %", points(row["last"]["gain"]))
            for row in _arms(study, model)
        ]
        yield Text(f"Accuracy{_of(study, model)}: one sample a prompt, at the last checkpoint.")
        yield Figures(items)
    yield Table(
        "Every arm",
        ("model", "arm", "converges to", "accuracy, %", "gain, points", "best checkpoint, %",
         "greedy, %", "KL, nats", "tokens", "seeds"),
        [row for model in study["models"] for row in _rows(study, model)],
        note=f"Means over {seeds} seeds and the test prompts, with 95 % bootstrap intervals over"
        " both. Best: chosen by accuracy on the validation split, the base among them.",
        row_groups=[
            group
            for model in study["models"]
            for group in (BASE, *(row["arm"] for row in _arms(study, model)))
        ],
    )  # fmt: skip


def _rows(study: Study, model: str) -> Iterator[list[str | float]]:
    base = study["models"][model]
    yield [
        model, "base", "p", share(base["accuracy"]), "", "", share(base["greedy"]), 0.0,
        round(base["length"]["mean"], 1), 1,
    ]  # fmt: skip
    for row in _arms(study, model):
        last = row["last"]
        yield [
            model, row["arm"], row["target"], share(last["accuracy"]), points(last["gain"]),
            share(row["best"]["accuracy"]), share(last["greedy"]), round(last["kl"]["mean"], 3),
            round(last["length"]["mean"], 1), len(row["seeds"]),
        ]  # fmt: skip


def _study_command(study: Study) -> str:
    settings = study["settings"]
    words = ["fastrl study"]
    for name in ("arms", "models", "alphas", "betas"):
        if settings[name]:
            words.append(f"--{name} {','.join(str(v) for v in settings[name])}")
    return " ".join([*words, f"--seeds {settings['seeds']}"])


def claim_cards(claims: Sequence[Mapping[str, Any]], command: str) -> Iterator[Block]:
    """A card for each claim, with its figures and the command that made them."""
    for claim in claims:
        lines = [
            f"{e['model']}: {e['mean']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}], {e['what']}"
            f" ({e['verdict']}; {e['detectable']:.3f} could have been detected)"
            for e in claim["evidence"]
        ]
        yield Verdict(
            f"({claim['number']}) {claim['claim']}",
            claim["verdict"],
            "\n".join(lines) or "no figure: the arms that it needs were not run",
            claim["threshold"],
            command,
        )


def _predictions(study: Study) -> Iterator[Block]:
    rows = [row for row in study["arms"] if "predicted" in row]
    if not rows:
        return
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row)
    yield Plot(
        "The gain of the optimum, and of the trained policy",
        "predicted from samples of the base",
        "measured",
        [
            _series(
                arm,
                [row["predicted"]["gain"]["mean"] for row in some],
                [row["last"]["gain"] for row in some],
                group=arm,
                labels=[row["model"] for row in some],
            )
            for arm, some in by_arm.items()
        ],
        y_percent=True,
        x_percent=True,
        diagonal=True,
        note="A point is a model. On the line the run reached its optimum.",
    )
    kinds = [
        _series(
            arm,
            [p["mean"] for row in some for p in row["predicted"]["by_difficulty"].values()],
            [
                row["last"]["by_difficulty"][kind]["gain"]
                for row in some
                for kind in row["predicted"]["by_difficulty"]
            ],
            group=arm,
            labels=[
                f"{row['model']}, {kind}"
                for row in some
                for kind in row["predicted"]["by_difficulty"]
            ],
        )
        for arm, some in by_arm.items()
        if some[0]["predicted"]["by_difficulty"]
    ]
    if kinds:
        yield Plot(
            "The same for each kind of prompt",
            "predicted from samples of the base",
            "measured",
            kinds,
            y_percent=True,
            x_percent=True,
            diagonal=True,
        )
    yield Table(
        "Likelihood and correctness under the base",
        ("model", "Cov(r, log p), nats", "corr(r, log p)", "base, %"),
        [
            [
                m,
                *(_plain(found[k]) if found[k] else "" for k in ("covariance", "correlation")),
                share(found["accuracy"]),
            ]
            for m, found in study["models"].items()
        ],
        note="The covariance is the slope of the accuracy of p^alpha / Z in alpha, at 1: its sign"
        " is that of what sharpening does at first.",
    )
    optimum = [row for row in study["arms"] if "to_optimum" in row["last"]]
    if optimum:
        yield Table(
            "How far a sharpened policy is from its optimum",
            ("model", "arm", "KL to the optimum, nats: at least", "at most", "mean reward"),
            [
                [
                    row["model"], row["arm"],
                    *(round(row["last"]["to_optimum"][k], 2) for k in ("low", "high", "reward")),
                ]
                for row in optimum
            ],
            note="KL(policy || p^alpha / Z) is log Z less the mean reward; log Z lies between what"
            " the responses seen sum to, and that with the most that those not seen can weigh.",
            row_groups=[row["arm"] for row in optimum],
        )  # fmt: skip


def _plain(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"


def _training(study: Study) -> Iterator[Block]:
    if tried := study.get("tuning"):
        yield Table(
            "Learning rates, by accuracy on the validation split",
            ("model", "arm", "learning rate", "accuracy, %", "chosen"),
            [
                [
                    t["model"], t["arm"], t["lr"],
                    None if t["accuracy"] is None else round(100 * t["accuracy"], 1),
                    "yes" if t["chosen"] else "",
                ]
                for t in tried
            ],
            note="One run each with the first seed: every arm had as many trials.",
            row_groups=[t["arm"] for t in tried],
        )  # fmt: skip
    for model in study["models"]:
        arms = _arms(study, model)
        for key, title, unit, percents in CURVES if arms else ():
            series = [
                Series(
                    row["arm"],
                    row["curves"]["step"],
                    row["curves"][key]["mean"],
                    row["curves"][key]["low"],
                    row["curves"][key]["high"],
                    group=row["arm"],
                )
                for row in arms
                # rewards of two objectives have no common scale
                if key != "reward_mean" or row["kind"] in ("task", "random", "tilted", "null")
            ]
            if series:
                name = f"{title}{_of(study, model) or (', ' + model if '~' in model else '')}"
                yield Plot(name, "step", unit, series, y_percent=percents)


def _more_samples(study: Study) -> Iterator[Block]:
    for model in _models(study):
        base = study["models"][model]
        named = (
            ("pass", "pass@k: one of k is right"),
            ("maj", "maj@k: the most frequent answer of k is right"),
        )
        for key, title in named:
            curves = [("base", base[key], BASE)]
            curves += [(r["arm"], r["last"][key], r["arm"]) for r in _arms(study, model)]
            yield Plot(
                title + _of(study, model),
                "k",
                "share of prompts",
                [
                    _series(
                        name,
                        [float(k) for k in by_k],
                        list(by_k.values()),
                        mark="line",
                        group=group,
                    )
                    for name, by_k, group in curves
                ],
                log_x=True,
                y_percent=True,
                note="The larger k are of the first seed alone.",
            )


def _sampling_alone(study: Study) -> Iterator[Block]:
    for model in _models(study):
        rows = [row for row in study["baselines"] if row["model"] == model]
        if not rows:
            continue
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            kinds.setdefault(_kind(row), []).append(row)
        series = [
            _series(
                kind,
                [row["tokens"]["mean"] for row in some],
                [row["accuracy"] for row in some],
                group=kind,
                labels=[row["label"] for row in some],
            )
            for kind, some in kinds.items()
        ]
        series.append(_point("base", study["models"][model], BASE))
        series += [_point(row["arm"], row["last"], row["arm"]) for row in _arms(study, model)]
        yield Plot(
            "Accuracy and the tokens of an answer" + _of(study, model),
            "tokens generated for an answer",
            "accuracy",
            series,
            log_x=True,
            y_percent=True,
            note="Best and majority of k have as many samples as power sampling has tokens.",
        )
        yield Table(
            "Without training" + _of(study, model),
            ("how", "accuracy, %", "gain, points", "tokens", "accepted"),
            [
                [
                    row["label"], share(row["accuracy"]), points(row["gain"]),
                    round(row["tokens"]["mean"], 1),
                    f"{100 * row['acceptance']:.0f} %" if "acceptance" in row else "",
                ]
                for row in rows
            ],
            row_groups=[_kind(row) for row in rows],
        )  # fmt: skip


def _point(name: str, found: Mapping[str, Any], group: str) -> Series:
    return _series(name, [found["length"]["mean"]], [found["accuracy"]], group=group)


def _frontier(study: Study) -> Iterator[Block]:
    for model in study["models"]:
        series = [
            Series(
                row["arm"],
                [v["kl"] for v in row["validation"]],
                [v["accuracy"] for v in row["validation"]],
                mark="line",
                group=row["arm"],
                labels=[f"step {v['step']}" for v in row["validation"]],
            )
            for row in _arms(study, model)
            if row["validation"]
        ]
        if series:
            yield Plot(
                f"Accuracy over KL, {model}",
                "KL to the base, nats a response",
                "accuracy on the validation split",
                series,
                y_percent=True,
                note="From the base at 0 to the last step; means over seeds.",
            )


def _difficulty(study: Study) -> Iterator[Block]:
    for model in _models(study):
        base = study["models"][model]
        kinds = list(base["by_difficulty"])
        if not kinds:
            continue
        curves = [("base", base, BASE)]
        curves += [(row["arm"], row["last"], row["arm"]) for row in _arms(study, model)]
        yield Plot(
            "Accuracy by kind of prompt" + _of(study, model),
            "",
            "accuracy",
            [
                _series(
                    name,
                    [float(i) for i in range(len(kinds))],
                    [found["by_difficulty"][k]["accuracy"] for k in kinds],
                    group=group,
                )
                for name, found, group in curves
            ],
            x_ticks={float(i): kind for i, kind in enumerate(kinds)},
            y_percent=True,
        )


def _skills(study: Study) -> Iterator[Block]:
    rows = [row for row in study["arms"] if row["last"]["skills"].get("prompts")]
    for model in _models(study):
        base = study["models"][model]
        words = (
            f"{model}: of {base['prompts']} test prompts {base['never_solved']} had no right sample"
            f" among {base['samples']} of the base"
        )
        if "long" in base:
            words += (
                f"; of {base['long']['prompts']} prompts with one operator more than any in"
                f" training, {base['long']['never_solved']}"
            )
        yield Text(words + ".")
    if rows:
        yield Table(
            "What is solved of the prompts that no sample of the base solved",
            ("model", "arm", "prompts", "solved, %", "by the base's second draw, %",
             "more than that, points", "right in half of the samples, %", "accuracy, %"),
            [
                [
                    row["model"], row["arm"], s["prompts"], share(s["solved"]),
                    share(s["solved_again"]), points(s["more_than_again"]),
                    share(s["mostly_solved"]), share(s["accuracy"]),
                ]
                for row in rows
                for s in [row["last"]["skills"]]
            ],
            note="Solved: one sample is right. The second draw of the base solves some of them by"
            " chance; only what goes beyond it was learnt. First seeds.",
            row_groups=[row["arm"] for row in rows],
        )  # fmt: skip


def _wording(study: Study) -> Iterator[Block]:
    for model in _models(study):
        base = study["models"][model]
        found = [("base", base, BASE)] if base.get("wording") else []
        found += [
            (r["arm"], r["last"], r["arm"]) for r in _arms(study, model) if r["last"]["wording"]
        ]
        if not found:
            continue
        names = list(found[0][1]["wording"]["accuracy"])
        for key, title in (
            ("accuracy", "Greedy accuracy in other words"),
            ("flipped_by", "Answers that change with the words"),
        ):
            yield Plot(
                title + _of(study, model),
                "",
                "accuracy" if key == "accuracy" else "share of prompts",
                [
                    _series(
                        name,
                        [float(i) for i in range(len(names))],
                        [figures["wording"][key][n] for n in names],
                        group=group,
                    )
                    for name, figures, group in found
                ],
                x_ticks={float(i): n for i, n in enumerate(names)},
                y_percent=True,
            )
        yield Table(
            "Over all wordings" + _of(study, model),
            ("arm", "answers that change, %", "spread of accuracy, points", "gain, points"),
            [
                [
                    name, share(words["flipped"]), round(100 * words["spread"], 1),
                    points(words["gain"]),
                ]
                for name, figures, _ in found
                for words in [figures["wording"]]
            ],
            row_groups=[group for _, _, group in found],
        )  # fmt: skip


def _perturbed(study: Study) -> Iterator[Block]:
    rows, kept = [], []
    for model in study["models"]:
        name, noisy, noise = model.partition("~")
        if not noisy or name not in study["models"]:
            continue
        pairs = [("base", study["models"][name], study["models"][model])]
        plain = {row["arm"]: row for row in _arms(study, name)}
        pairs += [
            (row["arm"], plain[row["arm"]]["last"], row["last"])
            for row in _arms(study, model)
            if row["arm"] in plain
        ]
        for arm, before, after in pairs:
            moved = 100 * (after["accuracy"]["mean"] - before["accuracy"]["mean"])
            cells = (share(before["accuracy"]), share(after["accuracy"]), round(moved, 1))
            rows.append([name, noise, arm, *cells])
            kept.append(BASE if arm == "base" else arm)
    if rows:
        yield Table(
            "From a model with noise in its weights",
            ("model", "noise", "arm", "accuracy, %", "from the perturbed one, %", "moved, points"),
            rows,
            note="Noise: of each weight, relative to the root mean square of its tensor.",
            row_groups=kept,
        )


def _texts(study: Study) -> Iterator[Block]:
    for model in _models(study):
        prompts = [
            SamplePrompt(
                row["prompt"],
                row["gold"],
                row["tags"],
                [
                    SampleResponse(
                        policy, r["text"], r["answer"], r["correct"], r["reason"], group=policy
                    )
                    for policy, responses in row["policies"].items()
                    for r in responses[:1]
                ],
            )
            for row in study["texts"]
            if row["model"] == model
        ]
        if prompts:
            yield Samples("The first sample of each policy" + _of(study, model), prompts)


def _repeat(study: Study) -> Iterator[Block]:
    environment = study["environment"]
    yield Code("The study", _study_command(study), "sh")
    yield Code("Its cells, by hand", "\n".join(study["commands"].values()), "sh")
    yield Code("What the arms have in common", tomli_w.dumps(study["config"]), "toml")
    arms = "\n".join(f"{name:<12} {meaning}" for name, meaning in ARMS.items())
    yield Code("The arms", arms)
    yield Code("Made with", json.dumps(environment, indent=1), "json")
