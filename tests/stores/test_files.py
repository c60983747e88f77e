"""A memory in files: damaged, shared between processes, cut off."""

import errno
import importlib.util
import json
import multiprocessing
import os
import signal

import pytest
import torch
from torch import nn

import pyro_memory.stores.mapped as module
from pyro_memory import (
    ConceptMemory,
    ContentAddress,
    EpisodicMemory,
    MappedMemory,
    SlotMemory,
    StructuredMemory,
)  # fmt: skip


@pytest.fixture
def memory(tmp_path):
    return MappedMemory.create(tmp_path / "m", (2,), dtype=torch.float32, key_dim=1).append(
        torch.arange(6.0).reshape(3, 2), torch.ones(3, 1)
    )


def items(memory):
    return memory[torch.arange(memory.slots)].flatten().tolist()


def test_every_cut_or_flipped_manifest_is_a_value_error_that_names_it(memory):
    path = memory.folder / "memory.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 2):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]):
            path.write_bytes(content)
            try:
                if json.loads(content) == json.loads(whole):
                    continue  # white space
            except ValueError:
                pass
            with pytest.raises(ValueError, match=r"`folder` must hold a memory .*memory\.json cannot be read"):
                MappedMemory.open(memory.folder)


def test_a_memory_of_the_version_before_has_no_sum_and_opens(memory):
    path = memory.folder / "memory.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sum"}))
    assert items(MappedMemory.open(memory.folder)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("function", ["write_items", "publish"])
def test_a_full_disk_leaves_what_was_there_and_says_so(memory, monkeypatch, function):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    files = {p.name: p.read_bytes() for p in memory.folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(module, function, full)
        for write in (
            lambda: memory.append(torch.zeros(1, 2), torch.zeros(1, 1)),
            lambda: memory.with_keys(ContentAddress(nn.Linear(2, 1))),
        ):
            with pytest.raises(OSError, match=r"cannot be written \(.*No space.*; it holds the 3 slots"):
                write()
    if function == "write_items":
        assert {p.name: p.read_bytes() for p in memory.folder.iterdir()} == files
    assert items(MappedMemory.open(memory.folder)) == [0, 1, 2, 3, 4, 5]
    assert MappedMemory.open(memory.folder).append(torch.zeros(1, 2), torch.zeros(1, 1)).slots == 4


def test_keys_are_not_embedded_into_a_state_that_others_went_on_from(memory):
    address = ContentAddress(nn.Linear(2, 1))
    longer = memory.append(torch.zeros(1, 2), torch.zeros(1, 1))
    for stale in (memory, longer.head(2)):
        with pytest.raises(ValueError, match=r"`with_keys` goes on from the newest state, of 4 slots; this memory saw"):
            stale.with_keys(address)
    again = longer.with_keys(address)
    with pytest.raises(ValueError, match=r"`append` goes on from .* of 4 slots; this memory saw 4, or other keys"):
        longer.append(torch.zeros(1, 2), torch.zeros(1, 1))
    assert again.slots == 4


@pytest.mark.skipif(importlib.util.find_spec("fcntl") is None, reason="a system without locks")
def test_two_processes_do_not_append_at_once(memory, monkeypatch):
    def meanwhile(*_):
        with pytest.raises(ValueError, match="`append` needs the memory to itself; another process writes to"):
            MappedMemory.open(memory.folder).append(torch.zeros(1, 2), torch.zeros(1, 1))

    monkeypatch.setattr(module, "write_items", meanwhile)
    memory.append(torch.zeros(0, 2), torch.zeros(0, 1))
    assert items(MappedMemory.open(memory.folder)) == [0, 1, 2, 3, 4, 5]


def appends_for_ever(folder):
    memory = MappedMemory.open(folder)
    while True:
        memory = memory.append(torch.full((500, 2), float(memory.slots)), torch.zeros(500, 1))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a system without SIGKILL")
def test_a_killed_process_leaves_whole_batches(memory):
    process = multiprocessing.get_context("fork").Process(target=appends_for_ever, args=(memory.folder,))
    process.start()
    while MappedMemory.open(memory.folder).slots < 1503 and process.is_alive():
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    left = MappedMemory.open(memory.folder)
    assert left.slots % 500 == 3
    for start in range(3, left.slots, 500):
        assert left[torch.arange(start, start + 500)].unique().tolist() == [start]
    assert left.append(torch.zeros(1, 2), torch.zeros(1, 1)).slots == left.slots + 1


def test_a_users_file_is_not_taken_for_a_memory_s(tmp_path):
    (tmp_path / "values.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"`folder` must hold no file of a memory's; .*values\.bin is there"):
        MappedMemory.create(tmp_path, (2,))
    (tmp_path / "values.bin").write_bytes(b"")  # what a killed `create` leaves
    assert MappedMemory.create(tmp_path, (2,)).slots == 0


EPISODES = EpisodicMemory.reserve(2, 3, (1, 2, 2), 2, 3)
STRUCTURED = StructuredMemory(ConceptMemory.reserve(3, 2), EPISODES)


@pytest.mark.parametrize("store", [SlotMemory(torch.ones(2, 3)), EPISODES, STRUCTURED.concepts, STRUCTURED])
def test_tensors_of_another_store_are_named(store):
    tensors = store.to_tensors()
    with pytest.raises(ValueError, match="`tensors` must be what `to_tensors` of the same class gave; missing: "):
        type(store).from_tensors(dict(list(tensors.items())[1:]))
    with pytest.raises(ValueError, match="what `to_tensors` of the same class gave; missing: "):
        type(store).from_tensors({})


def test_a_memory_in_files_says_how_it_is_saved(memory):
    with pytest.raises(ValueError, match=r"is saved: open its folder again, or save `memory\.loaded"):
        memory.to_tensors()
    with pytest.raises(ValueError, match=r"needs a folder: use `MappedMemory.create"):
        MappedMemory.from_tensors(memory.loaded().to_tensors())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SlotMemory(torch.tensor([[0.0], [float("nan")]])),
            "`values` must be finite; got nan in slot 1",
        ),
        (lambda: SlotMemory(torch.ones(2, 1), torch.tensor([[0.0], [float("inf")]])), "`keys` .* got inf in slot 1"),
        (
            lambda: SlotMemory(torch.full((2, 3), float("nan")), batch_dim=-1),
            "`values` must be finite; got nan in memory 0",
        ),
        (
            lambda: ConceptMemory(*4 * [torch.tensor([[1.0], [float("nan")]])], torch.zeros(2)),
            "`loc` must be finite; got nan at \\[1, 0\\]",
        ),
        (lambda: EpisodicMemory(SlotMemory(torch.ones(2, 3, 4)), 2), r"with keys .*; got \[\[2, 3, 4\], None\]"),
        (lambda: EpisodicMemory(SlotMemory(torch.ones(2, 3, 4), torch.ones(2, 6)), 2), r"for dim 2; got"),
        (
            lambda: EpisodicMemory(SlotMemory(torch.ones(2, 3, 4), 9 * torch.ones(2, 7)), 2),
            "0 to 3 .* slot 0 has 9",
        ),
        (lambda: EpisodicMemory(SlotMemory(torch.ones(2, 3, 4), -torch.ones(2, 7)), 2), "slot 0 has -1 and -1"),
    ],
)
def test_a_store_names_the_first_thing_that_it_must_not_hold(make, message):
    with pytest.raises(ValueError, match=message):
        make()
