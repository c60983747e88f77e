"""Reads a text with a language model that comes with the package: how surprising is each character, and what next?

The model is a Titans: its memory learns from the text while it reads, at test time. Draws the text, each character on a
ground as dark as it was surprising, and writes on from its beginning.

    python examples/surprise.py
    python examples/surprise.py --text FILE
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt

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
    parser.add_argument("--characters", metavar="N", type=int, default=800, help="to read, at most (default 800)")
    parser.add_argument("--write", metavar="N", type=int, default=300, help="characters to write on (default 300)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of what is written")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/surprise"), help="of the figure")
    return parser.parse_args()


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    model, _ = load_pretrained(args.weights)
    card = pretrained()[args.weights]
    letters = CharacterText(card.facts["vocabulary"])
    text = (load_text(args.text) if args.text else TEXT)[: args.characters]
    if not text.strip() or set(text) - set(letters.vocabulary):
        raise SystemExit(f"--text must hold characters, and of these only: {letters.vocabulary!r}")
    tokens = letters.encode(text)[None]
    surprise = token_surprise(model, tokens)
    print(f"{card}\n\n{surprise}\n")
    lines, at = {}, 0
    for line in text.splitlines():
        if line:
            lines[line] = surprise.nats[0, at : at + len(line)].mean().item()
            print(f"{lines[line]:6.2f} nats a character  {line}")
        at += len(line) + 1
    written, _ = model.generate(tokens[:, :40], args.write, temperature=0.7, seed=args.seed)
    written = letters.decode(written[0])
    print(f"\nwritten on from {text[:40]!r}:\n{written}")
    fig, ax = plt.subplots(figsize=(11, 0.26 * (len(lines) + 4) + 0.6), layout="constrained")
    ax = plot_text(text, surprise.nats[0], ax, columns=min(72, 1 + max(map(len, lines))))
    ax.set_title(f"How surprising each character is to {args.weights}")
    fig.savefig(args.out / "surprise.png", dpi=120)
    record = {"weights": args.weights, "surprise": surprise.to_dict(), "lines": lines, "written": written}
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    each = surprise.nats[0, 1:]
    print(
        f"\nA character of this text costs {each.mean():.2f} ({each.std() / math.sqrt(len(each)):.2f}) nats, from "
        f"{min(lines.values()):.2f} in the most familiar line to {max(lines.values()):.2f} in the strangest;\na guess "
        f"among {len(letters.vocabulary)} characters would cost {math.log(len(letters.vocabulary)):.2f}. The figure is "
        f"{args.out / 'surprise.png'}"
    )


if __name__ == "__main__":
    main()
