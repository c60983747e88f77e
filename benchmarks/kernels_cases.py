"""Calls of ``neural_memory`` to check and to time: their tensors, drawn once a case where they are used."""

import itertools
from contextlib import contextmanager

import torch
from bare import load_kernels

load_kernels()

from pyro_memory.kernels import neural_memory, why_not_triton  # noqa: E402

NAMES = ("q", "k", "v", "weights", "lr", "momentum", "decay", "momentum_state", "norm_weight", "norm_bias")


DEVICE = "cuda"


def inputs(case, device=None, seed=0):
    """Arguments of ``neural_memory`` that need gradients: unit keys, gates in the range where the memory is stable."""
    device = device or DEVICE
    generator = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    state = torch.promote_types(dtype, torch.float32)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device, dtype=state)

    def uniform():
        return torch.rand(lead, generator=generator, device=device, dtype=state)

    lead = (case.batch, case.heads, case.time)
    widths = [case.dim, case.expansion * case.dim, case.dim] if case.expansion else [case.dim] * 2
    shapes = list(itertools.pairwise(widths))
    q, k, v = (normal(*lead, case.dim) for _ in range(3))
    q, k, v = (x.to(dtype) for x in (*(torch.nn.functional.normalize(x, dim=-1) for x in (q, k)), v))
    eta = [0.9 * uniform() for _ in shapes]
    arguments = {"q": q, "k": k, "v": v, "weights": [normal(*lead[:2], *s) / s[1] ** 0.5 for s in shapes]}
    arguments |= {"lr": [(1 - e) / case.chunk * uniform() for e in eta], "momentum": eta}
    arguments["decay"] = [uniform() / case.chunk for _ in shapes]
    arguments["momentum_state"] = [0.1 * normal(*lead[:2], *s) / s[1] ** 0.5 for s in shapes]
    if case.norm:
        arguments |= {
            "norm_weight": 1 + 0.1 * normal(case.heads, case.dim),
            "norm_bias": 0.1 * normal(case.heads, case.dim),
        }
    return like(arguments, lambda t: t)


def like(arguments, change):
    """The same arguments with another tensor for each, cut off from what it was made of."""

    def leaf(t):
        return change(t.detach()).requires_grad_()

    return {n: leaf(a) if torch.is_tensor(a) else tuple(map(leaf, a)) for n, a in arguments.items()}


def leaves(arguments):
    groups = (arguments[name] for name in NAMES if name in arguments)
    return [t for group in groups for t in (group if isinstance(group, tuple) else (group,))]


def run(case, arguments, backend, **options):
    """y, and the state after: weights, then momenta."""
    y, weights, momenta = neural_memory(
        **arguments, chunk_size=case.chunk, residual_norm=case.norm, activation=case.activation, backend=backend,
        check_values=False, **options,
    )  # fmt: skip
    return [y, *weights, *momenta]


def with_gradients(case, arguments, backend, **options):
    """What ``run`` gives, then the gradients of a random sum of it in all that went in; neither where T is 1."""
    if case.time == 1:
        with torch.no_grad():
            return run(case, arguments, backend, **options), []
    outputs = run(case, arguments, backend, **options)
    generator, dtype = torch.Generator().manual_seed(1), getattr(torch, case.dtype)  # rounded for all alike
    loss = sum((t * torch.randn(t.shape, generator=generator).to(dtype).to(t)).sum() for t in outputs)
    gradients = torch.autograd.grad(loss, leaves(arguments))
    return [t.detach() for t in outputs], list(gradients)


def plan_of(case):
    """How a case with gradients runs on an H100."""
    from pyro_memory.kernels.memory.plan import operand_bytes, planned

    tokens, state = getattr(torch, case.dtype), torch.float64 if case.dtype == "float64" else torch.float32
    widths = [case.dim, case.expansion * case.dim, case.dim] if case.expansion else [case.dim] * 2
    size = operand_bytes(tokens, state)
    return planned(case.rows, case.time, widths, case.chunk, size, state.itemsize, learns=True)


def why_not(case, arguments):
    """Why the kernels do not take a case on this GPU, or None."""
    q, v, weights, decay = (arguments[name] for name in ("q", "v", "weights", "decay"))
    return why_not_triton(q, v, weights, decay, chunk_size=case.chunk)


@contextmanager
def launching(change):
    """Within it ``change(launch, kernel, configurations)`` launches, by ``launch(configurations)``."""
    from pyro_memory.kernels.memory import triton_launch

    launch = triton_launch._launch

    def changed(*args):
        *rest, configurations = args
        change(lambda these: launch(*rest, these), rest[0], configurations)

    triton_launch._launch = changed
    try:
        yield
    finally:
        triton_launch._launch = launch


def configured(choose):
    """Within it every launch gets the configurations that ``choose(kernel, configurations)`` gives."""
    return launching(lambda launch, kernel, configurations: launch(choose(kernel, configurations)))


def first_that_fits():
    """Within it nothing is tuned, which would compile and time every configuration."""

    def first(launch, kernel, configurations):
        *others, last = configurations
        for configuration in others:
            try:
                return launch((configuration,))
            except RuntimeError as error:
                if "does not fit" not in str(error):
                    raise
        return launch((last,))

    return launching(first)
