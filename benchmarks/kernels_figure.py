"""Draws what ``make gpu`` measured: time against rows, beside what was predicted and PyTorch's eager form."""

import matplotlib

matplotlib.use("Agg")

from kernels_rows import BASE, RIVALLED
from matplotlib import pyplot as plt

COLORS = {0: "tab:blue", 1: "tab:orange", 4: "tab:green"}
LINES = {"measured": "o-", "predicted": "o:", "torch, eager": "s--"}


def draw(rows, path, title):
    cases = {str(case): case for case in (*BASE, *RIVALLED)}
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for ax, kind in zip(axes, ("forward", "forward+backward"), strict=True):
        for expansion, color in COLORS.items():
            for name, style in LINES.items():
                what, value = (f"{name} {kind}", "measured") if name.startswith("torch") else (kind, name)
                here = [row for row in rows if row["what"] == what and row["case"] in cases and row.get(value)]
                points = sorted(
                    (cases[r["case"]].rows, r[value]) for r in here if cases[r["case"]].expansion == expansion
                )
                if points:
                    label = f"{f'x{expansion}' if expansion else 'linear'}, {name}"
                    ax.plot(*zip(*points, strict=True), style, color=color, ms=4, label=label)
        counts = sorted({case.rows for case in BASE})
        ax.set(xscale="log", yscale="log", xlabel="rows (batch x heads)", title=kind)
        ax.set_xticks(counts, [str(n) for n in counts])
        ax.minorticks_off()
    axes[0].set_ylabel("ms, 4,096 tokens of 64, chunks of 64, bfloat16")
    handles, names = axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)
