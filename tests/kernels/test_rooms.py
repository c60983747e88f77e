"""The rooms of the kernels: what imports what, where Triton source lies, what modules are called."""

import ast
import importlib
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
ROOMS = ("address", "memory", "scan")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_its_own_files_and_what_all_share(room):
    shared = ("pyro_memory.kernels.dispatch.", "pyro_memory.kernels.triton_parts.", "pyro_memory.gate.")
    allowed = (f"pyro_memory.kernels.{room}.", *shared)
    for path in (KERNELS / room).glob("*.py"):
        own = [name for name in imported(path) if name.startswith("pyro_memory")]
        assert all(name.startswith(allowed) for name in own), path


def test_a_file_that_imports_triton_is_named_so():
    for path in KERNELS.rglob("*.py"):
        if any(name.split(".")[0] == "triton" for name in imported(path)):
            assert path.name.startswith("triton_")


@pytest.mark.parametrize("package", ["", *(f".{room}" for room in ROOMS)])
def test_no_module_bears_the_name_of_what_its_package_exports(package):
    module = importlib.import_module(f"pyro_memory.kernels{package}")
    files = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert not files & set(module.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_definition_and_forms_stand_beside_each_other(room):
    names = {path.name for path in (KERNELS / room).glob("*.py")}
    assert {"__init__.py", "definition.py", "public.py", "torch_form.py", "triton_form.py"} <= names
