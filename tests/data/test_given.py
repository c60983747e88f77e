"""Users' data in every form that numbers come in, and what is said of those that cannot be meant."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_memory.data import CharacterText, FewShotTasks, LabelledImages, Series, TextBatches, glyphs

BITS = (np.random.default_rng(0).random((6, 5, 4)) < 0.5).astype(np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]
WAVE = np.stack([np.sin(np.arange(50.0)), np.arange(50.0)], -1)
AB = ("a", "b")


def changed(array, at, value):
    array = np.array(array, dtype=float)
    array[at] = value
    return array


@pytest.mark.parametrize("dtype", np.typecodes["AllInteger"] + "?efdg")
def test_images_labels_series_and_tokens_are_taken_in_any_numpy_dtype(dtype):
    data = LabelledImages(BITS.astype(dtype), np.array(LABELS).astype("B" if dtype == "?" else dtype))
    assert torch.equal(data.images[:, 0], torch.from_numpy(BITS))
    assert data.labels.tolist() == LABELS
    assert data.class_names == ("0", "1", "2")
    assert torch.equal(LabelledImages(BITS.astype(dtype).astype(">f4"), LABELS).images, data.images)
    counts = np.arange(2 if dtype == "?" else 8).astype(dtype)
    assert Series(counts, ["a"], [len(counts)] * 3).raw.double().flatten().tolist() == counts.astype(float).tolist()
    assert TextBatches(counts, length=len(counts), batch=1)[0][0].tolist() == [counts.astype(int).tolist()]


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.int8,
        torch.uint16,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.double,
    ],
)
def test_images_and_series_are_taken_in_any_torch_dtype(dtype):
    bits = torch.from_numpy(BITS)
    assert torch.equal(LabelledImages(bits.to(dtype), LABELS).images[:, 0], bits)
    assert torch.equal(LabelledImages(list(bits[:, None].to(dtype)), LABELS).images[:, 0], bits)
    series = Series(bits.flatten().to(dtype), (), (60, 80, 120))
    assert torch.equal(series.raw.double().flatten(), bits.flatten().double())
    assert series.channels == ("0",)


def test_lists_read_only_and_turned_arrays_are_taken():
    still = BITS[::-1]
    still.flags.writeable = False
    for given in (still, still.tolist(), list(still), tuple(still), torch.from_numpy(BITS).flip(0)):
        data = LabelledImages(given, tuple(LABELS), ["a", "b", "c"])
        assert torch.equal(data.images[:, 0], torch.from_numpy(BITS).flip(0))
        assert data.class_names == ("a", "b", "c")
    grey = LabelledImages(BITS * 200.0, LABELS, levels=255)
    assert torch.equal(grey[torch.arange(6)][:, 0], torch.from_numpy(BITS) * 200 / 255)


@pytest.mark.parametrize(
    "give", [list, tuple, np.array, lambda x: np.array(x, object), pd.Series, pd.Index, pd.Categorical]
)
def test_labels_may_be_names(give):
    labels = ["square", "circle", "dot", "square", "circle", "dot"]
    data = LabelledImages(BITS, give(labels))
    assert data.class_names == ("circle", "dot", "square")
    assert data.labels.tolist() == [2, 0, 1, 2, 0, 1]
    ordered = LabelledImages(BITS, give(labels), ["square", "nothing", "circle", "dot"])
    assert ordered.class_names == ("square", "nothing", "circle", "dot")
    assert ordered.labels.tolist() == [0, 2, 3, 0, 2, 3]


def test_categories_of_pandas_keep_their_order_and_unused_ones_are_no_class():
    labels = pd.Series(["s", "m", "l", "s", "m", "l"]).astype(pd.CategoricalDtype(["s", "m", "l", "xl"], ordered=True))
    assert LabelledImages(BITS, labels).class_names == ("s", "m", "l")
    assert LabelledImages(BITS, labels).labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_frames_and_columns_of_pandas_are_taken_as_arrays_are():
    frame = pd.DataFrame(BITS.reshape(6, 20))
    assert torch.equal(LabelledImages(frame.to_numpy().reshape(6, 5, 4), pd.Series(LABELS, dtype="Int64")).labels,
                       torch.tensor(LABELS))  # fmt: skip
    assert torch.equal(TextBatches(pd.Series(LABELS), length=6, batch=1)[0][0][0], torch.tensor(LABELS))
    with pytest.raises(ValueError, match=r"`labels` .*; image 1 has nan"):
        LabelledImages(BITS, pd.Series([0, None, 1, 1, 1, 1], dtype="Int64"))
    with pytest.raises(ValueError, match=r"`raw` must be numbers; .* in column 'day'. Leave it out: frame.drop"):
        Series(pd.DataFrame({"day": ["Mon", "Tue"], "n": [1, 2]}))


def test_images_may_have_three_channels_of_colour():
    colours = np.stack([BITS, 1 - BITS, BITS], 1) * 255
    data = LabelledImages(colours, LABELS, levels=255)
    assert data.shape == (3, 5, 4)
    assert torch.equal(data[torch.tensor([[0, 5]])][0].double(), torch.from_numpy(colours[[0, 5]] / 255))
    assert repr(data) == "LabelledImages(6 images of 3x5x4 in 3 classes)"
    plain = LabelledImages(BITS, LABELS)
    at, seed = torch.arange(6), torch.Generator().manual_seed(1)
    varied, ink = data.varied(at, seed), plain.varied(at, torch.Generator().manual_seed(1))
    assert varied.shape == (6, 3, 5, 4)
    torch.testing.assert_close(varied[:, 0], varied[:, 2])
    torch.testing.assert_close(varied[:, 0], 1 - varied[:, 1])  # the edge goes on where ink would be blank
    assert (ink[:, 0] <= varied[:, 0]).all()
    x, memory = FewShotTasks(data, classes=2, shots=1, targets=4, turned=0.0, varied=1.0)[0]
    assert x.shape == (4, 3, 5, 4)
    assert memory.event_shape == (3, 5, 4)


def test_a_frame_is_a_series_with_its_names_times_and_gaps():
    days = pd.date_range("2024-01-01", periods=10)
    frame = pd.DataFrame({"one": np.arange(10.0), "two": np.arange(10) % 3}, index=days)
    frame.iloc[0, 0] = frame.iloc[4, 0] = frame.iloc[5, 0] = np.nan
    series = Series(frame)
    assert series.channels == ("one", "two")
    assert series.ends == (7, 8, 10)
    assert series.observed[:, 0].tolist() == [False, True, True, True, False, False, True, True, True, True]
    assert series.raw[:, 0].tolist() == [1, 1, 2, 3, 3, 3, 6, 7, 8, 9]
    assert (series.times == days.values).all()
    train = torch.tensor([1.0, 2, 3, 6])
    torch.testing.assert_close(series.values[:, 0], (series.raw[:, 0].float() - train.mean()) / train.std(correction=0))
    assert Series(frame["two"]).channels == ("two",)
    assert repr(series).endswith("parts end at (7, 8, 10), 3 numbers not observed)")


def test_a_constant_channel_is_centred_and_told():
    with pytest.warns(UserWarning, match="channel 'b' is constant in the training part: it is centred and keeps"):
        series = Series(np.stack([np.arange(10.0), [0.1] * 8 + [2.1] * 2], -1), AB, (6, 8, 10))
    torch.testing.assert_close(series.values[:, 1], torch.tensor([0.0] * 8 + [2.0] * 2))


def test_windows_say_which_of_their_numbers_were_observed():
    seen = np.ones((12, 2), bool)
    seen[3, 1] = seen[7, 0] = False
    series = Series(np.stack([np.arange(12.0), np.arange(12.0) ** 2], -1), AB, (8, 10, 12), seen)
    windows = series.windows("train", past=3, horizon=2, batch=2, observed=True)
    past, future, past_seen, future_seen = windows[0]
    assert torch.equal(past_seen, torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]]).bool())
    assert torch.equal(future_seen, torch.tensor([[1, 1], [0, 1], [1, 1], [1, 1]]).bool())
    plain = series.windows("train", past=3, horizon=2, batch=2)[0]
    assert torch.equal(torch.cat([past, future], -1), torch.cat(plain, -1))


def test_letters_that_a_caller_draws_over_are_whole_at_the_next_call():
    glyphs("evaluation").images.fill_(1)
    assert glyphs("evaluation").images.float().mean() < 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelledImages(BITS[..., None], LABELS), r"\[image, channel, height, .* got \[6, 5, 4, 1\].*permute"),
        (lambda: LabelledImages(np.stack([BITS] * 3, -1), LABELS), r"4, 3\]: give images.permute\(0, 3, 1, 2\)$"),
        (lambda: LabelledImages(np.stack([BITS] * 4, -1), LABELS), r"permute\(0, 3, 1, 2\), \[:, :3\] of it"),
        (lambda: LabelledImages(np.stack([BITS] * 4, 1), LABELS), r"leave the transparency out, images\[:, :3\]"),
        (lambda: LabelledImages(np.stack([BITS] * 2, 1), LABELS), r"of 1 or 3 channels.* got \[6, 2, 5, 4\]$"),
        (lambda: LabelledImages(BITS, LABELS, ink="black"), '`ink` must be "dark", "light" or None; got \'black\''),
        (lambda: LabelledImages(BITS[0], LABELS), r"\[image, channel, height, width\].* got \[5, 4\]$"),
        (lambda: LabelledImages(BITS[:0], []), "`images` must hold at least one image"),
        (lambda: LabelledImages(BITS * 255, LABELS), "from 0 to 1; image 0 has 255. Grey levels need levels=255"),
        (lambda: LabelledImages(BITS - 1.0, LABELS), "from 0 to 1; image 0 has -1"),
        (lambda: LabelledImages(BITS * 0.5, LABELS, levels=255), r"from 0 to 255; got at most 1. .*\(images \* 255\)"),
        (lambda: LabelledImages(changed(BITS, 3, 0.5), LABELS), "image 3 has 0.5"),
        (lambda: LabelledImages(changed(BITS, (4, 1), np.nan), LABELS), "image 4 has nan"),
        (lambda: LabelledImages(changed(BITS, 5, -np.inf), LABELS), "image 5 has -inf"),
        (lambda: LabelledImages(BITS, LABELS, levels=256), "`levels` must lie in 1 .. 255"),
        (lambda: LabelledImages(BITS, LABELS[:5]), r"one class for each of 6 images; got shape \[5\]"),
        (lambda: LabelledImages(BITS, np.eye(6)), r"got shape \[6, 6\]: give labels.argmax\(-1\)"),
        (lambda: LabelledImages(BITS, [0, 0, -1, 0, 0, 0]), "`labels` must be .* from 0 to 5; image 2 has -1"),
        (lambda: LabelledImages(BITS, [0, 1, 2, 9, 0, 0], ["abc"]), "`labels` .* from 0 to 0; image 1 has 1"),
        (lambda: LabelledImages(BITS, changed(LABELS, 1, np.nan)), "`labels` .*; image 1 has nan"),
        (lambda: LabelledImages(BITS, np.array([*"abcab", None])), "`labels` .* not both; item 5 is None among names"),
        (lambda: LabelledImages(BITS, list("abcabd"), "abc"), "got the string 'abc'"),
        (lambda: LabelledImages(BITS, list("abcabd"), ["a", "b", "c"]), "among `class_names`; item 5 is 'd'"),
        (lambda: LabelledImages(BITS, ["a", "b"]), r"one class for each of 6 images; got shape \[2\]"),
        (lambda: LabelledImages(BITS, LABELS, "abc"), "`class_names` must be names, one a class; got the string 'abc'"),
        (lambda: LabelledImages([[0], [0, 1]], [0, 0]), "`images` must be numbers in rows of one length"),
        (lambda: LabelledImages([torch.ones(2, 2), torch.ones(3, 3)], [0, 0]), "`images` must be numbers in rows"),
        (lambda: LabelledImages(torch.ones(2, 2, 2, device="meta"), [0, 0]), "got torch.float32 on the device meta"),
        (lambda: LabelledImages(BITS * 1j, LABELS), "`images` must be numbers; got .*complex"),
        (lambda: Series(changed(WAVE, (17, 1), np.nan), AB, (30, 40, 50)), "got nan at time 17, channel 1"),
        (lambda: Series(changed(WAVE, (3, 0), np.inf), AB, (30, 40, 50)), "got inf at time 3, channel 0"),
        (lambda: Series(changed(WAVE, (49, 0), 1e300), AB, (30, 40, 50)), "got inf at time 49, channel 0"),
        (lambda: Series(WAVE, AB, (30, 40, 50), np.ones(50)), r"`observed` must have the shape of `raw`, \[50, 2\]"),
        (lambda: Series(WAVE, AB, (9, 40, 50), np.arange(100).reshape(50, 2) > 19), "'a' has none before time 9"),
        (lambda: Series(WAVE, AB, times=[1, 2]), r"`times` .*, one for each of 50 rows; got int64 of shape \[2\]"),
        (lambda: Series(WAVE, ["a"], (30, 40, 50)), "`channels` must be 2 names, one a channel; got 1"),
        (lambda: Series(WAVE[None], AB, (30, 40, 50)), r"`raw` must be \[time, channel\]; got shape \[1, 50, 2\]"),
        (lambda: Series(WAVE, AB, (30, 40, 51)), "`ends` must be whole numbers from 0 to 50; end 2 has 51"),
        (lambda: Series(WAVE, AB, (30, 20, 50)), r"one after the other; got \(30, 20, 50\)"),
        (lambda: Series(WAVE, AB, (1, 20, 50)), r"2 times at least"),
        (lambda: Series(WAVE, AB, (30, 50)), "`ends` must be three times"),
        (lambda: CharacterText("ab", valid=1.5), "`valid` and `test` must be shares"),
        (lambda: CharacterText("ab", valid=0.4, test=0.4), "leave some text to train on"),
        (lambda: CharacterText("ab").decode([0, 1, -1]), "`tokens` must be .* from 0 to 1; token 2 has -1"),
        (lambda: CharacterText("ab").decode([2]), "token 0 has 2"),
        (lambda: CharacterText("ab").decode([[0, 1]]), r"`tokens` must be one sequence, .* got shape \[1, 2\]"),
        (lambda: TextBatches([0.5], length=1, batch=1), "`tokens` must be whole numbers .*; token 0 has 0.5"),
        (lambda: TextBatches([[0, 1]], length=1, batch=1), r"`tokens` must be one sequence, .* got shape \[1, 2\]"),
    ],
)  # fmt: skip
def test_the_field_and_the_first_bad_item_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
