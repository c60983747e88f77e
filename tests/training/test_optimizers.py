"""Optimizer state goes by the names of parameters."""

import json
from functools import partial

import pyro.optim
import pytest
import torch
from fits import assert_same, pair, run
from pyro.optim.clipped_adam import ClippedAdam
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pyro_memory.guides import EmptyGuide
from pyro_memory.training import load_checkpoint, save_checkpoint


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.three(self.two(self.one(x)))


def trained(net, steps=3, optimizer=torch.optim.Adam, **options):
    made = optimizer([p for p in net.parameters() if p.requires_grad], lr=0.1, **options)
    for step in range(steps):
        made.zero_grad()
        net(torch.ones(4, 3) * (step + 1)).pow(2).sum().backward()
        made.step()
    return made


def moments(net, optimizer):
    names = {p: name for name, p in net.named_parameters()}
    return {names[p]: state["exp_avg"] for p, state in optimizer.state.items()}


def test_state_finds_its_parameter_when_a_layer_is_frozen_meanwhile(tmp_path):
    net = Net()
    optimizer = trained(net)
    path = save_checkpoint(tmp_path / "a.safetensors", net, EmptyGuide(), optimizer, step=3)
    again = Net()
    again.one.requires_grad_(False)
    its = trained(again, steps=0)
    expected = r"it trained model\.one\.weight, model\.one\.bias, frozen here, whose optimizer state is dropped"
    with pytest.warns(UserWarning, match=expected) as record:
        load_checkpoint(path, again, EmptyGuide(), its)
    assert len(record) == 1
    before = {name: m for name, m in moments(net, optimizer).items() if not name.startswith("one")}
    assert_same(moments(again, its), before)


def test_what_trains_anew_starts_fresh(tmp_path):
    net = Net()
    net.one.requires_grad_(False)
    optimizer = trained(net)
    path = save_checkpoint(tmp_path / "a.safetensors", net, EmptyGuide(), optimizer)
    again = Net()
    its = trained(again, steps=0)
    with pytest.warns(UserWarning, match=r"it did not train model\.one\.weight, model\.one\.bias, whose .* fresh"):
        load_checkpoint(path, again, EmptyGuide(), its)
    assert_same(moments(again, its), moments(net, optimizer))


def test_another_order_and_other_groups_matter_not(tmp_path):
    net = Net()
    optimizer = trained(net)
    path = save_checkpoint(tmp_path / "a.safetensors", net, EmptyGuide(), optimizer)
    again = Net()
    groups = [
        {"params": list(again.three.parameters())},
        {"params": [*again.two.parameters(), *again.one.parameters()]},
    ]
    its = torch.optim.Adam(groups, lr=0.1)
    with pytest.warns(UserWarning, match="it had 1 groups of parameters, 2 here"):
        load_checkpoint(path, again, EmptyGuide(), its)
    assert_same(moments(again, its), {name: moments(net, optimizer)[name] for name in moments(again, its)})


def test_other_options_are_said_and_kept_as_given(tmp_path):
    path = tmp_path / "a.safetensors"
    run(*pair(), steps=3, checkpoint=path)
    expected = r"another Adam than wrote it: betas was \[0.9, 0.999\], is \[0.5, 0.9\]; weight_decay was 0, is 0.1$"
    with pytest.warns(UserWarning, match=expected) as record:
        run(*pair(), steps=5, checkpoint=path, optimizer=partial(torch.optim.Adam, betas=(0.5, 0.9), weight_decay=0.1))
    assert len(record) == 1
    run(
        *pair(),
        steps=7,
        checkpoint=path,
        learning_rate=0.5,
        optimizer=partial(torch.optim.Adam, betas=(0.5, 0.9), weight_decay=0.1),
    )


def as_format_1(path):
    """Rewrites a checkpoint as earlier versions of this package did."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["pyro_memory"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    places = {name: i for i, name in enumerate(header["optimizer_parameters"])}

    def renamed(key):
        name, _, what = key.removeprefix("optimizer.").rpartition(".")
        return f"optimizer.{places[name]}.{what}" if key.startswith("optimizer.") else key

    header = {k: v for k, v in header.items() if k not in ("optimizer_parameters", "optimizer_options")}
    header |= {"format": 1, "optimizer_scalars": {renamed(k): v for k, v in header["optimizer_scalars"].items()}}
    if "log" in header["record"]:
        log = header["record"]["log"]
        header["record"]["log"] = {k: v for k, v in log.items() if k not in ("counted", "units")}
        del log["history"]["data"]
    save_file({renamed(k): t for k, t in tensors.items()}, path, {"pyro_memory": json.dumps(header)})


def test_a_run_of_an_earlier_version_goes_on_exactly(tmp_path):
    for name in ("old", "new"):
        path = tmp_path / f"{name}.safetensors"
        run(*pair(), steps=13, checkpoint=path)
        if name == "old":
            as_format_1(path)
    results = {}
    for name in ("old", "new"):
        model, guide = pair(seed=4)
        result = run(model, guide, steps=33, checkpoint=tmp_path / f"{name}.safetensors")
        results[name] = model.state_dict(), guide.state_dict(), result.history["bound"]
        data = result.history["data"]
        assert data == ([None, None, 4.0, 4.0] if name == "old" else [4.0] * 4)
        assert "nats per datum" in repr(result)
        assert result.unit == ("call" if name == "old" else "datum")
    assert_same(results["old"], results["new"])


@pytest.mark.parametrize("freeze", ["one", "three"])
def test_a_file_of_an_earlier_version_is_refused_where_positions_cannot_fit(tmp_path, freeze):
    net = Net()
    path = save_checkpoint(tmp_path / "a.safetensors", net, EmptyGuide(), trained(net))
    as_format_1(path)
    again = Net()
    getattr(again, freeze).requires_grad_(False)
    before = {k: v.clone() for k, v in again.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"\(format 1\) holds the optimizer's state by position, for other parameters than"
    ):
        load_checkpoint(path, again, EmptyGuide(), trained(again, steps=0))
    assert_same(dict(again.state_dict()), before)
    fits = Net()
    load_checkpoint(path, fits, EmptyGuide(), trained(fits, steps=0))


WRONG = [
    (lambda p: torch.optim.Adam(p), TypeError, r"got an instance of Adam: give the class, its rate as `learning_rate`"),
    (lambda p: pyro.optim.Adam({"lr": 1e-3}), TypeError, "got one of pyro.optim"),
    (lambda p: pyro.optim.Adam, TypeError, "got one of pyro.optim"),
    (lambda p: "adam", TypeError, "such as torch.optim.Adam; got 'adam'"),
    (lambda p: torch.optim.LBFGS, ValueError, r"LBFGS computes the loss anew.*Use torch\.optim\.Adam"),
    (lambda p: partial(torch.optim.SGD, lr=0.1), ValueError, "must leave the rate to `learning_rate`; got lr=0.1"),
    (lambda p: partial(torch.optim.Adam, beta=0.9), TypeError, r"that call fails.*'beta'.*options"),
    (lambda p: partial(torch.optim.Adam, betas=(0.9, 1.0)), ValueError, r"that call fails.*beta.*options"),
    (lambda p: lambda parameters, rate: None, TypeError, "calls with the parameters and `lr=`; that call fails.*'lr'"),
    (lambda p: lambda parameters, lr: "adam", ValueError, "must make a torch optimizer; it made a str"),
]


@pytest.mark.unchecked
@pytest.mark.parametrize(("optimizer", "error", "message"), WRONG)
def test_what_makes_no_optimizer_is_refused(optimizer, error, message):
    with pytest.raises(error, match=f"`optimizer` .*{message}"):
        run(*pair(), optimizer=optimizer(nn.Linear(2, 2).parameters()))


def test_an_optimizer_of_pyro_that_is_torchs_kind_trains():
    assert run(*pair(), steps=2, optimizer=ClippedAdam).steps == 2
