"""Are the alphabets that Omniglot sets aside for evaluation harder than those to train on?

Trains a VAE on printed letters, which has then seen neither, and measures drawings of both parts with it and with the
shipped VAE, which was trained on one. What the first finds harder is the alphabets' own; learned by heart is at most
what the second finds harder beyond that. Writes alphabets.json to --out.

    python benchmarks/alphabets.py --data-dir FOLDER
"""

import argparse
import json
from pathlib import Path

import torch

from pyro_memory import VIMCO, BoundEstimate, fit, importance_bound, load_pretrained, warm_cosine
from pyro_memory.data import FewShotTasks, glyphs, load_images
from pyro_memory.guides import VAEGuide
from pyro_memory.models import VAE

SIZE = {"shape": (1, 28, 28), "latent_dim": 32, "channels": (16, 32, 48)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", help="folder with Omniglot's zips (default: fetched)")
    parser.add_argument("--steps", metavar="N", type=int, default=2000, help="of 32 printed letters (default 2000)")
    parser.add_argument("--evaluate", metavar="N", type=int, default=1500, help="drawings of each part (default 1500)")
    parser.add_argument("--particles", metavar="N", type=int, default=50, help="K of the bounds (default 50)")
    parser.add_argument("--seed", metavar="N", type=int, default=0)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/alphabets"))
    return parser.parse_args()


def of_printed_letters(args):
    torch.manual_seed(args.seed)
    model, guide = VAE.convolutional(**SIZE), VAEGuide.convolutional(**SIZE)
    letters = FewShotTasks(glyphs("background"), classes=8, shots=1, targets=32, seed=args.seed, turned=0.5, varied=0.5)
    print(f"training a VAE on printed letters: {args.steps} steps", flush=True)
    fit(
        model, guide, letters, VIMCO(4, max_plate_nesting=1), steps=args.steps, learning_rate=2e-3,
        schedule=warm_cosine(args.steps), clip_norm=5000.0, information_every=None, seed=args.seed,
    )  # fmt: skip
    return model.eval(), guide.eval()


def bound(pair, x, args):
    torch.manual_seed(args.seed)
    parts = [importance_bound(*pair, part, particles=args.particles, max_plate_nesting=1) for part in x.split(100)]
    return BoundEstimate.cat(parts)


def main():
    args = arguments()
    pairs = {"VAE of printed letters": of_printed_letters(args), "vae-omniglot28": load_pretrained("vae-omniglot28")}
    rows = {name: {} for name in pairs}
    for split in ("background", "evaluation"):
        data = load_images("omniglot", split, args.data_dir)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed))
        for name, pair in pairs.items():
            rows[name][split] = bound(pair, data[order[: args.evaluate]], args).to_dict()
            print(f"{name:<24}{split:<12}{rows[name][split]['mean']:9.2f} ({rows[name][split]['se']:.2f})", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"torch": torch.__version__, "steps": args.steps, "seed": args.seed, "rows": rows}
    (args.out / "alphabets.json").write_text(json.dumps(record, indent=1))
    print(f"alphabets.json is in {args.out}")


if __name__ == "__main__":
    main()
