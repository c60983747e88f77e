"""Needles: what is hidden where, what is asked, and what counts as its answer."""

import re

import pytest
import torch

from pyro_memory.data import CHARACTERS, CharacterText, NeedleTasks, load_text
from pyro_memory.data.tasks.needle import FILLER

TEXT = CharacterText(load_text(), extra=CHARACTERS)
SHORT = CharacterText("to be or not to be, that is the question. " * 9, valid=0, test=0, extra=CHARACTERS)
SENTENCE = re.compile(r" The secret (?:number|word) of (\w+) is (\w+)\.")


def texts(tasks, index=0):
    """Each text of a batch, with the answers that are marked in it."""
    for row, (tokens, known) in enumerate(zip(*tasks[index], strict=True)):
        text = tasks.text.decode(tokens)
        assert text == tasks.read(index, row)
        yield text, tasks.text.decode(tokens[known])


@pytest.mark.parametrize("kind", ["prose", "filler", "word"])
@pytest.mark.parametrize(("keys", "questions"), [(1, 1), (4, 1), (4, 3), (12, 12)])
def test_every_key_is_planted_once_and_what_is_asked_at_the_end_is_what_was_planted(kind, keys, questions):
    tasks = NeedleTasks(TEXT, length=1100, kind=kind, keys=keys, questions=questions, digits=3, batch=5)
    for text, answer in texts(tasks, 3):
        assert len(text) == 1100
        said = SENTENCE.findall(text)
        planted, asked = dict(said[:keys]), said[keys:]
        assert len(planted) == keys
        assert len(dict(asked)) == questions
        assert answer == "".join(planted[name] for name, _ in asked)
        assert text.endswith("".join(found.group() for found in list(SENTENCE.finditer(text))[keys:]))
        assert {len(a) for a in planted.values()} == {3}


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_depth_is_about_the_needle_that_is_asked_for_last_and_the_others_lie_anywhere(depth):
    tasks = NeedleTasks(TEXT, length=2000, keys=3, questions=2, depth=depth, batch=30)
    others = []
    for text, _ in texts(tasks):
        found = list(SENTENCE.finditer(text))
        places = {match.group(1): match.start() for match in found[:3]}
        place = places.pop(found[-1].group(1))
        assert place == pytest.approx(depth * 1800, abs=130)
        others += places.values()
    assert min(others) < 200
    assert max(others) > 1500


def test_needles_stand_between_words_of_one_piece_of_the_text():
    tasks = NeedleTasks(TEXT, length=900, keys=3, depth=0.3, batch=20)
    for text, _ in texts(tasks):
        hay = SENTENCE.split(text)[::3]
        assert hay[-1] == ""
        # After each needle stands the blank that it brings along.
        assert hay[0] + "".join(part[1:] for part in hay[1:-2]) + hay[-2][1:] in tasks.prose
        assert all(part == " " or part.startswith("  ") for part in hay[1:-1])


def test_filler_repeats_its_sentences_and_takes_no_word_of_the_text():
    tasks = NeedleTasks(SHORT, length=3000, kind="filler", batch=3)
    for text, _ in texts(tasks):
        first, then, last = SENTENCE.split(text)[::3]
        assert last == ""
        assert first + then[1:] in FILLER * 30
    assert not torch.equal(tasks[0][0][0, :200], tasks[0][0][1, :200])


def test_a_word_is_made_of_consonants_and_vowels_in_turn():
    words = [answer for _, answer in texts(NeedleTasks(TEXT, length=200, kind="word", digits=5, batch=200))]
    assert all(re.fullmatch("([^AEIOU][AEIOU]){2}[^AEIOU]", word) and word.isupper() for word in words)
    assert [len({word[i] for word in words}) for i in range(5)] == [20, 5, 20, 5, 20]


def test_a_guess_is_right_as_often_as_chance_says():
    assert NeedleTasks(TEXT, length=200).chance == 1e-4
    assert NeedleTasks(TEXT, length=200, kind="word", digits=3).chance == 1 / 2000
    answers = [answer for _, answer in texts(NeedleTasks(TEXT, length=100, digits=1, batch=3000))]
    share = sum(answer == "7" for answer in answers) / 3000
    assert share == pytest.approx(0.1, abs=5 * (0.09 / 3000) ** 0.5)


def test_a_task_of_one_key_is_drawn_as_it_always_was():
    text = NeedleTasks(SHORT, length=120, digits=2, seed=3).read(5, 1)
    assert (
        text == "o be or not to be, The secret number of Cairo is 68.  that is the question. to b"
        "e or n The secret number of Cairo is 68."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "poem"}, '`kind` must be "prose", "filler" or "word"; got \'poem\''),
        (
            {"keys": 13},
            r"`keys` must lie in 1 \.\. 12, the names there are, and `questions` in 1 \.\. `keys`; got 13 and 1",
        ),
        ({"keys": 2, "questions": 3}, "got 2 and 3"),
        ({"questions": 0}, "got 1 and 0"),
        ({"length": 80, "kind": "filler"}, r"`length` must lie in 81 \.\. any, needles and questions .*; got 80"),
        ({"length": 118, "keys": 2}, r"`length` must lie in 119 \.\. "),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NeedleTasks(TEXT, **({"length": 400} | options))


def test_the_shortest_text_may_be_needles_and_question_alone():
    tasks = NeedleTasks(TEXT, length=119, keys=2, batch=500)
    assert any(not SENTENCE.sub("", text).strip() for text, _ in texts(tasks))
