"""From sets of data to episodes, from episodes to concepts, and back.

Where is the thing that ... embeds sets of images and addresses episodes by them (``Recall``), and is taught to
(``Recognition``); turns episodes into concepts with their doubt (``consolidate``, ``exact_posterior``) and concepts
into episodes (``replay``); keeps both stores over a stream of sets (``Lifetime``) or takes new supports in
(``remember``); refuses what is no task (``check_task``)? Imports: ``diagnostics`` for figures, ``addressing``,
``stores``, ``distributions``, ``nets``.
"""

from pyro_memory.recall.consolidation import (
    BREADTH,
    Consolidation,
    consolidate,
    conversion_prior,
    conversion_scores,
    exact_posterior,
    replay,
)
from pyro_memory.recall.lifetime import Lifetime, remember
from pyro_memory.recall.recall import Recall
from pyro_memory.recall.recognition import Recognition
from pyro_memory.recall.task import check_remembered, check_task

__all__ = [
    "BREADTH",
    "Consolidation",
    "Lifetime",
    "Recall",
    "Recognition",
    "check_remembered",
    "check_task",
    "consolidate",
    "conversion_prior",
    "conversion_scores",
    "exact_posterior",
    "remember",
    "replay",
]
