import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pyro_memory import load_weights
from pyro_memory.building import comparing
from pyro_memory.guides import EmptyGuide
from pyro_memory.training import load_checkpoint, read_header, save_checkpoint


class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(2, width)
        self.register_buffer("count", torch.tensor(0))


class Other(Net):
    pass


def empty(x):
    pass


def trained(optimizer=torch.optim.Adam):
    net = Net()
    steps = optimizer(net.parameters(), lr=0.1)
    net.layer(torch.ones(1, 2)).sum().backward()
    steps.step()
    return net, steps


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.NAdam, torch.optim.SGD, torch.optim.Rprop])
def test_a_run_comes_back_whole_and_in_place(tmp_path, optimizer):
    net, steps = trained(optimizer)
    net.count += 4
    path = save_checkpoint(tmp_path / "new" / "a.safetensors", net, empty, steps, step=7, record={"note": [1.5]})
    expected = torch.rand(2), random.random(), np.random.random()  # noqa: NPY002
    again, its_steps = trained(optimizer)
    weight = again.layer.weight
    header = load_checkpoint(path, again, empty, its_steps)
    assert (torch.rand(2) == expected[0]).all()
    assert (random.random(), np.random.random()) == expected[1:]  # noqa: NPY002
    assert again.layer.weight is weight
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(its_steps.state_dict()["state"], steps.state_dict()["state"], rtol=0, atol=0)
    assert (header["step"], header["record"]) == (7, {"note": [1.5]})
    assert json.loads(path.with_name(f"{path.name}.json").read_text())["step"] == read_header(path)["step"] == 7


def test_weights_alone_leave_the_random_streams(tmp_path):
    net, steps = trained()
    path = save_checkpoint(tmp_path / "a.safetensors", net, net, steps)
    torch.manual_seed(5)
    again = Net()
    state = torch.get_rng_state()
    load_weights(path, again, again)
    assert (torch.get_rng_state() == state).all()
    assert (again.layer.weight == net.layer.weight).all()


@pytest.mark.parametrize(
    "place", ["training.checkpoints.save_file", "stores.files.os.replace", "stores.files.os.fsync"]
)
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, place):
    net, steps = trained()
    path = save_checkpoint(tmp_path / "a.safetensors", net, empty, steps, step=1)
    files = sorted(tmp_path.iterdir())

    def crash(*args, **kwargs):
        if place.endswith("save_file"):
            args[1].write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(f"pyro_memory.{place}", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, net, empty, steps, step=2)
    monkeypatch.undo()
    assert sorted(tmp_path.iterdir()) == files
    assert load_weights(path, Net(), empty)["step"] == 1


def test_a_guide_without_weights_may_be_written_in_another_way(tmp_path):
    path = save_checkpoint(tmp_path / "a.safetensors", Net(), empty)
    assert load_weights(path, Net(), EmptyGuide())["guide"] == "function"


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (Net(4), empty, r"model.layer.weight is float32\[3, 2\] in the file, float32\[4, 2\] here"),
        (Net().double(), empty, r"float32\[3\] in the file, float64\[3\] here"),
        (Other(), empty, "model is a Net in the file, a Other here"),
        (Net(), Net(), r"guide is a function in the file, a Net here; guide.\w+.* is missing in the file"),
        (empty, empty, "model.layer.weight is only in the file.*Build `model` and `guide` as they were"),
        (nn.Sequential(Net(), Net()), Net(), "; and [0-9]+ more"),
    ],
)
def test_another_model_is_refused_and_left_alone(tmp_path, model, guide, message):
    path = save_checkpoint(tmp_path / "a.safetensors", Net(), empty)
    before = {} if model is empty else {k: v.clone() for k, v in model.state_dict().items()}
    for load in (load_weights, load_checkpoint):
        with pytest.raises(ValueError, match=message):
            load(path, model, guide)
    if before:
        torch.testing.assert_close(dict(model.state_dict()), before)


def test_another_optimizer_is_refused(tmp_path):
    net, steps = trained()
    path = save_checkpoint(tmp_path / "a.safetensors", net, empty, steps)
    with pytest.raises(ValueError, match=r"`optimizer` must be Adam.*got SGD.*load_weights"):
        load_checkpoint(path, *trained(torch.optim.SGD)[:1], empty, torch.optim.SGD(net.parameters(), lr=0.1))


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_damaged_file_is_named(tmp_path, keep):
    path = save_checkpoint(tmp_path / "a.safetensors", Net(), empty)
    path.write_bytes(path.read_bytes()[:keep])
    for read in (read_header, lambda p: load_checkpoint(p, Net(), empty)):
        with pytest.raises(ValueError, match=r"a\.safetensors` is not a whole pyro-memory checkpoint"):
            read(path)


def test_foreign_files_and_formats_are_named(tmp_path, monkeypatch):
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors` is not a whole"):
        load_weights(tmp_path / "b.safetensors", Net(), empty)
    monkeypatch.setattr("pyro_memory.training.checkpoints.FORMAT", 3)
    path = save_checkpoint(tmp_path / "a.safetensors", Net(), empty)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="must have format 1 or 2; got 3"):
        load_weights(path, Net(), empty)


def test_a_tensor_without_values_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"`model` must hold values; model\.count is on the meta device"):
        save_checkpoint(tmp_path / "a.safetensors", Net().to("meta"), empty)
    with pytest.raises(ValueError, match=r"`batches` must hold values; batches\.x is on the meta device"):
        save_checkpoint(tmp_path / "a.safetensors", Net(), empty, batches={"x": torch.ones(1, device="meta")})


def test_the_file_tells_how_the_pair_was_built_or_why_not(tmp_path):
    path = save_checkpoint(tmp_path / "a.safetensors", nn.Linear(2, 3, bias=False), EmptyGuide())
    assert read_header(path)["build"] == {
        "model": ["torch.nn.Linear", {"in_features": 2, "out_features": 3, "bias": False}], "guide": ["EmptyGuide", {}],
    }  # fmt: skip
    net = Net()
    net.layer.weight.requires_grad_(False)
    header = read_header(save_checkpoint(path, net, empty))
    assert header["build"] is None
    assert header["frozen"] == ["model.layer.weight"]
    assert "put @pyro_memory.rebuildable above it" in read_header(save_checkpoint(path, net, net))["not_rebuildable"]
    assert "`guide` is the function empty" in header["not_rebuildable"]


def test_a_pair_that_is_saved_again_unchanged_is_not_built_again(tmp_path, monkeypatch):
    model, made = nn.Linear(2, 3), []
    build = comparing.make
    monkeypatch.setattr(comparing, "make", lambda *args: made.append(1) or build(*args))
    guide = EmptyGuide()
    for step in range(3):
        save_checkpoint(tmp_path / "a.safetensors", model, guide, step=step)
    assert len(made) == 1
    model.extra = nn.Linear(2, 2)
    save_checkpoint(tmp_path / "a.safetensors", model, guide)
    assert len(made) == 2
