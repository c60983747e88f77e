"""Slots divided over processes give the one-process result: checked inside 2 and 4 gloo processes."""

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed
from address_parts import assert_drawn_from
from conftest import ink, sharpen
from torch import nn
from torch.distributions import kl_divergence
from torch.testing import assert_close

from pyro_memory import (
    VIMCO,
    ContentAddress,
    FrozenAddress,
    LearnedPrior,
    NearestAddress,
    ShardedMemory,
    SlotIndex,
    SlotMemory,
    fit,
    information_gain,
)
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA

SLOTS = 23


def bounds(rank, world):
    """Uneven shards: the first holds more than its share."""
    cuts = [0, *(SLOTS * 2 // 3 + i for i in range(world - 1)), SLOTS]
    return cuts[rank], cuts[rank + 1]


def check_addresses(rank, world, masked):
    """Values and gradients of the address, the reads and the nearest slots."""
    x, first, last = torch.randn(6, 3), *bounds(rank, world)
    mask = torch.rand(SLOTS) < 0.8 if masked else None
    if masked:
        mask[[0, -1, -2, -3, 15, 16]] = True
    values = torch.randn(SLOTS, 3)
    whole = values.clone().requires_grad_()
    mine = values[first:last].clone().requires_grad_()
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    address = ContentAddress(network, stream=True)  # the dense one has no gradient of the entropy past a mask
    full = SlotMemory(whole, mask=mask)
    shard = ShardedMemory(SlotMemory(mine, mask=None if mask is None else mask[first:last]))
    filled = torch.arange(SLOTS) if mask is None else mask.nonzero().squeeze(-1)
    a = filled[torch.randint(len(filled), (5, 6))]
    prior = dist.Categorical(logits=torch.randn(SLOTS))
    assert_close(shard.prior().probs, full.prior().probs)
    assert (shard.slots, len(shard)) == (SLOTS, SLOTS)
    assert_close(ShardedMemory.from_tensors(shard.to_tensors()).prior().probs, full.prior().probs)

    def results(memory):
        q = address(x, memory)
        near = NearestAddress(address, 4, epsilon=0.1)(x, memory)
        learned = learned_prior(memory)
        return [
            q.log_prob(a), q.entropy(), kl_divergence(q, prior), kl_divergence(q, memory.prior()), memory[a].sin(),
            near.log_prob(a), near.entropy(), learned.log_prob(a),
        ]  # fmt: skip

    learned_prior = LearnedPrior(address.key, 4)
    nn.init.normal_(learned_prior.query)
    got, expected = results(shard), results(full)
    assert_close(got, expected)
    parameters = [*address.parameters(), learned_prior.query]
    for one, other in zip(got, expected, strict=True):
        weight = torch.linspace(1, 2, one.numel()).reshape(one.shape)
        own, every = (
            torch.autograd.grad((weight * t).sum(), [m, *parameters], retain_graph=True, allow_unused=True)
            for t, m in ((one, mine), (other, whole))
        )
        for ours, theirs in zip(own, (every[0][first:last], *every[1:]), strict=True):
            assert_close(torch.zeros(()) if ours is None else ours, torch.zeros(()) if theirs is None else theirs)
    torch.manual_seed(rank)  # whatever the processes' own streams
    samples = address(x[:1], shard).sample((20_000,))[:, 0]
    everyones = [torch.empty_like(samples) for _ in range(world)]
    torch.distributed.all_gather(everyones, samples)
    assert all(torch.equal(s, samples) for s in everyones)
    assert_drawn_from(samples, address(x[:1], full).dense().probs[0].detach())
    torch.manual_seed(1)
    usage = address(x, full).usage()
    assert_close(address(x, shard).usage(), usage)


def check_vma(rank, world):
    """The evidence bound of a VMA: sampled addresses fixed, as the sampler differs, and z from one stream."""
    model = sharpen(VMA.mlp((1, 6, 6), latent_dim=2, hidden=(8, 8)), 2.0).double()
    guide = sharpen(VMAGuide.mlp((1, 6, 6), latent_dim=2, hidden=(8, 8), matching_dim=4), 2.0).double()
    x, items, a = ink(4, 1, 6, 6).double(), ink(SLOTS, 1, 6, 6).double(), torch.randint(SLOTS, (4,))
    first, last = bounds(rank, world)
    parameters = [*model.parameters(), *guide.parameters()]
    outcomes = []
    for memory in (SlotMemory(items), ShardedMemory(SlotMemory(items[first:last]))):
        pyro.set_rng_seed(0)
        fixed_model, fixed_guide = (pyro.poutine.condition(program, data={"a": a}) for program in (model, guide))
        guide_trace = pyro.poutine.trace(fixed_guide).get_trace(x, memory)
        model_trace = pyro.poutine.trace(pyro.poutine.replay(fixed_model, trace=guide_trace)).get_trace(x, memory)
        bound = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
        outcomes.append([bound.detach(), *torch.autograd.grad(bound, parameters)])
    assert_close(*outcomes)
    pyro.set_rng_seed(0)
    objective = VIMCO(3, max_plate_nesting=1)
    loss = objective.differentiable_loss(model, guide, x, memory)
    loss.backward()
    gathered = [torch.empty_like(loss.detach()) for _ in range(world)]
    torch.distributed.all_gather(gathered, loss.detach())
    assert_close(gathered, [loss.detach()] * world)  # all drew the same
    fit(model, guide, [(x, memory)], objective, steps=3, information_every=2, seed=rank, progress=False)
    trained = torch.cat([p.detach().flatten() for p in parameters])
    gathered = [torch.empty_like(trained) for _ in range(world)]
    torch.distributed.all_gather(gathered, trained)
    assert_close(gathered, [trained] * world)
    gain = information_gain(model, guide, x, memory)
    assert gain["a"].kl == pytest.approx(information_gain(model, guide, x, SlotMemory(items))["a"].kl, abs=1e-9)


def check_errors(rank, world):
    shard = SlotMemory(torch.randn(3 if rank else 0, 2))
    with pytest.raises(ValueError, match=r"`shard` must hold at least one filled slot in every process.* \[0, 3"):
        ShardedMemory(shard)
    with pytest.raises(ValueError, match="`shard` must be a memory that all data share"):
        ShardedMemory(SlotMemory(torch.randn(2, 3, 2), batch_dim=-1))
    memory = ShardedMemory(SlotMemory(torch.randn(3, 2)))
    assert isinstance(memory.to(torch.float32).detach(), ShardedMemory)
    with pytest.raises(ValueError, match="write to each process's shard"):
        memory.write(torch.randn(1, 2))
    with pytest.raises(ValueError, match="put a blank item in one shard"):
        memory.with_none()
    address = ContentAddress(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="in one process; got one divided over processes"):
        NearestAddress(address, 1, index=SlotIndex("brute"))(torch.randn(1, 2), memory)
    with pytest.raises(NotImplementedError, match="no process holds the keys of all slots"):
        address(torch.randn(1, 2), memory).dense()
    with pytest.raises(ValueError, match="must carry embedded keys"):
        FrozenAddress(address)(torch.randn(1, 2), memory)
    sharded_prior = LearnedPrior(address.key, 2)(memory)
    with pytest.raises(ValueError, match="all its logits in every process"):
        kl_divergence(address(torch.randn(1, 2), memory), sharded_prior)


def checks(rank, world, folder):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )  # fmt: skip
    torch.manual_seed(0)
    check_addresses(rank, world, masked=False)
    check_addresses(rank, world, masked=True)
    check_vma(rank, world)
    check_errors(rank, world)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_processes_give_the_one_process_result(world, tmp_path):
    torch.multiprocessing.spawn(checks, (world, str(tmp_path)), nprocs=world)
