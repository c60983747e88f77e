"""No byte of a checkpoint changes unseen."""

import multiprocessing
import random
import time

import pytest
import torch
from fits import pair, run, weights
from safetensors import safe_open
from safetensors.torch import save_file as foreign

from pyro_memory.training import load_checkpoint, load_weights, read_header, save_checkpoint
from pyro_memory.training.seal import load_file, save_file

DAMAGED = "is not a whole pyro-memory checkpoint: it is another file, or damaged"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "a.safetensors"
    run(*pair(), steps=3, checkpoint=path)
    return path


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_a_flipped_byte_anywhere_is_seen(checkpoint, tmp_path, mask):
    content, path = checkpoint.read_bytes(), tmp_path / "b.safetensors"
    head = 8 + int.from_bytes(content[:8], "little")
    model, guide = pair()
    before = weights(model, guide)
    load_weights(checkpoint, *pair())
    places = {*range(16), *range(0, len(content), 97), *range(head - 8, head + 8), len(content) - 1}
    places |= set(range(content.index(b'"seal"'), content.index(b'"seal"') + 26))
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= mask
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=DAMAGED):
            load_checkpoint(path, model, guide)
    assert all((a == b).all() for a, b in zip(weights(model, guide), before, strict=True))


def test_a_header_is_checked_without_its_tensors(checkpoint, tmp_path):
    content, path = bytearray(checkpoint.read_bytes()), tmp_path / "b.safetensors"
    at = content.index(b"learning_rate")
    content[-1] ^= 1
    path.write_bytes(content)
    assert read_header(path)["step"] == 3
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{DAMAGED}.*header is not as it was written"):
        read_header(path)


def test_a_cut_or_longer_file_is_seen(checkpoint, tmp_path):
    content, path = checkpoint.read_bytes(), tmp_path / "b.safetensors"
    for damaged in (b"", content[:5], content[:100], content[: len(content) // 2], content[:-1], content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=DAMAGED):
            load_weights(path, *pair())


def test_a_record_cannot_pass_for_the_seal(tmp_path):
    model, guide = pair()
    path = save_checkpoint(tmp_path / "a", model, guide, record={"seal": "0" * 16, "text": '"seal":"' + "0" * 16})
    assert load_weights(path, *pair())["record"]["seal"] == "0" * 16


def test_safetensors_reads_it_and_a_file_without_checksums_is_read(tmp_path):
    save_file({"x": torch.arange(5)}, tmp_path / "a", {"mine": "1"})
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.get_tensor("x").tolist() == [0, 1, 2, 3, 4]
    foreign({"x": torch.arange(5)}, tmp_path / "b", {"mine": "1"})
    (metadata, tensors), (others, same) = (load_file(tmp_path / name, tensors=True) for name in "ab")
    assert set(metadata) == {"mine", "seal"}
    assert others == {"mine": "1"}
    assert tensors["x"].tolist() == same["x"].tolist() == [0, 1, 2, 3, 4]


def write_for_ever(path):
    net = torch.nn.Linear(300, 300)
    for step in range(100_000):
        save_checkpoint(path, net, print, step=step)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_writers_and_kills_at_any_moment_leave_a_whole_file(tmp_path, seed):
    path, moments = tmp_path / "a", random.Random(seed)
    writers = [multiprocessing.get_context("fork").Process(target=write_for_ever, args=(path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        while not path.exists():
            time.sleep(0.01)
        for _ in range(20):
            load_weights(path, torch.nn.Linear(300, 300), print)
        time.sleep(moments.uniform(0, 0.1))
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    load_weights(path, torch.nn.Linear(300, 300), print)
    save_checkpoint(path, torch.nn.Linear(300, 300), print)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "a.json"]
