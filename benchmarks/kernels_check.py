"""Checks the neural memory's kernels where they are to be timed: values, states and gradients.

The truth is the chunk form in float64, on the same device, from the same rounded tokens. An error is the norm of a
difference over the norm of the truth, and has a bar for each precision. Every configuration of the base cases must
agree with the first, every case must give the same bits again, and ten small cases what Triton's interpreter gave,
where operands of products are rounded as on a GPU.

    python benchmarks/kernels_check.py            all of it, on a GPU
    python benchmarks/kernels_check.py --save     what the interpreter gives, to interpreted.npz; needs no GPU
"""

import argparse
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import kernels_cases
import numpy as np
import torch
from kernels_cases import configured, first_that_fits, inputs, like, run, why_not, with_gradients
from kernels_cost import Case

from pyro_memory.kernels.memory import plan

# Of values and states, and of gradients. "tf32": float32 tokens where torch is allowed one product in tf32.
BARS = {
    "bfloat16": (8e-3, 2e-2), "float16": (2e-3, 5e-3), "float32": (1e-5, 1e-4), "tf32": (1e-2, 1e-2),
    "float64": (1e-11, 1e-10),
}  # fmt: skip
FROM_INTERPRETER = 2e-3  # of a norm: operands of products are the same, sums are in another order
INTERPRETED = Path(__file__).parent / "interpreted.npz"


@dataclass(frozen=True)
class Check:
    """A call: a case, and what a caller may add to it."""

    case: Case
    lengths: tuple[int, ...] | None = None
    every: int | None = None  # of checkpoint_chunks
    tf32: bool = False
    fused: bool = False  # the form of many rows, with as few as there are

    @property
    def options(self):
        return {} if self.every is None else {"checkpoint_chunks": self.every}

    def __str__(self):
        more = [
            "" if self.lengths is None else "lengths",
            f"kept each {self.every}" if self.every else "",
            "tf32" * self.tf32,
            "fused" * self.fused,
        ]
        return " ".join([str(self.case), *filter(None, more)])


def _base(dim, expansion, chunk, dtype="bfloat16", time=None, **more):
    """Many short chunks of two layers with LN amplify: over 256 tokens of them any rounding grows a thousandfold."""
    time = time or (256 if chunk > 32 or not expansion else 2 * chunk + 7)
    return Case(dim, expansion, chunk, time, 2, 4, dtype=dtype, **more)


CHECKS = (
    *(Check(_base(64, e, c)) for c in (64, 16) for e in (0, 1, 4)),
    Check(_base(64, 2, 64)),
    Check(_base(128, 0, 64)),
    Check(_base(128, 4, 64)),
    Check(_base(32, 4, 32)),
    Check(_base(16, 4, 16)),
    *(Check(_base(64, e, c), fused=True) for c in (64, 16) for e in (0, 1, 4)),
    Check(_base(128, 4, 64), fused=True),
    *(Check(_base(64, e, 64), fused=True, lengths=(201, 0)) for e in (0, 4)),
    Check(_base(48, 1, 32)),  # 48 hidden units: no multiple of a tile
    *(Check(_base(64, e, 64, norm=False)) for e in (0, 1, 4)),
    Check(_base(64, 4, 64, activation="silu")),
    *(Check(_base(64, e, 48, time=250)) for e in (0, 4)),  # no power of two, and a short last chunk
    *(Check(_base(64, e, 64), lengths=(201, 0)) for e in (0, 4)),
    *(Check(_base(64, e, 32, time=103), every=2) for e in (0, 1, 4)),
    *(Check(_base(64, e, 64, time=1)) for e in (0, 1, 4)),
    *(Check(_base(64, e, 64, "float32")) for e in (0, 1)),
    *(Check(_base(64, e, 16, "float32")) for e in (0, 4)),
    Check(_base(128, 0, 32, "float32")),
    Check(_base(64, 2, 32, "float32", norm=False)),
    *(Check(_base(64, e, 32, "float32"), tf32=True) for e in (0, 4)),
    *(Check(_base(64, e, c, "float16")) for e, c in ((0, 64), (1, 32), (4, 32), (4, 16))),
    *(Check(_base(32, e, 32, "float64")) for e in (0, 1)),
)  # fmt: skip
# Whose other configurations are compared with the first.
CONFIGURED = tuple(Check(_base(64, e, 64), fused=fused) for e in (0, 1, 4) for fused in (False, True))


def small(check):
    """What Triton's interpreter does of it in seconds: half the width, and chunks enough to hand a state on."""
    case = check.case
    time = min(case.time, (2 if check.every else 1) * case.chunk + 7)
    lengths = None if check.lengths is None else (time - 5, 0)
    size = {"dim": max(16, case.dim // 2), "time": time, "batch": 2 if lengths else 1, "heads": 1}
    return replace(check, case=replace(case, **size), lengths=lengths)


def errors(check, device):
    """The largest error of values and states, and of gradients, each over its bar; without gradients values again."""
    case, arguments, options = prepared(check, device)
    with allowing(check):
        if check.fused:  # the way back is that of the split form
            values, gradients = run(case, arguments, "triton", **check.options, **options), []
        else:
            values, gradients = with_gradients(case, arguments, "triton", **check.options, **options)
        with torch.no_grad():  # no state is kept then: another compilation
            alone = run(case, arguments, "triton", **options)
    double = like(arguments, torch.Tensor.double)
    truth = with_gradients(case, double, "torch", **options)
    values = [t.detach() for t in values]
    bar, bar_of_gradients = BARS["tf32" if check.tf32 else case.dtype]
    return max(worst(values, truth[0]), worst(alone, truth[0])) / bar, worst(gradients, truth[1]) / bar_of_gradients


def prepared(check, device):
    arguments = inputs(check.case, device)
    reason = why_not(check.case, arguments)
    if reason is not None:
        raise ValueError(reason)
    lengths = None if check.lengths is None else torch.tensor(check.lengths, device=device)
    return check.case, arguments, {"lengths": lengths}


@contextmanager
def allowing(check):
    """Within it float32 tokens may be multiplied in tf32, and few rows fused, where the check has it so."""
    before, matmul = torch.backends.cuda.matmul.allow_tf32, torch.backends.cuda.matmul
    matmul.allow_tf32 = check.tf32
    try:
        with patch.object(plan, "SPLIT", dict.fromkeys(plan.SPLIT, 0) if check.fused else plan.SPLIT):
            yield
    finally:
        matmul.allow_tf32 = before


def worst(actual, truth):
    """The largest |difference| / |truth| of pairs of tensors; infinite where one is not finite."""
    if not actual:
        return 0.0
    found = torch.stack(
        [(a.double() - t.double()).norm() / t.double().norm() for a, t in zip(actual, truth, strict=True)]
    )
    return float("inf") if found.isnan().any() else found.max().item()


def repeats(check, device, times=3):
    """Whether it gives the same bits again."""
    case, arguments, options = prepared(check, device)
    with allowing(check):
        first, *others = (
            flat(with_gradients(case, arguments, "triton", **check.options, **options)) for _ in range(times)
        )
    return all(same_bits(a, b) for other in others for a, b in zip(first, other, strict=True))


def flat(groups):
    return [t for group in groups for t in group]


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def other_configurations(check, device):
    """The largest error over its bar of each other configuration against the first; None for one that does not fit."""
    case, arguments, _ = prepared(check, device)

    def with_configuration(which):
        with configured(lambda kernel, found: (found[which % len(found)],)), allowing(check):
            if check.fused:  # the way back is that of the split form
                return [t.detach() for t in run(case, arguments, "triton")], []
            return with_gradients(case, arguments, "triton")

    bars = BARS[case.dtype]
    first, found = with_configuration(0), []
    for which in range(1, 4):
        try:
            pairs = zip(with_configuration(which), first, bars, strict=True)
            found.append(max(worst(a, b) / bar for a, b, bar in pairs))
        except RuntimeError as error:
            if "does not fit" not in str(error):
                raise
            found.append(None)
    return found


def read_error(device, slots=4096):
    """Of a fused read and its gradients, against float64."""
    from pyro_memory.kernels import fused_address

    generator = torch.Generator(device).manual_seed(0)
    shapes = (16, 1), (slots, 8), (slots, 8)  # scores of a deviation of one
    tensors = [torch.randn(n, 64, generator=generator, device=device) / scale for n, scale in shapes]

    def read(tensors, backend):
        query, key, value = (t.clone().requires_grad_() for t in tensors)
        out = fused_address(query, key, value=value, backend=backend)
        gradients = torch.autograd.grad(out.kl.sum() + out.read.square().sum(), (query, key, value))
        return [out.logsumexp, out.kl, out.read, *gradients]

    return worst(read(tensors, "triton"), read([t.double() for t in tensors], "torch"))


def scan_error(device, time=4096):
    from pyro_memory.kernels import decay_scan

    generator = torch.Generator(device).manual_seed(0)
    tensors = [torch.rand(2, time, 64, generator=generator, device=device) for _ in range(2)]

    def scan(tensors, backend):
        x, a = (t.clone().requires_grad_() for t in tensors)
        h = decay_scan(x, a, backend=backend)
        return [h, *torch.autograd.grad(h.square().sum(), (x, a))]

    return worst(scan(tensors, "triton"), scan([t.double() for t in tensors], "torch"))


# --- what the interpreter gave

SMALL = tuple(
    Case(dim, expansion, chunk, 24, 1, 1, norm=norm, activation=activation)
    for dim, expansion, chunk, norm, activation in (
        (16, 0, 16, True, "gelu"), (16, 0, 16, False, "gelu"), (32, 0, 32, True, "gelu"), (16, 1, 16, True, "gelu"),
        (16, 4, 16, True, "gelu"), (32, 4, 16, True, "gelu"), (32, 4, 32, False, "gelu"), (32, 1, 32, True, "silu"),
        (16, 2, 8, True, "silu"), (20, 3, 5, True, "gelu"),
    )
)  # fmt: skip


def interpreted(device):
    """Each small case with how far the kernels are from what the interpreter gave, of the same tensors."""
    kept = np.load(INTERPRETED)
    for i, case in enumerate(SMALL):
        drawn = iter([torch.from_numpy(kept[name]) for name in kept.files if name.startswith(f"{i} in ")])
        arguments = like(inputs(case, "cpu"), lambda t, drawn=drawn: next(drawn).to(device, t.dtype))
        truth = [torch.from_numpy(kept[name]).to(device) for name in kept.files if name.startswith(f"{i} out ")]
        yield case, worst(flat(with_gradients(case, arguments, "triton")), truth)


def save():
    kept = {}
    for i, case in enumerate(SMALL):
        arguments = inputs(case, "cpu")
        tensors = [t for a in arguments.values() for t in (a if isinstance(a, tuple) else (a,))]
        kept |= {f"{i} in {j}": t.detach().float().numpy() for j, t in enumerate(tensors)}
        outputs = flat(with_gradients(case, arguments, "triton"))
        kept |= {f"{i} out {j}": t.float().numpy() for j, t in enumerate(outputs)}
    np.savez_compressed(INTERPRETED, **kept)
    print(f"{INTERPRETED}: {INTERPRETED.stat().st_size // 1024} KB")


def jobs(device=None):
    """Each check by its name: a call that gives rows, named as failed where ``measured`` is above 1."""

    device = device or kernels_cases.DEVICE

    def row(what, measured, **others):
        return {"what": what if measured <= 1 else f"failed: {what}", "measured": measured} | others

    def held(check):
        with first_that_fits():
            yield row("error over its bar", max(errors(check, device)))
            if not repeats(check, device):
                yield {"what": "failed: other bits when repeated"}

    def configurations(check):
        fits = [error for error in other_configurations(check, device) if error is not None]
        yield row("other configurations, over the bar", max(fits))

    def small_cases():
        with first_that_fits():
            for case, error in interpreted(device):
                yield row("from the interpreter's, over the bar", error / FROM_INTERPRETER, case=str(case))

    def others():
        yield row("read, error over 1e-4", read_error(device) / 1e-4)
        yield row("scan, error over 1e-5", scan_error(device) / 1e-5)

    yield from ((str(check), partial(held, check)) for check in CHECKS)
    yield "read and scan", others
    yield "small cases", small_cases
    yield from ((str(check), partial(configurations, check)) for check in CONFIGURED)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="keep what the interpreter gives of the small cases")
    if parser.parse_args().save:
        os.environ["TRITON_INTERPRET"] = "1"
        from interpreter import round_to_nearest

        round_to_nearest()
        save()
    elif not torch.cuda.is_available():
        sys.exit("No CUDA device is visible to torch; `make test` runs these checks in Triton's interpreter, in small")
    else:
        failed = 0
        for name, job in jobs():
            for row in job():
                failed += row["what"].startswith("failed")
                print(f"{row.get('case', name):60} {row['what']:44} {row.get('measured', '')}", flush=True)
        sys.exit(f"{failed} checks failed" if failed else 0)
