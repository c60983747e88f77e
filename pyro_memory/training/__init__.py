"""The training loop and what surrounds it.

Where is the thing that ... trains a pair (``fit``); is the batch of a step (``batches``); takes a step and refuses
what would not train (``loop``, ``reach``); takes them all (``run``); makes the optimizer (``optimizers``); counts data
(``counting``); writes and reads a run (``save_checkpoint``, ``load_checkpoint``, ``load_weights``), whole to the byte
(``seal``), with how its pair was built (``built``); writes a pair alone (``save``) and builds it again (``rebuild``);
keeps what it did (``FitResult``, ``log``, ``kept``); lets several processes train one model (``Ranks``); changes the
learning rate (``warm_cosine``); lets a step end before a signal counts (``signals``)? Imports: ``building``,
``data``, ``diagnostics``, ``inference``, ``nets`` (for modes), ``stores`` (for files).
"""

from pyro_memory.training.checkpoints import (
    load_checkpoint,
    load_weights,
    random_state,
    read_header,
    restore_random_state,
    save_checkpoint,
)
from pyro_memory.training.fitting import fit
from pyro_memory.training.pairs import rebuild, save
from pyro_memory.training.ranks import Ranks
from pyro_memory.training.result import FitResult
from pyro_memory.training.schedules import warm_cosine

__all__ = [
    "FitResult",
    "Ranks",
    "fit",
    "load_checkpoint",
    "load_weights",
    "random_state",
    "read_header",
    "rebuild",
    "restore_random_state",
    "save",
    "save_checkpoint",
    "warm_cosine",
]
