"""Whatever is handed to a public function, it answers rightly, or says in words which argument is wrong."""

import os

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pytest
import torch
from fuzz.outcome import failure, limits
from fuzz.table import EXEMPT, ROOMS, UNTRIED, public
from fuzz.wrong import WRONGS
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

TRIES = int(os.environ.get("FUZZ", "2800"))  # over all rows
SEED = os.environ.get("FUZZ_SEED")
ROWS = sum(map(len, ROOMS.values()))
pytestmark = [pytest.mark.unchecked, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Files go to a temporary folder, downloads nowhere; one process is a group."""
    folder, before = tmp_path_factory.mktemp("fuzz"), os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("PYRO_MEMORY_DATA", str(folder / "data"))
        patch.setattr("pyro_memory.data.images.letters._letters", lambda: {c: [np.ones((96, 96), "u1")] for c in "aαβ"})
        for module in ("digits", "drawings"):  # small files are not the published ones
            patch.setattr(f"pyro_memory.data.images.{module}.check_content", lambda *_: None)
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()
    assert os.getcwd() == before


def guarded(function):
    """Whether the gate stands before it."""
    return (
        hasattr(function, "__gate__")
        or hasattr(getattr(type(function), "forward", None), "__gate__")
        or (hasattr(getattr(function, "__init__", None), "__gate__"))
    )


def test_each_public_callable_has_a_row_once():
    rows = [name for room in ROOMS.values() for name in room]
    assert len(rows) == len(set(rows))
    assert public() - set(rows) - set(EXEMPT) == set()


def test_the_gate_stands_before_each_of_them():
    rows = {name for room in ROOMS.values() for name, build in room.items() if not guarded(build()[0])}
    assert rows == set()


@pytest.mark.parametrize("room", ROOMS)
def test_each_call_of_the_table_works(room):
    for name, build in ROOMS[room].items():
        pyro.set_rng_seed(0)
        function, call = build()
        with limits():
            try:
                function(**call)
            except Exception as error:
                raise AssertionError(f"{name} does not work: {error}") from error
    plt.close("all")


@pytest.mark.parametrize("room", ROOMS)
def test_a_wrong_argument_is_answered_or_named(room, record_property):
    rows = ROOMS[room]
    tried = 0

    @(seed(int(SEED)) if SEED else lambda test: test)
    @settings(
        derandomize=not SEED, database=None, deadline=None, max_examples=TRIES * len(rows) // ROWS + 1,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(st.data())
    def fuzz(data):
        nonlocal tried
        row = data.draw(st.sampled_from(sorted(rows)), "row")
        argument = data.draw(st.sampled_from(sorted(rows[row]()[1].keys() - UNTRIED.get(row, ()))), "argument")
        start = data.draw(st.integers(0, len(WRONGS) - 1), "wrong")
        at = data.draw(st.integers(0, 5), "at")
        for name in [*WRONGS, *WRONGS][start:]:  # the first from there that can be made of this argument
            found = failure(rows[row], argument, WRONGS[name], at)
            if found is not False:
                break
        tried += 1
        plt.close("all")
        assert not found, f"{row}({argument}: {name}, {at}): {found}"

    fuzz()
    record_property("tried", tried)
