"""A small call of each public callable of data: images, text, series and tasks."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from conftest import write_idx
from fuzz.parts import folder, kept, letters, longs, series, text
from PIL import Image

from pyro_memory.data import (
    CharacterText,
    ClassStream,
    FewShotTasks,
    LabelledImages,
    NeedleTasks,
    RecallTasks,
    ReturningClasses,
    Series,
    SeriesWindows,
    SetTasks,
    TextBatches,
    digit_pairs,
    glyphs,
    image_folder,
    load_images,
    load_series,
    load_text,
    mnist,
    omniglot,
    series_csv,
    text_files,
)


def called(**call):
    return call


@kept
def data_folder():
    """Files as the official ones, of a few images each."""
    root = folder().resolve()
    root.mkdir()
    for stem in ("train", "t10k"):
        write_idx(root / f"{stem}-images-idx3-ubyte.gz", np.arange(30 * 16, dtype=np.uint8).reshape(30, 4, 4))
        write_idx(root / f"{stem}-labels-idx1-ubyte.gz", np.arange(30, dtype=np.uint8) % 10)
    drawing = io.BytesIO()
    Image.new("L", (105, 105), 255).save(drawing, "png")
    for split in ("background", "evaluation"):
        with zipfile.ZipFile(root / f"images_{split}.zip", "w") as archive:
            for i in range(4):
                archive.writestr(f"images_{split}/Alphabet/character0{i % 2}/{i}.png", drawing.getvalue())
    (root / "some.txt").write_text("some text")
    (root / "series.csv").write_text("day,a,b\n" + "".join(f"2024-01-{i:02d},{i},{i % 3}\n" for i in range(1, 20)))
    for i, levels in enumerate(np.random.default_rng(0).integers(256, size=(6, 5, 5), dtype=np.uint8)):
        path = root / "images" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(path)
    labels = [f"{'abc'[i % 3]}/{i}.png,{i % 2}\n" for i in range(6)]
    (root / "images" / "labels.csv").write_text("".join(["file,label\n", *labels]))
    return root


IMAGES = {
    "LabelledImages": lambda: (
        LabelledImages,
        called(
            images=torch.randint(2, (4, 1, 3, 3), dtype=torch.uint8), labels=longs(0, 1, 1, 0),
            class_names=("a", "b"), levels=1, originals=None, ink="dark",
        ),
    ),
    "LabelledImages.__getitem__": lambda: (letters().__getitem__, called(indices=longs(0, 19, 3))),
    "LabelledImages.varied": lambda: (
        letters().varied,
        called(indices=longs(0, 19, 3), generator=torch.Generator()),
    ),
    "digit_pairs": lambda: (
        digit_pairs,
        called(split="evaluation", per_class=1, seed=0, binary=True, root=data_folder()),
    ),
    "glyphs": lambda: (glyphs, called(split="evaluation", size=16, drawings=1, seed=0)),
    "image_folder": lambda: (
        image_folder,
        called(
            path=data_folder() / "images", split="background", labels=data_folder() / "images" / "labels.csv", size=4,
            colour="binary", ink="dark", evaluation=0.5, seed=0, progress=False, cache=False,
        ),
    ),
    "load_images": lambda: (load_images, called(name="mnist", split="background", root=data_folder())),
    "mnist": lambda: (mnist, called(split="test", binary=True, root=data_folder())),
    "omniglot": lambda: (omniglot, called(split="background", size=26, alphabets="45-5", root=data_folder())),
}  # fmt: skip


def windows():
    return {"split": "train", "past": 4, "horizon": 2, "batch": 3, "seed": 0, "observed": True}


SEQUENCES = {
    "CharacterText": lambda: (CharacterText, called(text="a text of some length", valid=0.2, test=0.2, extra="xyz")),
    "CharacterText.encode": lambda: (text().encode, called(text="hay")),
    "CharacterText.decode": lambda: (text().decode, called(tokens=longs(1, 2, 3))),
    "CharacterText.part": lambda: (text().part, called(split="valid")),
    "CharacterText.batches": lambda: (text().batches, called(split="train", length=5, batch=2, seed=0)),
    "CharacterText.windows": lambda: (text().windows, called(split="train", length=5)),
    "TextBatches": lambda: (TextBatches, called(tokens=torch.arange(9), length=5, batch=2, seed=0)),
    "TextBatches.__getitem__": lambda: (
        TextBatches(torch.arange(9), length=5, batch=2).__getitem__,
        called(index=3),
    ),
    "Series": lambda: (
        Series,
        called(
            raw=torch.randn(9, 2), channels=("one", "two"), ends=(3, 6, 9), observed=torch.ones(9, 2) > 0,
            times=torch.arange(9),
        ),
    ),
    "Series.windows": lambda: (series().windows, windows()),
    "SeriesWindows": lambda: (SeriesWindows, windows() | called(series=series())),
    "SeriesWindows.__getitem__": lambda: (
        SeriesWindows(series(), "train", past=4, horizon=2, batch=3).__getitem__,
        called(index=1),
    ),
    "load_series": lambda: (load_series, called(name="eeg", root=data_folder())),
    "load_text": lambda: (load_text, called(data_dir=Path(data_folder()))),
    "series_csv": lambda: (
        series_csv,
        called(
            path=data_folder() / "series.csv", time="day", columns=("a", "b"), split=(0.6, 0.2, 0.2), gaps="filled",
            zone="Europe/Berlin", date_format="%Y-%m-%d", decimal=".", encoding="utf-8",
        ),
    ),
    "text_files": lambda: (
        text_files,
        called(path=data_folder() / "some.txt", encoding="utf-8", valid=0.1, test=0.1, extra="!"),
    ),
}  # fmt: skip


def drawing():
    return {"data": letters(), "seed": 0, "turned": 0.5, "varied": 0.5}


def sets():
    return SetTasks(letters(), tasks=2, queries=1, shots=2)


def shots():
    return FewShotTasks(letters(), classes=2, shots=1, targets=2)


def returning():
    return ReturningClasses(letters(), tasks=2, queries=1, shots=2, entering=1, present=1, held_out=0.5)


def stream():
    return ClassStream(letters(), stages=2, held_out=0.25)


def needles():
    return {
        "text": text(), "split": "train", "length": 130, "depth": 0.5, "digits": 2, "batch": 2, "seed": 0,
        "kind": "filler", "keys": 2, "questions": 1,
    }  # fmt: skip


def recalled():
    return {"pairs": 2, "length": 16, "vocabulary": 24, "batch": 2, "gap": 4, "fillers": 3, "seed": 0}


TASKS = {
    "ClassStream": lambda: (
        ClassStream,
        called(data=letters(), stages=2, held_out=0.25, seed=0, shuffle=True),
    ),
    "ClassStream.train": lambda: (stream().train, called(stage=1)),
    "ClassStream.held_out": lambda: (stream().held_out, called(stage=1)),
    "ClassStream.tasks": lambda: (stream().tasks, called(stage=1, tasks=1, queries=1, shots=1)),
    "FewShotTasks": lambda: (
        FewShotTasks,
        drawing()
        | called(
            classes=2, shots=1, targets=2, protocol="vma", per_target=False, target_indices=None, recalled=0.5,
            sizes="uniform",
        ),
    ),
    "FewShotTasks of fixed targets": lambda: (
        FewShotTasks,
        called(data=letters(), classes=2, shots=1, targets=2, per_target=True, target_indices=longs(0, 3)),
    ),
    "FewShotTasks.__getitem__": lambda: (shots().__getitem__, called(index=1)),
    "FewShotTasks.wrong_classes": lambda: (shots().wrong_classes, called(index=1)),
    "ReturningClasses": lambda: (
        ReturningClasses,
        called(
            data=letters(), tasks=2, queries=1, shots=2, back=(0, 1), items=3, entering=1, present=1, returning=0.5,
            life=4, classes=3, held_out=0.25, turned=False, seed=1,
        ),
    ),
    "ReturningClasses.__getitem__": lambda: (returning().__getitem__, called(step=1)),
    "ReturningClasses.met": lambda: (returning().met, called(step=3)),
    "ReturningClasses.returns": lambda: (
        returning().returns,
        called(step=3, shots=1, each=1, tasks=2, seed=0),
    ),
    "SetTasks": lambda: (
        SetTasks,
        drawing() | called(tasks=2, queries=1, shots=(1, 2), items=3, targets=None),
    ),
    "SetTasks.__getitem__": lambda: (sets().__getitem__, called(index=1)),
    "SetTasks.wrong_classes": lambda: (
        SetTasks(letters(), tasks=1, shots=2, targets=longs(0, 5)).wrong_classes,
        called(index=0),
    ),
    "NeedleTasks": lambda: (NeedleTasks, needles()),
    "NeedleTasks.__getitem__": lambda: (NeedleTasks(**needles()).__getitem__, called(index=1)),
    "NeedleTasks.read": lambda: (NeedleTasks(**needles()).read, called(index=1, row=0)),
    "RecallTasks": lambda: (RecallTasks, recalled()),
    "RecallTasks.__getitem__": lambda: (RecallTasks(**recalled()).__getitem__, called(index=1)),
}  # fmt: skip
ROWS = IMAGES | SEQUENCES | TASKS
