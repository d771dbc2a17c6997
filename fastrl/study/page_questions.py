"""The sections of a study's report that answer a question each, from study.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastrl.page import Block, Plot, Table, Text
from fastrl.study.page_rows import (
    BASE,
    Study,
    arms_of,
    means,
    of_model,
    plain_models,
    point,
    signed,
    way_of_sampling,
)
from fastrl.study.tables import points, share


def predictions(study: Study) -> Iterator[Block]:
    """What the base's samples said of each arm, beside what was measured."""
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
            means(
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
        means(
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
                *(signed(found[k]) if found[k] else "" for k in ("covariance", "correlation")),
                share(found["accuracy"]),
            ]
            for m, found in study["models"].items()
        ],
        note="The covariance is the slope of the accuracy of p^alpha / Z in alpha, at 1: its sign"
        " is that of what a little sharpening gains.",
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


def more_samples(study: Study) -> Iterator[Block]:
    """pass@k and maj@k of the base and of every arm."""
    for model in plain_models(study):
        base = study["models"][model]
        named = (
            ("pass", "pass@k: one of k is right"),
            ("maj", "maj@k: the most frequent answer of k is right"),
        )
        for key, title in named:
            curves = [("base", base[key], BASE)]
            curves += [(r["arm"], r["last"][key], r["arm"]) for r in arms_of(study, model)]
            yield Plot(
                title + of_model(study, model),
                "k",
                "share of prompts",
                [
                    means(
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
                note="A policy has k up to the samples that were drawn of it.",
            )


def sampling_alone(study: Study) -> Iterator[Block]:
    """What the base gives without training, by the tokens that it takes."""
    for model in plain_models(study):
        rows = [row for row in study["baselines"] if row["model"] == model]
        if not rows:
            continue
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            kinds.setdefault(way_of_sampling(row), []).append(row)
        series = [
            means(
                kind,
                [row["tokens"]["mean"] for row in some],
                [row["accuracy"] for row in some],
                group=kind,
                labels=[row["label"] for row in some],
            )
            for kind, some in kinds.items()
        ]
        series.append(point("base", study["models"][model], BASE))
        series += [point(row["arm"], row["last"], row["arm"]) for row in arms_of(study, model)]
        yield Plot(
            "Accuracy and the tokens of an answer" + of_model(study, model),
            "tokens generated for an answer",
            "accuracy",
            series,
            log_x=True,
            y_percent=True,
            note="Best and majority of k have as many samples as power sampling has tokens.",
        )
        yield Table(
            "Without training" + of_model(study, model),
            ("how", "accuracy, %", "gain, points", "tokens", "accepted"),
            [
                [
                    row["label"], share(row["accuracy"]), points(row["gain"]),
                    round(row["tokens"]["mean"], 1),
                    f"{100 * row['acceptance']:.0f} %" if "acceptance" in row else "",
                ]
                for row in rows
            ],
            row_groups=[way_of_sampling(row) for row in rows],
        )  # fmt: skip


def by_difficulty(study: Study) -> Iterator[Block]:
    """Accuracy for each kind of prompt."""
    for model in plain_models(study):
        base = study["models"][model]
        kinds = list(base["by_difficulty"])
        if not kinds:
            continue
        curves = [("base", base, BASE)]
        curves += [(row["arm"], row["last"], row["arm"]) for row in arms_of(study, model)]
        yield Plot(
            "Accuracy by kind of prompt" + of_model(study, model),
            "",
            "accuracy",
            [
                means(
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


def new_skills(study: Study) -> Iterator[Block]:
    """What is solved of the prompts that the base never solved."""
    rows = [row for row in study["arms"] if row["last"]["skills"].get("prompts")]
    for model in plain_models(study):
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


def other_words(study: Study) -> Iterator[Block]:
    """How far answers depend on the words of the question."""
    for model in plain_models(study):
        base = study["models"][model]
        found = [("base", base, BASE)] if base.get("wording") else []
        found += [
            (r["arm"], r["last"], r["arm"]) for r in arms_of(study, model) if r["last"]["wording"]
        ]
        if not found:
            continue
        names = list(found[0][1]["wording"]["accuracy"])
        for key, title in (
            ("accuracy", "Greedy accuracy in other words"),
            ("flipped_by", "Answers that change with the words"),
        ):
            yield Plot(
                title + of_model(study, model),
                "",
                "accuracy" if key == "accuracy" else "share of prompts",
                [
                    means(
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
            "Over all wordings" + of_model(study, model),
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


def perturbed(study: Study) -> Iterator[Block]:
    """What becomes of the arms from a model with noise in its weights."""
    rows, kept = [], []
    for model in study["models"]:
        name, noisy, noise = model.partition("~")
        if not noisy or name not in study["models"]:
            continue
        pairs = [("base", study["models"][name], study["models"][model])]
        plain = {row["arm"]: row for row in arms_of(study, name)}
        pairs += [
            (row["arm"], plain[row["arm"]]["last"], row["last"])
            for row in arms_of(study, model)
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
