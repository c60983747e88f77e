"""VMA written out by its equations (Bornschein et al., 2017, https://arxiv.org/abs/1709.07116)."""

import math

import torch
from conftest import ink
from pyro.distributions import Bernoulli, Normal
from pyro.poutine import condition, trace
from torch.nn.functional import softplus
from torch.testing import assert_close

from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA


def normal(head, features):
    loc, scale = head.project(features).chunk(2, -1)
    return Normal(loc, softplus(scale) + 1e-4)


def test_the_joint_is_that_of_the_one_slot_read(tiny_pair, shared_memory):
    """p(a | M) p(z | m_a) p(x | z, m_a), each factor written by hand."""
    model, _ = tiny_pair
    x, a, z = ink(7, 1, 6, 6), torch.randint(5, (7,)), torch.randn(7, 2)
    nodes = trace(condition(model, {"a": a, "z": z})).get_trace(x, shared_memory)
    nodes.compute_log_prob()
    features = model.content(shared_memory.values[a])
    pixels = Bernoulli(logits=model.likelihood.decoder(z, features)).log_prob(x).sum((1, 2, 3))
    assert_close(nodes.nodes["a"]["log_prob"], torch.full((7,), -math.log(5)))
    assert_close(nodes.nodes["z"]["log_prob"], normal(model.prior.head, features[-1]).log_prob(z).sum(-1))
    assert_close(nodes.nodes["x"]["log_prob"], pixels)


def test_the_guide_looks_up_by_content_and_encodes_image_and_slot_side_by_side(tiny_pair, shared_memory):
    """q(a | M, x) of <h(m_a), h(x)> / ||h(m_a)||, then q(z | m_a, x)."""
    _, guide = tiny_pair
    x, a, z = ink(7, 1, 6, 6), torch.randint(5, (7,)), torch.randn(7, 2)
    nodes = trace(condition(guide, {"a": a, "z": z})).get_trace(x, shared_memory)
    nodes.compute_log_prob()
    h = guide.address.query
    keys, queries = h(shared_memory.values), h(x)
    scores = (queries @ keys.T) / keys.norm(dim=-1)
    assert_close(nodes.nodes["a"]["log_prob"], scores.log_softmax(-1)[torch.arange(7), a])
    features = guide.encoder.features(torch.cat([x, shared_memory.values[a]], 1))[-1]
    assert_close(nodes.nodes["z"]["log_prob"], normal(guide.encoder.head, features).log_prob(z).sum(-1))


def test_networks_are_by_default_of_the_paper_s_sizes():
    """z of 64 dimensions, or 32 by MLPs of 256 and 128; matching in 128."""
    shape = (1, 28, 28)
    for build, dim in (("convolutional", 64), ("mlp", 32)):
        model, guide = getattr(VMA, build)(shape), getattr(VMAGuide, build)(shape)
        assert model.prior.head.project.out_features == guide.encoder.head.project.out_features == 2 * dim
        assert guide.address.query.project.out_features == 128
    assert [layer.out_features for layer in model.content.net[::2]] == [256, 128]
