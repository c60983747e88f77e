"""The table of docs/fidelity.md names code and tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "fidelity.md").read_text()
VERDICTS = ("as in", "as asked", "as printed", "same", "departs", "ours", "not here")


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


LINES = [cells(line) for line in PAGE.splitlines() if line.startswith("|")]
ROWS = [line for line in LINES if line[1] != "code" and set(line[1]) != {"-"}]


@cache
def defined(folder):
    """What the files of a folder, or one file, define: functions, classes, and ``Class.method``."""
    place = ROOT / folder
    names = set()
    for path in [place] if place.is_file() else place.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
                if isinstance(node, ast.ClassDef):
                    names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def missing(code, tests):
    """The names of a row that stand nowhere, as ``path: name``."""
    wanted, path = [], None
    for word in re.findall(r"`([^`]+)`", code):
        if "/" in word:
            path = word
        else:
            wanted.append((path, word))
    wanted += [tuple(word.split(": ")) for word in re.findall(r"`([^`]+)`", tests)]
    return [f"{path}: {name}" for path, name in wanted if name not in defined(path)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_names_code_and_tests_that_exist_and_says_how_close_it_is(row):
    _, code, tests, close = row
    assert missing(code, tests) == []
    assert ("no test" in tests) != ("`" in tests), "name the tests, or say that there is none"
    assert close.startswith(VERDICTS), f"begin with one of {VERDICTS}"


def test_every_line_of_a_table_is_read_and_a_name_that_is_nowhere_is_found():
    assert len(ROWS) > 80
    assert all(len(line) == 4 for line in LINES)
    found = missing("`models/vma.py` `VMA`, `VMA.foo`, `models/no.py` `VMA`", "`tests/models: test_no_such_thing`")
    assert found == ["models/vma.py: VMA.foo", "models/no.py: VMA", "tests/models: test_no_such_thing"]
