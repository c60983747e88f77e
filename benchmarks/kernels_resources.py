"""Compiles the kernels for a GPU that need not be here, and prints what each configuration takes of it.

Registers a thread, bytes a thread spilled to local memory, bytes of shared memory a program, and the instructions of
its loops, each counted once (for a walk with all hidden units in one tile: of a chunk), or of all if it has none. Needs
torch and triton.

    python benchmarks/kernels_resources.py --dim 64 --expansion 0 1 4 --chunk 64 --dtype bfloat16

With ``--shared`` only the shared memory, which is known long before the machine code: a second a configuration.
"""

import argparse
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import kernels_compile
import torch
import triton
from bare import load_kernels
from triton.backends.nvidia import compiler as nvidia

load_kernels()

from pyro_memory.kernels.memory import triton_form, triton_launch, triton_token  # noqa: E402

INSTRUCTIONS = {
    "matrix": ("HGMMA", "HMMA", "DMMA"), "local": ("LDL", "STL"), "shared": ("LDS", "STS", "LDSM", "STSM"),
    "shuffle": ("SHFL",), "barrier": ("BAR",), "global": ("LDG", "STG", "LDGSTS"),
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A kernel in one of its configurations."""

    kernel: str
    options: dict
    tile: int
    warps: int
    stages: int
    shared: int
    binary: bytes

    @property
    def widths(self):
        return "-".join(str(self.options[name]) for name in ("DI", "DH", "DO") if name in self.options)

    @property
    def chunk(self):
        return self.options.get("C", 1)

    def __str__(self):
        return (
            f"{self.kernel:16} {self.widths:12} chunk {self.chunk:3} tile {self.tile:3} warps {self.warps:2} stages "
            f"{self.stages}"
        )


def disassembled(binary, tool, *options):
    """What one of NVIDIA's tools, which come with Triton, says of a binary."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout


def resources(binary):
    """Registers and spilled bytes a thread, and how many instructions of each kind its loops have."""
    names = in_loops(disassembled(binary, "nvdisasm"))
    usage = disassembled(binary, "cuobjdump", "-res-usage")
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


def show(compiled):
    registers, stack, total, kinds = resources(compiled.binary)
    print(
        f"{compiled}  registers {registers:3}  spilled {stack:5}  shared {compiled.shared:6}  in loops {total:5}: "
        + ", ".join(f"{kind} {count}" for kind, count in kinds.items()),
        flush=True,
    )


class Allocated(Exception):
    """Ends a compilation, with the bytes of shared memory that it has allocated."""


def stop_at_allocation():
    def to_module(module, context):
        raise Allocated(module.get_int_attr("ttg.shared"))

    nvidia.llvm.to_module = to_module


def show_shared(compiled):
    print(f"{compiled}  shared {compiled.shared:6}", flush=True)


def compiler(report: Callable[[Compiled], None], first_only):
    """Stands in for the launch: reports what it compiled."""

    def compile_all(kernel, grid, args, options, configurations):
        for tile, warps, stages in configurations[:1] if first_only else configurations:
            constants = options | ({"BH": tile} if tile else {})
            try:
                compiled = kernel.warmup(*args, grid=grid, num_warps=warps, num_stages=stages, **constants)
                shared, binary = compiled.metadata.shared, compiled.asm["cubin"]
            except Allocated as end:
                shared, binary = end.args[0], b""
            report(Compiled(kernel.__name__, options, tile, warps, stages, shared, binary))

    return compile_all


def run(dim, expansion, chunk, dtype, norm):
    """With the launches replaced: forward and backward over two chunks; with many rows forward, and as if to learn,
    which keeps states; and one token."""
    widths = [dim, dim] if expansion == 0 else [dim, expansion * dim, dim]
    state = torch.float64 if dtype == torch.float64 else torch.float32
    options = {"chunk_size": chunk, "residual_norm": norm}
    if norm:
        options |= {"norm_weight": torch.ones(1, dim, dtype=state), "norm_bias": torch.zeros(1, dim, dtype=state)}
    for rows, time, learns in ((1, 2 * chunk, True), (300, chunk, False), (300, chunk, True), (1, 1, False)):
        tokens = [torch.zeros(rows, 1, time, dim, dtype=dtype, requires_grad=learns) for _ in range(3)]
        weights = tuple(torch.zeros(rows, 1, *shape, dtype=state) for shape in itertools.pairwise(widths))
        gates = ((torch.zeros(rows, 1, time, dtype=state),) * len(weights),) * 3
        if time == 1:
            position = torch.zeros(1, dtype=torch.long)
            triton_token.triton_token(tokens, weights, weights, weights, gates, position=position, **options)
            continue
        more = {"checkpoint_chunks": 1} if rows > 1 else {}
        y, *_ = triton_form.triton_form(*tokens, weights, weights, *gates, **options, **more)
        if learns and rows == 1:
            y.sum().backward()


def main(parser, report):
    """Reports every kernel of the sizes that a command line names, which the parser may know more of."""
    parser.add_argument("--dim", type=int, nargs="+", default=[64])
    parser.add_argument("--expansion", type=int, nargs="+", default=[0, 1, 4], help="hidden units over dim; 0: linear")
    parser.add_argument("--chunk", type=int, nargs="+", default=[64])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--no-norm", action="store_true")
    parser.add_argument("--capability", type=int, default=90, help="90 is an H100, 80 an A100, 89 a 4090")
    parser.add_argument("--first", action="store_true", help="only the first configuration of each kernel")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these, as deep_walk")
    parser.add_argument("--shared", action="store_true", help="only the shared memory")
    options = parser.parse_args()
    if options.shared:
        stop_at_allocation()
        report = show_shared
    print(f"triton {triton.__version__}, compute capability {options.capability}")
    kernels_compile.install(options.capability)
    compile_all = compiler(report, options.first)

    def launch(kernel, *rest):
        if not options.kernels or kernel.__name__ in options.kernels:
            compile_all(kernel, *rest)

    triton_launch._launch = launch
    for dim in options.dim:
        for expansion in options.expansion:
            for chunk in options.chunk:
                run(dim, expansion, chunk, getattr(torch, options.dtype), not options.no_norm)
    return options


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    main(argparse.ArgumentParser(description=__doc__, formatter_class=raw), show)
