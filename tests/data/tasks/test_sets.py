"""Few-shot sets."""

import pytest
import torch

from pyro_memory.data import FewShotTasks, LabelledImages, SetTasks, glyphs


def data(classes=6, each=8):
    """Images that say which they are: pixel 0 the class, pixel 1 the member."""
    labels = torch.arange(classes).repeat_interleave(each)
    images = torch.zeros(classes * each, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels, torch.arange(each).repeat(classes)
    return LabelledImages(images, labels, levels=10)


def names(images):
    return [(round(10 * float(i[0, 0, 0])), round(10 * float(i[0, 0, 1]))) for i in images]


def test_queries_and_support_are_different_images_of_one_class():
    tasks = SetTasks(data(), tasks=4, queries=2, shots=[0, 1, 3], seed=1)
    sizes = set()
    for index in range(30):
        x, support = tasks[index]
        assert x.shape == (4, 2, 1, 2, 2)
        seen = []
        for t in range(4):
            asked, given = names(x[t]), names(support.values[t, support.filled[t]])
            assert len({c for c, _ in asked + given}) == 1
            assert len(set(asked + given)) == len(asked + given)
            assert not support.values[t, ~support.filled[t]].any()
            sizes.add(len(given))
            seen.append(asked[0][0])
        assert len(set(seen)) == 4
    assert sizes == {0, 1, 3}


def test_an_index_gives_the_same_task_in_any_order():
    one, other = (SetTasks(data(), tasks=3, queries=1, shots=2, seed=5) for _ in range(2))
    wanted = one[7]
    other[2]
    again = other[7]
    assert torch.equal(wanted[0], again[0])
    assert torch.equal(wanted[1].values, again[1].values)
    assert not torch.equal(SetTasks(data(), tasks=3, queries=1, shots=2, seed=6)[7][0], wanted[0])


def test_fixed_targets_have_nested_supports_without_themselves():
    targets = torch.tensor([0, 9, 20, 3, 47])
    rows = {n: SetTasks(data(), tasks=2, shots=n, targets=targets, seed=0) for n in (0, 2, 5)}
    assert len(rows[5]) == 3
    for i in range(3):
        x, most = rows[5][i]
        asked = names(x[:, 0])
        assert asked == [(int(t) // 8, int(t) % 8) for t in targets[2 * i : 2 * i + 2]]
        for t, one in enumerate(asked):
            given = names(most.values[t])
            assert one not in given
            assert {c for c, _ in given} == {one[0]}
            assert names(rows[2][i][1].values[t]) == given[:2]
        assert rows[0][i][1].values.shape[1] == 0
        assert rows[0][i][1].filled.shape == (len(asked), 0)
    with pytest.raises(IndexError, match="`index` must be below 3"):
        rows[5][3]


def test_no_support_holds_what_another_task_of_its_index_asks_for():
    targets = torch.tensor([0, 1, 2, 16, 3])  # four of one class
    rows = SetTasks(data(), tasks=5, shots=4, targets=targets, seed=0)
    x, support = rows[0]
    asked = set(names(x[:, 0]))
    for t in range(5):
        assert not asked & set(names(support.values[t]))
    for wrong in rows.wrong_classes(0).values:
        assert not asked & set(names(wrong))
    alone = SetTasks(data(), tasks=1, shots=4, targets=targets, seed=0)
    assert torch.equal(alone[3][1].values[0], support.values[3])  # of its class nothing else is asked for
    with pytest.raises(ValueError, match=r"`tasks` \(5\) must leave 5 images of class .* 4 are left"):
        SetTasks(data(), tasks=5, shots=5, targets=targets, seed=0)[0]


def test_the_control_s_supports_are_of_another_class():
    rows = SetTasks(data(), tasks=5, shots=3, targets=torch.arange(0, 48, 5), seed=0)
    for i in range(len(rows)):
        x, support = rows[i]
        wrong = rows.wrong_classes(i)
        assert wrong.values.shape == support.values.shape
        for t in range(len(x)):
            assert {c for c, _ in names(wrong.values[t])} != {names(x[t])[0][0]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 0}, "`tasks` and `queries` must be at least 1"),
        ({"shots": [3, -1]}, "`shots` must be whole numbers from 0 to 48; entry 1 has -1"),
        ({"shots": 8}, "together must be at most the 8 images of the smallest class; got 8 and 1"),
        ({"tasks": 7}, "`tasks` must be at most the data's 6 classes; got 7"),
        ({"shots": 3, "items": 2}, "`items` must be at least the most shots, 3; got 2"),
        ({"queries": 2, "targets": torch.arange(3)}, "`queries` must be 1 with fixed `targets`"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SetTasks(data(), **{"tasks": 2, "shots": 2} | options)


def test_turned_tasks_show_queries_and_support_in_one_symmetry():
    plain, turned = (SetTasks(data(), tasks=4, queries=2, shots=3, seed=1, turned=t) for t in (0.0, 1.0))
    symmetries = set()
    for index in range(20):
        (x, support), (y, given) = plain[index], turned[index]
        for t in range(4):
            before, after = torch.cat([x[t], support.values[t]]), torch.cat([y[t], given.values[t]])
            ways = [(m, k) for m in (0, 1) for k in range(4)]
            fits = [w for w in ways if torch.equal((before.mT if w[0] else before).rot90(w[1], (-2, -1)), after)]
            assert fits
            symmetries |= set(fits[:1])
    assert len(symmetries) == 8
    some = SetTasks(data(), tasks=4, queries=2, shots=3, seed=1, turned=0.5)
    same = [torch.equal(some[i][0][t], plain[i][0][t]) for i in range(20) for t in range(4)]
    assert 0.3 < sum(same) / 80 < 0.8


def test_only_square_images_can_be_turned():
    wide = data()
    wide = LabelledImages(torch.zeros(len(wide.labels), 1, 2, 4, dtype=torch.uint8), wide.labels, wide.class_names)
    with pytest.raises(ValueError, match=r"`turned` must lie in \[0, 1\], and be 0 unless images are square"):
        SetTasks(wide, tasks=2, turned=0.5)


def test_varied_sets_redraw_whole_tasks():
    letters = glyphs("background", drawings=8)
    plain, some = (SetTasks(letters, tasks=6, queries=2, shots=3, seed=1, varied=v) for v in (0.0, 0.5))
    redrawn = []
    for i in range(20):
        (x, support), (y, given) = plain[i], some[i]
        before, after = torch.cat([x, support.values], 1), torch.cat([y, given.values], 1)
        redrawn.append((before != after).flatten(2).any(-1))  # [task, image]
    redrawn = torch.cat(redrawn)
    assert torch.equal(redrawn.any(1), redrawn.all(1))  # a task is redrawn whole, or not at all
    assert 30 < redrawn.any(1).sum() < 90
    with pytest.raises(ValueError, match="must be 0 with fixed targets"):
        SetTasks(letters, tasks=6, varied=0.5, targets=torch.arange(6))


def test_no_targets_are_refused_at_once():
    data, none = glyphs("evaluation"), torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="`targets` must name at least one image; got none"):
        SetTasks(data, tasks=2, targets=none)
    with pytest.raises(ValueError, match="`target_indices` must name at least one target; got none"):
        FewShotTasks(data, classes=2, shots=1, targets=2, per_target=True, target_indices=none)
