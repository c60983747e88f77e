"""Two-digit composites and class-incremental streams."""

import numpy as np
import pytest
import torch
from conftest import write_idx

from pyro_memory.data import ClassStream, LabelledImages, digit_pairs, load_images
from pyro_memory.nets import ConvDecoder, SkipPyramid


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Digits that are filled with their number: the training file in even rows, the test file in odd ones."""
    monkeypatch.setattr("pyro_memory.data.images.digits.check_content", lambda *_: None)
    for offset, stem in enumerate(("train", "t10k")):
        labels = np.arange(40, dtype=np.uint8) % 10
        pixels = np.zeros((40, 28, 28), np.uint8)
        pixels[:, offset::2] = (labels * 20 + 5).reshape(-1, 1, 1)
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", pixels)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", labels)
    return tmp_path


def test_pairs_lay_the_digits_of_their_class_side_by_side(folder):
    parts = {
        s: digit_pairs(s, per_class=3, binary=False, root=folder) for s in ("background", "validation", "evaluation")
    }
    assert [p.classes for p in parts.values()] == [64, 16, 20]
    assert len({n for p in parts.values() for n in p.class_names}) == 100
    for split, part in parts.items():
        assert part.shape == (1, 28, 56)
        row = 1 if split == "evaluation" else 0  # the other file's rows are empty
        for image, label in zip(part.images, part.labels, strict=True):
            left, right = divmod(int(part.class_names[label]), 10)
            assert image[0, row, 0] == left * 20 + 5
            assert image[0, row, -1] == right * 20 + 5
            assert not image[0, 1 - row].any()


def test_pairs_are_the_same_for_the_same_seed(folder):
    one, again = (digit_pairs("background", per_class=2, root=folder) for _ in range(2))
    assert torch.equal(one.images, again.images)
    assert one.class_names != digit_pairs("background", per_class=2, seed=1, root=folder).class_names
    assert (
        load_images("digit-pairs", "evaluation", folder).class_names
        == digit_pairs("evaluation", root=folder).class_names
    )


def test_networks_take_images_that_are_not_square(folder):
    data = digit_pairs("validation", per_class=1, root=folder)
    pyramid = SkipPyramid(data.shape, (4, 5))
    decoder = ConvDecoder(data.shape, 3, (4, 5))
    assert decoder(torch.randn(2, 3), pyramid(data[torch.arange(2)])).shape == (2, 1, 28, 56)


def test_bad_pairs_are_refused(folder):
    with pytest.raises(ValueError, match="`split` must be one of background, validation, evaluation; got 'test'"):
        digit_pairs("test", root=folder)
    with pytest.raises(ValueError, match="`per_class` must be at least 1"):
        digit_pairs("background", per_class=0, root=folder)


def data(classes=7, each=8):
    labels = torch.arange(classes).repeat_interleave(each)
    images = torch.zeros(classes * each, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels, torch.arange(each).repeat(classes)
    return LabelledImages(images, labels, tuple(f"class {c}" for c in range(classes)), levels=10)


def test_every_image_is_met_in_one_stage_on_one_side():
    stream = ClassStream(data(), stages=3)
    seen = [
        (int(i[0, 0, 0]), int(i[0, 0, 1]))
        for s in range(3)
        for part in (stream.train(s), stream.held_out(s))
        for i in part.images
    ]
    assert len(seen) == len(set(seen)) == 56
    for s in range(3):
        for part in (stream.train(s), stream.held_out(s)):
            assert all(
                part.class_names[label] == f"class {i[0, 0, 0]}"
                for i, label in zip(part.images, part.labels, strict=True)
            )
        assert len(stream.held_out(s)) == 2 * len(stream.classes[s])
    assert "3 stages of 3+2+2 classes" in repr(stream)
    assert ClassStream(data(), stages=3, shuffle=False).classes[0].tolist() == [0, 1, 2]


def test_a_stage_s_tasks_are_of_its_classes():
    stream = ClassStream(data(), stages=3, seed=4)
    x, support = stream.tasks(1, tasks=2, queries=1, shots=2)[5]
    own = set(stream.classes[1].tolist())
    assert {round(10 * float(v)) for v in x[:, 0, 0, 0, 0]} <= own
    assert {round(10 * float(v)) for v in support.values[:, 0, 0, 0, 0]} <= own


def test_bad_streams_are_refused():
    with pytest.raises(ValueError, match="`stages` must be from 2 to the data's 7 classes; got 8"):
        ClassStream(data(), stages=8)
    with pytest.raises(ValueError, match="`held_out` must leave images on both sides"):
        ClassStream(data(), stages=2, held_out=0.01)
    with pytest.raises(ValueError, match="`stage` must be from 0 to 1; got 2"):
        ClassStream(data(), stages=2).train(2)
