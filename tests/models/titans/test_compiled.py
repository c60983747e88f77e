"""Mixers under torch.compile and torch.export: whole graphs, any length, the same numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def found():
    script = Path(__file__).with_name("compiled_mixers.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=900)
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("claim", "count"),
    [
        ("a_token_is_one_graph", 2),
        ("sequences_of_any_length_are_one_graph", 3),
        ("a_segment_more_is_another_graph", 1),
        ("it_has_the_same_gradients_and_goes_on", 1),
        ("it_is_exported_with_any_length", 1),
        ("the_operator_passes_opcheck", 1),
    ],
)
def test_compiled_mixers_keep_this(found, claim, count):
    results = {name: error for name, error in found.items() if name.startswith(claim)}
    assert len(results) == count
    assert not any(results.values()), results
