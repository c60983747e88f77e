"""What is accepted at construction never fails later: 2,000 task numbers at the tightest settings."""

import pytest
import torch

from pyro_memory.data import (
    CHARACTERS,
    CharacterText,
    ClassStream,
    FewShotTasks,
    LabelledImages,
    NeedleTasks,
    RecallTasks,
    Series,
    SetTasks,
    TextBatches,
)

LABELS = torch.arange(3).repeat_interleave(4)
DATA = LabelledImages(torch.arange(12).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2), LABELS, levels=12)
TEXT = CharacterText("to be or not to be " * 9 + CHARACTERS, valid=0, test=0, extra=CHARACTERS)
NEEDLE = 81  # needle and question of the longest name
SERIES = Series(torch.arange(20.0), ["ramp"], (6, 13, 20))

TIGHT = {
    "vma": FewShotTasks(DATA, classes=3, shots=3, targets=32, turned=0.5, varied=0.5),
    "vma of many sizes": FewShotTasks(DATA, classes=(1, 3), shots=(1, 3), targets=1),
    "vma, recalled": FewShotTasks(DATA, classes=3, shots=3, targets=5, recalled=0.5),
    "vma, own memories": FewShotTasks(DATA, classes=3, shots=3, targets=5, per_target=True),
    "gmn": FewShotTasks(DATA, classes=3, shots=9, targets=4, protocol="gmn"),
    "gmn, one image a class": FewShotTasks(
        LabelledImages(DATA.images[::4], [0, 1, 2], levels=12), classes=3, shots=2, targets=4, protocol="gmn"
    ),
    "sets": SetTasks(DATA, tasks=3, queries=1, shots=[0, 3]),
    "wide sets": SetTasks(DATA, tasks=3, queries=4, shots=0, items=7),
    "a stage": ClassStream(DATA, stages=2, held_out=0.6).tasks(1, tasks=1, shots=1),
    "recall": RecallTasks(pairs=4, length=16, vocabulary=16, batch=2),
    "recall at a gap": RecallTasks(pairs=4, length=17, vocabulary=16, batch=2, gap=1),
    "needle": NeedleTasks(TEXT, length=NEEDLE, batch=1),
    "needle at the end": NeedleTasks(TEXT, length=len(" ".join(TEXT.text.split())), depth=1.0, batch=1),
    "text": TextBatches([0, 1, 2], length=3, batch=2),
    "series": SERIES.windows("train", past=5, horizon=1, batch=2, seed=0),
    "series, past in the part before": SERIES.windows("valid", past=6, horizon=7, batch=2, seed=0),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("name", TIGHT)
def test_two_thousand_task_numbers_at_the_tightest_settings(name):
    for index in range(2000):
        TIGHT[name][index]


def test_fixed_targets_are_as_safe_as_drawn_ones():
    """All images of a class asked for at once: its support, and the control's, is refused or empty."""
    tasks = FewShotTasks(DATA, classes=1, shots=3, targets=5, per_target=True, target_indices=list(range(12)))
    sets = SetTasks(DATA, tasks=4, shots=0, items=2, targets=range(12))
    for rows in (tasks, sets):
        for index in range(len(rows)):
            rows[index], rows.wrong_classes(index)
    with pytest.raises(ValueError, match=r"\(3\) must leave 2 images of class 1 .* 1 are left at index 1\. Ask"):
        SetTasks(DATA, tasks=3, shots=2, targets=[0, 4, 8, 4, 5, 6])


ONE = LabelledImages(DATA.images[:4], [0, 0, 0, 0], levels=12)
EMPTY = LabelledImages(DATA.images, LABELS, list("abcd"), levels=12)
FIXED = {"classes": 1, "shots": 1, "targets": 2, "per_target": True}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FewShotTasks(DATA, classes=1, shots=4, targets=1), "`shots` must leave an image of each class"),
        (lambda: FewShotTasks(EMPTY, classes=1, shots=1, targets=1, protocol="gmn"), "got 1 where a class has 0"),
        (lambda: FewShotTasks(DATA, classes=(1, 2), shots=1, targets=1).wrong_classes(0), "other classes .* 4 in all"),
        (lambda: FewShotTasks(DATA, target_indices=[0, 12], **FIXED), "`target_indices` .* 0 to 11; target 1 has 12"),
        (lambda: FewShotTasks(DATA, target_indices=[-1], **FIXED), "`target_indices` .* 0 to 11; target 0 has -1"),
        (lambda: SetTasks(DATA, tasks=1, shots=1, targets=[3, -1]), "`targets` must be .* 0 to 11; target 1 has -1"),
        (lambda: SetTasks(ONE, tasks=1, shots=1, targets=[0]).wrong_classes(0), "`data` must have a second class"),
        (lambda: SetTasks(EMPTY, tasks=1, shots=0), "at most the 0 images of the smallest class"),
        (lambda: ClassStream(DATA, stages=2, held_out=1.0), "`held_out` must leave images on both sides"),
        (lambda: RecallTasks(pairs=4, length=15, vocabulary=16), "`length` must be at least"),
        (lambda: NeedleTasks(TEXT, length=NEEDLE - 1), "`length` must lie in"),
        (lambda: SERIES.windows("valid", past=7, horizon=1, batch=2), "`past` . `horizon` must fit"),
    ],
)
def test_one_more_is_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()
