"""Folders of images that could be meant in two ways, or lose what they hold: what is refused, and what is told."""

import numpy as np
import pytest
from PIL import Image

from pyro_memory.data import image_folder

LEVELS = np.full((28, 28), 255, np.uint8)
LEVELS[4:20, 6:9] = LEVELS[17:20, 6:18] = 0


def fill(root, classes, levels=LEVELS, name="a.png"):
    for kind in classes:
        (root / kind).mkdir(parents=True)
        Image.fromarray(levels).save(root / kind / name)
    return root


@pytest.mark.parametrize(
    "classes",
    [
        [f"{part}/{kind}" for part in ("train", "test", "query") for kind in "abc"],
        [f"{part}/{kind}" for part, kinds in (("train_images", "abc"), ("more", "ac")) for kind in kinds],
        [f"all/{part}/{kind}" for part in ("one", "two") for kind in "abc"],
    ],
)
def test_parts_of_the_same_classes_are_not_split(tmp_path, classes):
    root = fill(tmp_path / "in", classes)
    message = (
        r"`split` must divide classes; \d names occur below several folders, as .*/a and .*/a. .* one by one .*`labels`"
    )
    with pytest.raises(ValueError, match=message):
        image_folder(root, split="background", cache=False)
    assert image_folder(root, cache=False).classes == len(classes)
    (root / "l.csv").write_text("\n".join(["file,label", *(f"{name}/a.png,{name[-1]}" for name in classes)]))
    assert image_folder(root, split="background", labels="l.csv", cache=False).classes == 2


def test_letters_of_the_same_name_in_several_alphabets_are_told(tmp_path):
    root = fill(tmp_path / "in", ["Greek/1", "Greek/2", "Latin/1", "Latin/2", "Latin/3"])
    with pytest.warns(
        UserWarning, match=r"2 names occur below several folders, as Greek/1 and Latin/1; they are taken as"
    ):
        assert image_folder(root, split="background", cache=False).classes == 4
    root = fill(tmp_path / "other", ["Greek/alpha", "Greek/beta", "Latin/a", "train/b"])
    assert image_folder(root, split="background", cache=False).classes == 3


@pytest.mark.parametrize("colour", ["grey", "colour"])
@pytest.mark.parametrize("levels", [LEVELS.astype(np.uint16) * 16, LEVELS.astype(np.int32), LEVELS // 9 + 100])
def test_images_that_keep_almost_no_levels_are_told(tmp_path, colour, levels):
    root = fill(tmp_path / "in", ["a"], name="whole.tif")
    Image.fromarray(levels).save(root / "a" / "low.tif")
    with pytest.warns(
        UserWarning, match=r"1 of 2 images have less than 32 of 255 levels .*, the first is a/low.tif. If"
    ):
        image_folder(root, colour=colour, ink="dark", cache=False)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_files_of_several_images_are_named(tmp_path, name):
    root = fill(tmp_path / "in", ["a"], name=name)
    assert len(image_folder(root, cache=False)) == 1
    pages = [Image.fromarray(np.roll(LEVELS, shift)) for shift in range(3)]
    pages[0].save(root / "a" / name, save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=rf"an image a file; .*a/{name} holds 3, as pages or frames. Save each as a"):
        image_folder(root, cache=False)


def test_photos_that_carry_a_preview_are_photos(tmp_path):
    root = fill(tmp_path / "in", ["a"])
    photo = Image.fromarray(LEVELS)
    photo.save(root / "a" / "b.jpg", format="MPO", save_all=True, append_images=[photo.resize((14, 14))])
    assert len(image_folder(root, cache=False)) == 2
