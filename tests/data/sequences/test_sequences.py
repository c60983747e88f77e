"""Recall, text, needle and series: what a batch holds, and that seed and index alone decide it."""

import gzip
import os
from pathlib import Path

import pytest
import torch

from pyro_memory.data import (
    CHARACTERS,
    CharacterText,
    NeedleTasks,
    RecallTasks,
    Series,
    TextBatches,
    load_series,
    load_text,
)

TEXT = CharacterText(load_text(), extra=CHARACTERS)
RAMP = Series(torch.stack([torch.arange(100.0), -2 * torch.arange(100.0)], -1), ("up", "down"), (60, 80, 100))


@pytest.mark.parametrize("gap", [None, 0, 7])
def test_every_key_is_asked_once_and_its_answer_is_the_value_it_came_with(gap):
    tokens, answers = RecallTasks(pairs=4, length=30, vocabulary=40, batch=50, gap=gap)[3]
    assert tokens.shape == answers.shape == (50, 30)
    assert (answers.sum(-1) == 4).all()
    for row, known in zip(tokens, answers, strict=True):
        pairs = dict(row[:8].reshape(4, 2).tolist())
        assert len(pairs) == 4
        at = known.nonzero().flatten()
        assert {int(k): int(v) for k, v in zip(row[at - 1], row[at], strict=True)} == pairs
        rest = torch.ones(30, dtype=torch.bool)
        rest[:8] = rest[at] = rest[at - 1] = False
        assert (row[rest] < 8).all()
        assert min(pairs) >= 8
        assert min(pairs.values()) >= 8 + 16
        if gap is not None:
            assert at.tolist() == [8 + gap + 1 + 2 * i for i in range(4)]


def test_questions_stand_anywhere_with_equal_chance():
    tasks = RecallTasks(pairs=1, length=8, batch=6000)
    places = tasks[0][1].nonzero()[:, 1]  # five places: after 2 of the pair, 2 tokens each
    counts = torch.bincount(places, minlength=8)
    assert counts[:3].sum() == 0
    assert (counts[3:] - 1200).abs().max() < 5 * (6000 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: RecallTasks(pairs=4, length=40, seed=seed),
        lambda seed: TEXT.batches("train", length=50, batch=3, seed=seed),
        lambda seed: NeedleTasks(TEXT, length=200, batch=3, seed=seed),
        lambda seed: RAMP.windows("train", past=4, horizon=2, batch=8, seed=seed),
    ],
    ids=["recall", "text", "needle", "series"],
)
def test_a_batch_depends_on_seed_and_index_only(make):
    state = torch.random.get_rng_state()
    first, batches = make(5)[7][0], make(5)
    batches[3]
    assert torch.equal(first, batches[7][0])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first, make(6)[7][0])
    assert not torch.equal(first, make(5)[8][0])


def test_text_becomes_tokens_and_comes_back():
    text = CharacterText("abcab\nba" * 10, extra="z")
    assert text.vocabulary == "\nabcz"
    assert text.decode(text.encode("cab\nz")) == "cab\nz"
    parts = [text.part(split) for split in ("train", "valid", "test")]
    assert "".join(parts) == text.text
    assert [len(part) for part in parts] == [72, 4, 4]
    windows = text.windows("train", length=7)
    assert text.decode(windows.flatten()) == text.part("train")[:70]
    (tokens,) = text.batches("train", length=9, batch=20)[0]
    assert tokens.shape == (20, 9)
    assert all(text.decode(row) in text.part("train") for row in tokens)
    assert TextBatches(torch.arange(5), length=5, batch=1)[0][0].tolist() == [[0, 1, 2, 3, 4]]


def test_the_embedded_text_is_prose():
    assert len(TEXT.text) > 300_000
    assert "The for statement" in " ".join(TEXT.text.replace('"', "").split())


def test_files_are_read_in_order_plain_or_compressed(tmp_path):
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("zwei é".encode()))
    (tmp_path / "a.txt").write_bytes("\ufeffeins".encode())
    (tmp_path / "c.csv").write_text("no text")
    (tmp_path / "d.txt").write_bytes("Genève".encode())
    assert load_text(tmp_path) == "eins\n\nzwei é\n\nGenève"
    assert load_text(tmp_path / "b.txt.gz") == "zwei é"
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"x" * 100)[:-9])
    with pytest.raises(ValueError, match=r"b.txt.gz is damaged or no gzip .* fetch it again"):
        load_text(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"`data_dir` must be a text file or a folder that holds .txt"):
        load_text(tmp_path / "none")


def test_text_in_another_encoding_is_told_and_read_by_its_name(tmp_path):
    whole = "a café, a second café".encode()
    (tmp_path / "cut.txt").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"cut.txt is not in the `encoding` 'utf-8': .* at byte 21, b'\\xc3'"):
        load_text(tmp_path)
    (tmp_path / "cut.txt").write_bytes("Genève".encode("latin-1"))
    with pytest.raises(ValueError, match=r'at byte 3, .* or give its encoding, as encoding="latin-1"'):
        load_text(tmp_path / "cut.txt")
    assert load_text(tmp_path, encoding="latin-1") == "Genève"
    (tmp_path / "cut.txt").write_bytes("Genève".encode("utf-16"))
    assert load_text(tmp_path, encoding="utf-16") == "Genève"
    with pytest.raises(ValueError, match=r"`encoding` must be one that Python knows, .*; got 'utf-9'"):
        load_text(tmp_path, encoding="utf-9")


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0, None])
def test_the_needle_is_planted_at_its_depth_and_asked_for_at_the_end(depth):
    tasks = NeedleTasks(TEXT, length=400, depth=depth, batch=5)
    tokens, answers = tasks[2]
    assert tokens.shape == (5, 400)
    for row, known in zip(tokens, answers, strict=True):
        text = TEXT.decode(row)
        answer = TEXT.decode(row[known])
        assert answer.isdigit()
        assert text.endswith(f"{answer}.")
        first, last = text.index("The secret number of"), text.rindex("The secret number of")
        assert text[last : last + 60] == text[first : first + 60][: len(text) - last]
        hay = text[: first - 1] + text[first + len(text) - last + 1 : last - 1]
        assert hay in tasks.prose
        if depth is not None:
            assert abs((first - 1) / len(hay) - depth) < 0.15
            assert first > 1 or depth == 0


def test_series_are_normalised_by_their_training_part_and_futures_stay_in_their_part():
    up = RAMP.values[:60, 0]
    torch.testing.assert_close(up.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(up.std(correction=0), torch.tensor(1.0))
    torch.testing.assert_close(RAMP.values[:, 1], -RAMP.values[:, 0])
    for split, first, last in (("train", 5, 60), ("valid", 60, 80), ("test", 80, 100)):
        windows = RAMP.windows(split, past=5, horizon=3, batch=4)
        rows = [torch.cat(windows[i], -1) for i in range(len(windows))]
        assert rows[0].shape == (8, 8)
        times = torch.cat(rows)[::2] * RAMP.raw[:60, 0].std(correction=0) + RAMP.raw[:60, 0].mean()
        starts = times[:, 5].round().long().tolist()
        assert starts == list(range(first, last - 2))
        torch.testing.assert_close(times - times[:, :1], torch.arange(8.0).expand(len(times), -1), atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.cat(rows)[1::2], -torch.cat(rows)[::2])


def test_the_embedded_series_loads():
    series = load_series("eeg")
    assert series.values.shape == (800, 4)
    assert series.values.isfinite().all()


def test_a_wrong_or_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*ETTh1.csv"):
        load_series("ETTh1", tmp_path)
    (tmp_path / "ETTh1.csv.gz").write_bytes(gzip.compress(b"date,OT\n2016,1\n"))
    with pytest.raises(ValueError, match=r"ETTh1.csv is damaged or another file; fetch it again from https"):
        load_series("ETTh1", tmp_path)
    (tmp_path / "ETTh1.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="is damaged or no gzip"):
        load_series("ETTh1", tmp_path)


@pytest.mark.skipif(
    not (Path(os.environ.get("PYRO_MEMORY_DATA", "")) / "ett").is_dir() or "PYRO_MEMORY_DATA" not in os.environ,
    reason="PYRO_MEMORY_DATA holds no ett",
)
def test_the_real_series_has_its_usual_windows():
    series = load_series("ETTh1")
    assert series.channels == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    counts = [len(series.windows(s, past=96, horizon=96, batch=1)) for s in ("train", "valid", "test")]
    assert counts == [8449, 2785, 2785]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecallTasks(pairs=0, length=8), "`pairs` must be at least 1; got 0"),
        (lambda: RecallTasks(pairs=4, length=15), r"`length` must be at least 4 \* pairs = 16"),
        (lambda: RecallTasks(pairs=4, length=20, gap=5), r"`gap` must lie in 0 .. length - 4 \* pairs = 4"),
        (lambda: RecallTasks(pairs=9, length=99, vocabulary=24), "`vocabulary` must hold 8 fillers .* 26 in all"),
        (lambda: CharacterText(""), "`text` must hold characters"),
        (lambda: CharacterText("ab", valid=0.6, test=0.5), "`valid` and `test` must be shares"),
        (lambda: CharacterText("ab").encode("abc"), r"`text` must use .*; 'c' are not in it. Name them in `extra`"),
        (lambda: CharacterText("ab").part("dev"), '`split` must be "train", "valid" or "test"; got \'dev\''),
        (lambda: TEXT.windows("valid", length=10**6), "`length` must be at most the .* characters of valid"),
        (lambda: TextBatches(torch.arange(5), length=6, batch=1), r"`length` lie in 1 .. 5"),
        (lambda: NeedleTasks(TEXT, length=50), r"`length` must lie in 81 \.\. "),
        (lambda: NeedleTasks(TEXT, length=200, depth=1.5), "`depth` must lie in 0 .. 1, or be None; got 1.5"),
        (lambda: NeedleTasks(TEXT, length=200, digits=0), "`digits` and `batch` must be at least 1"),
        (lambda: NeedleTasks(CharacterText("a b " * 99), length=100), "are not in it. Name them in `extra`"),
        (lambda: load_series("ETTh9"), "`name` must be one of ETTh1, ETTh2, ETTm1, eeg; got 'ETTh9'"),
        (lambda: RAMP.windows("dev", past=5, horizon=5, batch=1), "`split` must be"),
        (lambda: RAMP.windows("train", past=0, horizon=5, batch=1), "`past`, `horizon` and `batch` must be at least 1"),
        (lambda: RAMP.windows("test", past=5, horizon=21, batch=1), r"must fit into the test part.*got 5 \+ 21"),
        (lambda: RAMP.windows("valid", past=61, horizon=2, batch=1), r"must fit into the valid part"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
