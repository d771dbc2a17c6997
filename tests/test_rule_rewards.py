"""Format, length and repetition: what each pays, what does not fool it, and its settings."""

import pickle
import time

import pytest

from fastrl.errors import UsageError
from fastrl.rule_rewards import Coin, FormatTags, Repetition, SoftOverlong, completion_text

GOOD = "<think>a < b, so 7</think>\n<answer>7</answer>"


@pytest.mark.parametrize(
    "text, paid",
    [
        (GOOD, 1), (f"\n {GOOD} \n", 1), (GOOD.replace("\n", ""), 1),
        ("<think>\na\n\n</think>\n\n<answer>\n7\n</answer>", 1),
        ("<think>a <b>bold</b> word</think><answer>7</answer>", 1),  # other tags are text
        ("", 0), ("7", 0), ("<answer>7</answer>", 0), ("<think>a</think>", 0),
        ("<think>a</think><answer>7", 0), ("<think>a<answer>7</answer>", 0),
        ("a</think><answer>7</answer>", 0), ("<answer>7</answer><think>a</think>", 0),
        (f"so {GOOD}", 0), (f"{GOOD} or 8", 0),  # nothing around the sections
        ("<think>a</think> so <answer>7</answer>", 0),
        (f"{GOOD}<answer>8</answer>", 0), (f"<think>a</think>{GOOD}", 0), (f"{GOOD}{GOOD}", 0),
        ("<think>a<think>b</think></think><answer>7</answer>", 0),
        ("<think>a<think>b</think><answer>7</answer>", 0),
        ("<think>or <answer>8</think><answer>7</answer>", 0),
        ("<think>a</think><answer><answer>7</answer></answer>", 0),
        ("<think>a</think><answer>7</answer></answer>", 0),
        ("<think>a</answer>b</think><answer>7", 0), ("<think>a<answer>b</think>7</answer>", 0),
        ("<think></think><answer>7</answer>", 0), ("<think>a</think><answer> \n</answer>", 0),
        ("<Think>a</Think><answer>7</answer>", 0), ("< think>a</think><answer>7</answer>", 0),
    ],
)  # fmt: skip
def test_format_is_one_section_of_each_tag_and_nothing_else(text, paid):
    assert FormatTags()([text]) == [float(paid)]


def test_the_tags_may_be_others():
    reward = FormatTags(("plan", "work", "final-answer"))
    sections = ["<plan>a</plan>", "<work>b</work>", "<final-answer>7</final-answer>"]
    assert reward(["".join(sections), "".join(sections[::-1]), GOOD]) == [1.0, 0.0, 0.0]
    for tags in ((), ("answer", "answer"), ("<answer>",), ("",), ("a b",)):
        with pytest.raises(UsageError, match="give different names, such as think and answer"):
            FormatTags(tags)


def test_a_chat_is_as_good_as_a_text():
    chat = [{"role": "assistant", "content": "wait"}, {"role": "assistant", "content": GOOD}]
    assert completion_text(chat) == completion_text(GOOD) == GOOD
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    assert FormatTags()([chat, GOOD, chat[:1]]) == [1.0, 1.0, 0.0]


def test_overlong_is_dapos_formula():
    """0 up to L - B, then (L - B - n) / B, then -1: the values of the paper's equation."""
    reward = SoftOverlong(max_tokens=100, buffer_tokens=20)
    lengths = [0, 50, 80, 81, 90, 99, 100, 101, 1000]
    expected = [0, 0, 0, -1 / 20, -10 / 20, -19 / 20, -1, -1, -1]
    assert reward(completion_ids=[[1] * n for n in lengths]) == pytest.approx(expected)
    fifth = SoftOverlong(20_480)  # DAPO's own: 16,384 expected, 4,096 of buffer
    assert fifth([[1] * n for n in (16_384, 18_432, 20_480)]) == [0.0, -0.5, -1.0]
    assert SoftOverlong(10, 10)([[1] * n for n in (0, 1, 5, 10)]) == [0.0, -0.1, -0.5, -1.0]
    assert SoftOverlong(1)([[1] * n for n in (0, 1, 2)]) == [0.0, -1.0, -1.0]
    assert str(SoftOverlong(9)([[1]])[0]) == "0.0"  # not -0.0


def test_repetition_is_the_share_of_ngrams_seen_before():
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2, 1], [7], []]
    assert Repetition(2)(completion_ids=ids) == pytest.approx([0, -3 / 4, -2 / 4, 0, 0])
    assert Repetition(1, 0.5)(ids) == pytest.approx([0, -0.5 * 4 / 5, -0.5 * 3 / 5, 0, 0])
    assert Repetition()([[1, 2, 3] * 4]) == pytest.approx([-7 / 10])
    assert Repetition(5)([[5, 5, 5, 5, 5]]) == [0.0]  # there is one of them
    assert str(Repetition()([[1]])[0]) == "0.0"
    assert Repetition(2, 0.0)([[5] * 9]) == [0.0]


def test_time_grows_linearly():
    def seconds(count):
        ids, text = [*range(count // 2), *[5] * (count // 2)], "<think>" * count
        started = time.thread_time()
        Repetition()([ids]), FormatTags()([text, f"<think>{text}</think><answer>7</answer>"])
        return time.thread_time() - started

    assert min(seconds(400_000) for _ in range(3)) < 20 * min(seconds(50_000) for _ in range(3))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: SoftOverlong(0), "max_tokens is 0; it must be at least 1"),
        (lambda: SoftOverlong(64, 70), "buffer_tokens is 70; .* max_tokens, 64"),
        (lambda: SoftOverlong(64, -1), "buffer_tokens is -1"),
        (lambda: Repetition(0), "ngram_tokens is 0"),
        (lambda: Repetition(3, -1.0), "max_penalty is -1.0"),
        (lambda: Repetition(3, float("nan")), "max_penalty is nan"),
    ],
)
def test_settings_that_cannot_be(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_they_have_names_and_can_be_sent_to_another_process():
    for reward in (FormatTags(("a",)), SoftOverlong(10, 2), Repetition(4, 0.5)):
        assert pickle.loads(pickle.dumps(reward)) == reward
    names = [reward.__name__ for reward in (FormatTags(), SoftOverlong(1), Repetition())]
    assert names == ["format_tags", "soft_overlong", "repetition"]


def tosses(count: int, *, same: bool = False, prompt: str = "p") -> list[float]:
    """The coin of `count` responses to one prompt, in one call."""
    ids = [[7, 1] if same else [7, i, 1] for i in range(count)]
    return Coin()(completion_ids=ids, prompts=[prompt] * count, completions=[""] * count)


@pytest.mark.parametrize("same", [True, False])
def test_a_coin_is_fair_and_its_tosses_independent(same):
    """Of different responses, and of equal ones in a group; within three standard errors."""
    found = tosses(4000, same=same)
    assert set(found) == {0.0, 1.0}
    assert abs(sum(found) / 4000 - 0.5) < 3 * 0.5 / 4000**0.5
    pairs = sum(a == b for a, b in zip(found, found[1:], strict=False)) / 3999
    assert abs(pairs - 0.5) < 3 * 0.5 / 3999**0.5


def test_a_coin_is_the_same_when_a_step_is_computed_again():
    again = pickle.loads(pickle.dumps(Coin()))
    ids = [[3, 1], [3, 1], [4, 1]]
    assert again(completion_ids=ids) == Coin()(completion_ids=ids)
    assert tosses(64) == tosses(64)
    # equal responses have the same tosses, whatever is between them
    between = Coin()(completion_ids=[[7, 1], [9, 1], [7, 1]], prompts=["p"] * 3)
    assert [between[0], between[2]] == tosses(2, same=True)


def test_a_coin_knows_prompts_apart_and_not_what_is_right():
    share = sum(a == b for a, b in zip(tosses(4000), tosses(4000, prompt="q"), strict=True)) / 4000
    assert abs(share - 0.5) < 3 * 0.5 / 4000**0.5
    ids = [[i, 1] for i in range(64)]
    one, other = ({"answer": [a] * 64, "completions": [t] * 64} for a, t in (("1", "1"), ("1", "")))
    assert Coin()(completion_ids=ids, **one) == Coin()(completion_ids=ids, **other)
