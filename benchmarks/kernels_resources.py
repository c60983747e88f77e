"""Compiles the kernels for a GPU that need not be here, and prints what each configuration takes of it.

Registers a thread, bytes a thread spilled to local memory, bytes of shared memory a program, and the instructions of
its loops, each counted once (for a walk with all hidden units in one tile: of a chunk), or of all if it has none. Needs
torch and triton.

    python benchmarks/kernels_resources.py --dim 64 --expansion 0 1 4 --chunk 64 --dtype bfloat16
"""

import argparse
import itertools
import re
import subprocess
import tempfile
from pathlib import Path

import kernels_compile
import torch
import triton
from bare import load_kernels

load_kernels()

from pyro_memory.kernels.memory import triton_form, triton_launch  # noqa: E402

INSTRUCTIONS = {
    "matrix": ("HGMMA", "HMMA", "DMMA"), "local": ("LDL", "STL"), "shared": ("LDS", "STS", "LDSM", "STSM"),
    "shuffle": ("SHFL",), "barrier": ("BAR",), "global": ("LDG", "STG", "LDGSTS"),
}  # fmt: skip


def resources(binary):
    """Registers and spilled bytes a thread, and how many instructions of each kind its loops have."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"

    def run(tool, *options):
        return subprocess.run([tools / tool, *options, file.name], capture_output=True, text=True, check=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage, code = run("cuobjdump", "-res-usage"), run("nvdisasm")
    names = in_loops(code)
    return *taken(usage), len(names), {kind: sum(map(names.count, group)) for kind, group in INSTRUCTIONS.items()}


def taken(usage):
    """Registers and bytes of stack of the kernel: in float64 a function of the mathematical library comes before it."""
    found = re.findall(r"REG:(\d+) STACK:(\d+)", usage)
    return [max(map(int, column)) for column in zip(*found, strict=True)]


def in_loops(code):
    """Instructions between a label and a branch back to it in what nvdisasm prints, each once; all where none is."""
    line = r"^(?:(\.L_\w+):|\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?([A-Z][A-Z0-9]+)(.*?);)"
    labels, names, looped = {}, [], set()
    for label, name, rest in re.findall(line, code, re.MULTILINE):
        if label:
            labels[label] = len(names)
            continue
        target = re.search(r"\((\.L_\w+)\)", rest) if name == "BRA" else None
        start = labels.get(target[1], len(names)) if target else len(names)
        looped.update(range(start, len(names)))  # empty for the program's end, a branch to itself
        names.append(name)
    return [names[i] for i in sorted(looped) or range(len(names))]


def compiler(first_only):
    """Stands in for the launch."""

    def compile_all(kernel, grid, args, options, configurations):
        for tile, warps, stages in configurations[:1] if first_only else configurations:
            constants = options | ({"BH": tile} if tile else {})
            compiled = kernel.warmup(*args, grid=grid, num_warps=warps, num_stages=stages, **constants)
            registers, stack, total, kinds = resources(compiled.asm["cubin"])
            widths = "-".join(str(options[name]) for name in ("DI", "DH", "DO") if name in options)
            print(
                f"{kernel.__name__:16} {widths:12} chunk {options.get('C', 1):3} tile {tile:3} warps {warps:2} stages "
                f"{stages}  registers {registers:3}  spilled {stack:5}  shared {compiled.metadata.shared:6}  in loops "
                f"{total:5}: " + ", ".join(f"{kind} {count}" for kind, count in kinds.items()),
                flush=True,
            )

    return compile_all


def run(dim, expansion, chunk, dtype, norm):
    """Forward and backward over two chunks, and one token, with the launches replaced."""
    widths = [dim, dim] if expansion == 0 else [dim, expansion * dim, dim]
    shapes = list(itertools.pairwise(widths))
    for time in (2 * chunk, 1):
        q, k, v = (torch.zeros(1, 1, time, dim, dtype=dtype, requires_grad=time > 1) for _ in range(3))
        state = torch.float64 if dtype == torch.float64 else torch.float32
        weights = tuple(torch.zeros(1, 1, *shape, dtype=state) for shape in shapes)
        gates = (torch.zeros(1, 1, time, dtype=state),) * len(shapes)
        y = triton_form.triton_form(
            q, k, v, weights, weights, gates, gates, gates, chunk_size=chunk, residual_norm=norm
        )[0]
        if time > 1:
            y.sum().backward()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, nargs="+", default=[64])
    parser.add_argument("--expansion", type=int, nargs="+", default=[0, 1, 4], help="hidden units over dim; 0: linear")
    parser.add_argument("--chunk", type=int, nargs="+", default=[64])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--no-norm", action="store_true")
    parser.add_argument("--capability", type=int, default=90, help="90 is an H100, 80 an A100, 89 a 4090")
    parser.add_argument("--first", action="store_true", help="only the first configuration of each kernel")
    options = parser.parse_args()
    print(f"triton {triton.__version__}, compute capability {options.capability}")
    kernels_compile.install(options.capability)
    triton_launch._launch = compiler(options.first)
    for dim in options.dim:
        for expansion in options.expansion:
            for chunk in options.chunk:
                run(dim, expansion, chunk, getattr(torch, options.dtype), not options.no_norm)
