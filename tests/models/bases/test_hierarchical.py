"""The hierarchical base."""

import pyro
import pytest
import torch
from base_pairs import CODE, SHAPE, hierarchical
from conftest import ink, sharpen
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.testing import assert_close

from pyro_memory import Context, information_gain
from pyro_memory.guides import HierarchicalBaseGuide
from pyro_memory.models import HierarchicalBase


def test_each_layer_s_kl_is_that_of_its_two_normals_given_the_layer_above():
    model, guide = (sharpen(m, 2.0) for m in hierarchical(code_dim=CODE, reads=False))
    x, context = ink(4, *SHAPE), Context(torch.randn(4, CODE))

    def run(step):
        with pyro.plate("batch", 4):
            step(x, context)

    torch.manual_seed(1)
    gain = information_gain(lambda: run(model.explain), lambda: run(guide.infer), draws=1, max_plate_nesting=1)
    torch.manual_seed(1)
    z = {n: s["value"] for n, s in poutine.trace(lambda: run(guide.infer)).get_trace().nodes.items() if n[0] == "z"}
    features = guide.features(x)[-1].flatten(-3)
    assert list(z) == ["z3", "z2", "z1"]
    for layer in (1, 2, 3):
        above = z.get(f"z{layer + 1}")
        q, p = guide.z_dist(layer, features, above, context), model.z_dist(layer, above, context)
        (mq, sq), (mp, sp) = ((d.base_dist.loc, d.base_dist.scale) for d in (q, p))
        kl = ((sp / sq).log() + (sq**2 + (mq - mp) ** 2) / (2 * sp**2) - 0.5).sum(-1)
        assert gain.sites[f"z{layer}"].method == "closed form"
        assert_close(gain.sites[f"z{layer}"].kl, kl.detach())
        assert kl.min() > 0.05


def test_every_layer_reaches_the_image_and_the_layer_below():
    model = sharpen(hierarchical(code_dim=CODE, reads=False)[0], 2.0)
    codes, context = [torch.randn(1, d, requires_grad=True) for d in model.latent_dims], Context(torch.randn(1, CODE))
    for g in torch.autograd.grad(model.x_dist(codes, context).mean.sum(), codes):
        assert g.abs().max() > 0
    for layer in (1, 2):
        (g,) = torch.autograd.grad(model.z_dist(layer, codes[layer], context).mean.sum(), codes[layer])
        assert g.abs().max() > 0


def test_the_hierarchical_bound_in_closed_form_agrees_with_sampling():
    model, guide = hierarchical()
    x = ink(4, *SHAPE)
    closed, sampled = (
        o(num_particles=2000, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, x)
        for o in (TraceMeanField_ELBO, Trace_ELBO)
    )
    assert closed == pytest.approx(sampled, rel=5e-3)


def test_a_hierarchical_model_needs_a_layer():
    with pytest.raises(ValueError, match="`latent_dims` must name at least one layer"):
        HierarchicalBase(SHAPE, latent_dims=())
    with pytest.raises(ValueError, match="`latent_dims` must name at least one layer"):
        HierarchicalBaseGuide(SHAPE, latent_dims=())
