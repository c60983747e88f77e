import gzip
import os

import numpy as np
import pytest
import torch
from conftest import write_idx

from pyro_memory.data import mnist
from pyro_memory.data.sources import VARIABLE

PIXELS = np.random.default_rng(0).integers(256, size=(7, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2], np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files in the form of the official ones, taken for them."""
    monkeypatch.setattr("pyro_memory.data.images.digits.check_content", lambda *_: None)
    for stem in ("train", "t10k"):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", PIXELS)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", LABELS)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_grey_images_are_the_bytes_of_the_file(folder, split):
    data = mnist(split, binary=False, root=folder)
    assert torch.equal(data.images[:, 0], torch.from_numpy(PIXELS))
    assert data.labels.tolist() == LABELS.tolist()
    assert data.class_names == tuple("0123456789")
    assert torch.equal(data[torch.tensor([2])][0, 0], torch.from_numpy(PIXELS[2] / np.float32(255)))


def test_binary_images_have_ink_from_half_the_level_on(folder):
    data = mnist("train", root=folder)
    assert torch.equal(data.images[:, 0], torch.from_numpy((PIXELS / 255 >= 0.5).astype(np.uint8)))
    assert data[torch.arange(7)].unique().tolist() == [0, 1]


def test_members_are_the_images_of_a_class(folder):
    assert [m.tolist() for m in mnist("train", root=folder).members] == [
        [],
        [1, 3],
        [6],
        [0],
        [2],
        [4],
        [],
        [],
        [],
        [5],
    ]


def test_the_variable_names_the_folder_above(folder, monkeypatch, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    folder.rename(above / "mnist")
    monkeypatch.setenv(VARIABLE, str(above))
    assert len(mnist("train")) == 7


@pytest.mark.parametrize("packed", [True, False])
def test_torchvisions_folder_is_read_packed_or_not(folder, tmp_path_factory, packed):
    raw = tmp_path_factory.mktemp("torchvision") / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in folder.glob("*.gz"):
        name, content = (path.name, path.read_bytes()) if packed else (path.stem, gzip.decompress(path.read_bytes()))
        (raw / name).write_bytes(content)
    for root in (raw.parents[1], raw.parent, raw):
        assert torch.equal(mnist("train", root=root).images, mnist("train", root=folder).images)
    if not packed:
        (raw / "t10k-labels-idx1-ubyte").write_bytes(b"cut")
        with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte is damaged or no idx file .*fetch it again"):
            mnist("test", root=raw)


def test_an_unpacked_file_is_the_published_one(tmp_path):
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        write_idx(tmp_path / name, PIXELS if "images" in name else LABELS)
        (tmp_path / name).write_bytes(gzip.decompress((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is damaged or another file: the sha256 .*ubyte.gz"):
        mnist("train", root=tmp_path)


def test_an_unknown_split_is_named(folder):
    with pytest.raises(ValueError, match=r'`split` must be "train" or "test"; got \'background\''):
        mnist("background", root=folder)


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds train-images-idx3-ubyte.gz.*https://"):
        mnist("train", root=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: gzip.decompress(raw),
        lambda raw: gzip.compress(gzip.decompress(raw)[:-1]),
        lambda raw: gzip.compress(b""),
        lambda raw: b"<html>not found</html>",
    ],
    ids=["truncated", "unzipped", "a byte short", "empty", "a web page"],
)
def test_a_damaged_file_is_named_with_the_remedy(folder, damage):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is damaged or no idx file .*fetch it again"):
        mnist("train", root=folder)


def test_other_images_under_the_right_name_are_refused(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", PIXELS)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is damaged or another file: the sha256 "):
        mnist("train", root=tmp_path)


def test_a_file_of_another_kind_of_number_is_refused(folder):
    write_idx(folder / "train-images-idx3-ubyte.gz", PIXELS, kind=13)
    with pytest.raises(ValueError, match="header 0xd03, not 0x803"):
        mnist("train", root=folder)


def test_images_and_labels_must_be_as_many(folder):
    write_idx(folder / "train-labels-idx1-ubyte.gz", LABELS[:5])
    with pytest.raises(ValueError, match="hold 7 images and 5 labels"):
        mnist("train", root=folder)


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder with the real files")
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_the_real_set_has_its_known_size(split, count):
    data = mnist(split)
    assert data.images.shape == (count, 1, 28, 28)
    assert {len(m) > count // 12 for m in data.members} == {True}
