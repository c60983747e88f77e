"""Memories in files."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ink
from torch import nn
from torch.testing import assert_close

from pyro_memory import VIMCO, ContentAddress, FrozenAddress, MappedMemory, NearestAddress, SlotIndex, SlotMemory, fit


def test_it_is_appended_to_reopened_and_read_like_a_memory_in_ram(tmp_path):
    items = ink(10, 1, 6, 6)
    memory = MappedMemory.create(tmp_path / "m", (1, 6, 6)).append(items[:4]).append(items[4:])
    plain, again = SlotMemory(items), MappedMemory.open(tmp_path / "m")
    for m in (memory, again):
        assert (m.slots, m.event_shape, m.batch_dim) == (10, (1, 6, 6), None)
        for a in (torch.tensor(3), torch.tensor([[1, 2], [9, 0]])):
            assert_close(m[a], plain[a])
        assert_close(m.prior().probs, plain.prior().probs)
        assert_close(m.loaded().values, items)
        assert_close(m.read(torch.tensor([5]), lambda t: 2 * t), 2 * items[[5]])
    assert (tmp_path / "m" / "values.bin").stat().st_size == 360  # a byte a pixel


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what is in memory")
def test_opening_reads_no_items(tmp_path):
    MappedMemory.create(tmp_path, (1000,)).append(torch.zeros(2000, 1000))

    def resident():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    before = resident()
    memory = MappedMemory.open(tmp_path)
    memory.check_filled()
    assert resident() - before < 500  # KiB, of 2,000,000 bytes
    assert memory[torch.tensor(1999)].sum() == 0


def test_an_append_leaves_the_old_memory_as_it_was(tmp_path):
    old = MappedMemory.create(tmp_path, (2,), dtype=torch.float32).append(torch.ones(3, 2))
    new = old.append(torch.zeros(2, 2))
    assert (old.slots, new.slots) == (3, 5)
    assert_close(new.head(4)[torch.tensor([0, 3])], torch.tensor([[1.0, 1], [0, 0]]))
    assert_close(old[torch.arange(3)], torch.ones(3, 2))


@pytest.mark.parametrize("at", ["values", "keys", "manifest"])
def test_a_crash_while_appending_leaves_the_old_state_readable(tmp_path, monkeypatch, at):
    memory = MappedMemory.create(tmp_path, (2,), dtype=torch.float32, key_dim=3).append(
        torch.ones(3, 2), torch.ones(3, 3)
    )
    import pyro_memory.stores.mapped as module

    write, calls = module.write_items, []

    def dies(folder, entry, slots, items):
        calls.append(entry["file"])
        if (at == "values") == (len(calls) == 1):
            write(folder, entry, slots, items[:1])  # half of it reached the disk
            raise KeyboardInterrupt
        write(folder, entry, slots, items)

    def no_manifest(folder, manifest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, *(("publish", no_manifest) if at == "manifest" else ("write_items", dies)))
        with pytest.raises(KeyboardInterrupt):
            memory.append(torch.zeros(2, 2), torch.zeros(2, 3))
    again = MappedMemory.open(tmp_path)
    assert again.slots == 3
    assert_close(again[torch.arange(3)], torch.ones(3, 2))
    longer = again.append(torch.full((2, 2), 7.0), torch.full((2, 3), 8.0))
    assert_close(longer[torch.tensor([2, 3, 4])], torch.tensor([[1.0, 1], [7, 7], [7, 7]]))
    assert_close(longer.keys[3:].float(), torch.full((2, 3), 8.0))


def test_keys_are_embedded_into_a_file_and_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_memory.stores.mapped.BLOCK", 4)
    items, x = ink(10, 5), ink(6, 5)
    address = ContentAddress(nn.Linear(5, 3))
    memory = MappedMemory.create(tmp_path, (5,)).append(items).with_keys(address)
    assert memory.keys.dtype == torch.float16
    exact = address(x, SlotMemory(items))
    assert_close(FrozenAddress(address)(x, memory).dense().logits, exact.logits, atol=0.01, rtol=0)
    a = exact.logits.topk(3).indices
    near = NearestAddress(FrozenAddress(address), 3, index=SlotIndex("brute"))(x, memory)
    assert_close(near.best, a)
    again = memory.with_keys(address, dtype=torch.float32)
    assert_close(FrozenAddress(address)(x, again).dense().logits, exact.logits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keys-1.bin", "memory.json", "values.bin"]


def test_a_vma_trains_on_it_as_on_the_memory_in_ram(tmp_path, tiny_pair):
    items, x = ink(12, 1, 6, 6), ink(4, 1, 6, 6)
    mapped = MappedMemory.create(tmp_path, (1, 6, 6)).append(items)
    losses = []
    state = [m.state_dict() for m in tiny_pair]
    state = [{k: v.clone() for k, v in s.items()} for s in state]
    for memory in (SlotMemory(items), mapped):
        for module, s in zip(tiny_pair, state, strict=True):
            module.load_state_dict(s)
        result = fit(*tiny_pair, [(x, memory)], VIMCO(2, max_plate_nesting=1), steps=3, seed=0, progress=False)
        losses.append(result.history["bound"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_truncated_file_is_named(tmp_path):
    MappedMemory.create(tmp_path, (2,), dtype=torch.float32).append(torch.ones(3, 2))
    with open(tmp_path / "values.bin", "r+b") as file:
        file.truncate(20)
    with pytest.raises(
        ValueError, match=r"values.bin` is truncated: 3 slots of \[2\] float32 take 24 bytes, it has 20"
    ):
        MappedMemory.open(tmp_path)
    (tmp_path / "memory.json").write_text(json.dumps({"format": 1})[:-3])
    with pytest.raises(ValueError, match="`folder` must hold a memory that this version wrote"):
        MappedMemory.open(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: MappedMemory.create(p, (2,)), "`folder` must hold no memory yet"),
        (lambda m, p: MappedMemory.create(p / "x", (2,), dtype=torch.int64), "`dtype` must be one of uint8, float16"),
        (lambda m, p: MappedMemory.open(p / "none"), "Make one with `MappedMemory.create`"),
        (lambda m, p: m.append(torch.zeros(1, 3)), r"`values` must be \[item, 2\]; got \[1, 3\]"),
        (lambda m, p: m.append(torch.zeros(1, 2), torch.zeros(1, 2)), "`keys` must be None, as the memory has no keys"),
        (lambda m, p: m.append(torch.full((1, 2), 0.5)), "`values` must be integers from 0 to 255"),
        (lambda m, p: (m.append(torch.zeros(1, 2)), m.append(torch.zeros(1, 2))), "newest state, of 2 slots.*saw 1"),
        (lambda m, p: m.head(2), "`slots` must lie between 0 and the memory's 1; got 2"),
        (lambda m, p: m.write(torch.zeros(1, 2)), "use `append`"),
        (lambda m, p: m.with_none(), "append a blank item once"),
        (lambda m, p: m.to("meta"), "is read on the CPU"),
        (lambda m, p: MappedMemory.create(p / "y", (2,)).prior(), "no slots. Write items first"),
        (
            lambda m, p: MappedMemory.create(p / "z", (2,)).with_keys(torch.nn.Identity()),
            "`with_keys` needs items to embed",
        ),
    ],
)
def test_bad_input_is_refused_with_the_remedy(tmp_path, call, message):
    memory = MappedMemory.create(tmp_path, (2,)).append(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=message):
        call(memory, tmp_path)


def test_bytes_are_appended_as_they_are(tmp_path):
    items = torch.tensor([[0, 255], [7, 1]], dtype=torch.uint8)
    memory = MappedMemory.create(tmp_path, (2,), dtype=torch.uint8).append(items)
    assert memory.append(items)[torch.tensor([1, 2])].tolist() == [[7, 1], [0, 255]]
