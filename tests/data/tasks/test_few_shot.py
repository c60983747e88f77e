import itertools
import math
from collections import Counter

import pytest
import torch

from pyro_memory.data import FewShotTasks, LabelledImages, glyphs


def numbered(classes=12, members=20):
    """Images that carry their own index, so that a memory shows what it holds."""
    index = torch.arange(classes * members)
    images = torch.stack([index // 200, index % 200], -1).reshape(-1, 1, 1, 2).byte()
    names = tuple(f"class {c}" for c in range(classes))
    return LabelledImages(images, index // members, names, levels=200)


DATA = numbered()


def indices(images):
    pair = (images * 200).round().long()[..., 0, 0, :]
    return pair[..., 0] * 200 + pair[..., 1]


@pytest.mark.parametrize("per_target", [False, True])
def test_under_vma_s_protocol_the_target_is_never_in_memory(per_target):
    tasks = FewShotTasks(DATA, classes=3, shots=5, targets=9, per_target=per_target)
    for i in range(50):
        x, memory = tasks[i]
        targets, slots = indices(x), indices(memory.values)
        slots = slots if per_target else slots.expand(9, -1)
        assert not (slots == targets[:, None]).any()
        assert all(len(row.unique()) == 15 for row in slots)
        own = DATA.labels[slots] == DATA.labels[targets][:, None]
        assert (own.sum(-1) == 5).all()
        assert all(len(DATA.labels[row].unique()) == 3 for row in slots)


def test_under_gmn_s_protocol_it_is_as_often_as_arithmetic_says():
    tasks = FewShotTasks(DATA, classes=1, shots=19, targets=50, protocol="gmn", per_target=True)
    held = []
    for i in range(40):
        x, memory = tasks[i]
        held.append((indices(memory.values) == indices(x)[:, None]).any(-1))
    share, expected = torch.cat(held).float().mean().item(), 1 - (19 / 20) ** 19
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 2000)


def recalling(share, **options):
    return FewShotTasks(DATA, **{"classes": 3, "shots": 4, "targets": 10, "seed": 5, "recalled": share} | options)


def test_the_share_of_recalled_targets_comes_out_task_by_task_anew():
    per_task = []
    for i in range(300):
        x, memory = recalling(0.3)[i]
        per_task.append(torch.isin(indices(x), indices(memory.values)).float())
    held = torch.stack(per_task)
    assert abs(held.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 3000)
    assert abs(held.sum(1).var() - 10 * 0.3 * 0.7) < 5 * 2.1 * math.sqrt(2 / 300)  # each target for itself
    assert (held.mean(0) - 0.3).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 300)


def test_recalled_0_and_1_put_no_target_and_every_target_in_memory():
    for classes, shots in ((3, 4), ((1, 4), (1, 19)), (1, 1)):
        for i in range(40):
            for share in (0.0, 1.0):
                x, memory = recalling(share, classes=classes, shots=shots)[i]
                assert (torch.isin(indices(x), indices(memory.values)) == bool(share)).all()


def test_of_memories_one_a_target_a_share_holds_the_target_and_the_rest_stays():
    held = []
    for i in range(100):
        (x, memory), (plain, before) = recalling(0.3, per_target=True)[i], recalling(0.0, per_target=True)[i]
        assert torch.equal(memory.values, before.values)
        assert torch.equal(DATA.labels[indices(x)], DATA.labels[indices(plain)])
        found = (indices(memory.values) == indices(x)[:, None]).any(-1)
        assert torch.equal(found, indices(x) != indices(plain))
        held.append(found)
    share = torch.stack(held).float().mean()
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 1000)


def test_memories_of_wrong_classes_hold_no_recalled_target():
    tasks = recalling(1.0, per_target=True)
    assert torch.equal(tasks.wrong_classes(0).values, recalling(0.0, per_target=True).wrong_classes(0).values)


def test_log_uniform_sizes_give_few_and_many_the_same_share():
    tasks = FewShotTasks(DATA, classes=3, shots=(1, 15), targets=1, sizes="log-uniform")
    octaves = Counter(int(math.log2(tasks[i][1].slots / 3)) for i in range(800))
    assert set(octaves) == {0, 1, 2, 3}
    assert sum((n - 200) ** 2 / 200 for n in octaves.values()) < 16.3  # chi-square, 3 degrees of freedom, 0.1%


def test_a_recalled_target_is_any_slot_of_the_class_that_was_asked_for():
    met = Counter()
    for i in range(200):
        (x, memory), (plain, _) = recalling(1.0)[i], recalling(0.0)[i]
        assert torch.equal(DATA.labels[indices(x)], DATA.labels[indices(plain)])
        met.update((indices(x)[:, None] == indices(memory.values)).nonzero()[:, 1].tolist())
    expected = torch.tensor([4, 3, 3]).repeat_interleave(4) * 200 / 4  # ten targets take turns among three classes
    found = torch.tensor([met[slot] for slot in range(12)])
    assert ((found - expected).square() / expected).sum() < 27.9  # chi-square, 9 degrees of freedom, 0.1%


def test_without_recalled_targets_tasks_are_what_they_were():
    x, memory = FewShotTasks(DATA, classes=2, shots=2, targets=4, seed=5)[3]
    assert indices(x).tolist() == [20, 183, 38, 192]  # drawn before `recalled` was there
    assert indices(memory.values).tolist() == [21, 37, 184, 181]


def test_recalled_targets_change_nothing_else_and_come_again():
    which = []
    for i in reversed(range(40)):
        (x, memory), (plain, same) = recalling(0.5)[i], recalling(0.0)[i]
        held = torch.isin(indices(x), indices(memory.values))
        assert torch.equal(x[~held], plain[~held])
        assert torch.equal(memory.values, same.values)
        assert torch.equal(recalling(0.5).wrong_classes(i).values, recalling(0.0).wrong_classes(i).values)
        assert torch.equal(x, recalling(0.5)[i][0])
        x, memory = recalling(0.5, seed=6)[i]
        which.append((held, torch.isin(indices(x), indices(memory.values))))
    same = sum(torch.equal(*pair) for pair in which)  # of ten targets: one in 1,024, where seeds are unrelated
    assert same < 3


def test_a_recalled_target_looks_as_its_slot_does_turned_and_redrawn():
    images = torch.randint(2, (80, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    letters = LabelledImages(images, torch.arange(80) // 20)
    tasks = FewShotTasks(letters, classes=2, shots=2, targets=6, turned=0.5, varied=1.0, recalled=1.0)
    for i in range(20):
        x, memory = tasks[i]
        assert (x[:, None] == memory.values).flatten(2).all(-1).any(-1).all()


def test_a_task_depends_on_seed_and_index_only():
    make = lambda seed: FewShotTasks(DATA, classes=3, shots=2, targets=6, seed=seed)  # noqa: E731
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    x, memory = make(5)[7]
    assert torch.equal(torch.random.get_rng_state(), state)
    tasks = make(5)
    tasks[3]
    again, memory_again = tasks[7]
    assert torch.equal(x, again)
    assert torch.equal(memory.values, memory_again.values)
    assert not torch.equal(x, make(6)[7][0])
    assert not torch.equal(x, make(5)[8][0])


@pytest.mark.parametrize("per_target", [False, True])
def test_the_wrong_classes_hold_no_class_of_the_task(per_target):
    tasks = FewShotTasks(DATA, classes=3, shots=2, targets=6, per_target=per_target)
    for i in range(30):
        x, memory = tasks[i]
        wrong = tasks.wrong_classes(i)
        assert wrong.values.shape == memory.values.shape
        held = DATA.labels[indices(wrong.values)]
        held = held if per_target else held.expand(6, -1)
        assert not (held == DATA.labels[indices(x)][:, None]).any()


def test_fixed_targets_come_in_order_whatever_the_batch_size():
    targets = torch.tensor([5, 100, 33, 7, 201])

    def drawn(batch):
        tasks = FewShotTasks(DATA, classes=2, shots=3, targets=batch, per_target=True, target_indices=targets)
        parts = [tasks[i] for i in range(len(tasks))]
        return torch.cat([indices(x) for x, _ in parts]), torch.cat([indices(m.values) for _, m in parts])

    (x, slots), (other_x, other_slots) = drawn(2), drawn(5)
    assert torch.equal(x, targets)
    assert torch.equal(x, other_x)
    assert torch.equal(slots, other_slots)


@pytest.mark.parametrize("given", [7, torch.tensor(7), [[7]]])
def test_a_single_target_may_be_a_number(given):
    make = lambda t: FewShotTasks(DATA, classes=2, shots=3, targets=4, per_target=True, target_indices=t)  # noqa: E731
    (x, memory), (usual, same) = make(given)[0], make([7])[0]
    assert torch.equal(x, usual)
    assert torch.equal(memory.values, same.values)


def test_a_fixed_target_s_memories_of_fewer_classes_or_shots_are_parts_of_larger_ones():
    sizes, targets = list(itertools.product((1, 2, 5, 12), (1, 2, 4, 19))), torch.tensor([5, 100, 33, 7, 201])

    def held(classes, shots):
        tasks = FewShotTasks(
            DATA, classes=classes, shots=shots, targets=5, per_target=True, target_indices=targets, seed=3
        )
        return [set(row) for row in indices(tasks[0][1].values).tolist()]

    memories = {size: held(*size) for size in sizes}
    for (classes, shots), (most_classes, most_shots) in itertools.product(sizes, repeat=2):
        if classes <= most_classes and shots <= most_shots:
            pairs = zip(memories[classes, shots], memories[most_classes, most_shots], strict=True)
            for small, large in pairs:
                assert len(small) == classes * shots
                assert small <= large


def test_every_class_is_asked_for_and_remembered():
    seen = torch.cat([DATA.labels[indices(FewShotTasks(DATA, classes=3, shots=2, targets=6)[i][0])] for i in range(60)])
    assert len(seen.unique()) == DATA.classes


@pytest.mark.parametrize("per_target", [False, True])
def test_a_range_draws_each_size_about_equally_often(per_target):
    tasks = FewShotTasks(DATA, classes=(2, 4), shots=(1, 3), targets=4, per_target=per_target)
    met = Counter()
    for i in range(450):
        x, memory = tasks[i]
        held = DATA.labels[indices(memory.values)].reshape(-1, memory.slots)
        sizes = {(len(row.unique()), len(row) // len(row.unique())) for row in held}
        assert len(sizes) == 1
        met.update(sizes)
        assert tasks.wrong_classes(i).slots == memory.slots
        assert torch.equal(x, tasks[i][0])
    assert set(met) == set(itertools.product((2, 3, 4), (1, 2, 3)))
    assert sum((n - 50) ** 2 / 50 for n in met.values()) < 26.1  # chi-square, 8 degrees of freedom, 0.1%


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 13}, "`classes` must be at most the data's 12; got 13"),
        ({"classes": 0}, "`classes` must be at least 1"),
        ({"shots": 20}, "`shots` must leave an image of each class for the target; got 20 where a class has 20"),
        ({"shots": 0}, r"`shots` must be at least 1, or .*; got 0.*SlotMemory\.empty"),
        ({"shots": (1, 2, 3)}, "`shots` must be a sequence of 2, each an integer; got a tuple of 3"),
        ({"shots": (3, 2)}, r"`shots` must be at least 1, or a pair \(fewest, most\); got \(3, 2\)"),
        ({"classes": (1, 13)}, "`classes` must be at most the data's 12; got"),
        ({"shots": (1, 20)}, "`shots` must leave an image of each class"),
        ({"targets": 0}, "`targets` must be at least 1; got 0"),
        (
            {"shots": (1, 2), "target_indices": torch.tensor([1]), "per_target": True},
            "`classes` and `shots` must be numbers where `target_indices` fix the targets",
        ),
        ({"protocol": "mine"}, "`protocol` must be"),
        ({"target_indices": torch.tensor([1])}, "`target_indices` need per_target=True"),
        (
            {"target_indices": DATA, "per_target": True},
            "`target_indices` must be numbers, as a tensor, .*; got a Labelled",
        ),
        ({"recalled": 1.5}, r"`recalled` must lie in \[0, 1\]; got 1.5"),
        ({"recalled": -0.1}, r"`recalled` must lie in \[0, 1\]; got -0.1"),
        (
            {"recalled": 0.5, "per_target": True, "target_indices": torch.tensor([1])},
            "`recalled` must be 0 unless .* got 0.5. To measure .* use protocol=",
        ),
        ({"recalled": 0.5, "protocol": "gmn"}, '`recalled` must be 0 unless protocol="vma" and targets are drawn'),
        ({"sizes": "even"}, '`sizes` must be "uniform" or "log-uniform"; got \'even\''),
    ],
)
@pytest.mark.unchecked
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FewShotTasks(DATA, **{"classes": 2, "shots": 2, "targets": 4, **options})


def test_many_targets_never_use_a_class_up():
    tasks = FewShotTasks(DATA, classes=1, shots=18, targets=100)
    for i in range(20):
        x, memory = tasks[i]
        assert len(indices(x).unique()) == 2
        assert not torch.isin(indices(x), indices(memory.values)).any()


def test_other_classes_than_all_are_refused():
    with pytest.raises(ValueError, match="leave other classes"):
        FewShotTasks(DATA, classes=12, shots=2, targets=12).wrong_classes(0)


def test_turned_tasks_show_the_same_letters_otherwise():
    images = torch.randint(2, (80, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    letters = LabelledImages(images, torch.arange(80) // 20, tuple("abcd"))
    make = lambda turned: FewShotTasks(letters, classes=2, shots=3, targets=4, turned=turned)  # noqa: E731
    plain, half, turned = make(0.0), make(0.5), make(1.0)
    symmetries = lambda x: [(x.mT if mirror else x).rot90(k, (-2, -1)) for mirror in (0, 1) for k in range(4)]  # noqa: E731
    met = set()
    for i in range(60):
        (x, memory), (y, other) = plain[i], turned[i]
        (which,) = {n for n, s in enumerate(symmetries(x)) if torch.equal(s, y)}
        assert torch.equal(symmetries(memory.values)[which], other.values)
        met.add(which)
    assert met == set(range(8))
    same = sum(torch.equal(half[i][0], plain[i][0]) for i in range(60))
    assert 60 * (0.5 + 0.5 / 8) - 20 < same < 60 * (0.5 + 0.5 / 8) + 20
    with pytest.raises(ValueError, match="`turned` must lie in"):
        make(1.5)
    with pytest.raises(ValueError, match="square"):
        FewShotTasks(DATA, classes=2, shots=3, targets=4, turned=0.5)


def test_a_redrawn_image_moves_by_its_own_map_in_both_directions():
    """A blob in the middle: its copies scatter about where it was, each elsewhere, and binary or grey as it was."""
    image = torch.zeros(1, 1, 29, 29, dtype=torch.uint8)
    image[..., 13:16, 13:16] = 200
    data = LabelledImages(image, torch.zeros(1, dtype=torch.long), ("a",), levels=250)
    drawn = data.varied(torch.zeros(2000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert drawn.unique().tolist() == pytest.approx([0, 0.8])
    place = torch.arange(29.0)
    mass = drawn.sum((1, 2, 3))
    for axis, scatter in ((-1, drawn.sum(-2)), (-2, drawn.sum(-1))):
        centre = (scatter.squeeze(1) * place).sum(-1) / mass
        error = centre.std() / len(centre) ** 0.5
        assert (centre.mean() - 14).abs() < 4 * error, axis
        assert 0.3 < centre.std() < 2
    edge = torch.ones(1, 1, 29, 29, dtype=torch.uint8)
    full = LabelledImages(edge, torch.zeros(1, dtype=torch.long), ("a",))
    shrunk = full.varied(torch.zeros(200, dtype=torch.long), torch.Generator().manual_seed(0))
    assert (shrunk == 0).any()  # what lies outside is blank


def test_varied_tasks_redraw_each_image_by_itself():
    letters = glyphs("background", drawings=8)
    make = lambda varied: FewShotTasks(letters, classes=2, shots=3, targets=6, varied=varied)  # noqa: E731
    plain, half, varied = make(0.0), make(0.5), make(1.0)
    for i in range(5):
        (x, memory), (y, other) = plain[i], varied[i]
        assert y.unique().tolist() == [0, 1]
        assert other.slots == memory.slots
        moved = (torch.cat([x, memory.values]) != torch.cat([y, other.values])).flatten(1).float().mean(1)
        assert (moved > 0).sum() >= 11  # a map may be too small to move any pixel
        assert (moved < 0.35).all()  # the same letters still: two letters' pixels differ more
        assert torch.equal(varied[i][0], y)
    same = sum(torch.equal(half[i][0], plain[i][0]) for i in range(40))
    assert 8 < same < 32
    with pytest.raises(ValueError, match="`varied` must lie in"):
        make(-0.1)
    with pytest.raises(ValueError, match="must be 0 with fixed targets"):
        FewShotTasks(
            letters, classes=2, shots=3, targets=6, varied=0.5, per_target=True, target_indices=torch.arange(3)
        )
