"""From sets of data to episodes, from episodes to concepts, and back.

Where is the thing that ... embeds sets of images and addresses episodes by them (``Recall``), and is taught to
(``Recognition``); turns episodes into concepts with their doubt (``consolidate``, ``exact_posterior``), several
together (``assign``), and says why (``Decision``); makes one concept of two and two of one (``reorganise``); learns
what concepts are like (``fit_concept_prior``); turns them into episodes (``replay``); keeps both stores over a stream
of sets (``Lifetime``), takes new supports in (``remember``) and says where one is (``remembered_at``); refuses what is
no task (``check_task``)? Imports: ``diagnostics`` for figures, ``addressing``, ``stores``, ``distributions``, ``nets``.
"""

from pyro_memory.recall.assigning import assign
from pyro_memory.recall.consolidation import consolidate
from pyro_memory.recall.conversion import BREADTH, conversion_prior, conversion_scores, exact_posterior
from pyro_memory.recall.decisions import Consolidation, Decision
from pyro_memory.recall.lifetime import Lifetime, remember
from pyro_memory.recall.merging import Reorganisation, merge, merge_evidence, reorganise, split, split_evidence
from pyro_memory.recall.prior import fit_concept_prior
from pyro_memory.recall.recall import Recall
from pyro_memory.recall.recognition import Recognition
from pyro_memory.recall.replaying import replay
from pyro_memory.recall.task import check_remembered, check_task, remembered_at

__all__ = [
    "BREADTH",
    "Consolidation",
    "Decision",
    "Lifetime",
    "Recall",
    "Recognition",
    "Reorganisation",
    "assign",
    "check_remembered",
    "check_task",
    "consolidate",
    "conversion_prior",
    "conversion_scores",
    "exact_posterior",
    "fit_concept_prior",
    "merge",
    "merge_evidence",
    "remember",
    "remembered_at",
    "reorganise",
    "replay",
    "split",
    "split_evidence",
]
