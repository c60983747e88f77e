import builtins

import numpy as np
import pytest
import torch

from pyro_memory import BoundEstimate, MemoryContribution, information_gain, to_arviz
from pyro_memory.diagnostics import InformationGain, SiteInformation

arviz = pytest.importorskip("arviz", reason="the extra `arviz` is not installed")


def estimate(offset=0.0):
    return BoundEstimate(torch.arange(4.0) + offset, torch.arange(4.0) + 2, 10)


def forest(data, group, **options):
    """As the docstring spells it for either version."""
    if "InferenceData" in vars(arviz):
        return arviz.plot_forest(data[group], **options)
    return arviz.plot_forest(data, group=group, **options)


def test_data_are_draws_of_a_bound():
    group = to_arviz(estimate())["bound"]
    assert group["bound"].dims == ("chain", "draw")
    assert group.attrs["unit"] == "datum"
    assert group["bound"].attrs["units"] == "nats/datum"
    np.testing.assert_array_equal(group["bound"].values, [[0, 1, 2, 3]])
    np.testing.assert_array_equal(group["effective_particles"].values, [[2, 3, 4, 5]])


def test_a_group_says_its_records_unit():
    record = BoundEstimate(torch.zeros(2), torch.ones(2), 10, "task")
    assert to_arviz(record)["bound"].attrs["unit"] == "task"


def test_a_contribution_is_by_memory_and_paired():
    group = to_arviz(MemoryContribution(estimate(1.0), {"wrong classes": estimate()}))["bound"]
    assert group["bound"].dims == ("chain", "draw", "memory")
    lost = group["bound"].sel(memory="given") - group["bound"].sel(memory="wrong classes")
    np.testing.assert_array_equal(lost.values, 1)
    np.testing.assert_array_equal(group["lost"].sel(alternative="wrong classes").values, 1)


def test_a_contribution_without_alternatives_has_nothing_lost():
    assert "lost" not in to_arviz(MemoryContribution(estimate(), {}))["bound"].data_vars


def test_information_is_by_site_with_the_slots_use(tiny_pair, shared_memory):
    gain = information_gain(*tiny_pair, shared_memory.values[:3], shared_memory)
    data = to_arviz(gain)
    assert data["information"]["kl_a"].dims == ("chain", "draw")
    np.testing.assert_allclose(data["information"]["kl_a"].values[0], gain["a"].kl.numpy())
    np.testing.assert_allclose(data["information"]["kl_joint"].values[0], gain.joint.kl.numpy())
    np.testing.assert_allclose(data["address_a"]["usage"].values, gain.addresses["a"].usage.numpy())


def test_sites_of_other_units_have_groups_of_their_own():
    sites = {
        "z": SiteInformation(torch.rand(3), "datum", "closed form", 0.0),
        "w": SiteInformation(torch.rand(6), "batch x time", "closed form", 0.0),
    }
    joint = SiteInformation(torch.rand(1), "data set", "sum of sites", 0.0)
    data = to_arviz(InformationGain(sites, joint, {}, 2))
    assert set(data["information"].data_vars) == {"kl_z"}
    assert data["information_batch_x_time"]["kl_w"].shape == (1, 6)
    assert data["information_data_set"]["kl_joint"].shape == (1, 1)


def test_arviz_gives_a_records_mean_with_its_standard_error():
    """Its ``mcse_mean`` is the deviation over the root of the effective number of draws, here all of them or so."""
    given = BoundEstimate(torch.randn(2000).double(), 1 + torch.rand(2000), 10)
    other = BoundEstimate(given.bound - torch.rand(2000), 1 + torch.rand(2000), 10)
    record = MemoryContribution(given, {"other": other})
    options = {"round_to": 6} if "InferenceData" in vars(arviz) else {"round_to": "none"}
    table = arviz.summary(to_arviz(record), group="bound", **options)
    mean, se = record.gain("other")
    assert float(table.loc["lost[other]", "mean"]) == pytest.approx(mean, abs=1e-5)
    assert float(table.loc["lost[other]", "mcse_mean"]) == pytest.approx(se, rel=0.2)
    assert float(table.loc["bound[given]", "mean"]) == pytest.approx(given.mean, abs=1e-5)


def test_arviz_plots_records(tiny_pair, shared_memory):
    gain = information_gain(*tiny_pair, shared_memory.values[:5], shared_memory)
    other = BoundEstimate(torch.tensor([0.5, 0.0, 1.5, 2.0]), torch.arange(4.0) + 2, 10)
    contribution = MemoryContribution(estimate(1.0), {"other": other})
    for record, group in ((estimate(), "bound"), (contribution, "bound"), (gain, "information")):
        data = to_arviz(record)
        assert forest(data, group) is not None
        rows = sum(v.size for v in data[group].isel(chain=0, draw=0).data_vars.values())
        assert len(arviz.summary(data, group=group)) == rows


def test_it_is_written_and_read_back(tiny_pair, shared_memory, tmp_path):
    pytest.importorskip("h5netcdf", reason="the extra `arviz` is not installed")
    data = to_arviz(information_gain(*tiny_pair, shared_memory.values[:3], shared_memory))
    data.to_netcdf(tmp_path / "gain.nc")
    again = arviz.from_netcdf(tmp_path / "gain.nc")
    for group in ("information", "address_a"):
        assert again[group].equals(data[group])
        assert again[group].attrs == data[group].attrs


def test_without_arviz_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "arviz":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pyro-memory\[arviz\]"):
        to_arviz(estimate())
