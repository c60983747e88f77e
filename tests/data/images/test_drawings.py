import importlib
import io
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_memory.data import omniglot
from pyro_memory.data.sources import VARIABLE, cache_dir

real = pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder with the real files")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, empty and the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("pyro_memory.data.kept.cache_dir", lambda: folder)
    return folder


def draw(*key):
    return np.random.default_rng(key).random((105, 105)) < 0.1  # True is ink


def png(ink):
    stream = io.BytesIO()
    Image.fromarray(~ink).save(stream, "png")  # the official files hold ink as black
    return stream.getvalue()


def pack(folder, files, split="background"):
    folder.mkdir(exist_ok=True)
    path = folder / f"images_{split}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"images_{split}/{name}", content)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A zip in the form of the official one, taken for it."""
    monkeypatch.setattr("pyro_memory.data.images.drawings.check_content", lambda *_: None)
    names = [f"{a}/character{c:02d}/{10 * c + d:04d}_{d:02d}.png" for a in "BA" for c in (2, 1) for d in (1, 2, 3)]
    pack(tmp_path / "data", {name: png(draw(i)) for i, name in enumerate(names)})
    return tmp_path / "data"


def test_28_takes_the_rows_and_columns_of_the_floor_formula(folder, cache):
    data = omniglot("background", root=folder)
    rows = [int(i * 105 / 28) for i in range(28)]
    first = draw(9)[rows][:, rows]  # "A/character01", its first drawing
    assert data.shape == (1, 28, 28)
    assert torch.equal(data.images[0, 0], torch.from_numpy(first.astype(np.uint8)))


def test_26_takes_the_maximum_over_blocks_of_four(folder, cache):
    data = omniglot("background", root=folder, size=26)
    ink = torch.from_numpy(draw(9)).float()[None, None, :104, :104]
    assert torch.equal(data[torch.tensor([0])], torch.nn.functional.max_pool2d(ink, 4))


def test_a_class_is_a_character_of_an_alphabet(folder, cache):
    data = omniglot("background", root=folder)
    assert data.class_names == ("A/character01", "A/character02", "B/character01", "B/character02")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_second_reading_comes_from_the_cache_with_the_same_bits(folder, cache, monkeypatch):
    first = omniglot("background", root=folder)
    monkeypatch.setattr("pyro_memory.data.images.drawings._decode", None)
    second = omniglot("background", root=folder)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert first.class_names == second.class_names


def test_without_a_home_there_is_no_cache_and_the_images_are_the_same(folder, monkeypatch):
    def unknown(project):
        raise RuntimeError("could not determine the home directory for '~/.cache'")

    rows = [int(i * 105 / 28) for i in range(28)]
    for os_cache in (unknown, lambda project: f"~/.cache/{project}"):  # newer platformdirs, and older ones
        monkeypatch.setattr("pyro_memory.data.sources.pooch.os_cache", os_cache)
        with pytest.raises(FileNotFoundError, match="there is no home folder for a cache: HOME is not set"):
            cache_dir()
        images = omniglot("background", root=folder).images
        assert torch.equal(images[0, 0], torch.from_numpy(draw(9)[rows][:, rows].astype(np.uint8)))


def test_another_zip_in_the_folder_is_not_served_from_the_cache(folder, cache):
    first = omniglot("background", root=folder)
    pack(folder, {"A/character01/0001_01.png": png(draw(99))})
    assert len(omniglot("background", root=folder)) == 1 < len(first)


def test_sizes_do_not_share_a_cache(folder, cache):
    assert omniglot("background", root=folder).shape != omniglot("background", root=folder, size=26).shape


def test_the_variable_names_the_folder_above(folder, cache, monkeypatch):
    folder.rename(folder.parent / "omniglot")
    monkeypatch.setenv(VARIABLE, str(folder.parent))
    assert len(omniglot("background")) == 12


def test_the_folder_of_all_data_sets_will_do(folder, cache):
    (folder.parent / "all").mkdir()
    folder.rename(folder.parent / "all" / "omniglot")
    assert len(omniglot("background", root=folder.parent / "all")) == 12


@pytest.mark.parametrize("place", ["", "omniglot", "omniglot-py"])
def test_the_folders_that_the_zip_holds_are_the_same_as_the_zip(folder, cache, tmp_path, place):
    zipped = omniglot("background", root=folder)
    inside = tmp_path / "extracted" / place
    with zipfile.ZipFile(folder / "images_background.zip") as archive:
        archive.extractall(inside)
    (inside / "images_background" / "A" / "character01" / "._0001_01.png").write_bytes(b"of a Mac")
    for _ in range(2):  # the second from the cache
        data = omniglot("background", root=tmp_path / "extracted")
        assert torch.equal(data.images, zipped.images)
        assert torch.equal(data.labels, zipped.labels)
        assert data.class_names == zipped.class_names
        assert torch.equal(data.originals(), zipped.originals())
    last = inside / "images_background" / "B" / "character02" / "0023_03.png"
    last.write_bytes(png(draw(99)))
    assert not torch.equal(omniglot("background", root=tmp_path / "extracted").images, zipped.images)
    last.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"images_background is damaged .*fetch it again from https://"):
        omniglot("background", root=tmp_path / "extracted")


def test_torchvisions_zip_is_found(folder, cache):
    (folder / "omniglot-py").mkdir()
    (folder / "images_background.zip").rename(folder / "omniglot-py" / "images_background.zip")
    assert len(omniglot("background", root=folder)) == 12


FIVE = ("Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG")


@pytest.fixture
def both(tmp_path, folder):
    """The zip of the folder and one for evaluation, with a letter of two drawings of each of seven alphabets."""
    alphabets = ["Angelic", *FIVE, "ULOG_2"]
    files = [f"{a}/character01/{i:04d}_{d:02d}.png" for i, a in enumerate(alphabets) for d in (1, 2)]
    pack(folder, {name: png(draw(100, i)) for i, name in enumerate(files)}, "evaluation")
    return folder


def test_45_5_holds_out_five_alphabets_and_trains_on_the_rest_of_both_zips(both, cache):
    train, test = (omniglot(s, size=26, alphabets="45-5", root=both) for s in ("background", "evaluation"))
    first, rest = (omniglot(s, size=26, root=both) for s in ("background", "evaluation"))
    assert test.class_names == tuple(f"{a}/character01" for a in FIVE)
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert torch.equal(test.images, rest.images[2:12])
    assert train.class_names == (*first.class_names, "Angelic/character01", "ULOG_2/character01")
    assert train.labels.tolist() == [*first.labels.tolist(), 4, 4, 5, 5]
    assert torch.equal(train.images, torch.cat([first.images, rest.images[:2], rest.images[12:]]))


def test_divisions_share_a_cache_and_do_not_mix(both, cache, monkeypatch):
    splits = [(s, a) for s in ("background", "evaluation") for a in ("official", "45-5")]
    read = lambda: [omniglot(s, alphabets=a, root=both) for s, a in splits]  # noqa: E731
    once = read()
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr("pyro_memory.data.images.drawings._decode", None)
    assert [len(data) for data in once] == [12, 16, 14, 10]
    for one, other in zip(once, read(), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.class_names == other.class_names


def test_45_5_is_redrawn_from_its_own_large_drawings(both, cache):
    rows = [int(i * 105 / 28) for i in range(28)]
    for split in ("background", "evaluation"):
        data = omniglot(split, alphabets="45-5", root=both)
        assert torch.equal(data.originals()[:, :, rows][..., rows], data.images)


def test_45_5_needs_both_zips_to_train_and_one_to_test(both, cache):
    (both / "images_background.zip").unlink()
    assert omniglot("evaluation", alphabets="45-5", root=both).classes == 5
    with pytest.raises(FileNotFoundError, match=r"`root` must be a folder that holds images_background.zip"):
        omniglot("background", alphabets="45-5", root=both)


def test_an_unknown_division_is_named():
    message = r'`alphabets` must be "official" \(30 .* 20 .*\) or "45-5" \(45 and 5\); got \'5-45\''
    with pytest.raises(ValueError, match=message):
        omniglot("background", alphabets="5-45")


def test_an_unknown_split_or_size_is_named():
    with pytest.raises(ValueError, match=r'`split` must be "background" or "evaluation"; got \'train\''):
        omniglot("train")
    with pytest.raises(ValueError, match=r"`size` must be 28 .* or 26 .*; got 32"):
        omniglot("background", size=32)


def test_a_missing_zip_is_named_with_where_to_get_it(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match=r"`root` must be a folder that holds images_background.zip.*https://"):
        omniglot("background", root=tmp_path)


def test_a_truncated_zip_is_an_error_and_leaves_nothing(folder, cache):
    path = folder / "images_background.zip"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"images_background.zip is damaged or no zip .*fetch it again from https://"):
        omniglot("background", root=folder)
    assert not list(cache.rglob("*"))


def test_a_zip_without_drawings_is_an_error_and_leaves_nothing(tmp_path, cache):
    pack(tmp_path / "data", {"readme.txt": b"nothing"})
    with pytest.raises(ValueError, match=r"images_background.zip holds no drawings"):
        omniglot("background", root=tmp_path / "data")
    assert not list(cache.rglob("*"))


def test_drawings_of_another_size_are_an_error(tmp_path, cache):
    pack(tmp_path / "data", {"A/character01/0001_01.png": png(draw(0)[:28, :28])})
    with pytest.raises(ValueError, match=r"must hold drawings of 105x105; .*0001_01.png is \(28, 28\)"):
        omniglot("background", root=tmp_path / "data")


def test_an_interrupted_write_leaves_no_partial_cache(folder, cache, monkeypatch):
    def interrupt(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        omniglot("background", root=folder)
    assert not list(cache.iterdir())


class Told(Exception):
    """A ValueError that names the file."""


def told(path, read):
    try:
        return read()
    except ValueError as error:
        raise (Told if str(path) in str(error) else AssertionError)(str(error)) from error


def inverted(folder):
    """The same files, ink for paper."""
    names = [f"A/character01/{d:04d}_{d:02d}.png" for d in (1, 2, 3)]
    return pack(folder, {name: png(~draw(i)) for i, name in enumerate(names)})


def test_other_drawings_under_the_right_name_are_refused(tmp_path, cache):
    inverted(tmp_path / "data")
    with pytest.raises(ValueError, match=r"images_background.zip is damaged or another file: the sha256 .*https://"):
        omniglot("background", root=tmp_path / "data")
    assert not list(cache.rglob("*"))


def test_every_cut_or_flipped_zip_is_the_published_one_or_a_clear_error(folder, cache):
    path, random = folder / "images_background.zip", np.random.default_rng(0)
    whole, good = path.read_bytes(), omniglot("background", root=folder)
    for trial in range(150):
        content = bytearray(whole)
        content[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(content if trial % 3 else whole[: random.integers(len(whole))])
        with suppress(Told):
            found = told(path, lambda: omniglot("background", root=folder))
            assert found.shape == good.shape  # a byte that says nothing, as a date


def no_home(monkeypatch):
    def raises():
        raise FileNotFoundError("no home")

    monkeypatch.setattr("pyro_memory.data.kept.cache_dir", raises)


def read_only(monkeypatch):
    def refuses(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("pyro_memory.data.kept.replace_file", refuses)


def a_file(monkeypatch):
    monkeypatch.setattr("pyro_memory.data.kept.cache_dir", lambda: Path(__file__))


@pytest.mark.parametrize("broken", [no_home, read_only, a_file])
def test_without_a_cache_the_zip_is_enough(folder, cache, monkeypatch, broken):
    broken(monkeypatch)
    assert len(omniglot("background", root=folder)) == 12
    assert len(omniglot("background", root=folder)) == 12


def test_a_damaged_cache_is_made_anew(folder, cache):
    good, random = omniglot("background", root=folder), np.random.default_rng(0)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for trial in range(60):
        content = bytearray(whole)
        content[random.integers(len(whole))] ^= 1 << random.integers(8)
        kept.write_bytes(content if trial % 3 else whole[: random.integers(len(whole))])
        again = omniglot("background", root=folder)
        assert torch.equal(again.images, good.images)
        assert torch.equal(again.labels, good.labels)
        assert again.class_names == good.class_names
    kept.write_bytes(b"")
    omniglot("background", root=folder)
    assert kept.read_bytes() == whole


@real
@pytest.mark.parametrize(("split", "classes"), [("background", 964), ("evaluation", 659)])
def test_the_real_set_has_twenty_drawings_of_each_letter(split, classes, cache):
    data = omniglot(split)
    assert data.classes == classes
    assert {len(members) for members in data.members} == {20}


@real
@pytest.mark.parametrize(("size", "fraction"), [(28, 0.084), (26, 0.143)])
def test_the_real_set_has_the_known_fraction_of_ink(size, fraction, cache):
    assert abs(omniglot("evaluation", size=size).images.float().mean().item() - fraction) < 5e-4


@real
@pytest.mark.parametrize(
    ("split", "alphabets", "letters", "ink"), [("background", 45, 1479, 0.139), ("evaluation", 5, 144, 0.126)]
)
def test_the_real_45_5_has_the_published_letters_and_ink(split, alphabets, letters, ink, cache):
    data = omniglot(split, size=26, alphabets="45-5")
    assert len({name.partition("/")[0] for name in data.class_names}) == alphabets
    assert data.classes == letters
    assert {len(members) for members in data.members} == {20}
    assert abs(data.images.float().mean().item() - ink) < 5e-4


def test_redrawn_letters_come_from_the_large_drawings(folder, cache, monkeypatch):
    data, images = omniglot("background", root=folder), importlib.import_module("pyro_memory.data.images.labelled")
    maps, every = images.smooth_maps, torch.arange(len(data))
    monkeypatch.setattr(images, "smooth_maps", lambda noise, *size: maps(0 * noise, *size))
    assert torch.equal(data.varied(every, torch.Generator()), data[every])  # a map that moves nothing

    def a_row_down(noise, height, width):
        grid = maps(0 * noise, height, width)
        grid[..., 1] += 2 / 105 * noise.any()  # not where it is asked for the map that moves nothing
        return grid

    monkeypatch.setattr(images, "smooth_maps", a_row_down)
    rows = [int(i * 105 / 28) for i in range(28)]
    first = draw(9)[[r + 1 for r in rows]][:, rows]
    assert torch.equal(data.varied(every[:1], torch.Generator())[0, 0], torch.from_numpy(first.astype(np.float32)))
    assert data.varied(every.reshape(3, 4), torch.Generator()).shape == (3, 4, 1, 28, 28)
