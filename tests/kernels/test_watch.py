"""The watch over kernels' memory catches what it is there for."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton exists for Linux only")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the watch is over Triton's interpreter", allow_module_level=True)

import triton
import triton.language as tl
from kernel_watch import watched


@triton.jit
def copy(p_from, p_to, N, BLOCK: tl.constexpr, STEP: tl.constexpr):
    o = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    tl.store(p_to + o, tl.load(p_from + o, mask=o < N), mask=o < N)


@triton.jit
def turn_twice(p_x, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_x + o, tl.load(p_x + BLOCK - 1 - o))
    if BARRIER:
        tl.debug_barrier()
    tl.store(p_x + BLOCK + o, tl.load(p_x + BLOCK - 1 - o))


@triton.jit
def count(p_x, BLOCK: tl.constexpr):
    tl.store(p_x + tl.arange(0, BLOCK) // 2, tl.arange(0, BLOCK))


def test_a_launch_that_keeps_to_its_places_passes(monkeypatch):
    x, y = torch.arange(10.0), torch.zeros(10)
    with watched(monkeypatch) as launches:
        copy[(3,)](x, y, 10, BLOCK=4, STEP=4)
    assert torch.equal(x, y)
    assert len(launches) == 1
    assert launches[0].program == 2


def test_an_access_past_the_end_of_a_view_is_caught(monkeypatch):
    x, y = torch.arange(16.0), torch.zeros(16)
    with watched(monkeypatch), pytest.raises(Exception, match="2 accesses outside the tensors of the launch"):
        copy[(3,)](x[:10], y, 12, BLOCK=4, STEP=4)


def test_two_programs_that_write_one_place_are_caught(monkeypatch):
    x, y = torch.arange(16.0), torch.zeros(16)
    with watched(monkeypatch), pytest.raises(Exception, match="two programs of a launch share a place"):
        copy[(2,)](x, y, 16, BLOCK=4, STEP=3)


def test_a_program_that_writes_what_another_reads_is_caught(monkeypatch):
    x = torch.arange(16.0)
    with watched(monkeypatch), pytest.raises(Exception, match="two programs of a launch share a place"):
        copy[(2,)](x[:12], x[4:], 8, BLOCK=4, STEP=4)


def test_a_place_written_and_read_needs_a_barrier_between(monkeypatch):
    with watched(monkeypatch):
        turn_twice[(1,)](torch.arange(8.0), BLOCK=4, BARRIER=True)
    with watched(monkeypatch), pytest.raises(Exception, match=r"no tl.debug_barrier between"):
        turn_twice[(1,)](torch.arange(8.0), BLOCK=4, BARRIER=False)


def test_a_store_of_two_values_to_one_place_is_caught(monkeypatch):
    with watched(monkeypatch), pytest.raises(Exception, match="two values for a place"):
        count[(1,)](torch.zeros(8), BLOCK=4)


@triton.jit
def pass_on(p_tickets, p_x, p_y, BLOCK: tl.constexpr, RELEASE: tl.constexpr, ACQUIRE: tl.constexpr):
    ticket = tl.atomic_add(p_tickets, 1, sem="relaxed")
    o = tl.arange(0, BLOCK)
    if ticket == 0:
        tl.store(p_x + o, o)
        tl.debug_barrier()
        tl.atomic_add(p_tickets + 1, 1, sem=RELEASE)
    else:
        while tl.atomic_add(p_tickets + 1, 0, sem=ACQUIRE) < 1:
            pass
        tl.store(p_y + o, tl.load(p_x + o))


@pytest.mark.parametrize(
    ("release", "acquire"), [("release", "acquire"), ("relaxed", "acquire"), ("release", "relaxed")]
)
def test_programs_meet_where_one_releases_and_the_other_acquires(release, acquire, monkeypatch):
    tickets, x, y = torch.zeros(2, dtype=torch.int32), torch.zeros(4), torch.zeros(4)
    with watched(monkeypatch) as launches:
        if (release, acquire) == ("release", "acquire"):
            pass_on[(2,)](tickets, x, y, BLOCK=4, RELEASE=release, ACQUIRE=acquire)
            assert torch.equal(y, torch.arange(4.0))
            assert len(launches[0].together.calls) == 2
        else:
            with pytest.raises(Exception, match="two programs of a launch share a place"):
                pass_on[(2,)](tickets, x, y, BLOCK=4, RELEASE=release, ACQUIRE=acquire)
