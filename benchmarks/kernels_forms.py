"""What the kernels of each form would take on an H100, by the simulation of their machine code, against rows.

A launch takes the rounds that its programs need on 132 multiprocessors, as many at a time as fit, at 1.7 GHz, or
its bytes at 3 TB/s where that is more. Cycles are those of simulated.json, which kernels_simulated.py wrote, of the
kernels as they are (after) and as they were before reads left the walk (before). Nothing here was measured.

    python benchmarks/kernels_forms.py --figure docs/figures/kernels_simulated.png
"""

import argparse
import json
from functools import cache
from pathlib import Path

from kernels_cost import Case, floor_ms

SIMULATED = Path(__file__).parent / "simulated.json"
PROCESSORS, HERTZ, BYTES_S, FLOPS_S = 132, 1.7e9, 3e12, 700e12
ROWS = (8, 16, 32, 64, 132, 256, 512, 1024)


@cache
def simulated(when: str = "after") -> dict[tuple[str, str, int], list[dict[str, float]]]:
    """Rows of the simulation, one or more configurations, by kernel, widths and chunk."""
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for row in json.loads(SIMULATED.read_text())[when]:
        found.setdefault((row["kernel"], row["widths"], row["chunk"]), []).append(row)
    return found


def launches(case: Case, form: str, backward: bool, shards: int) -> list[tuple[str, int, int, int]]:
    """Kernel, programs, chunks of a program, and bytes of a chunk and row to and from memory; ``form`` may be "before".

    A token tensor of a chunk, one by hidden unit, W and S, G and its gradient count once a launch that reads or writes
    them.
    """
    C, d, layers = case.chunk, case.dim, 2 if case.expansion else 1
    token, unit, state, G = 2 * C * d, 2 * C * case.expansion * d, 2 * case.state_size, 2 * layers * C * C
    chunks, kind = -(-case.time // C), "deep" if layers == 2 else "linear"
    every, dG = case.rows * chunks, 4 * layers * C * (C + 6)
    gates = ("gates_forward", every * layers, 1, G)
    if form == "before":
        found = [gates, (f"{kind}_forward", case.rows, chunks, 4 * token + G + (2 * state if backward else 0))]
        if backward:
            found += [gates, (f"{kind}_backward", case.rows, chunks, 7 * token + G + dG + 2 * state)]
            found += [("gates_backward", every * layers, 1, G + 2 * dG)]
        return found
    if form == "fused":
        found = [gates, (f"{kind}_forward", case.rows, chunks, 4 * token + G + (state if backward else 0))]
    else:
        found = [gates, (f"{kind}_walk", case.rows * shards, chunks, 3 * token + state)]
        found += [(f"{kind}_read", every, 1, 4 * token + state + G)]
    if backward:
        W2 = state // 4 if layers == 2 else 0
        found += [gates, (f"{kind}_back_reads", every, 1, 9 * token + 5 * unit + 2 * state + G + dG)]
        found += [(f"{kind}_back_walk", case.rows * shards, chunks, 5 * token + 6 * unit + 2 * state + W2)]
        found += [(f"{kind}_back_keys", every, 1, 8 * token + 3 * unit + 2 * state)]
        found += [("gates_backward", every * layers, 1, G + 2 * dG)]
    return found


def cycles_of(programs: int, one: float, full: float, most: int) -> float:
    """Rounds of as many programs as the multiprocessors hold, and a last one of those that are left."""
    rounds, rest = divmod(programs, most * PROCESSORS)
    there = -(-rest // PROCESSORS)  # on each
    return rounds * full + (one + (full - one) * (there - 1) / max(1, most - 1) if rest else 0)


def launch_ms(case: Case, kernel: str, programs: int, chunks: int, moved: int, when: str) -> float:
    widths = "-".join(map(str, [case.dim, case.expansion * case.dim, case.dim] if case.expansion else [case.dim] * 2))
    rows = simulated(when)[kernel, "" if kernel.startswith("gates") else widths, case.chunk]
    cycles = min(cycles_of(programs, row["cycles1"], row["cyclesN"], row["at_once"]) for row in rows)
    return 1e3 * max(cycles * chunks / HERTZ, moved * case.rows * -(-case.time // case.chunk) / BYTES_S)


def estimated_ms(case: Case, backward: bool, form: str | None = None) -> float | None:
    """Of a call in a form, by default that of the plan; None where nothing was simulated."""
    from kernels_cases import plan_of

    if case.dtype != "bfloat16" or case.activation != "gelu" or not case.norm or case.time == 1:
        return None
    plan, when = plan_of(case), "before" if form == "before" else "after"
    try:
        each = launches(case, form or plan.form, backward, plan.shards)
        return sum(launch_ms(case, *launch, when) for launch in each)
    except KeyError:
        return None


def table() -> list[str]:
    heads = "forward, before   fused   split   floor         both, before   after   floor"
    lines = [f"{'ms, bfloat16':38}{heads}"]
    for dim, chunk, expansions in ((64, 64, (0, 1, 4)), (64, 16, (0, 1, 4)), (128, 64, (0, 4))):
        for expansion in expansions:
            for rows in (16, 64, 256, 1024):
                case = Case(dim, expansion, chunk, 4096, 1, rows)
                forward = [estimated_ms(case, False, form) for form in ("before", "fused", "split")]
                both = [estimated_ms(case, True, form) for form in ("before", None)]
                floors = [floor_ms(case, kind, FLOPS_S, BYTES_S) for kind in ("forward", "forward+backward")]
                cells = [f"{n:7.2f}" if n is not None else "      -" for n in (*forward, floors[0], *both, floors[1])]
                lines.append(f"{case!s:45} " + " ".join(cells[:4]) + "        " + " ".join(cells[4:]))
    return lines


def draw(path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained", sharex=True)
    for column, (expansion, name) in enumerate(((0, "linear"), (1, "two layers, x1"), (4, "two layers, x4"))):
        for row, backward in enumerate((False, True)):
            ax, kind = axes[row, column], "forward+backward" if backward else "forward"
            cases = [Case(64, expansion, 64, 4096, 1, rows) for rows in ROWS]
            forms = {"before": "before", "fused": "fused", "split": "split"}
            if backward:
                forms = {"before": "before", "after": None}
            styles = {"before": "k--", "fused": "C1o-", "split": "C0o-", "after": "C0o-"}
            for label, form in forms.items():
                ax.plot(ROWS, [estimated_ms(c, backward, form) for c in cases], styles[label], ms=4, label=label)
            ax.plot(ROWS, [floor_ms(c, kind, FLOPS_S, BYTES_S) for c in cases], "0.6", label="floor")
            ax.set(xscale="log", yscale="log", title=f"{name}: {'forward and backward' if backward else 'forward'}")
            ax.set_xticks(ROWS, [str(n) for n in ROWS])
            ax.minorticks_off()
            ax.legend(fontsize=8)
    for ax in axes[1]:
        ax.set_xlabel("rows (batch x heads)")
    for ax in axes[:, 0]:
        ax.set_ylabel("ms")
    figure.suptitle("Simulated, not measured: 4,096 tokens of 64, chunks of 64, bfloat16, H100 at 1.7 GHz")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", help="where to draw it")
    options = parser.parse_args()
    print("\n".join(table()))
    if options.figure:
        draw(options.figure)
