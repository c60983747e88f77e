"""Times the neural memory's Triton kernels on a GPU, after checking them there.

Against the chunk form in PyTorch, eager and compiled; against flash-linear-attention's gated delta rule and
titans-pytorch where they import; and against the floor that operations and bytes give at the matmul and copy rates
measured on the same GPU. A row a case goes to a CSV file, with GPU, driver and versions; a figure beside it.
Needs torch, triton, numpy and matplotlib only, and runs from a checkout.

    python benchmarks/kernels_gpu.py --check                 the check alone
    python benchmarks/kernels_gpu.py --out out/bench_gpu     everything
    python benchmarks/kernels_gpu.py --quick                 three cases
    python benchmarks/kernels_gpu.py --only triton torch     these implementations

Rows that the CSV file has of the same code, GPU and versions are not taken again, so that an interrupted run goes on;
without the file it starts anew.
"""

import argparse
import csv
import dataclasses
import datetime
import hashlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from bare import load_kernels
from kernels_cost import Case, floor_ms

load_kernels()

from pyro_memory.kernels import neural_memory, why_not_triton  # noqa: E402
from pyro_memory.kernels.reference import token_rule  # noqa: E402

PASSES = ("forward", "forward+backward")
NAMES = ("q", "k", "v", "weights", "lr", "momentum", "decay", "momentum_state", "norm_weight", "norm_bias")


def inputs(case, dtype=torch.bfloat16, device="cuda", seed=0):
    """Arguments of ``neural_memory``: unit keys, gates in the range where the memory is stable."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    lead = (case.batch, case.heads, case.time)
    d, h = case.dim, case.expansion * case.dim
    shapes = [(d, d)] if case.expansion == 0 else [(d, h), (h, d)]
    q, k, v = (normal(*lead, d) for _ in range(3))
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    eta = [0.9 * torch.rand(lead, generator=generator) for _ in shapes]
    theta = [(1 - e) / case.chunk * torch.rand(lead, generator=generator) for e in eta]
    alpha = [torch.rand(lead, generator=generator) / case.chunk for _ in shapes]
    weights = [normal(case.batch, case.heads, *s) / s[1] ** 0.5 for s in shapes]
    arguments = {"q": q, "k": k, "v": v, "weights": weights, "lr": theta, "momentum": eta, "decay": alpha}
    arguments["momentum_state"] = [torch.zeros_like(w) for w in weights]
    if case.norm:
        arguments |= {"norm_weight": 1 + 0.1 * normal(case.heads, d), "norm_bias": 0.1 * normal(case.heads, d)}

    def leaf(name, t):
        return t.to(device, dtype if name in "qkv" else torch.promote_types(dtype, torch.float32)).requires_grad_()

    return {n: leaf(n, a) if torch.is_tensor(a) else tuple(leaf(n, t) for t in a) for n, a in arguments.items()}


def leaves(arguments):
    return [t for name in NAMES if name in arguments for t in _tuple(arguments[name])]


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


# --- kernels compiled ahead: the autotuner would compile one configuration after the other


def compile_for(capability):
    """Makes a process compile where it would launch."""
    import kernels_compile

    from pyro_memory.kernels import dispatch

    kernels_compile.install(capability)
    dispatch.why_not_triton = lambda *args, **options: None
    torch.set_num_threads(1)


def compile_one(case, dtype, which):
    """Leaves one configuration of each kernel that the case launches in Triton's cache."""
    from pyro_memory.kernels import triton_launch

    def launch(kernel, grid, args, options, configurations):
        tile, warps, stages = configurations[which % len(configurations)]
        tile = {"BH": tile} if tile else {}
        kernel.warmup(*args, grid=grid, num_warps=warps, num_stages=stages, **options, **tile)

    triton_launch._launch = launch
    forward, both = passes(*ours(dataclasses.replace(case, time=case.chunk, batch=1, heads=1), "triton", dtype, "cpu"))
    forward()
    both()


def compile_ahead(wanted, capability):
    """All configurations of all kernels of the cases, each with a dtype, on all cores."""
    wanted = {(dataclasses.replace(case, time=0, batch=0, heads=0), dtype) for case, dtype in wanted}
    jobs = [(*pair, which) for which in range(4) for pair in sorted(wanted, key=str)]
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    print(f"compiling the kernels of {len(wanted)} kinds of memory on {workers} processes", flush=True)
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=compile_for, initargs=(capability,)) as pool:
        for done, job in enumerate([pool.submit(compile_one, *job) for job in jobs]):
            if job.exception() is not None:
                print(f"  {jobs[done]}: {job.exception()!r}"[:300], flush=True)  # the autotuner leaves it out as well
            if (done + 1) % (workers * 4) == 0:
                print(f"  {done + 1} of {len(jobs)}, {time.monotonic() - start:.0f} s", flush=True)
    print(f"  compiled in {time.monotonic() - start:.0f} s", flush=True)


# --- the check


def outputs_and_gradients(arguments, run):
    y, weights, momenta = run(arguments)
    outputs = [y, *weights, *momenta]
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs)
    return [*(t.detach() for t in outputs), *torch.autograd.grad(loss, leaves(arguments))]


def why_not(arguments, case):
    q, v, weights, decay = (arguments[name] for name in ("q", "v", "weights", "decay"))
    return why_not_triton(q, v, _tuple(weights), decay, chunk_size=case.chunk)


def recast(arguments, dtype):
    return {
        n: a.detach().to(dtype).requires_grad_()
        if torch.is_tensor(a)
        else tuple(t.detach().to(dtype).requires_grad_() for t in a)
        for n, a in arguments.items()
    }


def check(case, dtype, device="cuda"):
    """Raises unless values and gradients are at most twice as wrong as the token rule's in this dtype, and repeat."""

    def kernels(arguments):
        return neural_memory(**arguments, chunk_size=case.chunk, residual_norm=case.norm, backend="triton")

    def rule(arguments):
        arguments = {n: a if n in "qkv" or "norm" in n else _tuple(a) for n, a in arguments.items()}
        return token_rule(**arguments, chunk_size=case.chunk, residual_norm=case.norm)

    arguments = inputs(case, dtype, device)
    reason = why_not(arguments, case)
    if reason is not None:
        print(f"  {describe(case)} {str(dtype)[6:]:8} not run: {reason}", flush=True)
        return
    truth = outputs_and_gradients(recast(arguments, torch.float64), rule)
    peers = outputs_and_gradients(recast(arguments, dtype), rule)
    actual = outputs_and_gradients(arguments, kernels)
    worst = 0.0
    for value, peer, exact in zip(actual, peers, truth, strict=True):
        size = exact.square().mean().sqrt()
        error, allowed = ((t.double() - exact).square().mean().sqrt() for t in (value, peer))
        ratio = (error / (allowed + 2 * torch.finfo(dtype).eps * size + 1e-300)).item()
        worst = max(worst, ratio) if ratio == ratio else float("inf")
    again = outputs_and_gradients(arguments, kernels)
    same = all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))
    print(f"  {describe(case)} {str(dtype)[6:]:8} error {worst:5.2f} of PyTorch's, same bits twice: {same}", flush=True)
    if worst > 2 or not same:
        raise SystemExit(f"the check failed for {case} in {dtype}: no time is reported")


CHECKS = [
    (Case(dim, expansion, chunk, 100, 2, 2, norm), dtype)  # longer, such memories amplify every rounding
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for dim, expansion, chunk, norm in ((64, 0, 64, False), (48, 0, 16, True), (64, 1, 64, True), (64, 4, 32, True))
]


def check_all(device="cuda"):
    print("check: values, states and gradients against the token rule")
    for case, dtype in CHECKS:
        check(case, dtype, device)


# --- what is timed


def ours(case, backend, dtype=torch.bfloat16, device="cuda"):
    arguments = inputs(case, dtype, device)

    def step(**arguments):
        return neural_memory(**arguments, chunk_size=case.chunk, residual_norm=case.norm, backend=backend)[0]

    return step, arguments


def compiled(case):
    torch._dynamo.reset()  # its limit of compilations is for all cases together, and past it runs them eagerly
    step, arguments = ours(case, "torch")
    return torch.compile(step), arguments


def gated_delta_rule(case):
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    a = inputs(dataclasses.replace(case, norm=False))
    by_time = {n: a[n].detach().transpose(1, 2).contiguous().requires_grad_() for n in "qkv"}
    by_time["g"] = torch.log1p(-a["decay"][0].detach()).transpose(1, 2).contiguous().requires_grad_()
    by_time["beta"] = a["lr"][0].detach().transpose(1, 2).to(torch.bfloat16).contiguous().requires_grad_()

    def step(**arguments):
        return chunk_gated_delta_rule(**arguments)[0]

    return step, by_time


def titans_pytorch(case):
    from titans_pytorch import NeuralMemory

    width = case.dim * case.heads
    memory = NeuralMemory(dim=width, dim_head=case.dim, heads=case.heads, chunk_size=case.chunk).cuda()
    x = torch.randn(case.batch, case.time, width, device="cuda", requires_grad=True)
    return (lambda **arguments: memory(arguments["x"])[0]), {"x": x}


RIVALS = {
    "triton": lambda case: ours(case, "triton"),
    "torch": lambda case: ours(case, "torch"),
    "torch compiled": compiled,
    "fla gated delta rule": gated_delta_rule,
    "titans-pytorch with its projections": titans_pytorch,
}


def time_ms(fn):
    """Median and the 20 and 80 percentiles, the L2 cache flushed before each run."""
    import triton

    return triton.testing.do_bench(fn, warmup=50, rep=200, quantiles=(0.5, 0.2, 0.8))


def passes(step, arguments):
    """Forward without gradients, and forward with backward in everything."""
    tensors = [t for a in arguments.values() for t in _tuple(a)]

    def forward():
        with torch.no_grad():
            return step(**arguments)

    def both():
        y = step(**arguments)
        torch.autograd.grad(y, tensors, torch.ones_like(y), allow_unused=True)

    return forward, both


def ceilings():
    """Matmul (bfloat16) and copy rates of this GPU, operations and bytes a second."""
    n = 8192
    x, y = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    big = torch.empty(2**29, device="cuda", dtype=torch.bfloat16)
    other = torch.empty_like(big)
    return 2 * n**3 / (time_ms(lambda: x @ y)[0] / 1e3), 2 * big.nbytes / (time_ms(lambda: other.copy_(big))[0] / 1e3)


def machine():
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    name = torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__}
    date = datetime.date.today().isoformat()
    return {"date": date, "kernels": code(), "gpu": name, "driver": driver} | versions


def code():
    """Names the kernels' code: a change in it makes times stale."""
    files = sorted((Path(__file__).parent.parent / "kernels").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def cases(quick):
    """A base case, and one thing changed at a time."""
    if quick:
        return [Case(64, e, 64, 1024, 8, 16) for e in (0, 1, 4)]
    found = []
    for expansion in (0, 1, 2, 4):
        base = Case(64, expansion, 64, 4096, 16, 16)
        found += [base, dataclasses.replace(base, chunk=16)]
        found += [dataclasses.replace(base, time=t) for t in (512, 1024, 2048, 8192, 16384)]
        found += [dataclasses.replace(base, dim=d) for d in (16, 32, 128)]
        found += [dataclasses.replace(base, batch=b) for b in (1, 4)]
    return found + [Case(64, 0, 64, 4096, 16, 16, norm=False)]


def describe(case):
    kind = "linear" if case.expansion == 0 else f"MLP x{case.expansion}"
    return f"{kind:7} dim {case.dim:3} chunk {case.chunk:2} time {case.time:5} rows {case.rows:3}"


def run_case(case, rates, names, done):
    for name, kind in itertools.product(names, PASSES):
        if (case.expansion != 0 and name.startswith("fla")) or (case, name, kind) in done:
            continue
        row = dataclasses.asdict(case) | {"implementation": name, "pass": kind}
        row["floor_ms"] = floor = floor_ms(case, kind, *rates)
        try:
            fn = dict(zip(PASSES, passes(*RIVALS[name](case)), strict=True))[kind]
            fn()
            torch.cuda.reset_peak_memory_stats()
            fn()
            row["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
            row["median_ms"], row["p20_ms"], row["p80_ms"] = time_ms(fn)
            row["of_floor"] = floor / row["median_ms"]
        except ImportError as error:
            row["note"] = f"not here: {error.name}"
        except torch.cuda.OutOfMemoryError:
            row["note"] = "out of memory"
        except Exception as error:  # a rival's failure is a row, ours ends the run, but for what is refused
            if name == "triton" and not isinstance(error, ValueError):
                raise
            row["note"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        torch.cuda.empty_cache()
        shown = f"{row['median_ms']:9.3f} ms, {row['of_floor']:.0%} of floor" if "median_ms" in row else row["note"]
        print(f"  {describe(case)} {name:20} {kind:16} {shown}", flush=True)
        yield row


COLUMNS = (
    "date", "kernels", "gpu", "driver", "torch", "cuda", "triton", "matmul_tflops", "copy_gb_s",
    *Case.__dataclass_fields__, "implementation", "pass",
    "median_ms", "p20_ms", "p80_ms", "floor_ms", "of_floor", "peak_mb", "note",
)  # fmt: skip


def read_rows(path, about):
    """Those of an earlier run on this GPU, with these versions and kernels."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    same = ("kernels", "gpu", "driver", "torch", "cuda", "triton")
    rows = [row for row in rows if all(row[name] == str(about[name]) for name in same)]
    for row in rows:
        for name, value in row.items():
            if name == "norm":
                row[name] = value == "True"
            elif name in Case.__dataclass_fields__:
                row[name] = int(value)
            elif name.endswith(("_ms", "_mb", "of_floor")):
                row[name] = float(value) if value else None
    return rows


def place(row):
    """What a row is the measurement of."""
    return Case(**{name: row[name] for name in Case.__dataclass_fields__}), row["implementation"], row["pass"]


AXES = {"time": "tokens", "dim": "head dimension", "batch": "batch, of 16 heads"}


def draw(rows, path):
    """Time and fraction of the floor against length, dimension and rows, forward + backward."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [r for r in rows if r["pass"] == "forward+backward" and r.get("median_ms") and r["norm"]]
    base = {"time": 4096, "dim": 64, "batch": 16, "chunk": 64}
    styles = dict(zip(RIVALS, ("o-", "s--", "^:", "v-.", "x:"), strict=True))
    colors = {0: "tab:blue", 1: "tab:orange", 4: "tab:green"}
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained", sharex="col")
    for column, (x, label) in enumerate(AXES.items()):
        for (name, style), (expansion, color) in itertools.product(styles.items(), colors.items()):
            wanted = {n: v for n, v in base.items() if n != x} | {"implementation": name, "expansion": expansion}
            line = sorted((r for r in rows if all(r[n] == v for n, v in wanted.items())), key=lambda r: r[x])
            if not line or (expansion and not name.startswith(("triton", "torch"))):
                continue
            what = f"{name}, {'linear' if expansion == 0 else f'MLP x{expansion}'}"
            for row, value in enumerate(("median_ms", "of_floor")):
                points = [r[x] for r in line], [r[value] for r in line]
                axes[row, column].plot(*points, style, color=color, ms=4, label=what)
        ticks = sorted({r[x] for r in rows})
        axes[0, column].set(xscale="log", yscale="log", ylabel="ms, forward + backward")
        axes[1, column].set(xscale="log", xlabel=label, ylabel="fraction of the floor", ylim=(0, None))
        axes[1, column].set_xticks(ticks, [str(t) for t in ticks])
        axes[1, column].minorticks_off()
    handles, names = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the kernels and stop")
    parser.add_argument("--quick", action="store_true", help="three cases")
    parser.add_argument(
        "--only", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME", help=", ".join(RIVALS)
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench_gpu"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "No CUDA device is visible to torch, so there is nothing to time. Run this on a machine with an NVIDIA "
            "GPU; `make test` runs the same kernels in Triton's interpreter.",
            file=sys.stderr,
        )
        return 2
    timed = [] if options.check else cases(options.quick)
    capability = torch.cuda.get_device_capability()
    compile_ahead([*CHECKS, *((case, torch.bfloat16) for case in timed)], 10 * capability[0] + capability[1])
    check_all()
    if options.check:
        return 0
    from pyro_memory.kernels import triton_launch

    triton_launch._tuned.cache_clear()  # tuned on the check's few programs
    rates = ceilings()
    about = machine() | {"matmul_tflops": rates[0] / 1e12, "copy_gb_s": rates[1] / 1e9}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "kernels_gpu.csv"
    rows = read_rows(path, about)
    done = {place(row) for row in rows}
    if rows:
        print(f"{len(rows)} rows of {path} are of this code, GPU and versions, and not measured again", flush=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for case in timed:
            for row in run_case(case, rates, options.only, done):
                rows.append(row)
                writer.writerow(about | row)
                file.flush()
    draw(rows, options.out / "kernels_gpu.png")
    print(f"{options.out}/kernels_gpu.csv, kernels_gpu.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
