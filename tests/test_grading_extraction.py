"""What the grader takes as the answer of a completion, mode by mode."""

import pytest

from fastrl.grading import grade


def one(completion, gold="7", **options):
    (verdict,) = grade([completion], [gold], **options)
    return verdict


@pytest.mark.parametrize(
    "completion, answer",
    [
        (r"so \boxed{7}.", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{ 7" + "\n}", "7"),
        (r"\boxed {7}", "7"),
        (r"$\boxed{\frac{\sqrt{3}}{2}}$", r"\frac{\sqrt{3}}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x\right\}}", r"\left\{x\right\}"),
        (r"\boxed{1\\}", r"1\\"),  # an escaped backslash escapes no brace
        (r"\boxed 7", "7"),
        (r"\boxed 7.", "7"),
        (r"\boxed -3/4, so", "-3/4"),
        (r"\boxed 1,234 km", "1,234"),
        (r"\boxed{5}, no: \boxed{7}", "7"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{ \fbox{ 5 } }", "5"),
        (r"\boxed{\boxed 5}", "5"),
        (r"\boxed{x=\boxed{5}}", r"x=\boxed{5}"),
        (r"\boxed{\boxed{5}\boxed{6}}", r"\boxed{5}\boxed{6}"),
        (r"\boxed{8 then \boxed{7}", "7"),
        (r"} \{ \boxed{7} {", "7"),
        (r"<think>\boxed{5}</think>\boxed{7}", "7"),
        (r"<think>a</think>\boxed{5}<think>b</think>\boxed{7}", "7"),
        (r"no opening </think>\boxed{7}", "7"),
        ("日本 \\boxed{七\x00七} end", "七\x00七"),
    ],
)
def test_the_answer_is_the_last_complete_box(completion, answer):
    verdict = one(completion)
    assert verdict.answer == answer
    begin, end = verdict.span
    assert completion.encode()[begin:end].decode() == answer


@pytest.mark.parametrize(
    "completion, reason",
    [
        ("the answer is 7", "no_answer"),
        (r"\boxed{7", "truncated"),
        (r"\boxed{7\}", "truncated"),
        (r"\boxed{7} then \boxed{8", "truncated"),  # cut off in what was to be the answer
        (r"\boxed", "no_answer"),
        (r"\boxed x7", "no_answer"),
        (r"\boxed 7x", "no_answer"),  # LaTeX would box the 7 alone
        (r"\boxedly{7}", "no_answer"),
        (r"\\boxed{7}", "no_answer"),  # a line break, then a word
        (r"\boxed{7}</think> I am done", "no_answer"),
        (r"<think>\boxed{7}", "thinking"),
        (r"<think>a</think> <think>\boxed{7}", "thinking"),
        (r"\boxed{}", "empty"),
        ("\\boxed{ \n\t\v}", "empty"),
        (r"\boxed{7} or rather \boxed{}", "empty"),  # no fall-through to the earlier box
        (r"\boxed{7}\boxed{1}\boxed{2}\boxed{3}\boxed{\boxed{}}", "empty"),
    ],
)
def test_where_there_is_no_answer_there_is_a_reason(completion, reason):
    verdict = one(completion)
    assert (verdict.correct, verdict.answer, verdict.span) == (False, None, None)
    assert verdict.reason == reason


def test_more_than_three_values_are_a_shotgun():
    def boxes(*values):
        return one("".join(rf"\boxed{{{v}}}" for v in values))

    assert boxes("1", "2", "7").reason == "correct"
    shotgun = boxes("1", "2", "3", "7")
    assert (shotgun.correct, shotgun.reason, shotgun.answer) == (False, "shotgun", "7")
    assert boxes("1", "1.0", "2/2", "$1$", "2", "7", "7").reason == "correct"  # values, not boxes
    assert boxes("1", "2", "", "7").reason == "correct"
    assert one(r"<think>\boxed{1}\boxed{2}\boxed{3}</think>\boxed{7}").correct


MODE_CASES = [
    ("box_or_anchor", r"The answer is 5, so \boxed{7}", "7"),
    ("box_or_anchor", r"The answer is 7 and \boxed{}", None),  # no fall-through
    ("box_or_anchor", "**Final Answer:** 7", "7"),
    ("box_or_anchor", "Final answer:\n$$7$$\nDone.", "$$7$$"),
    ("box_or_anchor", "The answer is **7**.", "7"),
    ("box_or_anchor", "the answer is $7.5$.", "$7.5$"),
    ("box_or_anchor", "La respuesta es 7.", "7"),
    ("box_or_anchor", "Die Antwort lautet: 7", "7"),
    ("box_or_anchor", "La réponse est 7.", "7"),
    ("box_or_anchor", "答案是7。", "7"),
    ("box_or_anchor", "They answered 7 questions. I like 5.", None),
    ("box_or_anchor", "It is 7.", None),
    ("flexible", "It is 6 or, better, 7.", "7"),
    ("flexible", "so x = -7<|im_end|>", "-7"),
    ("flexible", r"we get $\frac{3}{4}$.", r"\frac{3}{4}"),
    ("flexible", "between 2-7", "7"),
    ("flexible", "about 1,234.5 km", "1,234.5"),
    ("flexible", "no digits", None),
    ("hash4", "5\n#### 6\n#### 7\n", "7"),
    ("hash4", "####  $7.\nmore", "$7"),
    ("hash4", "The answer is 7", None),
    ("choice", "The answer is (B).", "B"),
    ("choice", r"\boxed{\text{B}}", r"\text{B}"),
    ("choice", "A is wrong.\n\n**B**", "B"),
    ("choice", "Of (A) and (B), (A) is wrong.", None),
    ("choice", "Because of this it must be (B).", "B"),
    ("tag", "<answer> 7 </answer>", "7"),
    ("tag", r"<answer>so \boxed{7}</answer>", "7"),
    ("tag", "<think><answer>5</answer></think><answer>7</answer>", "7"),
    ("tag", r"\boxed{7}", None),
]  # fmt: skip


@pytest.mark.parametrize("mode, completion, answer", MODE_CASES)
def test_each_mode_finds_its_answer(mode, completion, answer):
    verdict = one(completion, "7", mode=mode)
    assert verdict.answer == answer
    if answer is not None:
        begin, end = verdict.span
        assert completion.encode()[begin:end].decode() == answer
        assert verdict.correct is (verdict.reason == "correct")


@pytest.mark.parametrize(
    "mode, completion, reason",
    [
        ("box_or_anchor", "The answer is 5. The answer is 6. The answer is 7.", "shotgun"),
        ("hash4", "#### 5\n#### 6\n#### 7", "shotgun"),
        ("choice", "The answer is A. The answer is C. The answer is B.", "shotgun"),
        ("choice", "The answer is B or C.", "hedge"),
        ("choice", r"\boxed{B, C}", "hedge"),
        ("tag", "<answer>5</answer><answer>7</answer>", "shotgun"),
        ("tag", "<answer>7", "truncated"),
        ("tag", "<answer></answer>", "empty"),
        ("tag", "</answer>7<answer>", "no_answer"),
        ("hash4", "####", "empty"),
        ("flexible", "<think>7", "thinking"),
        ("box", r"\boxed{7\text{ or }8}", "hedge"),
    ],
)
def test_each_mode_has_its_reasons(mode, completion, reason):
    assert one(completion, "B" if mode == "choice" else "7", mode=mode).reason == reason


def test_boxes_side_by_side_are_one_list_for_a_gold_that_is_one():
    text = r"The roots are $\boxed{1}$, \boxed{2} and \boxed{3}."
    verdict = one(text, "3,2,1")
    assert (verdict.correct, verdict.answer) == (True, "1, 2, 3")
    begin, end = verdict.span
    assert text[begin:end] == r"1}$, \boxed{2} and \boxed{3"
    assert one(text, "3").answer == "3"  # the last box wins
    four = "".join(rf"\boxed{{{i}}}," for i in range(1, 5))
    assert one(four, "1,2,3,4").correct is True  # one value, no shotgun
    assert one(four, "4").reason == "shotgun"
    assert one(r"\boxed{5} is wrong: \boxed{1},\boxed{2}", "1,2").correct is True
    assert one(r"\boxed{1} then \boxed{2}", "1,2").correct is False  # not side by side
