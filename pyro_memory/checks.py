"""What models and guides demand of their arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_memory.gate import check_places, told
from pyro_memory.stores import SlotMemory


def check_images(x: Tensor, likelihood: nn.Module | None = None) -> None:
    """Raises a ValueError unless ``x`` is a batch of finite images, which the likelihood (if given) can explain."""
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"`x` must be a floating-point tensor [batch, channel, height, width]; got {told(x)}")
    if not len(x):
        raise ValueError("`x` must hold at least one image; got none")
    low, high = (bound.item() for bound in x.aminmax()) if x.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):  # a NaN anywhere is the minimum
        raise ValueError("`x` must be finite; got NaN or infinity")
    shape = getattr(likelihood, "shape", None)
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(
            f"`x` must hold images of {list(shape)}, as the model was built for; got {list(x.shape[1:])}. Resize them, "
            f"or build model and guide with shape={tuple(x.shape[1:])}"
        )
    support = getattr(likelihood, "support", None)
    if support is not None and (low < support[0] or high > support[1]):
        raise ValueError(
            f"`x` must lie in [{support[0]:g}, {support[1]:g}]; got values from {low:.4g} to {high:.4g}. Divide grey "
            "levels by 255; for other values, VAE, VMA and VAEBase take likelihood=GaussianImage"
        )


def chosen_memory(module: nn.Module, memory: SlotMemory | None) -> SlotMemory:
    """Gives the memory to read: the argument or the module's templates, with its "none" slot if it has one.

    Raises:
        ValueError: if there is neither.
    """
    if memory is None and module.templates is None:
        raise ValueError("`memory` must be a SlotMemory, since the module was built without `templates`; got None")
    memory = module.templates() if memory is None else memory
    return memory.with_none() if module.none_slot else memory


def choose_slots(
    model: nn.Module, memory: SlotMemory | None, shape: Sequence[int], a: Tensor | None
) -> tuple[SlotMemory, Tensor]:
    """Gives the memory to generate from and the slots to read: those at ``a``, or ``[*shape]`` draws from the prior.

    Raises:
        ValueError: as of ``chosen_memory``, and for both ``shape`` and ``a``.
    """
    if a is not None and len(shape):
        raise ValueError("`shape` must be left out where the slots at `a` are read: it is that of `a`")
    memory = chosen_memory(model, memory)
    if a is not None:
        check_places("a", a, memory.slots, "the slots")
    return memory, model.a_dist(memory).sample(torch.Size(shape)) if a is None else a


def resolve_memory(module: nn.Module, x: Tensor, memory: SlotMemory | None) -> SlotMemory:
    """Gives the memory to read, as ``chosen_memory``, for the images ``x``.

    Raises:
        ValueError: likewise, and if shapes do not fit ``x``.
    """
    memory = chosen_memory(module, memory)
    if memory.event_shape != x.shape[1:]:
        raise ValueError(
            f"`memory` must hold items of the shape of `x`, {list(x.shape[1:])}; got {list(memory.event_shape)}"
        )
    check_owners("memory", memory, len(x), "data", -1)
    return memory


def check_owners(name: str, memory: SlotMemory, count: int, owners: str, batch_dim: int) -> None:
    """Raises a ValueError unless a memory is shared, or there is one for each of ``count`` owners at ``batch_dim``."""
    if memory.batch_dim is not None and (memory.batch_dim != batch_dim or len(memory.values) != count):
        raise ValueError(
            f"`{name}` must be shared, or one for each of the {count} {owners} with batch_dim={batch_dim}; got "
            f"{len(memory.values)} memories with batch_dim={memory.batch_dim}"
        )
