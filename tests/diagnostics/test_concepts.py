"""Concepts as images, at several times."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch.testing import assert_close

from pyro_memory import ConceptMemory
from pyro_memory.diagnostics import plot_concepts


def lived(episodes, concepts=3):
    """Concept 1 took in all episodes, each of two images."""
    torch.manual_seed(0)
    store = ConceptMemory.reserve(concepts, 2, exemplars=4, event_shape=(1, 5, 6))
    share = torch.eye(concepts)[1:2]
    for _ in range(episodes):
        store = store.update(torch.randn(1, 2), torch.full((1, 2), 0.1), share, items=[torch.rand(2, 1, 5, 6)])
    return store


def test_a_row_shows_a_concept_at_each_time_and_what_it_keeps():
    first, last = lived(1), lived(4)
    ax = plot_concepts({"young": first, "old": last}, [1, 0])
    sheet = ax.images[0].get_array()
    assert sheet.shape == (2 * 7, (3 + 3 + 4) * 8)
    parts = [*(p[1] for p in first.exemplars.prototypes()), None, *(p[1] for p in last.exemplars.prototypes()), None]
    for column, part in enumerate([*parts, *last.exemplars.values[1]]):
        shown = torch.as_tensor(sheet[1:6, 8 * column + 1 : 8 * column + 7]).float()
        assert_close(shown, torch.zeros(5, 6) if part is None else part[0])
    names = [label.get_text() for label in ax.get_yticklabels()]
    before, after = first.widths()[1], last.widths()[1]
    assert names[0] == f"1: 4 episodes, width {before:.2f} to {after:.2f}"
    assert names[1].startswith("0: 0 episodes")
    assert [label.get_text().split("\n")[0] for label in ax.get_xticklabels()] == ["young", "old", "what is kept"]
    plt.close("all")


def test_by_default_those_that_took_in_most_come_first():
    ax = plot_concepts(lived(2, concepts=20))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert len(names) == 12
    assert names[0].startswith("1: 2 episodes, width")
    assert " to " not in names[0]
    plt.close("all")


def test_what_has_no_images_is_refused():
    bare, vectors = ConceptMemory.reserve(3, 2), ConceptMemory.reserve(3, 2, exemplars=2, event_shape=(4,))
    for given in (bare, vectors, {}, {"then": lived(1), "now": bare}):
        with pytest.raises(ValueError, match="keeps images as exemplars"):
            plot_concepts(given)
    for which in ([3], [], [-1]):
        with pytest.raises(ValueError, match="`which` must name concepts from 0 to 2"):
            plot_concepts(lived(1), which)
