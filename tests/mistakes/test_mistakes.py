"""Each mistake of the tables is told by this package, and what was meant to work does."""

import pytest
from mistakes import arguments, programs, sizes, training

TABLES = {"arguments": arguments, "programs": programs, "sizes": sizes, "training": training}
pytestmark = pytest.mark.unchecked


@pytest.fixture(scope="module", autouse=True)
def summary():
    """Printed at the end, with ``-s``."""
    yield
    for table, module in TABLES.items():
        print(f"\n{table}: {module.mistakes.summary()}")


@pytest.mark.parametrize(("table", "name"), [(t, name) for t, module in TABLES.items() for name in module.mistakes])
def test_a_mistake_is_told_and_what_to_do(table, name):
    TABLES[table].mistakes.check(name)


@pytest.mark.parametrize("name", arguments.WORKS)
def test_what_can_be_converted_is(name):
    arguments.WORKS[name]()
