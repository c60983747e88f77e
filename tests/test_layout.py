"""The house: what imports what, what the wheel holds, that nothing heavy loads."""

import ast
import configparser
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"pyro_memory": "pyro_memory", "models": "pyro_memory.models", "guides": "pyro_memory.guides"}
FOLDERS["kernels"] = "pyro_memory.kernels"
# Each line may import the lines above it, and what stands before it in its own line.
FLOORS = [
    ["gate"],
    ["building"],
    ["kernels", "naming", "nets"],
    ["distributions"],
    ["stores"],
    ["checks", "addressing", "data", "inference"],
    ["diagnostics"],
    ["recall", "training"],
    ["models", "guides"],
    ["cards", "zoo", "__main__"],
    ["testing"],
]
ROOMS = [part for floor in FLOORS for part in floor]


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EXPERIMENTS = sorted(p for p in (ROOT / "benchmarks" / "experiments").glob("*.py") if "__main__" in p.read_text())


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def files():
    """Each module of the package by name, with its path."""
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(inner[:-1] if inner[-1] == "__init__" else inner)]), path


MODULES = dict(files())


def own_imports(path):
    """What a file imports of this package: modules, or packages for the names that they give."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "pyro_memory":
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            yield from inner or {node.module}


INNER = {name: list(own_imports(path)) for name, path in MODULES.items()}


def part(module):
    """The room of a module, or its own name where it stands beside them; "" for the package itself."""
    return ([*module.split("."), ""])[1]


def test_every_room_has_a_floor():
    assert {part(name) for name in MODULES} - {""} <= set(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_lies_below_it_by_the_door(name):
    own = part(name)
    for other in filter(part, INNER[name]):
        if own == part(other):
            continue
        assert not own or ROOMS.index(part(other)) < ROOMS.index(own), f"{name} -> {other}"
        assert {own, part(other)} != {"models", "guides"} or own == "testing"
        assert other.count(".") == 1, f"{name} imports {other}: another room is used through its door"
    if own == "kernels":
        allowed = {"torch", "triton", "pyro_memory"} | sys.stdlib_module_names
        assert {m.split(".")[0] for m in imports(MODULES[name])} <= allowed


def test_no_module_imports_itself_through_others():
    below = {name: {m for m in own if m in MODULES} for name, own in INNER.items()}
    while leaves := {name for name, own in below.items() if not own}:
        below = {name: own - leaves for name, own in below.items() if name not in leaves}
    assert not below, f"a circle of imports among {sorted(below)}"


def test_no_module_bears_the_name_of_a_public_function_of_its_package():
    for name in MODULES:
        package, _, own = name.rpartition(".")
        if package:
            exported = getattr(importlib.import_module(package), own, None)
            assert inspect.ismodule(exported) or exported is None, f"{name} hides, or is hidden by, {exported}"


@pytest.mark.parametrize("room", [m for m, path in MODULES.items() if path.name == "__init__.py" and m.count(".") == 1])
def test_a_room_says_what_lives_there_and_gives_what_it_names(room):
    module = importlib.import_module(room)
    assert all(hasattr(module, name) for name in module.__all__)
    assert len(module.__doc__.split("\n\n")) == 2, "one sentence, then one paragraph"
    assert "Where is the thing that" in module.__doc__
    assert "Imports:" in module.__doc__
    says, imports = (set(re.findall(r"``(\w+)``", text)) for text in module.__doc__.split("Imports:"))
    assert {n for n in says if not hasattr(module, n)} == set()
    if room != "pyro_memory.kernels":
        used = {part(m) for name, own in INNER.items() if part(name) == part(room) for m in own}
        assert imports == used - {part(room), "gate", "naming", "checks", ""}


def test_no_file_is_longer_than_a_person_reads():
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES.values()}
    assert {path: n for path, n in lengths.items() if n > 300} == {}
    tests = {path: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {path: n for path, n in tests.items() if n > 400} == {}


def test_no_object_changes_its_class():
    assert [name for name, path in MODULES.items() if "__class__ =" in path.read_text()] == []


def test_examples_use_public_names_only():
    public = {"pyro_memory"} | {
        f"pyro_memory.{n}" for n in ("models", "guides", "kernels", "data", "diagnostics", "nets", "training")
    }
    for path in [*EXAMPLES, *(ROOT / "benchmarks").rglob("*.py")]:
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


HELPS = """
import contextlib, io, json, pathlib, runpy, sys
helps = {}
for path in sys.argv[1:]:
    sys.argv, sys.path[0], out = [path, "--help"], str(pathlib.Path(path).parent), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(path, run_name="__main__")
    helps[path] = out.getvalue()
print(json.dumps(helps))
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    """What each script says to ``--help``: one process, as most of its time would be importing torch."""
    command = [sys.executable, "-c", HELPS, *map(str, [*EXAMPLES, *EXPERIMENTS])]
    folder = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", [*EXAMPLES, *EXPERIMENTS], ids=lambda path: path.stem)
def test_every_example_and_experiment_has_help(path, helps):
    assert "usage:" in helps[str(path)]
    assert "--out" in helps[str(path)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_names_its_command_and_has_few_options(path, helps):
    text = path.read_text()
    assert len(text.splitlines()) <= 120
    assert f"python examples/{path.name}" in ast.get_docstring(ast.parse(text))
    options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", helps[str(path)], re.MULTILINE)) - {"--help"}
    assert 2 <= len(options) <= 8, options


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_stands_alone(path):
    """It imports no other example, and nothing that the package or its dependencies do not bring."""
    known = {"pyro_memory", "pyro", "torch", "matplotlib", "numpy", "tqdm"} | sys.stdlib_module_names
    assert {module.split(".")[0] for module in imports(path)} <= known


def test_every_example_and_experiment_is_run_at_a_few_steps():
    makefile = (ROOT / "Makefile").read_text()
    run = makefile[makefile.index("\nexamples: install") : makefile.index("\nwheel: install")]
    for path in [*EXAMPLES, *(p for p in EXPERIMENTS if p.name != "results.py")]:
        assert f"/{path.name} " in run, f"make examples runs no {path.name}"


def test_no_file_of_the_experiments_is_long():
    for path in (ROOT / "benchmarks" / "experiments").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
