"""Users' data in every form that numbers come in, and what is said of those that cannot be meant."""

import numpy as np
import pytest
import torch

from pyro_memory.data import CharacterText, LabelledImages, Series, TextBatches, glyphs

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


def test_letters_that_a_caller_draws_over_are_whole_at_the_next_call():
    glyphs("evaluation").images.fill_(1)
    assert glyphs("evaluation").images.float().mean() < 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelledImages(BITS[..., None], LABELS), r"\[image, 1, height, width\].* got \[6, 5, 4, 1\].*permute"),
        (lambda: LabelledImages(np.stack([BITS] * 3, 1), LABELS), r"got \[6, 3, 5, 4\]: give one channel of grey"),
        (lambda: LabelledImages(BITS[0], LABELS), r"\[image, 1, height, width\].* got \[5, 4\]$"),
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
        (lambda: LabelledImages(BITS, list("abcabc")), "`labels` must be numbers; got .*'a'.*return_inverse=True"),
        (lambda: LabelledImages(BITS, LABELS, "abc"), "`class_names` must be names, one a class; got the string 'abc'"),
        (lambda: LabelledImages([[0], [0, 1]], [0, 0]), "`images` must be numbers in rows of one length"),
        (lambda: LabelledImages([torch.ones(2, 2), torch.ones(3, 3)], [0, 0]), "`images` must be numbers in rows"),
        (lambda: LabelledImages(torch.ones(2, 2, 2, device="meta"), [0, 0]), "got torch.float32 on the device meta"),
        (lambda: LabelledImages(BITS * 1j, LABELS), "`images` must be numbers; got .*complex"),
        (lambda: Series(changed(WAVE, (17, 1), np.nan), AB, (30, 40, 50)), "got nan at time 17, channel 1"),
        (lambda: Series(changed(WAVE, (3, 0), np.inf), AB, (30, 40, 50)), "got inf at time 3, channel 0"),
        (lambda: Series(changed(WAVE, (49, 0), 1e300), AB, (30, 40, 50)), "got inf at time 49, channel 0"),
        (lambda: Series(changed(WAVE, (..., 1), 0.1), AB, (30, 40, 50)), "vary .*; channel 'b' is 0.1 throughout"),
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
        (lambda: TextBatches([0.5], length=1, batch=1), "`tokens` must be whole numbers .*; token 0 has 0.5"),
        (lambda: TextBatches([[0, 1]], length=1, batch=1), r"`tokens` must be one sequence, .* got shape \[1, 2\]"),
    ],
)  # fmt: skip
def test_the_field_and_the_first_bad_item_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
