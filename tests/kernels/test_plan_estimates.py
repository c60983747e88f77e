"""The plan of the neural memory's kernels follows the simulation of their machine code."""

import json

import pytest
from kernels_cases import plan_of
from kernels_cost import Case, floor_ms
from kernels_forms import BYTES_S, FLOPS_S, ROWS, SIMULATED, estimated_ms, launches, simulated


@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("expansion", [0, 1, 4])
def test_the_form_of_the_plan_is_at_most_a_quarter_slower_than_the_other(expansion, chunk):
    for rows in ROWS:
        case = Case(64, expansion, chunk, 4096, 1, rows)
        times = {form: estimated_ms(case, False, form) for form in ("fused", "split")}
        assert times[plan_of(case).form] <= 1.25 * min(times.values()), (rows, times)


def test_no_estimate_is_below_the_floor():
    for backward, kind in ((False, "forward"), (True, "forward+backward")):
        for rows in ROWS:
            case = Case(64, 4, 64, 4096, 1, rows)
            assert estimated_ms(case, backward) > floor_ms(case, kind, FLOPS_S, BYTES_S)


def test_what_was_simulated_holds_every_launch():
    for form in ("before", "fused", "split"):
        known = simulated("before" if form == "before" else "after")
        names = {
            name for expansion in (0, 4) for name, *_ in launches(Case(64, expansion, 64, 64, 1, 1), form, True, 1)
        }
        assert names <= {name for name, *_ in known}
    assert estimated_ms(Case(48, 0, 64, 4096, 1, 16), False) is None  # not simulated
    assert estimated_ms(Case(64, 0, 64, 4096, 1, 16, dtype="float32"), False) is None


def test_products_of_walks_and_reads_are_pipelined_and_the_linear_ones_spill_nothing():
    rows = [row for row in json.loads(SIMULATED.read_text())["after"] if row["widths"] != ""]
    along = [row for row in rows if row["kernel"].endswith(("_walk", "_read", "_keys")) and row["chunk"] == 64]
    assert len(along) > 12
    assert not any(row["serialised"] for row in along if row["widths"].startswith("64"))
    linear = [row for row in rows if row["widths"] == "64-64" and row["kernel"].endswith(("_walk", "_read"))]
    assert len(linear) == 6  # forward, back and reads of two lengths of chunks
    assert not any(row["spilled"] for row in linear)
