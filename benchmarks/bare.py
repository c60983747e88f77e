"""Imports ``pyro_memory.kernels`` where Pyro is not installed: the kernels need torch, and triton on a GPU.

As a script it runs pytest on the kernels' tests that way: ``python benchmarks/bare.py tests/kernels/scan``.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_kernels() -> None:
    """Makes ``pyro_memory.kernels`` importable, without the package around it where that lacks its dependencies."""
    if "pyro_memory" in sys.modules:
        return
    sys.path.insert(0, str(ROOT))
    if all(importlib.util.find_spec(name) for name in ("pyro", "jaxtyping", "pooch", "safetensors", "tqdm")):
        return
    package = types.ModuleType("pyro_memory")
    package.__path__ = [str(ROOT), str(ROOT / "pyro_memory")]  # where kernels and the gate before them lie
    sys.modules["pyro_memory"] = package


def pytest_configure() -> None:
    """As a plugin of pytest: the processes that tests are spread over need it too."""
    load_kernels()


if __name__ == "__main__":
    load_kernels()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # some versions of torch warn without it
    try:
        import pytest
        import torch
    except ImportError:
        sys.exit(
            "the tests need pytest and torch; `python benchmarks/kernels_check.py` needs torch, triton and numpy only"
        )
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    spread = importlib.util.find_spec("xdist") and "-n" not in sys.argv  # kernels compile on a core each
    workers = ["-n", str(min(8, len(os.sched_getaffinity(0))))] if spread else []
    sys.exit(pytest.main(["--noconftest", "-q", "-p", "bare", *workers, *sys.argv[1:]]))
