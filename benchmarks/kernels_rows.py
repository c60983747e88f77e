"""What is timed on a GPU: our kernels by call and each by itself, others beside them, and every configuration.

Jobs are named calls that give rows: ``case``, ``what`` is measured, ``predicted``, ``measured``, ``note``. Tensors are
drawn on the GPU, once a case. Predicted times come from a scoreboard simulation of the machine code, for an H100 at 1.7
GHz, where there is one (docs/kernels.md).
"""

import gc
from functools import partial
from unittest.mock import patch

import kernels_cases
import torch
from kernels_cases import configured, first_that_fits, inputs, leaves, plan_of, run
from kernels_cost import Case, floor_ms
from kernels_forms import estimated_ms

# Ours: in every configuration; in the first that fits, since compiling takes minutes each; and a token at a time.
BASE = tuple(Case(64, e, 64, 4096, batch, 16) for e in (0, 1, 4) for batch in (1, 4, 16, 64))
OTHERS = (
    *(Case(64, e, 16, 4096, batch, 16) for e in (0, 1, 4) for batch in (1, 16)),
    *(Case(128, e, 64, 4096, batch, 16) for e in (0, 4) for batch in (1, 16)),
    *(Case(64, e, 64, 4096, 16, 16, dtype="float32") for e in (0, 1)),
)
DECODED = tuple(Case(64, e, 64, 1, batch, 16) for e in (0, 4) for batch in (1, 16))
SWEPT = tuple(Case(64, e, 64, 1024, 1, rows) for e in (0, 1, 4) for rows in (16, 132, 264, 1024))
RIVALLED = (*(Case(64, e, 64, 4096, batch, 16) for e in (0, 4) for batch in (1, 16)), Case(64, 1, 64, 4096, 16, 16))
BOTH_FORMS = tuple(Case(64, e, 64, 4096, 1, rows) for e in (0, 1, 4) for rows in (16, 64, 132, 256, 512))
PLAIN = tuple(Case(dim, 0, 64, 4096, batch, 16, norm=False) for dim in (64, 128) for batch in (1, 16))


def time_ms(call):
    """Median, and the 20 and 80 percentiles; the L2 cache is flushed before each run."""
    import triton

    return triton.testing.do_bench(call, warmup=25, rep=100, quantiles=(0.5, 0.2, 0.8))


def _ms(what, call, predicted=None):
    median, low, high = time_ms(call)
    return {"what": what, "predicted": predicted, "measured": median, "low": low, "high": high, "unit": "ms"}


def passes(case, backend="triton"):
    """Forward without gradients, and forward with backward in everything; of the same tensors."""
    arguments = inputs(case)
    wanted = leaves(arguments)

    def forward():
        with torch.no_grad():
            return run(case, arguments, backend)

    def both():
        y = run(case, arguments, backend)[0]
        torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

    return {"forward": forward} | ({"forward+backward": both} if case.time > 1 else {})


def timed(case, rates, calls, name=""):
    """A row a pass; the floor at these rates of operations and bytes goes to the note."""
    guessed = {kind: None if name else estimated_ms(case, "backward" in kind) for kind in calls}
    for kind, call in calls.items():
        call()
        torch.cuda.reset_peak_memory_stats()
        call()
        peak = torch.cuda.max_memory_allocated() / 2**20
        row = _ms(f"{name} {kind}".strip(), call, guessed[kind])
        row["note"] = f"peak {peak:.0f} MB"
        if case.time > 1:
            floor = floor_ms(case, kind, *rates)
            row["note"] += f", {floor / row['measured']:.0%} of the floor {floor:.3f}"
        yield row


def kernel_times(call, repeats=10):
    """ms a call that each kernel takes on the device, by its name."""
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    return {e.key: e.self_device_time_total / 1e3 / repeats for e in record.key_averages() if e.self_device_time_total}


def by_kernel(case):
    """A row for each of our kernels, and one for all that torch runs beside them."""
    ours = ("linear_", "deep_", "gates_")
    for kind, call in passes(case).items():
        found = kernel_times(call)
        own = {name: ms for name, ms in found.items() if name.startswith(ours)}
        for name, ms in own.items():
            yield {"what": f"{kind}: {name}", "measured": ms, "unit": "ms"}
        yield {"what": f"{kind}: torch's kernels", "measured": sum(found.values()) - sum(own.values()), "unit": "ms"}


def by_form(case):
    """Forward in either form, whatever the plan has for as many rows; the faster is named in the second's note."""
    from pyro_memory.kernels.memory import plan

    found = {}
    for form, most in (("fused", 0), ("split", 10**6)):
        with patch.object(plan, "SPLIT", dict.fromkeys(plan.SPLIT, most)):
            row = _ms(f"forward, {form}", passes(case)["forward"], estimated_ms(case, False, form))
        found[form] = row["measured"]
        faster = min(found, key=found.get)
        yield row | ({"note": f"{faster} is the faster, the plan has {plan_of(case).form}"} if len(found) == 2 else {})


def swept(case):
    """Each kernel's time in each of its configurations, the best first."""
    found, both = {}, passes(case)["forward+backward"]
    for which in range(4):
        chosen = {}

        def choose(kernel, configurations, which=which, chosen=chosen):
            name = kernel.fn.__name__
            if which >= len(configurations):
                return configurations[:1]
            chosen[name] = configurations[which]
            return configurations[which : which + 1]

        with configured(choose):
            try:
                times = kernel_times(both, repeats=3)
            except RuntimeError as error:  # one does not fit
                if "does not fit" not in str(error):
                    raise
                continue
        for name, configuration in chosen.items():
            found.setdefault(name, []).append((times.get(name, float("nan")), configuration))
    for name, measured in found.items():
        (best, which), *others = sorted(measured)
        words = [f"{c} {ms / best:.2f}" for ms, c in others]
        yield {"what": f"{name} tile, warps, stages {which}", "measured": best, "unit": "ms", "note": "; ".join(words)}


# --- others


def gated_delta_rule(case):
    """flash-linear-attention's, the nearest relative of the linear memory: no momentum, no LN."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    tokens, lr, decay, _ = _by_time(case)
    arguments = tokens | {"g": torch.log1p(-decay), "beta": 2 * lr.bfloat16()}
    return _calls(lambda **arguments: chunk_gated_delta_rule(**arguments)[0], arguments)


def momentum_delta_rule(case):
    """flash-linear-attention's, with momentum: plain PyTorch in 0.6.0, kernels in its pull request 1256."""
    from fla.ops.momentum_delta_rule import chunk_momentum_delta_rule

    tokens, lr, decay, momentum = _by_time(case)
    arguments = tokens | {"log_alpha": torch.log1p(-decay), "log_mu": momentum.log().clamp_min(-2)}  # as its layer
    arguments |= {"beta": torch.ones_like(lr), "eta": 2 * lr}
    step = partial(chunk_momentum_delta_rule, use_qk_l2norm_in_kernel=False)  # keys have length 1
    return _calls(lambda **arguments: step(**arguments)[0], arguments)


def _by_time(case):
    """Tokens and gates with time before heads, as flash-linear-attention takes them."""
    a = {n: t[0] if isinstance(t, tuple) else t for n, t in inputs(case).items()}
    q, k, v, *gates = (a[n].detach().transpose(1, 2).contiguous() for n in ("q", "k", "v", "lr", "decay", "momentum"))
    return {"q": q, "k": k, "v": v}, *gates


def titans_pytorch(case):
    """With its projections, which ours has outside."""
    from titans_pytorch import NeuralMemory

    width = case.dim * case.heads
    memory = NeuralMemory(dim=width, dim_head=case.dim, heads=case.heads, chunk_size=case.chunk).cuda()
    return _calls(lambda x: memory(x)[0], {"x": torch.randn(case.batch, case.time, width, device="cuda")})


def _calls(step, arguments):
    for t in arguments.values():
        t.requires_grad_()

    def forward():
        with torch.no_grad():
            return step(**arguments)

    def both():
        y = step(**arguments)
        torch.autograd.grad(y, list(arguments.values()), torch.ones_like(y), allow_unused=True)

    return {"forward": forward, "forward+backward": both}


RIVALS = {
    "torch, eager": partial(passes, backend="torch"),
    "titans-pytorch": titans_pytorch,
}
PEERS = {  # of the linear memory without LN, with which they share their rule (docs/kernels.md)
    "ours": passes,
    "torch, eager": partial(passes, backend="torch"),
    "fla gated delta rule": gated_delta_rule,
    "fla momentum delta rule": momentum_delta_rule,
}


def rivals(case, rates):
    for name, make in (RIVALS if case.norm else PEERS).items():
        try:
            yield from timed(case, rates, make(case), name)
        except ImportError as error:
            yield {"what": name, "note": f"not here: {error.name}"}
        except Exception as error:  # another package's failure is a row
            yield {"what": name, "note": f"{type(error).__name__}: {error}".split("\n")[0][:120]}


# --- the address, the scan

READS = ((1, 64, 0), (64, 64, 0), (16, 64, 8), (64, 16, 0))  # batch, width of keys and values, samples
SLOTS = 2**20
READ_GB_S = {(1, 64, 0): 2400, (64, 64, 0): 1600, (16, 64, 8): 2000, (64, 16, 0): 1000}


def reading(batch, dim, samples, slots=SLOTS, device=None):
    """Reads of a memory, forward and with backward, and the bytes of its keys and values."""
    from pyro_memory.kernels import fused_address

    device = device or kernels_cases.DEVICE
    generator = torch.Generator(device).manual_seed(0)
    shapes = (batch, dim), (slots, dim), (slots, dim)
    query, key, value = (torch.randn(s, generator=generator, device=device).requires_grad_() for s in shapes)
    query.data /= dim**0.5

    def forward():
        with torch.no_grad():
            return fused_address(query, key, value=value, samples=samples, backend="triton")

    def both():
        out = fused_address(query, key, value=value, samples=samples, backend="triton")
        torch.autograd.grad(out.kl.sum() + out.read.sum(), (query, key, value))

    return forward, both, key.nbytes + value.nbytes


def read(*size):
    forward, both, passed = reading(*size)
    rates = sorted(passed / ms / 1e6 for ms in time_ms(forward))
    row = {"what": "forward", "predicted": READ_GB_S[size], "measured": rates[1], "unit": "GB/s"}
    yield row | {"low": rates[0], "high": rates[2]}
    yield _ms("forward+backward", both)


SCANNED = ((64, 4096, 64), (1024, 4096, 64))  # rows, tokens, width
SCAN_MS = {(64, 4096, 64): 0.17}


def scanning(rows, time, dim, device=None):
    from pyro_memory.kernels import decay_scan

    device = device or kernels_cases.DEVICE
    generator = torch.Generator(device).manual_seed(0)
    x, a = (torch.rand(rows, time, dim, generator=generator, device=device).requires_grad_() for _ in range(2))

    def forward():
        with torch.no_grad():
            return decay_scan(x, a, backend="triton")

    def both():
        h = decay_scan(x, a, backend="triton")
        torch.autograd.grad(h, (x, a), torch.ones_like(h))

    return forward, both


def scan(*size):
    forward, both = scanning(*size)
    yield _ms("forward", forward, SCAN_MS.get(size))
    yield _ms("forward+backward", both)


def ahead():
    """Calls that compile what reads and scans launch, on a CPU; lengths and slots are not compiled for."""
    return [
        *(partial(_both, reading, *size, 4096, "cpu") for size in READS),
        partial(_both, scanning, 1, 64, 64, "cpu"),
    ]


def _both(make, *size):
    forward, both, *_ = make(*size)
    forward()
    both()


# --- the jobs of each part


def ours(rates):
    def untuned(case):
        with first_that_fits():
            for row in timed(case, rates, passes(case)):
                yield row | {"note": f"not tuned, {row['note']}"}

    for case in (*BASE, *DECODED):
        yield str(case), lambda case=case: timed(case, rates, passes(case))
    for case in OTHERS:
        yield str(case), partial(untuned, case)


def kernels():
    for case in (*(c for c in BASE if c.rows in (16, 256)), *DECODED[:1], *DECODED[2:3]):
        yield str(case), lambda case=case: by_kernel(case)


def forms():
    for case in BOTH_FORMS:
        yield str(case), lambda case=case: by_form(case)


def sweep():
    for case in SWEPT:
        yield str(case), lambda case=case: swept(case)


def others(rates):
    for case in (*PLAIN, *RIVALLED):
        yield str(case), lambda case=case: rivals(case, rates)


def reads():
    for batch, dim, samples in READS:
        name = f"read, {SLOTS >> 20}M slots d{dim} batch {batch}" + (f" samples {samples}" if samples else "")
        yield name, partial(read, batch, dim, samples)
    for rows, time, dim in SCANNED:
        yield f"scan, d{dim} T{time} rows {rows}", partial(scan, rows, time, dim)


def free():
    """Between jobs: their tensors are large."""
    gc.collect()
    torch.cuda.synchronize()  # raises where a job has lost the device
    torch.cuda.empty_cache()
