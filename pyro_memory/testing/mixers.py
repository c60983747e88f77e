"""The contract of a sequence mixer."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.testing.demands import copied, demand, demand_close, demand_gradients, isolated, parameters_of, pickled

BATCH, TIME = 3, 23
CUTS = (1, 4, 11, 22)
FORGETS = "Carry all that later outputs depend on in the state: memories, windows, open chunks, positions"


@checked
def check_mixer(mixer: nn.Module, *, dim: int | None = None) -> None:
    """Checks what a mixer must keep to stand in a ``SequenceModel``, to stream and to be saved.

    A mixer is called ``mixer(x, state=None, lengths=None) -> (y, state)``, x and y ``[batch, time, dim]``; it has
    ``step(token, state) -> (y, state)`` and ``initial_state(batch)``. Its state has ``detach()``, ``to_tensors()`` and
    the class method ``from_tensors(tensors)``, as ``models.titans.state.State``.

    - No output depends on a later token, or on another sequence; each depends on its own token.
    - A sequence cut anywhere goes on as if whole, and ``step`` token by token equals ``forward``.
    - Nothing is kept between calls but the state, and a call leaves the state that it was given as it was.
    - With ``lengths`` each sequence is as if alone, what lies past its end is not read (NaN does no harm), outputs
      there are zero, and the state is the one after the last token, also after none.
    - A state goes on equally after ``to_tensors``, deepcopy and pickle; its gradient ends where it is detached.
    - Every parameter gets a gradient.

    All in float64 on a copy, parameters enlarged by half, so that what is wired wrongly shows.

    Args:
        mixer: an instance.
        dim: the width of a token; ``mixer.dim`` by default.

    Raises:
        AssertionError: if something does not hold.

    Example::

        check_mixer(MyMixer(8), dim=8)
    """
    width: Any = mixer.dim if dim is None else dim
    with isolated():
        mixer = copied(mixer, "the mixer").double()
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.mul_(1.5)
        _check_interface(mixer)
        x = torch.randn(BATCH, TIME, width, dtype=torch.float64)
        result = mixer(x)
        demand(
            isinstance(result, tuple) and len(result) == 2 and result[0].shape == x.shape,
            f"a call must give (y, state) with y of the shape of x, {list(x.shape)}; got {type(result).__name__}"
            + (f" with {list(result[0].shape)}" if isinstance(result, tuple) else ""),
        )
        demand(result[0].isfinite().all(), "outputs must be finite; got NaN or infinity for standard normal tokens")
        _check_visibility(mixer, x, result[0])
        _check_stream(mixer, x, *result)
        _check_lengths(mixer, x)
        _check_state(mixer, x)
        y = mixer(x)[0]
        demand_gradients(parameters_of(mixer=mixer), "all outputs", lambda: y.sin().sum().backward())


def _check_visibility(mixer: nn.Module, x: Tensor, y: Tensor) -> None:
    demand_close(mixer(x)[0], y, "the same call must give the same outputs. Keep nothing in the module between calls")
    for place in (5, 13, 20):
        changed = x.clone()
        changed[1, place:] += torch.randn_like(x[1, place:])
        other = mixer(changed)[0]
        demand_close(
            other[1, :place], y[1, :place], "an output depends on a later token. Let token t see tokens 0 .. t only"
        )
        demand_close(
            other[[0, 2]], y[[0, 2]], "an output depends on another sequence of the batch. Reduce over time only, and "
            "normalise each sequence by itself"
        )  # fmt: skip
        demand(
            (other[1, place:] - y[1, place:]).abs().amax(-1).min() > 1e-9,
            "an output does not depend on its own token: it may lag. Write before you read",
        )


def _check_interface(mixer: nn.Module) -> None:
    for method in ("step", "initial_state"):
        demand(hasattr(mixer, method), f"a mixer must have `{method}`: a SequenceModel streams by it")
    for method in ("detach", "to_tensors", "from_tensors"):
        demand(
            hasattr(mixer.initial_state(1), method),
            f"a state must have `{method}`: a SequenceModel cuts, saves and loads states by it. See "
            "pyro_memory.models.titans.state.State",
        )


def _check_stream(mixer: nn.Module, x: Tensor, whole: Tensor, last: Any) -> None:
    for cut in CUTS:
        first, state = mixer(x[:, :cut])
        kept = _tensors(state)
        second, _ = mixer(x[:, cut:], state)
        message = f"cut after {cut} tokens, a sequence does not go on as if whole. {FORGETS}"
        demand_close(torch.cat([first, second], 1), whole, message)
        _same_state(
            _tensors(state), kept, "a call must leave the state it was given as it was: write in no tensor of it"
        )
    state, steps = None, []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        steps.append(y)
    demand(y.shape == x[:, 0].shape, f"`step` must give {list(x[:, 0].shape)} for such a token; got {list(y.shape)}")
    demand_close(torch.stack(steps, 1), whole, f"`step` token by token does not give what `forward` does. {FORGETS}")
    _same_state(_tensors(state), _tensors(last), "`step` token by token must end in the state of `forward`")
    start, _ = mixer(x, mixer.initial_state(BATCH))
    demand_close(start, whole, "`initial_state(batch)` must be where a state of None starts")


def _check_lengths(mixer: nn.Module, x: Tensor) -> None:
    lengths = torch.tensor([TIME, 9, 0])
    past = torch.arange(TIME) >= lengths[:, None]
    y, state = mixer(x.masked_fill(past[..., None], torch.nan), None, lengths)
    demand(
        y.isfinite().all(), "with `lengths`, what lies past the end of a sequence was read: NaN there reached outputs. "
        "Fill it with zeros first"
    )  # fmt: skip
    demand(not y[past].any(), "with `lengths`, outputs past the end of a sequence must be zero")
    more = torch.randn_like(x)
    after, _ = mixer(more, state)
    for i, length in enumerate(lengths.tolist()):
        alone = mixer(torch.cat([x[i, :length], more[i]]).unsqueeze(0))[0][0]
        demand_close(y[i, :length], alone[:length], "with `lengths`, a sequence must be as if alone")
        demand_close(
            after[i], alone[length:], f"with `lengths`, the state of a sequence of {length} tokens must be that after "
            "its last token; it goes on differently than alone"
        )  # fmt: skip


def _check_state(mixer: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    cut = 14
    _, state = mixer(x[:, :cut])
    going_on = mixer(x[:, cut:], state)[0]
    (through,) = torch.autograd.grad(going_on.sin().sum(), x)
    demand(through[:, :cut].any(), "no gradient reaches earlier tokens through the state. Do not detach it yourself")
    (whole,) = torch.autograd.grad(mixer(x)[0][:, cut:].sin().sum(), x)
    demand_close(through, whole, "the gradient through the state must be that of the whole sequence")
    _, state = mixer(x[:, :cut])
    state = state.detach()
    ended = mixer(x[:, cut:], state)[0]
    (stopped,) = torch.autograd.grad(ended.sin().sum(), x)
    demand(not stopped[:, :cut].any(), "`state.detach()` must end the gradient; some still reaches earlier tokens")
    saved = load(save({name: tensor.contiguous().clone() for name, tensor in state.to_tensors().items()}))
    for how, again in {
        "saved by to_tensors and rebuilt by from_tensors": type(state).from_tensors(saved),
        "deepcopied": copied(state, "a detached state"),
        "pickled": pickled(state, "a detached state"),
    }.items():
        demand_close(mixer(x[:, cut:], again)[0], ended, f"a state {how} must go on as the original")


def _tensors(state: Any) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in state.to_tensors().items()}


def _same_state(actual: dict[str, Tensor], expected: dict[str, Tensor], message: str) -> None:
    for name, tensor in actual.items():
        demand(name in expected, f"{message}; it has no `{name}` there")
        demand_close(tensor.double(), expected[name].double(), f"{message}; `{name}` differs")
