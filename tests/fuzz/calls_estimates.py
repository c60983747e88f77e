"""A small call of each public callable of objectives and kernels."""

from functools import wraps

import torch
from fuzz.parts import SHAPE, images, longs, positional, slots, vma, vma_guide
from pyro.infer.enum import get_importance_trace

from pyro_memory.inference import (
    VIMCO,
    DReG,
    LeaveOneOutELBO,
    OneDraw,
    Particles,
    RaoBlackwellELBO,
    WakeWake,
    Weights,
    complete,
    leave_one_out_bound,
    stochastic_sites,
    weigh,
)
from pyro_memory.kernels import (
    apply_memory,
    decay_scan,
    fused_address,
    how_triton,
    memory_surprise,
    nearest_slots,
    neural_memory,
    refuse_transforms,
    why_not_triton,
)


def called(**call):
    return call


def looked_up(**more):
    return {"x": images(), "memory": slots(), **more}


def compared():
    return {"query": torch.randn(3, 4), "key": torch.randn(5, 4)}


def pair(**more):
    return {"model": vma(), "guide": vma_guide(), **more, **looked_up()}


def traces():
    model, guide = get_importance_trace("flat", 1, vma(), vma_guide(), (images(), slots()), {})
    return {"model_trace": model, "guide_trace": guide}


def weights():
    return Weights(torch.randn(2, 3), torch.randn(2, 3), 1.0)


def lone(elbo, method):
    return lambda: (positional(getattr(elbo(), method), "model", "guide", "x", "memory"), pair())


def every(function):
    @wraps(function)
    def call(**kwargs):
        return [str(type(item)) for item in function(**kwargs)]

    return call


INFERENCE = {
    "VIMCO": lambda: (
        VIMCO,
        called(
            num_particles=2,
            baseline="geometric",
            global_draws=1,
            max_plate_nesting=1,
            vectorize_particles=False,
        ),
    ),
    "VIMCO.differentiable_loss": lone(lambda: VIMCO(2), "differentiable_loss"),
    "LeaveOneOutELBO": lambda: (LeaveOneOutELBO, called(num_particles=2, global_draws=1, max_plate_nesting=1)),
    "DReG": lambda: (DReG, called(num_particles=2, baseline="arithmetic", max_plate_nesting=1)),
    "LeaveOneOutELBO.differentiable_loss": lone(lambda: LeaveOneOutELBO(2), "differentiable_loss"),
    "Objective.differentiable_loss": lone(lambda: LeaveOneOutELBO(3), "differentiable_loss"),
    "Objective.loss": lone(lambda: VIMCO(2), "loss"),
    "Objective.loss_and_grads": lone(lambda: VIMCO(2), "loss_and_grads"),
    "OneDraw": lambda: (OneDraw, called(sites=("g",))),
    "Particles": lambda: (
        Particles,
        called(num_particles=2, exact=("a",), completes=True, max_plate_nesting=1, vectorize_particles=True),
    ),
    "Particles.sized": lambda: (VIMCO(2, max_plate_nesting=1).sized, called(num_particles=3)),
    "Particles.look": lambda: (
        VIMCO(2).look,
        called(model=vma(), guide=vma_guide(), args=(images(), slots()), kwargs={}),
    ),
    "Particles.traces": lambda: (
        every(VIMCO(2).traces),
        called(model=vma(), guide=vma_guide(), args=(images(), slots()), kwargs={}),
    ),
    "RaoBlackwellELBO": lambda: (RaoBlackwellELBO, called(likeliest=2, sampled=2, site="a", max_plate_nesting=1)),
    "RaoBlackwellELBO.differentiable_loss": lone(lambda: RaoBlackwellELBO(2), "differentiable_loss"),
    "WakeWake": lambda: (WakeWake, called(num_particles=2, max_plate_nesting=1)),
    "WakeWake.differentiable_loss": lone(lambda: WakeWake(2), "differentiable_loss"),
    "Weights": lambda: (Weights, called(log_weight=torch.randn(2, 3), log_score=torch.randn(2, 3), scale=1.0)),
    "Weights.cat": lambda: (Weights.cat, called(parts=[weights(), weights()])),
    "complete": lambda: (
        positional(complete, "model", "guide", "x", "memory"),
        pair(known=torch.rand(3, *SHAPE) < 0.5, sweeps=2, site="x"),
    ),
    "leave_one_out_bound": lambda: (
        leave_one_out_bound,
        called(log_weight=torch.randn(3, 4), baseline="geometric", log_part=torch.randn(3, 4, 2)),
    ),
    "stochastic_sites": lambda: (stochastic_sites, called(trace=traces()["guide_trace"])),
    "weigh": lambda: (weigh, traces() | called(noisy=False, pathwise=True)),
}


def queried(**more):
    return {**compared(), **more, "chunk_size": 3}


def fast(depth=2):
    """Two heads of width 3 over four tokens."""
    gates = {g: tuple(0.1 * torch.rand(1, 2, 4) for _ in range(depth)) for g in ("lr", "momentum", "decay")}
    weights = tuple(torch.randn(1, 2, 3, 3) for _ in range(depth))
    vectors = {name: torch.randn(1, 2, 4, 3) for name in "kv"}
    like_weights = {n: tuple(torch.randn_like(w) for w in weights) for n in ("momentum_state", "anchor", "rest")}
    return {**vectors, "weights": weights, **gates, **like_weights, "position": longs(1)}


def normed():
    norm = called(residual_norm=True, norm_weight=torch.ones(2, 3), norm_bias=torch.zeros(2, 3), norm_eps=1e-5)
    return norm | called(activation="gelu")


KERNELS = {
    "apply_memory": lambda: (apply_memory, called(weights=fast()["weights"], x=torch.randn(1, 2, 4, 3), **normed())),
    "refuse_transforms": lambda: (refuse_transforms, called(name="decay_scan")),
    "decay_scan": lambda: (
        decay_scan,
        called(x=torch.randn(2, 5, 3), decay=torch.rand(2, 5, 3), initial=torch.randn(2, 3), backend="auto"),
    ),
    "fused_address": lambda: (
        fused_address,
        queried(
            value=torch.randn(5, 3), log_prior=torch.zeros(5), mask=torch.ones(5).bool(), samples=2, nearest=2,
            generator=torch.Generator(), backend="auto",
        ),
    ),
    "how_triton": lambda: (
        how_triton,
        called(q=torch.randn(1, 2, 4, 3), v=torch.randn(1, 2, 4, 3), weights=fast()["weights"], chunk_size=2,
               gradients=True, checkpoint_chunks=1),
    ),
    "nearest_slots": lambda: (nearest_slots, queried(nearest=2, mask=torch.ones(5).bool())),
    "memory_surprise": lambda: (memory_surprise, fast() | normed() | called(chunk_size=2, lengths=longs(3))),
    "neural_memory": lambda: (
        neural_memory,
        called(
            q=torch.randn(1, 2, 4, 3), **fast(), **normed(), chunk_size=2, lengths=longs(3), backend="auto",
            checkpoint_chunks=1, return_state=True, check_values=True,
        ),
    ),
    "why_not_triton": lambda: (
        why_not_triton,
        called(q=torch.randn(1, 2, 4, 3), v=torch.randn(1, 2, 4, 3), chunk_size=2, norm_eps=1e-5,
               **{n: fast()[n] for n in ("weights", "decay", "rest")}),
    ),
}  # fmt: skip
ROWS = INFERENCE | KERNELS
