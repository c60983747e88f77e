"""Seconds an image of training, of a likelihood and of a draw, for VMA over each base generative model.

Networks of the sizes of the Omniglot results, printed letters, memories of 8 classes of 4; one thread, processor time,
medians. A likelihood is what the results' tables are made of: a bound by importance samples, K = 1,000 over codes and 8
over noisy paths, or the exact sum over 32 slots. Writes bases.json to --out.

    python benchmarks/bases.py
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from pyro.infer import Trace_ELBO
from records import about
from tqdm import tqdm

from pyro_memory import VIMCO, LeaveOneOutELBO, importance_bound
from pyro_memory.data import FewShotTasks, glyphs
from pyro_memory.guides import (
    AddressedGuide,
    AutoregressiveBaseGuide,
    DiffusionBaseGuide,
    HierarchicalBaseGuide,
    VAEBaseGuide,
)
from pyro_memory.models import Addressed, AutoregressiveBase, DiffusionBase, HierarchicalBase, VAEBase

SHAPE, IMAGES = (1, 28, 28), 64
CONVOLUTIONS = {"shape": SHAPE, "channels": (24, 48, 64)}
LATENTS = {"latent_dims": (32, 24, 16)}
EXACT = {"particles": 1, "exact": ("a",)}
# The base and its guide, the objective that trains its address beside it, and what a likelihood takes.
BASES = {
    "VAE": lambda: (
        VAEBase(latent_dim=64, reads=True, **CONVOLUTIONS), VAEBaseGuide(latent_dim=64, **CONVOLUTIONS),
        VIMCO(4, max_plate_nesting=1), {"particles": 1000, "chunk_size": 125},
    ),
    "several layers": lambda: (
        HierarchicalBase(reads=True, **LATENTS, **CONVOLUTIONS), HierarchicalBaseGuide(**LATENTS, **CONVOLUTIONS),
        VIMCO(4, max_plate_nesting=1), {"particles": 1000, "chunk_size": 125},
    ),
    "diffusion": lambda: (
        DiffusionBase(reads=True, **CONVOLUTIONS), DiffusionBaseGuide(), LeaveOneOutELBO(2, max_plate_nesting=1),
        {"particles": 8},
    ),
    "autoregressive": lambda: (
        AutoregressiveBase(SHAPE, maps=48, reads=True), AutoregressiveBaseGuide(), VIMCO(2, max_plate_nesting=1), EXACT,
    ),
}  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", metavar="N", type=int, default=7, help="of each (default 7)")
    parser.add_argument("--images", metavar="N", type=int, default=8, help="for a likelihood (default 8)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/bases"))
    return parser.parse_args()


def seconds(f, images, repeats):
    """Processor seconds an image: median, and what four fifths lie below."""
    f()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        f()
        times.append((time.process_time() - begun) / images)
    return {"median": statistics.median(times), "high": statistics.quantiles(times, n=5)[-1]}


def measure(name, args):
    torch.manual_seed(0)
    base, base_guide, objective, how = BASES[name]()
    model, guide = Addressed(base), AddressedGuide.convolutional(base=base_guide, **CONVOLUTIONS)
    parameters = [*model.parameters(), *guide.parameters()]
    tasks = FewShotTasks(glyphs("background"), classes=8, shots=4, targets=IMAGES)
    x, memory = tasks[0]

    def trained(objective):
        def step():
            objective.loss_and_grads(model, guide, x, memory)
            for p in parameters:
                p.grad = None

        return seconds(step, IMAGES, args.repeats)

    row = {"base": name, "parameters": sum(p.numel() for p in base.parameters()), "training": trained(objective)}
    guide.address.requires_grad_(False)
    row["training_held"] = trained(Trace_ELBO(max_plate_nesting=1))
    model.eval(), guide.eval()
    few = x[: args.images]
    bound = lambda: importance_bound(model, guide, few, memory, max_plate_nesting=1, **how)  # noqa: E731
    row["likelihood"] = seconds(bound, args.images, max(2, args.repeats // 2)) | {"particles": how["particles"]}
    row["draw"] = seconds(lambda: model.generate(memory, (IMAGES,)), IMAGES, max(2, args.repeats // 2))
    return row


def main():
    args = arguments()
    torch.set_num_threads(1)
    rows = [measure(name, args) for name in tqdm(BASES, desc="bases")]
    print(f"{'base':<16}{'weights':>10}{'training, ms':>14}{'address held':>14}{'likelihood':>12}{'draw':>8}")
    for r in rows:
        times = [1000 * r[key]["median"] for key in ("training", "training_held", "likelihood", "draw")]
        print(
            f"{r['base']:<16}{r['parameters']:>10,}{times[0]:>14.2f}{times[1]:>14.2f}{times[2]:>12.1f}{times[3]:>8.1f}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    record = about() | {"threads": torch.get_num_threads(), "images": IMAGES, "rows": rows}
    (args.out / "bases.json").write_text(json.dumps(record, indent=1))
    print(f"bases.json is in {args.out}")


if __name__ == "__main__":
    main()
