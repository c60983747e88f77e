import builtins

import numpy as np
import pytest
import torch

from pyro_memory import BoundEstimate, MemoryContribution, information_gain, to_arviz

arviz = pytest.importorskip("arviz", reason="the extra `arviz` is not installed")


def estimate(offset=0.0):
    return BoundEstimate(torch.arange(4.0) + offset, torch.full((4,), 2.0), 10)


def test_a_bound_keeps_its_values_by_datum():
    group = to_arviz(estimate())["bound"]
    assert group["bound"].dims == ("datum",)
    np.testing.assert_array_equal(group["bound"].values, [0, 1, 2, 3])
    np.testing.assert_array_equal(group["effective_particles"].values, 2)


def test_a_contribution_is_by_memory_and_paired():
    group = to_arviz(MemoryContribution(estimate(1.0), {"wrong classes": estimate()}))["bound"]
    lost = group["bound"].sel(memory="given") - group["bound"].sel(memory="wrong classes")
    np.testing.assert_array_equal(lost.values, 1)


def test_information_is_by_site_with_the_slots_use(tiny_pair, shared_memory, tmp_path):
    gain = information_gain(*tiny_pair, shared_memory.values[:3], shared_memory)
    data = to_arviz(gain)
    np.testing.assert_allclose(data["information"]["kl_a"].values, gain["a"].kl.numpy())
    np.testing.assert_allclose(data["information"]["kl_joint"].values, gain.joint.kl.numpy())
    np.testing.assert_allclose(data["address_a"]["usage"].values, gain.addresses["a"].usage.numpy())


def test_without_arviz_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "arviz":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pyro-memory\[arviz\]"):
        to_arviz(estimate())
