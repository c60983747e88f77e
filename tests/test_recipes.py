"""The recipes run what exists, and the tables in docs are what the records say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


sys.path.insert(0, str(ROOT / "benchmarks" / "experiments"))  # as for a script that lies there


def script(name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = script("benchmarks/experiments/results.py")
tables = script("benchmarks/experiments/tables_sets.py")
RECIPES = results.load_recipes()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_script_takes_its_arguments(name, monkeypatch):
    recipe = RECIPES[name]
    for extra in recipe.get("variants", {"": {}}).values():
        monkeypatch.setattr(sys, "argv", results.command(recipe, **extra))
        args = vars(script(recipe["script"]).arguments())
        for key, value in {**recipe.get("arguments", {}), **extra}.items():
            assert args[key.replace("-", "_")] == value
    assert {"about", "minutes"} <= set(recipe)
    assert (ROOT / recipe["script"]).is_file()


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_tables_are_what_the_records_say(path):
    text = path.read_text()
    assert results.with_tables(text) == text, "run python benchmarks/experiments/results.py --tables"
    for _, name in results.BLOCK.findall(text):
        assert (ROOT / "docs" / "data" / f"{name}.json").exists()


def test_a_script_that_moved_is_the_same_command(tmp_path, monkeypatch):
    """A run that was done before the folder of its script changed is done; other arguments are another run."""
    monkeypatch.setattr(results.subprocess, "run", lambda *args, **kwargs: pytest.fail("it ran again"))
    before = {"command": ["examples/vma_fewshot.py", "--steps", "2"]}
    (tmp_path / "command.json").write_text(json.dumps(before))
    (tmp_path / "results.json").write_text(json.dumps({"rows": []}))
    now = ["benchmarks/experiments/vma_fewshot.py", "--steps", "2"]
    assert results.run_one("tiny", now, tmp_path, "tiny") == {"rows": [], "run": before}
    assert not results.same(before["command"], [*now, "--seed", "1"])
    assert not results.same(before["command"], ["benchmarks/experiments/vma_large.py", "--steps", "2"])


def test_a_recipe_runs_once_and_leaves_its_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "DOCS", tmp_path / "docs")
    for folder in ("data", "figures"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
    recipe = {
        "about": "tiny", "script": "examples/compose.py", "minutes": 1, "arguments": {"steps": 2},
        "figures": {"compose.png": "kept.png"},
    }  # fmt: skip
    ran = []

    def pretend(words, **kwargs):
        ran.append(words)
        out = Path(words[-1])
        (out / "results.json").write_text(json.dumps({"rows": []}))
        (out / "compose.png").write_bytes(b"picture")

    monkeypatch.setattr(results.subprocess, "run", pretend)
    results.run("tiny", recipe, tmp_path)
    results.run("tiny", recipe, tmp_path)
    assert len(ran) == 1
    assert ran[0][1:4] == ["examples/compose.py", "--steps", "2"]
    assert "done before" in capsys.readouterr().out
    kept = json.loads((tmp_path / "docs" / "data" / "tiny.json").read_text())
    assert kept["rows"] == []
    assert kept["run"]["command"] == ["examples/compose.py", "--steps", "2"]
    assert (tmp_path / "docs" / "figures" / "kept.png").read_bytes() == b"picture"
    results.run("tiny", recipe | {"arguments": {"steps": 3}}, tmp_path)
    assert len(ran) == 2


def test_variants_run_for_every_seed_and_are_gathered(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "DOCS", tmp_path / "docs")
    for folder in ("data", "figures"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
    recipe = {
        "about": "tiny", "script": "benchmarks/experiments/vsm_fewshot.py", "minutes": 1, "seeds": 2,
        "keep": ["bounds"],
        "arguments": {"steps": 2}, "variants": {"none": {"memory": "none"}, "both": {"no-replay": True}},
        "figures": {"both_0/summary.png": "kept.png"},
    }  # fmt: skip

    def pretend(words, env, **kwargs):
        assert env["OMP_NUM_THREADS"] == "1"
        out, seed = Path(words[-1]), int(words[words.index("--seed") + 1])
        value = seed + 10 * ("none" not in words)
        each = {"each": [value, value + 2 + seed]}
        record = {"bounds": {"5": each}, "arguments": {"steps": 2}, "training_cpu_seconds": 3, "left out": 1}
        (out / "results.json").write_text(json.dumps(record))
        (out / "summary.png").write_bytes(b"picture")

    monkeypatch.setattr(results.subprocess, "run", pretend)
    results.run("tiny", recipe, tmp_path, jobs=2)
    kept = json.loads((tmp_path / "docs" / "data" / "tiny.json").read_text())
    assert list(kept["runs"]) == ["none", "both"]
    assert set(kept["runs"]["both"]) == {"0", "1"}
    assert set(kept["runs"]["both"]["1"]) == {"bounds", "run"}
    assert kept["runs"]["both"]["1"]["run"]["command"][-3:] == ["--no-replay", "--seed", "1"]
    assert (tmp_path / "docs" / "figures" / "kept.png").exists()
    assert "| both | +10.00 (0.00, 0.00) |" in tables.set_gains(kept, recipe)


def test_what_does_not_fit_is_left_out_and_said(monkeypatch):
    monkeypatch.delenv("PYRO_MEMORY_DATA", raising=False)
    assert results.why_not({"minutes": 5}, 15) is None
    assert "--minutes 30 runs it" in results.why_not({"minutes": 30}, 15)
    assert "PYRO_MEMORY_DATA" in results.why_not({"minutes": 5, "data": "omniglot"}, 15)
    monkeypatch.setattr(sys, "argv", ["results.py", "--only", "nothing"])
    with pytest.raises(SystemExit, match="--only must name recipes of"):
        results.main()
