"""The linear recurrence: a closed form, every backend against the loop, gradients, misuse."""

import pytest
import torch
from memory_calls import watched_memory  # noqa: F401
from torch.testing import assert_close

from pyro_memory.kernels import decay_scan

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BACKENDS = ("torch", "triton")


def problem(*shape, dtype=torch.float64):
    x, a = torch.randn(shape, dtype=dtype), 1.5 * torch.rand(shape, dtype=dtype) - 0.5
    a[torch.rand(shape) < 0.1] = 0
    return x.to(DEVICE), a.to(DEVICE), torch.randn(shape[:-2] + shape[-1:], dtype=dtype, device=DEVICE)


def with_gradients(x, a, initial, backend):
    inputs = [t.clone().requires_grad_() for t in (x, a, initial)]
    h = decay_scan(*inputs, backend=backend)
    weight = torch.randn(h.shape, generator=torch.Generator().manual_seed(1)).to(h)
    return [h.detach(), *torch.autograd.grad((h * weight).sum(), inputs)]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_constant_decay_sums_a_geometric_series(backend):
    x = torch.ones(1, 6, 1, dtype=torch.float64, device=DEVICE)
    h = decay_scan(x, torch.full_like(x, 0.5), torch.full_like(x[:, 0], 4.0), backend=backend)
    steps = torch.arange(1, 7, dtype=torch.float64, device=DEVICE)
    assert_close(h.flatten(), 2 - 2 * 0.5**steps + 4 * 0.5**steps)


@pytest.mark.parametrize(("time", "dim"), [(70, 3), *([(2**16 + 1, 2**15)] if GPU else [])])
def test_the_last_tokens_of_more_than_2_to_the_31_numbers_are_right(time, dim):
    if GPU and torch.cuda.mem_get_info()[0] < 7 * 4 * time * dim:
        pytest.skip("no memory for seven tensors of this size")
    from pyro_memory.kernels.scan.triton_form import scan, scan_backward

    x = torch.ones(1, time, dim, device=DEVICE)
    a, initial, channel = torch.full_like(x, 0.5), torch.zeros_like(x[:, 0]), torch.arange(dim, device=DEVICE)
    x[:, -1] = channel
    h = scan(x, a, initial)
    assert_close(h[0, -2:], torch.stack([torch.full_like(h[0, 0], 2), 1 + channel]), rtol=0, atol=0)
    dx, da = scan_backward(torch.ones_like(x), a, initial, h)
    assert_close(dx[0, -3:, 0], dx.new_tensor([1.75, 1.5, 1]), rtol=0, atol=0)
    assert_close(da[0, -3:], dx[0, -3:] * 2, rtol=0, atol=0)
    assert_close(dx[0, 1], torch.full_like(dx[0, 0], 2), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 37, 5), (1, 1, 3), (64, 1), *([(8, 4, 3000, 130)] if GPU else [])])
def test_values_and_gradients_are_those_of_the_loop(shape, backend):
    tensors = problem(*shape)
    for actual, expected in zip(with_gradients(*tensors, backend), with_gradients(*tensors, "reference"), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_do_not_see_each_other(backend):
    x, a, initial = problem(2, 5, 3)
    a[1] = torch.nan
    assert all(t[0].isfinite().all() for t in with_gradients(x, a, initial, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_pass_gradcheck(backend):
    inputs = [t.requires_grad_() for t in problem(1, 5, 2)]
    assert torch.autograd.gradcheck(lambda *t: decay_scan(*t, backend=backend), inputs, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_decay_of_all_channels_is_spread_and_two_halves_equal_the_whole(backend):
    x, a, initial = problem(2, 9, 4)
    a = a[..., :1]
    whole = decay_scan(x, a, initial, backend=backend)
    assert_close(whole, decay_scan(x, a.expand_as(x), initial, backend="reference"))
    first = decay_scan(x[:, :4], a[:, :4], initial, backend=backend)
    second = decay_scan(x[:, 4:], a[:, 4:], first[:, -1], backend=backend)
    assert_close(torch.cat([first, second], 1), whole)
    assert_close(decay_scan(x, a, backend=backend), decay_scan(x, a, 0 * initial, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_precision_is_at_most_twice_as_wrong_as_the_loop_in_it(dtype):
    x, a, initial = problem(2, 70, 4, dtype=dtype)
    truth = with_gradients(x.double(), a.double(), initial.double(), "reference")
    peers = [t.detach() for t in with_gradients(x, a, initial, "reference")]
    actual = with_gradients(x, a, initial, "triton")
    for value, peer, exact in zip(actual, peers, truth, strict=True):
        error, allowed = ((t.double() - exact).abs().max() for t in (value, peer))
        assert error <= 2 * allowed + torch.finfo(dtype).eps * exact.abs().max()
    assert all(torch.equal(t, u) for t, u in zip(actual, with_gradients(x, a, initial, "triton"), strict=True))


def test_the_operators_pass_opcheck():
    from pyro_memory.kernels.scan.triton_form import scan, scan_backward

    x, a, initial = problem(1, 5, 2)
    torch.library.opcheck(scan, [t.clone().requires_grad_() for t in (x, a, initial)])
    torch.library.opcheck(scan_backward, (x, a, initial, x), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3)}, r"`x` must be floating point, \[..., time, dim\]"),
        ({"x": torch.ones(2, 0, 3)}, "`x` must hold at least one token"),
        ({"decay": torch.ones(4)}, r"`decay` must broadcast to \[2, 5, 3\], as `x` asks; got shape \[4\]"),
        ({"initial": torch.ones(3, 3)}, r"`initial` must broadcast to \[2, 3\]"),
        ({"decay": torch.ones(3, device="meta")}, "`decay` must be on the device of `x`, cpu; got .* on meta"),
        ({"backend": "cuda"}, "`backend` must be one of"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(change, message):
    arguments = {"x": torch.ones(2, 5, 3), "decay": torch.ones(2, 5, 3)} | change
    with pytest.raises(ValueError, match=message):
        decay_scan(**arguments)


def test_triton_on_a_cpu_without_interpreter_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match='`backend` "triton" is not available here: the tensors are on cpu'):
        decay_scan(torch.ones(2, 3), torch.ones(3), backend="triton")
