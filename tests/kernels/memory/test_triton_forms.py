"""The forms in which the Triton kernels of the neural memory run: by themselves, at their limits, and shared."""

import itertools
import re

import pytest
import torch
from kernel_watch import TOGETHER
from memory_calls import (  # noqa: F401
    DEVICE,
    GPU,
    assert_follows_the_rule,
    call,
    first_configuration,
    problem,
    watched_memory,
    with_gradients,
)
from torch.testing import assert_close

from pyro_memory.kernels import how_triton
from pyro_memory.kernels.memory import plan
from pyro_memory.kernels.memory.plan import planned

H100 = {"multiprocessors": 132, "at_once": 132}


def names(monkeypatch, tensors, **options):
    """Names of the kernels of the chunks that a call launches, in order."""
    from pyro_memory.kernels.memory import triton_launch

    found, launch = [], triton_launch._launch

    def noted(kernel, *rest):
        found.append(kernel.fn.__name__)
        launch(kernel, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(triton_launch, "_launch", noted)
        with_gradients(tensors, backend="triton", **options)
    return [name for name in found if not name.startswith("gates")]


# --- each form by itself


@pytest.mark.parametrize("widths", [(16, 16), (16, 20, 16)])
@pytest.mark.parametrize("form", ["fused", "split"])
def test_either_form_follows_the_rule(form, widths, monkeypatch):
    most = 0 if form == "fused" else 10**6
    monkeypatch.setattr(plan, "SPLIT", dict.fromkeys(plan.SPLIT, most))
    tensors = problem(widths, 10, heads=1, batch=2, norm=True)
    kernels = names(monkeypatch, tensors, chunk_size=4, checkpoint_chunks=2)
    assert ("deep_read" in kernels or "linear_read" in kernels) == (form == "split")
    lengths = torch.tensor([10, 7], device=DEVICE)
    assert_follows_the_rule(tensors, chunk_size=4, lengths=lengths)
    assert_follows_the_rule(tensors, chunk_size=4, checkpoint_chunks=2)


@pytest.mark.parametrize("widths", [(16, 16), (16, 24, 16)])
def test_chunks_in_windows_give_the_same(widths, monkeypatch):
    """Where launches could not leave all that they do to one another."""
    tensors = problem(widths, 11, heads=1, norm=True)
    options = {"chunk_size": 4, "backend": "triton"}
    whole = with_gradients(tensors, **options)
    monkeypatch.setattr(plan, "WINDOW_BYTES", 1)
    for every in (1, 2):
        kernels = names(monkeypatch, tensors, chunk_size=4, checkpoint_chunks=every)
        assert sum(name.endswith("back_walk") for name in kernels) == 3
        for actual, expected in zip(with_gradients(tensors, checkpoint_chunks=every, **options), whole, strict=True):
            assert_close(actual, expected)
    with torch.no_grad():
        for actual, expected in zip(call(tensors, **options), whole, strict=False):
            assert_close(actual, expected)


# --- hidden units shared among programs that wait for one another


@pytest.fixture
def shared(monkeypatch):
    """Sixteen hidden units a program, in float64, at up to 16 dimensions, and a GPU that runs all programs at once."""
    if GPU:
        pytest.skip("how programs take turns is the interpreter's")
    from pyro_memory.kernels.memory import triton_form

    monkeypatch.setattr(triton_form, "at_once", lambda tensor: 1000)
    monkeypatch.setattr(plan, "UNITS_BYTES", 16 * 4 * 16 * 8)


@pytest.mark.parametrize(("norm", "hidden"), [(True, 48), (False, 40)])
def test_programs_that_share_a_row_follow_the_rule(norm, hidden, shared, watched_memory):  # noqa: F811
    assert_follows_the_rule(problem((12, hidden, 12), 11, norm=norm), chunk_size=4, checkpoint_chunks=1)
    assert [len(launch.together.calls) for launch in watched_memory if launch.together] == [6, 6]


def test_no_more_slots_than_a_row_has_programs_are_enough(shared, monkeypatch):
    """In any order of starting; and the bits are the same."""
    tensors = problem((4, 48, 4), 3, norm=True)
    expected = with_gradients(tensors, chunk_size=2, backend="triton")
    monkeypatch.setitem(TOGETHER, "slots", 3)
    monkeypatch.setitem(TOGETHER, "seed", 1)
    for actual, wanted in zip(with_gradients(tensors, chunk_size=2, backend="triton"), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_without_tickets_they_are_not(shared, monkeypatch):
    from pyro_memory.kernels.memory import triton_deep_walk

    def by_number(p_tickets, SHARDS):
        ticket = triton_deep_walk.tl.program_id(0)
        return (ticket // SHARDS).to(triton_deep_walk.tl.int64), ticket % SHARDS

    monkeypatch.setattr(triton_deep_walk, "take_ticket", by_number)
    monkeypatch.setitem(TOGETHER, "slots", 3)
    with pytest.raises(Exception, match="wait for one another for ever"):
        call(problem((4, 48, 4), 5, norm=True), chunk_size=2, backend="triton")


# --- the plan


def test_few_rows_are_split_and_many_are_fused():
    def form(rows, widths, **more):
        return planned(rows, 4096, widths, 64, 2, 4, learns=False, **H100, **more).form

    limits = {(64, 64): 66, (64, 64, 64): 198, (64, 256, 64): 198}
    for widths, most in limits.items():
        assert form(most, widths) == "split"
        assert form(most + 1, widths) == "fused"
    assert planned(16, 4096, (64, 256, 64), 64, 2, 4, learns=False, **H100).shards == 4
    assert planned(16, 4096, (128, 512, 128), 64, 2, 4, learns=False, **H100).units == 32


def test_programs_of_a_row_are_never_more_than_a_gpu_runs_at_once():
    for hidden, dim, there, state in itertools.product((16, 70, 512), (16, 64, 128), (1, 8, 16, 132), (4, 8)):
        chosen = planned(4, 64, (dim, hidden, dim), 16, state, state, learns=True, at_once=there)
        assert chosen.shards <= there
        assert chosen.units * chosen.shards >= hidden


def test_kept_states_are_few_bytes_beside_the_tokens():
    def every(widths, chunk_size, **more):
        return planned(256, 4096, widths, chunk_size, 2, 4, learns=True, **more).every

    assert every((64, 64), 64) == every((64, 256, 64), 64) == 1
    assert every((64, 256, 64), 16) == 8
    assert every((64, 256, 64), 16, checkpoint_chunks=3) == 3
    assert planned(16, 4096, (64, 256, 64), 16, 2, 4, learns=True).every == 1  # few bytes at all
    rows, time, size = 256, 4096, 4 * 64 * 256
    assert rows * time // 16 // 8 * size * 4 <= 4 * rows * time * 4 * 64 * 2


def test_the_plan_bounds_what_launches_leave_to_one_another():
    for rows in (1, 64, 4096):
        chosen = planned(rows, 10**5, (64, 256, 64), 16, 2, 4, learns=True, **H100)
        assert 1 <= chosen.back <= max(8, 2**30 // (rows * 2 * 64 * 1024))
    assert planned(1, 64, (16, 16), 16, 4, 4, learns=True).window == 4


def test_it_says_what_it_would_do():
    q, weights = torch.zeros(4, 4, 4096, 64), [torch.zeros(4, 64, 256), torch.zeros(4, 256, 64)]
    said = how_triton(q.bfloat16(), q.bfloat16(), weights, chunk_size=64, gradients=False)
    if GPU:
        assert said.startswith(("split", "fused"))
    else:
        assert said == "split: a walk of 16 programs, then all reads"  # the interpreter runs one after the other
    assert "; every chunk's state kept; backward: a walk" in how_triton(q, q, weights, chunk_size=64)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"chunk_size": 0}, "`chunk_size` must be at least 1; got 0"),
        ({"checkpoint_chunks": 0}, "`checkpoint_chunks` must be at least 1; got 0"),
        ({"weights": [torch.zeros(1, 4, 4)] * 3}, "`weights` must hold 1 or 2 layers, what the kernels take; got 3"),
        ({"weights": []}, "`weights` must hold 1 or 2 layers, what the kernels take; got 0"),
        ({"q": torch.zeros(1, 8, 4)}, "`q` and `v` must be [batch, head, time, dim]"),
    ],
)
def test_it_refuses_what_no_call_could_have(wrong, said):
    q = torch.zeros(1, 1, 8, 4)
    with pytest.raises(ValueError, match=re.escape(said)):
        how_triton(**{"q": q, "v": q, "weights": [torch.zeros(1, 4, 4)], "chunk_size": 4} | wrong)


def test_the_plan_says_what_it_chose():
    chosen = planned(16, 4096, (64, 256, 64), 64, 2, 4, learns=True, **H100)
    assert str(chosen) == (
        "split: a walk of 64 programs, 4 a row with 64 hidden units each, then all reads; every chunk's state kept; "
        "backward: a walk of 64 programs, 4 a row with 64 hidden units each, between two launches of up to 64 chunks"
    )
    assert str(planned(999, 4096, (64, 64), 64, 2, 4, learns=False)) == "fused: 999 programs walk and read"
