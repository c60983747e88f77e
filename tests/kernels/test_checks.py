"""The checks that run before anything is timed on a GPU: in Triton's interpreter in small, on a GPU in full."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton exists for Linux only")

import kernels_check
from kernels_cases import first_that_fits
from kernels_check import CHECKS, CONFIGURED, Check, small

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
SLACK = 1 if GPU else 2  # a norm over one narrow row has less to average over


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """In the first configuration; without a GPU by an interpreter that rounds as one does."""
    if not GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        from interpreter import rounding_cast
        from triton.runtime.interpreter import InterpreterBuilder

        monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
    with first_that_fits():
        yield


@pytest.fixture
def fitting(monkeypatch):
    """Makes a check one for this machine: in the interpreter small, and what registers do not hold they do not hold."""
    if GPU:
        return lambda check: check
    from pyro_memory.kernels.memory import triton_launch

    monkeypatch.setattr(triton_launch, "RESIDENT_BYTES", triton_launch.RESIDENT_BYTES // 4)
    monkeypatch.setattr(triton_launch, "RESIDENT_HIDDEN", triton_launch.RESIDENT_HIDDEN // 2)
    return small


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_values_states_and_gradients_keep_to_the_bars(check, fitting):
    assert max(kernels_check.errors(fitting(check), DEVICE)) <= SLACK


@pytest.mark.parametrize("check", CONFIGURED, ids=str)
def test_every_configuration_gives_what_the_first_does(check, fitting):
    """In the interpreter they differ by their tiles of hidden units alone."""
    check = fitting(check)
    if not GPU:
        check = replace(check, case=replace(check.case, chunk=16, time=20))
    found = [error for error in kernels_check.other_configurations(check, DEVICE) if error is not None]
    assert len(found) == 3
    assert max(found) <= 1


def test_the_case_that_is_timed_most_keeps_to_the_bars_in_its_own_width():
    check = next(c for c in CHECKS if (c.case.dim, c.case.expansion, c.case.chunk) == (64, 4, 64))
    if not GPU:
        check = replace(check, case=replace(check.case, time=80, batch=1, heads=1))
    assert max(kernels_check.errors(check, DEVICE)) <= SLACK


def test_what_the_interpreter_gave_is_what_it_gives():
    found = dict(kernels_check.interpreted(DEVICE))
    assert len(found) == 10
    errors = sorted(found.values())
    if GPU:
        assert errors[-1] <= kernels_check.FROM_INTERPRETER
    else:  # another processor adds in another order, which may turn a rounding to bfloat16, 2^-8, in a case or two
        assert errors[-3] <= 1e-5
        assert errors[-1] <= 8e-3


@pytest.mark.parametrize("expansion", [0, 1])
def test_a_wrong_gradient_and_a_wrong_state_are_far_past_the_bars(expansion, monkeypatch):
    """Gates of half the size for the kernels alone."""
    check = Check(kernels_check._base(16, expansion, 16, time=20))
    if not GPU:
        check = small(check)
    right, arguments = kernels_check.with_gradients, {}

    def wrong(case, given, backend, **options):
        arguments.setdefault(backend, given)
        if backend == "triton":
            given = given | {"lr": tuple(t.detach().mul(0.5).requires_grad_() for t in given["lr"])}
        return right(case, given, backend, **options)

    monkeypatch.setattr(kernels_check, "with_gradients", wrong)
    assert min(kernels_check.errors(check, DEVICE)) > 10


def test_every_job_names_what_failed(monkeypatch):
    monkeypatch.setattr(kernels_check, "CHECKS", ())
    for size in ("read_error", "scan_error"):
        monkeypatch.setattr(getattr(kernels_check, size), "__defaults__", (70,))
    monkeypatch.setattr(kernels_check, "CONFIGURED", ())
    monkeypatch.setattr(kernels_check, "SMALL", kernels_check.SMALL[:1])
    (_, others), (name, job) = kernels_check.jobs(DEVICE)
    assert name == "small cases"
    assert [row["what"] for row in others()] == ["read, error over 1e-4", "scan, error over 1e-5"]
    assert [row["what"] for row in job()] == ["from the interpreter's, over the bar"]
    monkeypatch.setattr(kernels_check, "FROM_INTERPRETER", -1.0)
    monkeypatch.setattr(kernels_check, "worst", lambda *args: float("nan"))
    assert [row["what"] for row in job()] == ["failed: from the interpreter's, over the bar"]
