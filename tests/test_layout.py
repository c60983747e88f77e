"""The house: what imports what, what the wheel holds, that nothing heavy loads."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"pyro_memory": "pyro_memory", "models": "pyro_memory.models", "guides": "pyro_memory.guides"}
FOLDERS["kernels"] = "pyro_memory.kernels"
ALLOWED = {
    "kernels": {"pyro_memory.kernels"},
    "pyro_memory": {"pyro_memory", "pyro_memory.kernels"},
    "models": {"pyro_memory", "pyro_memory.kernels", "pyro_memory.models"},
    "guides": {"pyro_memory", "pyro_memory.kernels", "pyro_memory.guides"},
}


EXAMPLES = sorted(p.name for p in (ROOT / "examples").glob("*.py") if "__main__" in p.read_text())


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def owner(module):
    part = ".".join(module.split(".")[:2])
    return part if part in FOLDERS.values() else "pyro_memory"


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_imports_only_what_it_may(folder):
    for path in (ROOT / folder).rglob("*.py"):
        own = [m for m in imports(path) if m.split(".")[0] == "pyro_memory"]
        assert {owner(m) for m in own} <= ALLOWED[folder], path
        if folder == "kernels":
            assert {m.split(".")[0] for m in imports(path)} <= {
                "torch",
                "triton",
                "pyro_memory",
            } | sys.stdlib_module_names


def test_examples_use_public_names_only():
    public = {"pyro_memory"} | {
        f"pyro_memory.{n}" for n in ("models", "guides", "kernels", "data", "metrics", "plotting")
    }
    for path in [*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        own = {m for m in imports(path) if m.startswith("pyro_memory")}
        if path.name.startswith("kernels_"):  # these look into the kernels
            own = {m for m in own if not m.startswith("pyro_memory.kernels.")}
        assert own <= public, path


def test_setup_lists_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = set()
    for folder, package in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inner]))
    assert listed == found


def run(code, cwd):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_it_imports_from_any_folder_without_triton_and_leaves_torch_as_it_was(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['triton'] = None\n"
        "import torch; state = torch.random.get_rng_state(); check = torch.distributions.Distribution._validate_args\n"
        "import pyro_memory, pyro_memory.models, pyro_memory.guides, pyro_memory.kernels, pyro_memory.data\n"
        "assert torch.equal(state, torch.random.get_rng_state())\n"
        "assert check == torch.distributions.Distribution._validate_args\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_help(name, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / name), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout
