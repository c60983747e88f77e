"""Profiles the neural memory's kernels on a GPU, and looks for races and accesses out of bounds.

Nsight Compute and compute-sanitizer run this script's --once, which launches each kernel in its first configuration; a
tool that is not here is left out. Reports and what the tools print go to --out.

    python benchmarks/kernels_profile.py --out out/gpu_profile
    python benchmarks/kernels_profile.py --once 512 256       forward and backward of 512 tokens in 256 rows
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

SECTIONS = (
    "SpeedOfLight", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats", "Occupancy", "LaunchStats",
)  # fmt: skip
METRICS = (
    "smsp__inst_executed_op_local_ld.sum", "smsp__inst_executed_op_local_st.sum",
    "l1tex__t_sectors_pipe_lsu_mem_local_op_ld_lookup_hit.sum", "l1tex__t_sectors_pipe_lsu_mem_local_op_ld.sum",
    "lts__t_bytes.sum", "dram__bytes.sum", "sm__inst_executed_pipe_tensor.sum",
)  # fmt: skip


def once(time, rows):
    """Each kernel of the linear memory and of those of one and four times the width, once."""
    from kernels_cases import first_that_fits, inputs, with_gradients
    from kernels_cost import Case

    with first_that_fits():
        for expansion in (0, 1, 4):
            case = Case(64, expansion, 64, time, 1, rows)
            with_gradients(case, inputs(case), "triton")
    torch.cuda.synchronize()


def commands(out):
    """Each tool's name, how many seconds it may take, and its command."""
    run = [sys.executable, str(Path(__file__).resolve()), "--once"]
    for rows in (256, 16):
        ncu = ["ncu", "--clock-control", "none", "--kernel-name", "regex:linear_|deep_|gates_", "--force-overwrite"]
        for section in SECTIONS:
            ncu += ["--section", section]
        yield (
            f"ncu, {rows} rows",
            80,
            [*ncu, "--metrics", ",".join(METRICS), "-o", str(out / f"rows{rows}"), *run, "512", str(rows)],
        )
    for tool in ("racecheck", "memcheck"):
        yield tool, 60, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *run, "128", "2"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu_profile"), help="default %(default)s")
    parser.add_argument("--once", type=int, nargs=2, metavar=("TOKENS", "ROWS"), help="launch each kernel and stop")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("No CUDA device is visible to torch, so there is nothing to profile.", file=sys.stderr)
        return 2
    if options.once:
        once(*options.once)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    return report(commands(options.out), options.out)


def report(commands, out):
    """Runs what is here, keeps what it prints, and says how each ended; the number that found something."""
    found = 0
    for name, seconds, command in commands:
        if shutil.which(command[0]) is None:
            print(f"{name:16} left out: {command[0]} is not here", flush=True)
            continue
        log = out / f"{name.replace(', ', '_').replace(' ', '_')}.log"
        try:
            with open(log, "w") as file:
                code = subprocess.run(command, stdout=file, stderr=file, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {seconds} s"
        found += code != 0
        print(f"{name:16} ended with {code}: {log}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
