"""Reads a text with a language model that comes with the package: how surprising is each character, and what next?

The model is a Titans: its memory learns from the text while it reads, at test time. Draws the text, each character on a
ground as dark as it was surprising, and writes on from its beginning.

    python examples/surprise.py
    python examples/surprise.py --text FILE --characters 1500
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from pyro_memory import load_pretrained, pretrained, token_surprise
from pyro_memory.data import CharacterText, load_text
from pyro_memory.diagnostics import plot_text

# Shakespeare's sonnet 18, which is not among the plays that the model read, then English of another kind.
TEXT = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date:

The download failed because the server returned an error.
Restart the computer, then install the update again.

ROMEO:
Shall I hear more, or shall I speak at this?
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name, card in pretrained().items() if "vocabulary" in card.facts]
    parser.add_argument("--weights", choices=names, default=names[0] if names else None)
    parser.add_argument("--text", metavar="FILE", type=Path, help="default: some Shakespeare, and something else")
    for name, default, what in (
        ("characters", 800, "to read of it, at most"), ("write", 300, "characters to write on"),
        ("begin", 40, "characters to write on from"), ("seed", 0, "of what is written"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", metavar="N", type=int, default=default, help=f"{what} (default {default})")
    parser.add_argument("--temperature", metavar="X", type=float, default=0.7)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/surprise"))
    return parser.parse_args()


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    model, _ = load_pretrained(args.weights)
    card = pretrained()[args.weights]
    print(card)
    letters = CharacterText(card.facts["vocabulary"])
    text = (load_text(args.text) if args.text else TEXT)[: args.characters]
    if not text.strip():
        raise SystemExit(f"--text must hold characters; {args.text} has none")
    if strange := sorted(set(text) - set(letters.vocabulary)):
        raise SystemExit(
            f"{args.weights} knows none of {''.join(strange)!r}: write the text without; it knows "
            f"{letters.vocabulary!r}"
        )
    tokens = letters.encode(text)[None]
    surprise = token_surprise(model, tokens)
    print(f"\n{surprise}\n")
    lines = [line for line in text.split("\n") if line]
    at, by_line = 0, []
    for line in lines:
        at = text.index(line, at)
        by_line.append(surprise.nats[0, at : at + len(line)].mean().item())
        print(f"{by_line[-1]:6.2f} nats a character  {line}")
    written, _ = model.generate(tokens[:, : args.begin], args.write, temperature=args.temperature, seed=args.seed)
    written = letters.decode(written[0])
    print(f"\nwritten on from {text[: args.begin]!r}:\n{written}")
    fig, ax = plt.subplots(figsize=(11, 0.26 * (len(lines) + 4) + 0.6), layout="constrained")
    ax = plot_text(text, surprise.nats[0], ax, columns=min(72, 1 + max(map(len, lines))))
    ax.set_title(f"How surprising each character is to {args.weights}")
    fig.savefig(args.out / "surprise.png", dpi=120)
    record = {
        "arguments": {"weights": args.weights, "seed": args.seed, "temperature": args.temperature},
        "torch": torch.__version__, "threads": torch.get_num_threads(), "surprise": surprise.to_dict(),
        "lines": [{"line": line, "nats": nats} for line, nats in zip(lines, by_line, strict=True)], "written": written,
    }  # fmt: skip
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    strange, known = max(by_line), min(by_line)
    print(
        f"\nA character of this text costs {surprise.mean:.2f} nats, one of its strangest line {strange:.2f}, of its "
        f"most familiar {known:.2f};\na guess among {len(letters.vocabulary)} characters would cost "
        f"{math.log(len(letters.vocabulary)):.2f}. surprise.png and results.json are in {args.out}"
    )


if __name__ == "__main__":
    main()
