"""What may come of a call with a wrong argument: the right answer, or an error that says what to do."""

import inspect
import re
import resource
import signal
import warnings
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import numpy as np
import pyro
import torch
from fuzz.wrong import NOT_HERE
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

SECONDS = 5
ROOM = 3 * 2**30  # bytes that a call may take
NAMED = re.compile("`[a-zA-Z_]")
OF_PYTHON = re.compile("positional argument|unexpected keyword argument|missing .* required")
DOCUMENTED = (FileNotFoundError, FloatingPointError, ImportError, IndexError)
# How much work is wanted: a large number is no mistake, and takes as long as it says.
WORK = {
    "steps", "particles", "num_particles", "draws", "sweeps", "images", "batch", "per_class", "drawings", "blocks",
    "simulations", "tasks", "count", "per", "combinations", "persistent",
}  # fmt: skip


class TooLong(BaseException):
    """Raised where a call does not end."""


def failure(build, name, wrong, at):
    """Says what is wrong with the answer to a wrong argument; None where nothing is, False where there is no call."""
    pyro.set_rng_seed(0)
    function, call = build()
    value = wrong.make(call[name], call, at)
    if value is NOT_HERE or (name in WORK and wrong.name in ("10**9", "2**70", "inf")):
        return False
    pyro.set_rng_seed(1)
    result = None
    try:
        with limits():
            result = function(**call | {name: value})
    except TooLong:
        return f"no end within {SECONDS} s"
    except Exception as error:
        if wrong.fate == "same" and takes(function, name):
            return f"refused what is as good: {shown(error)}"
        return None if ours(error, function) or starved(error, wrong) else f"raised {shown(error)}"
    if wrong.fate == "refused" and refusable(function, name, call[name], wrong):
        return f"gave {type(result).__name__}, and should refuse"
    if wrong.fate == "same":
        pyro.set_rng_seed(0)
        function, call = build()
        pyro.set_rng_seed(1)
        if not alike(result, function(**call)):
            return "gave another result than for the same numbers in a tensor"
    return None


@contextmanager
def limits():
    """Ends what takes long or much memory, keeps warnings of torch and numpy quiet, and lets nothing behind."""

    def end(*_):
        raise TooLong

    before = signal.signal(signal.SIGPROF, end)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, hard))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        left = state()
        pyro.clear_param_store()
        del _PYRO_STACK[:]
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        if left != CLEAN:
            raise AssertionError(f"left behind: {left}")


def state():
    return torch.get_default_dtype(), torch.is_grad_enabled(), len(_PYRO_STACK), torch.is_inference_mode_enabled()


CLEAN = (torch.float32, True, 0, False)


def ours(error, function):
    """Whether an error is one that this package raises, naming an argument."""
    if isinstance(error, TypeError) and OF_PYTHON.search(str(error)):
        return True
    while error is not None:
        if isinstance(error, (ValueError, TypeError, *DOCUMENTED)) and raised_here(error):
            return bool(NAMED.search(str(error)))
        if isinstance(error, AssertionError) and function.__name__.startswith("check_"):
            return True  # a contract's answer
        error = error.__cause__  # Pyro tells the shapes of its sites and raises again
    return False


def raised_here(error):
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("pyro_memory")


def starved(error, wrong):
    """Whether there is no such amount of memory as was asked for."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "memory" in str(error) and wrong.name in ("10**9", "2**70")
    )


def annotation(function, name):
    """What is said of an argument; "" where it is one of ``*args``."""
    for target in (function, getattr(function, "__init__", None)):
        try:
            parameters = inspect.signature(target).parameters
        except (TypeError, ValueError):
            continue
        if name in parameters:
            return str(parameters[name].annotation)
    return ""


def takes(function, name):
    """Whether an argument is one that may be given in other forms."""
    said = annotation(function, name)
    return said != "Any" and "dict" not in said and "Mapping" not in said and "Callable" not in said


def refusable(function, name, value, wrong):
    said = annotation(function, name)
    if said in ("Any", "object") or "Any |" in said:
        return False
    if wrong.name == "NaN inside":
        return (said.startswith("Float[") or not said) and not name.startswith(("log", "score"))
    if wrong.name == "meta device":  # elsewhere than its module: others may work there
        return isinstance(value, Tensor) and isinstance(getattr(function, "__self__", function), nn.Module)
    if wrong.name == "complex":
        return isinstance(value, Tensor)
    if isinstance(value, str):
        return wrong.name == "an object"
    if callable(value) and not isinstance(value, nn.Module):
        return wrong.name != "the class"
    return not (wrong.name == "a text" and (any(kind in said for kind in ("str", "device", "Path"))))


def alike(one, other):
    """Whether two results are the same, as far as their tensors tell."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(
            one.detach().double(), other.detach().double(), rtol=1e-4, atol=1e-6, equal_nan=True
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if is_dataclass(one):
        return all(alike(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, np.ndarray):
        return one.shape == other.shape
    if isinstance(one, torch.distributions.Distribution):
        return one.batch_shape == other.batch_shape and one.event_shape == other.event_shape
    return True


def shown(error):
    text = " ".join(str(error).split())
    trace, at = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if trace.tb_frame.f_globals.get("__name__", "").startswith("pyro_memory") and "gate" not in code.co_filename:
            at = f"{code.co_filename.split('/')[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} ({at}): {text[:200]}"
