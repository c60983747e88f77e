"""What cannot be calibrated, and what the error says to do."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_memory.diagnostics import calibrate

X = torch.arange(4.0)


def model(x):
    with pyro.plate("batch", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("batch", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7))


def refused(text, *pair, args=(X,), **options):
    with pytest.raises((ValueError, TypeError)) as raised:
        calibrate(*pair, *args, simulations=3, draws=4, **options)
    assert text in str(raised.value)


def test_a_guide_that_does_not_look_at_its_data():
    said = "`guide` must infer z from the data that it is given; it draws the same whatever they are"
    refused(said, model, AutoNormal(model))
    with pytest.raises(ValueError, match="Calibrate an amortised guide; on your one data set, ask importance_bound"):
        calibrate(model, AutoNormal(model), X, simulations=8, draws=4)


def test_a_guide_may_look_through_an_address_that_comes_out_alike():
    slots = torch.tensor([-9.0, 9.0])

    def by_address(x):
        with pyro.plate("batch", 1):
            a = pyro.sample("a", dist.Categorical(torch.tensor([1.0 - 1e-6, 1e-6])))
            z = pyro.sample("z", dist.Normal(slots[a], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def inferred(x):
        with pyro.plate("batch", 1):
            a = pyro.sample("a", dist.Categorical(logits=torch.stack([5.0 + 0.1 * x, 0.0 * x], -1)))
            pyro.sample("z", dist.Normal(slots[a] + 0.1, 1.0))  # of the address alone, and not its prior

    calibrate(by_address, inferred, torch.zeros(1), simulations=6, draws=4)


def test_data_that_are_no_argument():
    def scaled(x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=2 * x + 1)

    refused(
        "`data` must tell which argument holds the data of site `x`; what it observes is none of them", scaled, guide
    )
    refused('Give data={"site": "parameter"}, by name or position, or wrap model and guide', scaled, guide)


def test_data_that_two_arguments_may_be():
    def wide(x, y):
        model(x.clone())

    refused("what it observes equals 2 of them", wide, lambda x, y: guide(x), args=(X.clone(), X.clone()))


def test_data_named_wrongly():
    refused("`data` must name observed sites of the model, 'x'; got y", model, guide, data={"y": 0})
    refused("`data` must give `x` an argument that is a tensor, 0; got 'w'", model, guide, data={"x": "w"})
    refused("`data` must give `x` an argument that is a tensor, 0; got 1", model, guide, data={"x": 1})

    def lonely(x, y):
        model(x)

    long = "`data` must give site `x` the argument that it observes; the site has shape [4], argument 1 [7]"
    refused(long, lonely, lambda x, y: guide(x), args=(X, torch.zeros(7)), data={"x": "y"})


def test_two_sites_of_one_argument():
    def twice(x):
        model(x)
        with pyro.plate("again", len(x)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x)

    refused("`data` must give each observed site an argument of its own; x, y share one", twice, guide)


def test_a_model_without_data():
    def free(x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    refused("`model` must observe data; it observes nothing", free, guide)


def test_a_model_without_latents():
    def plain(x):
        with pyro.plate("batch", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    refused("`model` must have latents to calibrate; it has none", plain, lambda x: None)


def test_a_model_that_uses_its_data_otherwise():
    def autoregressive(x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + x.roll(1), 1.0), obs=x)

    refused("`model` must use its data by obs= alone; the distribution of `x` changes", autoregressive, guide)


def test_a_subsampled_plate():
    def part(x):
        with pyro.plate("batch", len(x), subsample_size=2) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def part_guide(x):
        with pyro.plate("batch", len(x), subsample_size=2) as i:
            pyro.sample("z", dist.Normal(x[i], 1.0))

    refused("plate `batch` around site `z` must not be subsampled; it holds 2 of 4", part, part_guide)


def test_a_factor():
    def weighted(x):
        model(x)
        pyro.factor("more", torch.tensor(1.0))

    refused("site `more` must be drawable; it is a factor", weighted, guide)


def test_sites_that_come_and_go():
    class Moody:
        calls = 0

        def __call__(self, x):
            model(x)
            self.calls += 1
            if self.calls == 3:
                pyro.sample("extra", dist.Normal(0.0, 1.0))

    refused("`model` must have the same sites in every draw; got extra in some only", Moody(), guide)


def test_what_is_not_a_number():
    def broken(x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(x * torch.nan, 0.7))

    with pyro.validation_enabled(False):
        refused("site `z` must be a number in model and guide; got NaN", model, broken)


def test_a_guide_without_the_latent():
    refused("`guide` must sample every latent of the model; missing: z", model, lambda x: None)


def test_counts_below_one_and_unknown_sites():
    for name in ("simulations", "draws"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
            calibrate(model, guide, X, **{name: 0})
    calibration = calibrate(model, guide, X, simulations=2, draws=2)
    with pytest.raises(ValueError, match="`site` must be a latent site of the model, 'z'; got 'w'"):
        calibration["w"]
    with pytest.raises(ValueError, match=r"`share` must lie between 0 and 1, such as 0.9; got 90"):
        calibration["z"].coverage(90)
