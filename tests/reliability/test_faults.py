"""A few trials of each kind of fault, and that the campaign would see what is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import faults
import pytest
from faults_cases import Case
from faults_children import Outcome, told
from faults_files import damages

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("part", faults.PARTS)
def test_small_runs_survive_a_few_faults_of_each_kind(part, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "faults.py"),
        "--quick",
        "--part",
        part,
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert (tmp_path / "faults.json").exists(), done.stderr
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert sum(row["tried"] for row in rows) > 30
    lost = [f"{row['kind']}: {words}" for row in rows for words in row["how"]]
    assert not lost, "\n".join(lost)


def test_damage_is_spread_over_the_file_and_never_the_whole_file():
    content = bytes(range(256)) * 40
    made = dict(damages(content, Random(0), quick=False))
    assert len(made) > 3 * 64
    assert content not in made.values()
    flipped = [c for c in made.values() if len(c) == len(content)]
    places = [next(i for i, (a, b) in enumerate(zip(c, content, strict=True)) if a != b) for c in flipped]
    assert min(places) == 0
    assert max(places) == len(content) - 1
    assert max(b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)) < len(content) / 50


@pytest.mark.parametrize(
    ("end", "clear"),
    [
        (Outcome(error="ValueError", words="`a.safetensors` is not a whole checkpoint; restore a copy of it"), True),
        (Outcome(error="ValueError", words="something else went wrong in this place"), False),
        (Outcome(error="OSError", words="[Errno 28] No space left on device: 'a.safetensors' and so on"), False),
        (Outcome(error="OSError", words="[Errno 28] a.safetensors cannot be written; the old one holds"), True),
        (Outcome(error="json.decoder.JSONDecodeError", words="a.safetensors: expecting value in line 1 of it"), False),
        (Outcome(error="KeyError", words="a.safetensors has none of what is wanted here"), False),
        (Outcome(value=3), False),
    ],
)
def test_a_sentence_names_the_file_and_is_ours(end, clear):
    assert told(end, "a.safetensors") is clear


def test_a_campaign_counts_what_is_lost_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    ran = []

    def case(name, *lost):
        return Case("kind", name, lambda folder: ran.append(name) or list(lost))

    def raises(folder):
        ran.append("raises")
        raise KeyError("own")

    listed = [case("fine", None, None), case("not", "gone", None), Case("other", "raises", raises)]
    monkeypatch.setattr(faults, "cases", lambda *args: listed)
    monkeypatch.setattr(faults, "warm_up", lambda: None)
    rows = faults.campaign(tmp_path)
    assert [(r["kind"], r["tried"], r["survived"], r["lost"]) for r in rows] == [("kind", 4, 3, 1), ("other", 1, 0, 1)]
    assert rows[0]["how"] == ["not: gone"]
    assert "KeyError" in rows[1]["how"][0]
    assert faults.campaign(tmp_path) == rows
    assert ran == ["fine", "not", "raises"]
    faults.campaign(tmp_path, fresh=True)
    assert len(ran) == 6
    assert "all" in faults.table(rows).splitlines()[-1]


def test_trials_of_other_code_are_no_trials_of_this(monkeypatch, tmp_path):
    before = faults.source()
    for name in ("pyro_memory", "models", "guides", "kernels", "benchmarks"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    assert faults.source() != before
