"""One token without gradients: what the GPU does for it, layouts and dtypes, and that it is told from other calls."""

import pytest
import torch
from memory_calls import (  # noqa: F401
    DEVICE,
    STATE,
    call,
    first_configuration,
    problem,
    watched_memory,
)
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = [(16, 16), (16, 24, 16)]
# Of these none has the device do anything; promote_types is a question to torch.
ALLOWED = {"empty", "empty_like", "new_empty", "view", "expand", "as_strided", "detach", "promote_types"}
OPTIONS = {"chunk_size": 2, "backend": "triton", "check_values": False}


class Looking(TorchDispatchMode):
    """Keeps the names of torch's operations, and looks into the one that a token is."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        from pyro_memory.kernels.memory.triton_token import token

        if func is torch.ops.pyro_memory.neural_memory_token.default:
            with self:
                return token(*args, **kwargs or {})
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.fixture
def launched(monkeypatch):
    """The kernels launched, which is not done where it is seen."""
    from pyro_memory.kernels.memory import triton_launch

    kernels, launch = [], triton_launch._launch

    def note(kernel, *rest):
        kernels.append(kernel)
        with torch.utils._python_dispatch._disable_current_modes():  # the interpreter copies tensors
            launch(kernel, *rest)

    monkeypatch.setattr(triton_launch, "_launch", note)
    return kernels


def token_of(widths, *, norm=True, placed=True, **options):
    """Tensors of two sequences' token, one at a chunk's start, the other not; gates lie as a mixer makes them."""
    tensors = problem(widths, 1, norm=norm, batch=2, **options)
    for name in ("lr", "momentum", "decay"):
        tensors[name] = list(torch.stack([g.transpose(1, 2) for g in tensors[name]], -1).transpose(1, 2).unbind(-1))
    at = {}
    if placed:
        tensors["anchor"] = [w + 0.1 * torch.randn_like(w) for w in tensors["weights"]]
        at["position"] = torch.tensor([0, 1], device=DEVICE)
    return tensors, OPTIONS | at


def assert_is_the_rule(tensors, options, **tolerances):
    with torch.no_grad():
        actual = call(tensors, **options)
        expected = call(tensors, **options | {"backend": "reference"})
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, **tolerances)


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("widths", LAYERS)
def test_a_token_is_one_launch_and_nothing_else_on_the_device(widths, placed, launched):
    tensors, options = token_of(widths, placed=placed, dtype=torch.float32)
    for name in "qkv":
        tensors[name] = [tensors[name][0].bfloat16()]
    tensors["lr"] = [g.half() for g in tensors["lr"]]
    tensors["norm_bias"] = [tensors["norm_bias"][0][0]]  # one for all heads
    with torch.no_grad(), Looking() as looking:
        y, *state = call(tensors, **options)
    assert set(looking.names) <= ALLOWED
    assert len(launched) == 1
    assert y.dtype == torch.bfloat16
    assert {t.dtype for t in state} <= {torch.float32, torch.long}


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("widths", LAYERS)
def test_tensors_of_any_layout_and_dtype_follow_the_rule(widths, placed):
    tensors, options = token_of(widths, placed=placed)
    if placed:
        tensors["anchor"][0][0] = torch.nan  # is not read where a chunk begins
    shared = tensors | {"weights": [w[0] for w in tensors["weights"]]}
    turned = tensors | {"momentum_state": [s.mT.contiguous().mT for s in tensors["momentum_state"]]}
    turned |= {"k": [tensors["k"][0].transpose(0, 1).contiguous().transpose(0, 1)]}
    mixed = tensors | {"v": [tensors["v"][0].float()], "decay": [g.float() for g in tensors["decay"]]}
    mixed |= {"weights": [w.float() for w in tensors["weights"]]}
    unlike = tensors | {"lr": [g.contiguous() if i else g for i, g in enumerate(tensors["lr"])]}
    unlike |= {"momentum": [tensors["momentum"][0][:1].expand(2, -1, -1)]}
    for case in (tensors, shared, turned, mixed, unlike):
        assert_is_the_rule(case, options)


@pytest.mark.parametrize("given", [("norm_weight",), ("norm_bias",), ()])
def test_a_norm_may_lack_weight_or_bias(given):
    from pyro_memory.kernels import neural_memory

    tensors, options = token_of((16, 24, 16))
    arguments = {n: tuple(g) if n in STATE or len(g) > 1 else g[0] for n, g in tensors.items()}
    arguments = {n: a for n, a in arguments.items() if not n.startswith("norm") or n in given} | options
    with torch.no_grad():
        one, other = (neural_memory(**arguments | {"backend": b}, residual_norm=True) for b in ("triton", "reference"))
    assert_close(one, other)


def test_a_token_that_something_differentiates_goes_another_way(launched):
    from pyro_memory.kernels.memory import triton_decode

    tensors, options = token_of((16, 16))
    one = call(tensors, **options)
    assert launched == [triton_decode.linear_decode]
    tensors["norm_bias"][0].requires_grad_()
    other = call(tensors, **options)
    assert launched == [triton_decode.linear_decode]
    assert other[0].requires_grad
    assert_close(one, [t.detach() for t in other])
    call(tensors, **options, lengths=torch.tensor([1, 0], device=DEVICE))
    assert triton_decode.linear_decode not in launched[1:]


@pytest.mark.parametrize("placed", [True, False])
def test_a_compiled_token_is_the_same_without_a_break(placed):
    tensors, options = token_of((16, 24, 16), placed=placed, dtype=torch.float32)

    def step(q):
        return call(tensors | {"q": [q]}, **options)

    q = tensors["q"][0]
    with torch.no_grad():
        assert_close(torch.compile(step, backend="aot_eager", fullgraph=True)(q), step(q))


def test_the_operator_passes_opcheck_and_an_empty_batch_stays_empty():
    from pyro_memory.kernels.memory.triton_token import memory_token

    tensors, options = token_of((16, 24, 16))
    states = [t for name in ("weights", "momentum_state", "anchor") for t in tensors[name]]
    gates = [t for name in ("lr", "momentum", "decay") for t in tensors[name]]
    norm = tensors["norm_weight"][0], tensors["norm_bias"][0]
    arguments = (*(tensors[n][0] for n in "qkv"), states, gates, options["position"], *norm, 2, "gelu", True)
    torch.library.opcheck(memory_token, arguments)
    of_all = ("norm_weight", "norm_bias")
    empty = {n: group if n in of_all else [t[:0] for t in group] for n, group in tensors.items()}
    with torch.no_grad():
        outputs = call(empty, **options | {"position": options["position"][:0]})
    assert all(t.numel() == 0 for t in outputs)
