"""What the simulation of machine code takes from it: control bits, loops, stalls, scoreboards, pipes, barriers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")  # exists for Linux only
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import kernels_simulated as simulated  # noqa: E402

LATENCY = simulated.LATENCY
PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24"


def line(address, text, stall=1, write=7, read=7, waits=()):
    high = (stall | write << 5 | read << 8 | sum(1 << 11 + board for board in waits)) << 41
    return f"  /*{address:04x}*/   {text} ;   /* 0x0000000000000000 */\n        /* 0x{high:016x} */\n"


def code(*instructions):
    """Of what cuobjdump prints; each instruction is its text, or that with its control bits."""
    pairs = [(each, {}) if isinstance(each, str) else each for each in (*instructions, "EXIT")]
    return simulated.decoded(
        "Function : f\n" + "".join(line(16 * i, text, **bits) for i, (text, bits) in enumerate(pairs))
    )


def cycles(*instructions, warps=4, **options):
    return simulated.estimate(code(*instructions), warps, (1,), **options)


def names(found, count, inner=(1,), **options):
    return [found[i].name for i in simulated.chunks(found, inner, count, **options)[0]]


def test_control_bits_of_two_lines_that_cuobjdump_printed():
    load, add = simulated.decoded("""
        /*88b0*/                   LDG.E R105, desc[UR6][R50.64+0x508] ;       /* 0x0005080632697981 */
                                                                               /* 0x000922000c1e1900 */
        /*0040*/              @!P1 IADD3 R1, R1, -0x118, RZ ;                  /* 0xfffffee801017810 */
                                                                               /* 0x001fe20007ffe0ff */
    """)
    assert (load.stall, load.write, load.read, load.waits) == (1, 4, 4, [])
    assert (add.stall, add.write, add.read, add.waits) == (1, 7, 7, [0])
    assert (load.address, load.base, load.conditional) == (0x88B0, "LDG", False)
    assert (add.guard, add.operands, add.conditional) == ("@!P1", "R1, R1, -0x118, RZ", True)


def test_of_several_functions_the_longest_is_taken():
    listing = "Function : log2\n" + line(0, "EXIT") + "Function : f\n" + line(0, "FADD R0, R0, R0") + line(16, "EXIT")
    assert [each.name for each in simulated.decoded(listing)] == ["FADD", "EXIT"]


def test_loops_run_as_often_as_asked_for():
    walk = code("MOV", "IADD3", "FADD", "@P0 BRA 0x20", "FMUL", "@P1 BRA 0x40", "@P2 BRA 0x10", "STG")
    assert names(walk, 1) == ["MOV", "IADD3", "FADD", "BRA", "FMUL", "BRA", "BRA", "STG"]
    once = ["IADD3", *["FADD", "BRA"] * 3, *["FMUL", "BRA"] * 2, "BRA"]
    assert names(walk, 2, (3, 2)) == ["MOV", *once * 2, "STG"]
    assert names(walk, 9, (2,), walk=False).count("IADD3") == 2


def test_of_branches_forward_only_those_without_a_condition_are_taken():
    assert names(code("@P0 BRA 0x20", "MOV", "BRA 0x40", "FADD"), 1) == ["BRA", "MOV", "BRA"]
    assert names(code("BRA UP0, 0x20", "MOV", "@P1 EXIT", "FADD"), 1) == ["BRA", "MOV", "EXIT", "FADD"]


def test_a_loop_that_waits_for_another_program_runs_once():
    found = names(code("MOV", "ATOMG.E.ADD R0", "@P0 BRA 0x10", "FADD", "@P1 BRA 0x30", "@P2 BRA 0x0"), 1, (5,))
    assert (found.count("ATOMG.E.ADD"), found.count("FADD")) == (1, 5)


def test_stalls_add_up():
    assert cycles(*[("FADD", {"stall": 5})] * 7) == 35
    assert cycles(*[("FADD", {"stall": 5})] * 7, ctas=2) < 2 * 35  # the other program issues in between


def test_a_chunk_is_what_a_further_one_takes():
    before, chunk = [("FADD", {"stall": 9})] * 50, [("FADD", {"stall": 5})] * 7
    assert cycles(*before, *chunk, ("@P0 BRA 0x320", {"stall": 5})) == 40 + LATENCY["branch"]


def test_a_load_that_needs_another_waits_for_it():
    use = ("FADD", {"waits": [1]})
    first, second = ("LDG.E R0", {"write": 0}), ("LDG.E R1", {"write": 1})
    together = cycles(first, second, use)
    after = cycles(first, ("LDG.E R1", {"write": 1, "waits": [0]}), use)
    assert together == pytest.approx(LATENCY["L2"], abs=20)
    assert after == pytest.approx(2 * LATENCY["L2"], abs=30)
    assert cycles(first, second, "FADD") < 10  # nobody asked


def test_wide_loads_outside_inner_loops_come_from_memory():
    wide = ("LDG.E.128 R0", {"write": 0}), ("FADD", {"waits": [0]})
    assert cycles(*wide) == pytest.approx(LATENCY["HBM"], abs=40)
    looped = cycles("MOV", *wide, "@P0 BRA 0x10", "@P0 BRA 0x0")
    assert looped == pytest.approx(LATENCY["L2"], abs=60)


def test_spilled_registers_may_lie_in_l2():
    load = ("LDL R0", {"write": 0}), ("FADD", {"waits": [0]})
    assert cycles(*load, spills="L2") - cycles(*load) >= LATENCY["L2"] - LATENCY["L1"]
    assert simulated.moved(code("LDL.LU.64 R0")[0]) == 256
    assert simulated.moved(code("LDSM.16.M88.4 R0")[0]) == 512


def test_products_wait_for_their_group():
    ended, waited = PRODUCT + ", gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0"
    assert cycles(PRODUCT, PRODUCT, ended, waited) == pytest.approx(3 * 32 + LATENCY["HGMMA"], abs=3)
    serial = cycles(*[ended, waited] * 3)
    assert serial == pytest.approx(3 * (32 + LATENCY["HGMMA"]), abs=9)
    assert cycles(PRODUCT, ended, "WARPGROUP.DEPBAR.LE gsb0, 0x1") < 10


def test_copies_wait_for_all_but_the_last_group():
    group = "LDGSTS.E.128 [R0]", ("LDGDEPBAR", {"write": 0})
    assert cycles(*group, "DEPBAR.LE SB0, 0x1") < 50
    assert cycles(*group, "DEPBAR.LE SB0, 0x0") > LATENCY["HBM"]


def test_two_programs_hide_latencies_but_share_pipes():
    waits = [("LDS R0", {"write": 0}), ("FADD", {"waits": [0]})] * 20
    assert cycles(*waits, ctas=2) < 1.3 * cycles(*waits)
    full = ["MUFU.EX2 R0"] * 40
    assert cycles(*full, ctas=2) == pytest.approx(2 * cycles(*full), rel=0.05)
    assert cycles(*full, warps=2, ctas=2) == cycles(*full, warps=2)  # on other schedulers


def test_a_barrier_joins_the_warps_of_a_program():
    alone = ["BAR.SYNC.DEFER_BLOCKING 0x0", "FADD"]
    assert cycles(*alone) == pytest.approx(LATENCY["barrier"], abs=3)
    work = [*["MUFU.EX2 R0"] * 10, *alone, *[("FADD", {"stall": 8})] * 10]
    joined, apart = cycles(*work, warps=8), cycles(*work, warps=4, ctas=2)  # two warps on a scheduler in both cases
    assert joined >= 2 * 10 * 8 + LATENCY["barrier"] + 10 * 8 - 16
    assert joined > apart  # whose first warp goes on beside the other


LOOP = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry looped(.param .u64 p, .param .u32 n)
{
    .reg .b64 %p; .reg .b32 %n; .reg .f32 %a; .reg .pred %q;
    ld.param.u64 %p, [p];
    ld.param.u32 %n, [n];
again:
    ld.global.f32 %a, [%p];
    add.f32 %a, %a, %a;
    st.global.f32 [%p], %a;
    bar.sync 0;
    sub.u32 %n, %n, 1;
    setp.ne.u32 %q, %n, 0;
    @%q bra.uni again;
    ret;
}
"""


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ptx")
    (folder / "looped.ptx").write_text(LOOP)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    arguments = ["-arch=sm_90", folder / "looped.ptx", "-o", folder / "looped.cubin"]
    subprocess.run([tool, *arguments], check=True)
    return (folder / "looped.cubin").read_bytes()


def test_what_the_assembler_wrote_is_simulated(binary):
    once = simulated.cycles(binary, 4)
    assert once == pytest.approx(LATENCY["L2"] + LATENCY["barrier"], abs=60)
    assert once <= simulated.cycles(binary, 4, ctas=2) < 1.2 * once
    assert simulated.cycles(binary, 4, walk=False) == pytest.approx(once, abs=100)


def test_a_row_of_the_table(binary):
    compiled = simulated.kernels_resources.Compiled("looped_walk", {"C": 16, "DI": 8, "DO": 4}, 0, 4, 1, 0, binary)
    row = simulated.row(compiled)
    assert (row["kernel"], row["widths"], row["chunk"], row["warps"]) == ("looped_walk", "8-4", 16, 4)
    assert 5 <= row["instructions"] <= 30
    assert row["local"] == row["spilled"] == 0
    assert row["cycles1"] == row["cycles1_L2"] == round(simulated.cycles(binary, 4))
    assert row["cyclesN"] == round(simulated.cycles(binary, 4, ctas=row["at_once"]))
    assert row["at_once"] == 16  # by warps
    assert simulated.row(replace(compiled, shared=2**16))["at_once"] == 3
