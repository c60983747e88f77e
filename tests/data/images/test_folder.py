"""A folder of images as people have it: of all sizes and kinds, with what else lies about there."""

import codecs
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pyro_memory.data import FewShotTasks, LabelledImages, image_folder
from pyro_memory.data.images import folder as module
from pyro_memory.data.images.reading import read_image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache, empty and the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("pyro_memory.data.kept.cache_dir", lambda: folder)
    return folder


def drawn(kind, size=(40, 40), ink=0, paper=255):
    """A ring or a cross, in ink on paper."""
    image = Image.new("L", size, paper)
    pen, (w, h) = ImageDraw.Draw(image), size
    if kind == "ring":
        pen.ellipse([w * 0.25, h * 0.25, w * 0.75, h * 0.75], outline=ink, width=max(2, w // 10))
    else:
        pen.line([w * 0.2, h * 0.2, w * 0.8, h * 0.8], fill=ink, width=max(2, w // 10))
        pen.line([w * 0.2, h * 0.2, w * 0.8, h * 0.2], fill=ink, width=max(2, w // 10))
    return image


def kinds(image):
    """The same image in all ways to keep it."""
    shape = image.point(lambda level: 255 - level)
    clear = Image.new("RGBA", image.size, (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), mask=shape.convert("1"))
    deep = np.asarray(image).astype(np.uint16) * 256 + 37
    return {
        "1.png": (image.convert("1"), {}),
        "L.PNG": (image, {}),
        "rgb.bmp": (image.convert("RGB"), {}),
        "cmyk.jpg": (image.convert("CMYK"), {"quality": 95}),
        "palette.gif": (image.convert("P"), {}),
        "palette with transparency.png": (clear.quantize(4), {}),
        "transparent level.png": (image, {"transparency": 255}),
        "la.png": (Image.merge("LA", (Image.new("L", image.size, 0), shape)), {}),
        "rgba.png": (clear, {}),
        "16.png": (Image.fromarray(deep), {}),
        "16.tif": (Image.fromarray(deep), {}),
        "32.tif": (Image.fromarray(deep.astype(np.int32)), {}),
    }


def fill(root, classes=("ring", "cross"), count=4, **options):
    for kind in classes:
        (root / kind).mkdir(parents=True)
        for i in range(count):
            drawn("ring" if "ring" in kind else "cross", **options).save(root / kind / f"{i}.png")
    return root


def test_the_same_drawing_is_the_same_image_in_whatever_way_it_is_kept(tmp_path):
    (tmp_path / "in" / "ring").mkdir(parents=True)
    (tmp_path / "in" / "other").mkdir()
    for name, (image, options) in kinds(drawn("ring")).items():
        image.save(tmp_path / "in" / "ring" / name, **options)
    drawn("cross").save(tmp_path / "in" / "other" / "a.png")
    for junk in (".DS_Store", "Thumbs.db", "notes.txt", "._L.PNG"):
        (tmp_path / "in" / "ring" / junk).write_bytes(b"no image")
    (tmp_path / "in" / ".hidden").mkdir()
    (tmp_path / "in" / ".hidden" / "a.png").write_bytes(b"no image")
    data = image_folder(tmp_path / "in", size=20)
    assert data.class_names == ("other", "ring")
    assert data.ink == "dark"
    rings = data.images[data.labels == 1]
    assert len(rings) == 12
    assert 0.05 < rings[0].float().mean() < 0.3
    assert torch.equal(rings, rings[:1].expand_as(rings))
    assert repr(data) == "LabelledImages(13 images of 20x20 in 2 classes, dark ink)"


def test_ink_is_found_whether_dark_or_light_and_grey_levels_count_it(tmp_path):
    fill(tmp_path / "dark")
    fill(tmp_path / "light", ink=255, paper=0)
    dark, light = (image_folder(tmp_path / name) for name in ("dark", "light"))
    assert (dark.ink, light.ink) == ("dark", "light")
    assert torch.equal(dark.images, light.images)
    dark, light = (image_folder(tmp_path / name, colour="grey") for name in ("dark", "light"))
    assert dark.levels == 255
    assert (dark.images.int() - light.images.int()).abs().max() <= 1
    assert dark.images[0, 0, 0, 0] == 0


def test_pencil_on_grey_paper_is_ink_too(tmp_path):
    fill(tmp_path / "pencil", ink=140, paper=210)
    fill(tmp_path / "pen")
    pencil, pen = (image_folder(tmp_path / name).images for name in ("pencil", "pen"))
    assert torch.equal(pencil, pen)
    assert image_folder(tmp_path / "pencil", colour="grey").images[0, 0, 0, 0] == 255 - 210


def test_shrinking_takes_the_mean_of_areas(tmp_path):
    levels = np.random.default_rng(0).integers(256, size=(12, 12), dtype=np.uint8)
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.fromarray(levels).save(tmp_path / "in" / "a" / "a.png")
    grey = image_folder(tmp_path / "in", size=4, colour="grey", ink="light").images[0, 0]
    means = levels.reshape(4, 3, 4, 3).mean((1, 3))
    assert np.abs(grey.numpy() - means).max() <= 1


@pytest.mark.filterwarnings("ignore:.*less than 32 of 255 levels")  # of the one that is all ink
def test_the_aspect_is_kept_and_the_rest_is_paper(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.new("L", (40, 20), 60).save(tmp_path / "in" / "a" / "wide.png")
    wide = Image.new("L", (40, 20), 200)
    ImageDraw.Draw(wide).rectangle([2, 2, 37, 17], fill=60)  # most of it is ink
    wide.save(tmp_path / "in" / "a" / "b.png")
    grey = image_folder(tmp_path / "in", size=20, colour="grey", ink="dark").images[:, 0]
    assert (grey[1] == 195).all()
    assert (grey[0, :5] == 55).all()
    assert (grey[0, 15:] == 55).all()
    assert (grey[0, 8:12, 3:17] == 195).all()
    assert image_folder(tmp_path / "in", size=(10, 30), colour="grey", ink="dark").shape == (1, 10, 30)


def test_photos_are_shown_upright(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x112] = 6  # a quarter clockwise makes it upright
    drawn("cross").rotate(90).save(tmp_path / "in" / "a" / "turned.jpg", exif=turned, quality=95)
    drawn("cross").save(tmp_path / "in" / "a" / "upright.jpg", quality=95)
    one, other = image_folder(tmp_path / "in").images
    assert torch.equal(one, other)


def test_colours_are_kept_and_what_is_transparent_is_white(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    red = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    red.paste((200, 10, 30, 255), (0, 0, 8, 4))
    red.save(tmp_path / "in" / "a" / "a.png")
    data = image_folder(tmp_path / "in", size=8, colour="colour")
    assert (data.shape, data.levels, data.ink) == ((3, 8, 8), 255, None)
    assert data.images[0, :, 0, 0].tolist() == [200, 10, 30]
    assert data.images[0, :, 7, 7].tolist() == [255, 255, 255]
    assert repr(data) == "LabelledImages(1 images of 3x8x8 in 1 classes)"


def test_classes_are_nested_folders_and_numbers_are_in_order(tmp_path):
    fill(tmp_path / "nested", ("Greek/ring", "Greek/cross", "Latin/ring"))
    assert image_folder(tmp_path / "nested").class_names == ("Greek/cross", "Greek/ring", "Latin/ring")
    fill(tmp_path / "numbers", ("10", "9", "1"))
    assert image_folder(tmp_path / "numbers").class_names == ("1", "9", "10")
    fill(tmp_path / "flat", ("",))
    assert image_folder(tmp_path / "flat").class_names == ("flat",)


def test_splits_are_of_classes_and_stay_where_others_are_added(tmp_path, monkeypatch):
    names = [f"ring{i}" for i in range(12)]
    fill(tmp_path / "in", names, count=2)
    train, test = (image_folder(tmp_path / "in", split=s) for s in ("background", "evaluation"))
    assert (train.classes, test.classes) == (9, 3)
    assert {*train.class_names} | {*test.class_names} == {*names}
    walk = os.walk
    backwards = lambda *a, **k: ((d, inner, files[::-1]) for d, inner, files in reversed(list(walk(*a, **k))))  # noqa: E731
    monkeypatch.setattr(os, "walk", backwards)
    again = image_folder(tmp_path / "in", split="evaluation", cache=False)
    assert again.class_names == test.class_names
    assert torch.equal(again.images, test.images)
    other = [image_folder(tmp_path / "in", split="evaluation", seed=s).class_names for s in range(5)]
    assert len(set(other)) > 1
    fill(tmp_path / "in", ["ring99"], count=2)
    more = image_folder(tmp_path / "in", split="evaluation").class_names
    assert len({*more} & {*test.class_names}) >= 2
    assert len(image_folder(tmp_path / "in", split="evaluation", evaluation=0.5)) == 2 * round(0.5 * 13)
    FewShotTasks(train, classes=2, shots=1, targets=3)[0]


ROWS = (("ring/0.png", "yes"), ("ring/1.png", "yes"), ("cross/0.png", "no"), ("cross/1.png", "no"))
EXCEL = [
    "id;Image;Größe;Class",
    "1;ring\\0.png;3,5;yes",
    "2;ring\\1.png;1;yes",
    "3;cross\\0.png;;no",
    "4;./cross/1.png;9;no",
]
TABLES = {
    "titles": "\n".join(["label,file", *(f"{label},{file}" for file, label in ROWS)]).encode(),
    "no titles": "\n".join(map(",".join, ROWS)).encode(),
    "Excel": codecs.BOM_UTF8 + "\r\n".join([*EXCEL, "", ""]).encode(),
    "tabs in UTF-16": "\r\n".join(map("\t".join, [("path", "label"), *ROWS])).encode("utf-16"),
    "no suffix": "\n".join(["name,what", *(f'"{file[:-4]}",{label}' for file, label in ROWS)]).encode(),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_gives_the_labels(tmp_path, table):
    fill(tmp_path / "in", count=2)
    (tmp_path / "in" / "labels.csv").write_bytes(TABLES[table])
    data = image_folder(tmp_path / "in", labels="labels.csv")
    assert data.class_names == ("no", "yes")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(image_folder(tmp_path / "in", labels=tmp_path / "in" / "labels.csv").labels, data.labels)


def test_a_table_may_name_files_without_their_folder(tmp_path):
    (tmp_path / "in" / "images").mkdir(parents=True)
    for i, kind in enumerate(["ring", "cross"]):
        drawn(kind).save(tmp_path / "in" / "images" / f"{i}.png")
    (tmp_path / "table.csv").write_text("file,label\n0.png,ring\n1.png,cross\n")
    assert image_folder(tmp_path / "in", labels=tmp_path / "table.csv").class_names == ("cross", "ring")
    (tmp_path / "table.csv").write_text("id,breed\n0,ring\n1,cross\n")
    assert image_folder(tmp_path / "in", labels=tmp_path / "table.csv").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "file,label\nring/0.png,a\nring/9.png,a\n",
            r"`labels` .*'ring/9.png' in line 3 of .* is no image in",
        ),
        ("file,label\n0.png,a\n", r"'0.png' in line 2 of .* fits 2 files, as cross/0.png. Mend the line"),
        ("file,label\nring/0.png,a\n", r"label every image .*; 1 of 2 have no line in .*csv, the first is cross/0.png"),
        ("file,label\nring/0.png,a\nring/0.png,b\n", r"one label a file; .* gives ring/0.png 'a', and 'b' in line 3"),
        ("file,label\nring/0.png,\n", r"a file and its label in each line; line 2 of .* is \['ring/0.png', ''\]. Mend"),
        ("ring/0.png\ncross/0.png\n", r"a column of files and one of labels, .* begins with \['ring/0.png'\]"),
        ("", r"begins with nothing"),
        (b"file,label\nring/0.png,\xff\n", r"must be text in UTF-8; byte 22 is not .*Save it so"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path, table, message):
    fill(tmp_path / "in", count=1)
    (tmp_path / "in" / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(ValueError, match=message):
        image_folder(tmp_path / "in", labels="labels.csv")


def test_images_that_look_otherwise_are_told_and_read_like_the_others(tmp_path):
    fill(tmp_path / "in")
    drawn("ring", ink=255, paper=0).save(tmp_path / "in" / "ring" / "9.png")
    with pytest.warns(UserWarning, match=r'1 of 9 images look .* not dark, the first is ring/9.png; .* ink="dark"'):
        data = image_folder(tmp_path / "in")
    assert data.images[-1].float().mean() > 0.5
    assert len(image_folder(tmp_path / "in", ink="dark")) == 9


def test_blank_images_are_told(tmp_path):
    fill(tmp_path / "in")
    noise = np.random.default_rng(0).integers(240, 250, size=(40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "ring" / "9.png")
    with pytest.warns(UserWarning, match=r"1 of 9 images have no ink, the first is ring/9.png: they are of one level"):
        assert image_folder(tmp_path / "in").images[-1].sum() == 0


def damage(root):
    path = root / "ring" / "2.png"
    path.write_bytes(path.read_bytes()[:60])


def beside(root):
    drawn("ring").save(root / "preview.png")


def parts(root):
    (root / "ring").rename(root / "Train")
    (root / "cross").rename(root / "test")


def floats(root):
    Image.fromarray(np.ones((4, 4), np.float32)).save(root / "ring" / "0.tif")


def halves(root):
    for path in root.glob("ring/*.png"):
        drawn("ring", ink=255, paper=0).save(path)


def others(root):
    for path in root.rglob("*.png"):
        path.rename(path.with_suffix(".heic"))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (damage, {}, r"ring/2.png is damaged or no image that can be read \(.+\). Replace it, or move it out"),
        (floats, {}, r"ring/0.tif is damaged .* \(its pixels are no levels of 8 or 16 bits: save it as PNG\)"),
        (beside, {}, r"`path` must hold images in a sub-folder .*; 1 lie beside .* first is preview.png. .*`labels`"),
        (parts, {}, r"`path` must be a folder of classes; .* holds parts, Train, test, .*image_folder\('.*/Train'\)"),
        (halves, {}, r'`ink` cannot be found: 4 images each, as cross/0.png and ring/0.png look .*ink="light"'),
        (others, {}, r"holds only others: 8 .heic. Convert them to PNG"),
        (None, {"split": "train"}, r'`split` must be None or "background" or "evaluation"; got \'train\''),
        (None, {"colour": "rgb"}, r'`colour` must be "binary" or "grey" or "colour"; got \'rgb\''),
        (None, {"ink": "black"}, r'`ink` must be "found" or "dark" or "light"; got \'black\''),
        (None, {"evaluation": 1.0}, r"`evaluation` must be a share of the classes, in \(0, 1\); got 1"),
        (None, {"size": 0}, r"`size` must be at least 1 pixel, or \(height, width\); got 0"),
        (None, {"split": "evaluation", "evaluation": 0.1}, r"both sides; 0.1 of 2 is 0. .*split=None for all"),
    ],
)  # fmt: skip
def test_the_first_file_that_cannot_be_meant_is_named(tmp_path, change, options, message):
    root = fill(tmp_path / "in")
    if change:
        change(root)
    with pytest.raises(ValueError, match=message):
        image_folder(root, **options)


def test_no_folder_no_file_and_no_table_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must be a folder of image files; there is no .*in"):
        image_folder(tmp_path / "in")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"`path` must be a folder of image files \(.bmp, .*\); .* holds no files"):
        image_folder(tmp_path / "in")
    with pytest.raises(FileNotFoundError, match=r"`labels` must be a table .*; there is no .*labels.csv"):
        image_folder(fill(tmp_path / "full"), labels="labels.csv")
    with pytest.raises(ValueError, match=r"0.png is a file. Unpack it, or name its folder"):
        image_folder(tmp_path / "full" / "ring" / "0.png")


def test_links_are_followed_but_not_round_and_round(tmp_path):
    fill(tmp_path / "in")
    (tmp_path / "in" / "ring" / "again").symlink_to(tmp_path / "in", target_is_directory=True)
    fill(tmp_path / "elsewhere", ("rings",))
    (tmp_path / "in" / "rings").symlink_to(tmp_path / "elsewhere" / "rings", target_is_directory=True)
    data = image_folder(tmp_path / "in")
    assert len(data) == 12
    assert data.class_names == ("cross", "ring", "rings")


def test_what_was_read_is_kept_until_files_or_options_change(tmp_path, cache, monkeypatch):
    root = fill(tmp_path / "in")
    calls = []
    monkeypatch.setattr(module, "read_image", lambda *a: calls.append(a) or read_image(*a))
    first = image_folder(root)
    assert len(calls) == 8
    for options in ({}, {"split": "evaluation", "evaluation": 0.5}, {"colour": "grey"}, {"ink": "light"}):
        image_folder(root, **options)
    assert torch.equal(image_folder(root).images, first.images)
    assert len(calls) == 8
    assert len(list(cache.iterdir())) == 1
    image_folder(root, size=14)
    assert len(calls) == 16
    drawn("cross", (41, 41)).save(root / "ring" / "0.png")
    changed = image_folder(root)
    assert len(calls) == 24
    assert not torch.equal(changed.images, first.images)
    image_folder(root, cache=False)
    assert len(calls) == 32
    (kept,) = [p for p in cache.iterdir() if p.stat().st_size == max(q.stat().st_size for q in cache.iterdir())]
    kept.write_bytes(kept.read_bytes()[:-100])
    assert torch.equal(image_folder(root).images, changed.images)


@pytest.mark.parametrize("where", [Path(__file__), Path("/proc/nowhere")])
def test_without_a_cache_the_files_are_enough(tmp_path, monkeypatch, where):
    monkeypatch.setattr("pyro_memory.data.kept.cache_dir", lambda: where)
    root = fill(tmp_path / "in")
    assert torch.equal(image_folder(root).images, image_folder(root).images)


def refusal(read, otherwise):
    """What is said where a file is refused."""
    try:
        return otherwise if read().seen.shape == (1, 8, 8) else "another shape"
    except ValueError as error:
        return str(error)


def test_damaged_files_of_every_kind_are_named(tmp_path):
    random = np.random.default_rng(0)
    for name, (image, options) in kinds(drawn("ring")).items():
        path = tmp_path / name
        image.save(path, **options)
        whole = path.read_bytes()
        for trial in range(20):
            content = bytearray(whole)
            content[random.integers(len(whole))] ^= 1 << random.integers(8)
            path.write_bytes(content if trial % 2 else whole[: random.integers(len(whole))])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own, of tags
                assert str(path) in refusal(lambda path=path: read_image(path, (8, 8), 1), str(path))


def test_colours_shrink_and_vary(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    colours = np.random.default_rng(0).integers(256, size=(30, 30, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "in" / "a" / "a.png")
    data = image_folder(tmp_path / "in", size=10, colour="colour")
    means = colours.reshape(10, 3, 10, 3, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(data.images[0].numpy() - means).max() <= 1
    assert isinstance(data, LabelledImages)
    assert data.varied(torch.zeros(2, dtype=torch.long), torch.Generator()).shape == (2, 3, 10, 10)
