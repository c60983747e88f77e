"""What a user has data in goes into ``fit`` as it is: data sets, loaders, arrays, frames, and a memory that stays."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_memory import SlotMemory, fit, importance_bound
from pyro_memory.data import LabelledImages
from pyro_memory.guides import VAEGuide
from pyro_memory.models import VAE
from pyro_memory.training import read_header
from pyro_memory.training.batches import Epochs

X = torch.arange(10.0)[:, None]


class Offsets(PyroModule):
    """Notes what it is called with, which is a datum and the slots that it lies beside."""

    def __init__(self):
        super().__init__("offsets")
        self.shift = nn.Parameter(torch.zeros(1))
        self.calls = []

    def forward(self, x, memory):
        self.calls.append((x.detach().clone(), memory))
        with pyro.plate("batch", len(x)):
            x_dist = dist.Normal(self.shift + memory.values.mean(), 1.0)
            pyro.sample("x", x_dist.expand(x.shape).to_event(x.dim() - 1), obs=x)


def nothing(x, memory):
    pass


def calls(batches, steps=5, **options):
    model, memory = Offsets(), SlotMemory(torch.ones(2, 1))
    fit(model, nothing, batches, Trace_ELBO(), steps=steps, further=(memory,), progress=False,
        information_every=None, **options)  # fmt: skip
    assert all(given is memory for _, given in model.calls)
    return [x for x, _ in model.calls[-steps:]]


class Rows(Dataset):
    """Items that are tensors, not tuples of them."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index]


@pytest.mark.parametrize("items", [TensorDataset(X), Rows()], ids=["tuples", "tensors"])
def test_an_epoch_of_a_data_set_has_each_item_once_in_an_order_of_its_own(items):
    steps = calls(items, steps=6, batch_size=3)
    first, second = torch.cat(steps[:3]), torch.cat(steps[3:])
    for epoch in (first, second):
        assert len(set(epoch.flatten().tolist())) == 9
    assert not torch.equal(first, second)
    again = calls(items, steps=6, batch_size=3)
    assert torch.equal(torch.cat(again), torch.cat(steps))
    assert not torch.equal(torch.cat(calls(items, steps=6, batch_size=3, seed=1)), torch.cat(steps))


@pytest.mark.parametrize("items", [TensorDataset(X), Rows()], ids=["tuples", "tensors"])
def test_a_loader_goes_in_as_it_is(items):
    assert [x.flatten().tolist() for x in calls(DataLoader(items, batch_size=5), steps=2)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    ]


def test_a_data_set_goes_on_after_a_resume_as_if_it_had_not_stopped(tmp_path):
    whole = calls(TensorDataset(X), steps=7, batch_size=2)
    kept = {"batch_size": 2, "checkpoint": tmp_path / "run.safetensors"}
    parts = calls(TensorDataset(X), steps=4, **kept) + calls(TensorDataset(X), steps=7, **kept)[-3:]
    assert torch.equal(torch.cat(parts), torch.cat(whole))


def test_a_resume_in_another_order_is_told(tmp_path):
    kept = {"checkpoint": tmp_path / "run.safetensors"}
    calls(TensorDataset(X), steps=2, batch_size=2, **kept)
    with pytest.warns(UserWarning, match="`batch_size` was 2 and is 5: from here on the run has another order of data"):
        calls(TensorDataset(X), steps=3, batch_size=5, **kept)


class Arrays(Rows):
    """Items as arrays of numpy, in double precision."""

    def __getitem__(self, index):
        return (X[index].double().numpy(),)


def test_items_that_are_arrays_become_tensors_of_the_default_dtype():
    (x,) = calls(Arrays(), steps=1, batch_size=2)
    assert x.dtype == torch.float32


def test_arrays_and_frames_become_tensors_of_the_default_dtype():
    pandas = pytest.importorskip("pandas")
    rows = X.double().numpy()
    for given in (rows, pandas.DataFrame({"size": rows[:, 0]}), rows.astype(np.float32)):
        (x,) = calls([(given,)], steps=1)
        assert x.dtype == torch.float32
        assert torch.equal(x, X)


def test_measurements_take_arrays_and_frames_for_a_model_of_one_s_own():
    pandas = pytest.importorskip("pandas")
    model, memory = Offsets(), SlotMemory(torch.ones(2, 1))
    rows = X.double().numpy()
    wanted = importance_bound(model, nothing, X, memory, particles=1).bound
    for given in (rows, pandas.DataFrame({"size": rows[:, 0]})):
        assert torch.equal(importance_bound(model, nothing, given, memory, particles=1).bound, wanted)
        assert torch.equal(importance_bound(model, nothing, x=given, memory=memory, particles=1).bound, wanted)


def test_a_memory_takes_a_frame_where_it_takes_a_tensor():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"slope": [1.0, 2.0], "intercept": [0, 1]})
    torch.testing.assert_close(SlotMemory(frame).values, torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="`values` must be"):
        SlotMemory(frame.assign(name=["a", "b"]))


def test_labelled_images_go_in_by_batch_size():
    images = LabelledImages(torch.arange(6).reshape(6, 1, 1, 1) % 2, [0, 1, 2, 3, 4, 5])
    (x,) = calls(images, steps=1, batch_size=6)
    assert sorted(x.flatten().tolist()) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"LabelledImages gives single items. Say how .* FewShotTasks draws them"):
        calls(images)


def test_labels_are_no_memory():
    pair = VAE.mlp((1, 2, 2), latent_dim=1), VAEGuide.mlp((1, 2, 2), latent_dim=1)
    with pytest.raises(TypeError, match=r"`memory` must be .* If these are labels, leave them out of the batches"):
        fit(*pair, [(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 2]))], Trace_ELBO(), steps=1, progress=False)


def test_what_does_not_make_batches_is_refused():
    with pytest.raises(ValueError, match=r"a TensorDataset gives single items. Say how many make a batch: batch_size"):
        calls(TensorDataset(X))
    with pytest.raises(ValueError, match="`batch_size` must be left out unless `batches` is a torch Dataset"):
        calls([(X,)], batch_size=2)
    with pytest.raises(ValueError, match=r"`batch_size` must lie in 1 .. 10, the items of `batches`; got 11"):
        calls(TensorDataset(X), batch_size=11)
    with pytest.raises(ValueError, match="must hold numbers; numpy makes object of it"):
        calls([(np.array([[None]]),)])


def test_items_of_several_parts_stay_together():
    batch = Epochs(TensorDataset(X, 2 * X), 4, 0)[3]
    assert torch.equal(2 * batch[0], batch[1])


def test_a_checkpoint_holds_the_memory_that_stays_unless_it_is_large(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    calls([(X,)], steps=1, checkpoint=path)
    assert read_header(path)["stores"] == {"kind": "SlotMemory"}
    monkeypatch.setattr("pyro_memory.training.kept.LARGEST", 4)
    with pytest.warns(UserWarning, match="is not written with each checkpoint; keep it yourself"):
        calls([(X,)], steps=1, checkpoint=tmp_path / "other.safetensors")
    assert read_header(tmp_path / "other.safetensors")["stores"] is None
