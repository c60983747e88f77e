"""What an error says of a value, and the remedy for giving another one."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

REMEDIES = {
    "SlotMemory": "Put items into one: SlotMemory(items), items [slot, *event]",
    "StructuredMemory": "Make one of both stores: StructuredMemory(episodes, concepts)",
    "EpisodicMemory": "Make one: EpisodicMemory.reserve(...)",
    "ConceptMemory": "Make one: ConceptMemory.reserve(concepts, dim)",
    "TemplateMemory": "Make one: TemplateMemory(slots, shape), the same for model and guide",
    "LabelledImages": "Make one of images and their classes: LabelledImages(images, labels, class_names)",
    "Series": "Make one: Series(...), or take one by name with load_series",
    "CharacterText": "Make one: CharacterText(text), or take one by name with load_text",
    "Context": "Make one: Context(code=...), or Context(content=...)",
    "ELBO": "Give an instance, such as Trace_ELBO() or VIMCO(num_particles=5)",
    "Optimizer": "Give a torch optimizer over the parameters, such as torch.optim.Adam(model.parameters())",
    "Generator": "Make one: torch.Generator().manual_seed(0)",
    "Axes": "Take one of matplotlib: figure, ax = plt.subplots()",
}  # fmt: skip


def told(value: Any) -> str:
    """Says what a value is, in a few words."""
    if isinstance(value, (Tensor, np.ndarray)):
        kind = str(value.dtype).removeprefix("torch.")
        place = f" on {value.device}" if isinstance(value, Tensor) and value.device.type != "cpu" else ""
        what = f"{kind} tensor" if isinstance(value, Tensor) else f"numpy array of {kind},"
        return f"{'an' if what[0] == 'i' else 'a'} {what} of shape {list(value.shape)}{place}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, (list, tuple, set, dict)):
        kinds = sorted({type(item).__name__ for item in value})
        return f"a {type(value).__name__} of {len(value)}{' ' + ' and '.join(kinds[:3]) if kinds else ''}"
    if callable(value) and hasattr(value, "__name__") and not isinstance(value, nn.Module):
        return f"the function {value.__name__}"
    return article(type(value).__name__)


def article(name: str) -> str:
    """A name with its article: an Embedding, an LSTMState, a VMA."""
    spelled = name[:2].isupper() and name[0] in "FHLMNRSX"
    return f"{'an' if name[0] in 'AEIOU' or spelled else 'a'} {name}"


def remedy(kind: type, value: Any) -> str:
    """Says what to do where an instance of ``kind`` was wanted, as far as one can know."""
    if isinstance(value, type) and issubclass(value, kind):
        return f". Give an instance, {value.__name__}(...), not the class"
    if kind.__name__.endswith("State"):
        return ". Give the state that the call before returned, or None to start"
    if kind.__name__ == "SlotMemory" and isinstance(value, Tensor) and value.ndim < 2 and not value.is_floating_point():
        return ". If these are labels, leave them out of the batches: TensorDataset(images)"
    known = next((REMEDIES[c.__name__] for c in kind.__mro__ if c.__name__ in REMEDIES), None)
    return f". {known}" if known else ""
