"""How many images a second training takes in, and where the time of a step goes.

Networks, batches and objectives of the sizes of the Omniglot results, on printed letters: the VAE, VMA, and a
structured memory over a VAE. Times steps in single precision and under autocast to bfloat16 in turn, in one run, one
thread, by processor time, and takes the share of convolutions from torch's profiler. Autocast is timed only: sampled
values and log-densities of a pair are then bfloat16 too, of two to three digits, and nobody trained so. Writes
training_speed.json to --out.

    python benchmarks/training_speed.py
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from pyro_memory import (
    VIMCO,
    ConceptMemory,
    EpisodicMemory,
    LeaveOneOutELBO,
    Lifetime,
    Recall,
    StructuredMemory,
)
from pyro_memory.data import FewShotTasks, SetTasks, glyphs
from pyro_memory.guides import VAEBaseGuide, VAEGuide, VMAGuide, VSMGuide
from pyro_memory.models import VAE, VMA, VSM, VAEBase

SHAPE, IMAGES = (1, 28, 28), 64


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", metavar="N", type=int, default=30, help="steps of each kind (default 30)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/training_speed"))
    return parser.parse_args()


def few_shot(model, guide):
    size = {"latent_dim": 64, "channels": (24, 48, 64)}
    pair = model.convolutional(SHAPE, **size), guide.convolutional(SHAPE, **size)
    tasks = FewShotTasks(glyphs("background"), classes=8, shots=4, targets=IMAGES, turned=0.5)
    return *pair, tasks, VIMCO(4, max_plate_nesting=1)


def structured():
    size, data = {"channels": (16, 32, 48), "code_dim": 32}, glyphs("background")
    recall = Recall(SHAPE, channels=(8, 16, 32)).calibrate(data[torch.arange(500)])
    recall.fixed = True
    pair = VSM(VAEBase(SHAPE, **size), recall), VSMGuide(VAEBaseGuide(SHAPE, **size), recall)
    stores = StructuredMemory(ConceptMemory.reserve(64, 16), EpisodicMemory.reserve(24, 10, SHAPE, 16, 64))
    life = Lifetime(SetTasks(data, tasks=IMAGES // 8, queries=8, shots=range(11), turned=0.5), recall, stores)
    return *pair, life, LeaveOneOutELBO(2, max_plate_nesting=2)


CASES = {  # each with whether it runs under bfloat16: recall writes keys into single precision
    "VAE": (lambda: few_shot(VAE, VAEGuide), True),
    "VMA": (lambda: few_shot(VMA, VMAGuide), True),
    "structured memory over a VAE": (structured, False),
}


def measure(name, repeats):
    torch.manual_seed(0)
    make, also_lower = CASES[name]
    model, guide, batches, objective = make()
    parameters = list({id(p): p for p in [*model.parameters(), *guide.parameters()]}.values())
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)
    count = iter(range(10**6))

    def step(lower):
        args = batches[next(count)]
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            objective.loss_and_grads(model, guide, *args)
        optimizer.step()
        optimizer.zero_grad()

    times = {False: [], True: []} if also_lower else {False: []}
    for repeat in tqdm(range(repeats + 3), leave=False, desc=name):
        for lower in times:
            start = time.process_time()
            step(lower)
            if repeat >= 3:
                times[lower].append(1000 * (time.process_time() - start))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(5):
            step(False)
    events = seen.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    convolutions = sum(e.self_cpu_time_total for e in events if "convolution" in e.key)
    ms = statistics.median(times[False])
    low, *_, high = statistics.quantiles(times[False], n=5)
    return {
        "model": name, "images": IMAGES, "ms": ms, "low": low, "high": high, "images_a_second": 1000 * IMAGES / ms,
        "bfloat16_ms": statistics.median(times[True]) if also_lower else None, "convolutions": convolutions / total,
    }  # fmt: skip


def main():
    args = arguments()
    torch.set_num_threads(1)
    rows = [measure(name, args.repeats) for name in CASES]
    print(f"{'model':<30}{'ms a step':>10}{'20% to 80%':>18}{'images/s':>10}{'bfloat16, ms':>14}{'convolutions':>14}")
    for r in rows:
        lower = f"{r['bfloat16_ms']:.1f}" if r["bfloat16_ms"] else "-"
        spread = f"{r['low']:.1f} to {r['high']:.1f}"
        numbers = f"{r['ms']:>10.1f}{spread:>18}{r['images_a_second']:>10.0f}{lower:>14}{r['convolutions']:>14.0%}"
        print(f"{r['model']:<30}{numbers}")
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    (args.out / "training_speed.json").write_text(json.dumps(record, indent=1))
    print(f"training_speed.json is in {args.out}")


if __name__ == "__main__":
    main()
