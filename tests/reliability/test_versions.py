"""The oldest versions that setup.cfg allows are those that CI tests, and CI tests the newest Python that it names."""

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")
EXTRAS = CONFIG["options.extras_require"]
TESTED = [EXTRAS[name] for name in ("arviz", "scale", "tables", "test")]
ASKED = "\n".join([CONFIG["options"]["install_requires"], *TESTED])
LOWEST = dict(re.findall(r"^([\w-]+)>=([\d.]+)", ASKED, re.MULTILINE))
PINNED = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))


def numbers(version):
    return tuple(int(part) for part in version.removesuffix(".0").removesuffix(".0").split("."))


def test_the_oldest_set_is_what_setup_allows():
    assert {name: numbers(version) for name, version in PINNED.items()} == {
        name: numbers(version) for name, version in LOWEST.items()
    }


@pytest.mark.parametrize("which", [min, max])
def test_ci_runs_the_oldest_and_the_newest_python(which):
    named = re.findall(r"Python :: 3\.(\d+)", CONFIG["metadata"]["classifiers"])
    tested = re.findall(r'python: "3\.(\d+)", versions', (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert which(map(int, named)) == which(map(int, tested))
    assert CONFIG["options"]["python_requires"] == f">=3.{min(map(int, named))}"
