"""A table of deliberate mistakes: each row makes one, and must be told by a text of this package, not of another."""

import re
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOMES = tuple(str(ROOT / home) for home in ("pyro_memory", "models", "guides", "kernels"))


class Mistakes(dict):
    """Rows by name: what makes the mistake, what its text must hold, the kinds of error."""

    def __init__(self):
        super().__init__()
        self.outcomes = {}

    def told(self, text, kinds=(TypeError, ValueError)):
        """Takes a function for a row. ``text`` is a regular expression: the argument in backticks, and the remedy."""

        def add(make):
            self[make.__name__.replace("_", " ")] = make, text, kinds
            return make

        return add

    def check(self, name):
        """Makes a mistake once: an error of the right kind, that this package raised, with the text."""
        make, text, kinds = self[name]
        self.outcomes[name] = False
        error = made = None
        try:
            made = make()
        except Exception as caught:  # of any kind: it is what is looked at
            error = caught
        assert error is not None, f"nothing was said, it gave {type(made).__name__}"
        last = traceback.extract_tb(error.__traceback__)[-1]
        assert isinstance(error, kinds), repr(error)
        assert last.filename.startswith(HOMES), f"another package says it: {error!r}"
        assert last.line.startswith("raise"), f"nobody says it: {error!r}"
        assert re.search(text, str(error), re.DOTALL), f"the text does not hold {text!r}: {error!r}"
        self.outcomes[name] = True

    def summary(self):
        """How many of those made are told, and which are not."""
        missing = [name for name, told in self.outcomes.items() if not told]
        lines = [f"{len(self.outcomes) - len(missing)} of {len(self.outcomes)} mistakes are told by this package"]
        return "\n".join([*lines, *(f"  not told: {name}" for name in missing)])
