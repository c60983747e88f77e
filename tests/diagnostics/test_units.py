"""Every number that a person reads says in what unit it is, and per what."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_memory import BoundEstimate, MemoryContribution, importance_bound, information_gain
from pyro_memory.diagnostics import class_agreement, frechet_distance

N, M = 6, 2


def pair(task=True, data=True, glob=False):
    """A latent of the data set, one a task, one a datum; what is asked for."""

    def program(loc, observed):
        if glob:
            pyro.sample("w", dist.Normal(loc, 1.0))
        with pyro.plate("task", M, dim=-2):
            if task:
                pyro.sample("a", dist.Categorical(logits=torch.tensor([0.0, loc])))
            with pyro.plate("item", N // M, dim=-1):
                if data:
                    pyro.sample("z", dist.Categorical(logits=torch.tensor([loc, 0.0, 0.0])))
                if observed:
                    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(M, N // M))

    return (lambda: program(0.0, True)), (lambda: program(1.0, False))


def test_a_bound_says_what_it_is_per():
    text = repr(importance_bound(*pair(task=False), particles=3))
    assert "nats/datum" in text
    assert "BoundEstimate of 6 data," in text
    text = repr(importance_bound(*pair(), particles=3))
    assert "nats/task" in text
    assert "BoundEstimate of 2 tasks," in text
    assert "datum" not in text

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(w.unsqueeze(-1), torch.ones(N)).to_event(1), obs=torch.zeros(N))

    estimate = importance_bound(model, lambda: pyro.sample("w", dist.Normal(0.0, 1.0)), particles=3)
    assert "nats/data set" in repr(estimate)
    assert "datum" not in repr(MemoryContribution(estimate, {"other": estimate}))
    assert "1 data set" in repr(MemoryContribution(estimate, {"other": estimate}))
    with pytest.raises(ValueError, match="of the same unit"):
        BoundEstimate.cat([estimate, importance_bound(*pair(), particles=3)])


def test_information_says_it_a_site():
    gain = information_gain(*pair(glob=True), draws=2)
    assert {name: site.unit for name, site in gain.sites.items()} == {"w": "data set", "a": "task", "z": "datum"}
    assert gain.joint.unit == "data set"
    assert "InformationGain of 6 data" in repr(gain)
    assert "nats/data set, se -, 1 data set, closed form" in repr(gain["w"])
    assert "nats/task" in repr(gain["a"])
    assert "nats/datum, se 0.000, 6 data" in repr(gain["z"])
    for name, count in (("a", 2), ("z", 6)):
        assert gain.addresses[name].data == count  # lookups, over all plates
        text = repr(gain.addresses[name])
        assert text.count("nats/lookup") == 2
        assert f"of N = {count} lookups" in text


def test_a_latent_without_plate_is_of_the_data_set():
    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(w, 1.0), obs=torch.tensor(0.0))

    gain = information_gain(model, lambda: pyro.sample("w", dist.Normal(1.0, 1.0)), draws=2)
    assert gain["w"].unit == gain.joint.unit == "data set"
    assert "datum" not in repr(gain)


def test_distances_and_shares_say_what_they_are():
    features = torch.rand(2, 24, 3)
    text = repr(frechet_distance(features[0], features[1]))
    assert "in squared features; 24 and 24 images" in text
    text = repr(class_agreement(features, features, features))
    assert "images of the right class" in text
    assert "50.0% by chance; se over classes" in text


def test_an_unknown_name_is_refused_with_those_that_are_known():
    gain = information_gain(*pair(), draws=1)
    with pytest.raises(ValueError, match="`site` must be a latent site of the model, 'a', 'z'; got 'nosuch'"):
        gain["nosuch"]
    estimate = importance_bound(*pair(), particles=2)
    with pytest.raises(ValueError, match="`name` must be one of the other memories, 'emptied'; got 'nosuch'"):
        MemoryContribution(estimate, {"emptied": estimate}).gain("nosuch")
