"""What of a structured memory can be read: pages of episodes and of concepts."""

import torch
from conftest import ink
from set_parts import DIM, SHAPE, K, stores
from torch.testing import assert_close

from pyro_memory import ConceptMemory, EpisodicMemory, StructuredMemory

EVENT = (1, 3, 3)


def kept(places=2):
    """Concepts with exemplars (the last of them empty) beside a ring of four, one of its slots free."""
    g = torch.Generator().manual_seed(0)
    loc, variance = torch.randn(8, DIM, generator=g), torch.full((8, DIM), 0.2)
    concepts = ConceptMemory.reserve(K, DIM, exemplars=places, event_shape=SHAPE)
    concepts = concepts.update(loc, variance, torch.eye(K)[torch.arange(8) % 2], items=list(ink(8, 3, *SHAPE)))
    return StructuredMemory(concepts, stores().episodes)


def counted(*counts):
    """A ring whose episode s has ``counts[s]`` images, image i of which is 10 s + i + 1 all over."""
    store = EpisodicMemory.reserve(len(counts) + 1, 3, EVENT, DIM, K)
    for s, n in enumerate(counts):
        images = (10 * s + 1 + torch.arange(3.0)).reshape(1, 3, 1, 1, 1).expand(1, 3, *EVENT)
        row = torch.zeros(1, DIM), torch.ones(1, DIM), images, torch.tensor([n]), torch.ones(1, K) / K
        store = store.write(*row)
    return StructuredMemory(ConceptMemory.reserve(K, DIM), store)


def test_reading_gives_the_image_addressed_and_nothing_for_none():
    memory = counted(2, 3)
    page, i = torch.tensor([[0, 1], [3, 1], [0, 6]]), torch.tensor([[1, 0], [0, 3], [2, 0]])
    shown = memory.read(page, i, lambda images: (images, 2 * images))
    assert_close(shown[0][:, :, 0, 0, 0], torch.tensor([[2.0, 11.0], [0.0, 0.0], [0.0, 0.0]]))
    assert_close(shown[1], 2 * shown[0])
    sizes = []
    memory.read(page.expand(5, 3, 2), i, lambda images: sizes.append(len(images)) or images)
    assert sizes == [3]  # an image is computed once, however often it is read


def test_the_images_that_are_there_are_alike_and_none_of_them_is_rare():
    memory = counted(2)
    assert_close(memory.which(torch.tensor([0])).probs, torch.tensor([[1.0, 1.0, 0.0, 0.05]]) / 2.05)
    assert_close(memory.which(torch.tensor([2, 4])).probs, torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 2))


def test_where_no_episode_helps_the_concept_shows_its_exemplars():
    memory = kept()
    slots, none = memory.episodes.slots, torch.tensor(memory.episodes.slots)
    k = torch.arange(K)
    assert memory.page(k, none).tolist() == [slots, slots + 1, slots + 2]
    assert memory.page(k, torch.tensor(1)).tolist() == [1, 1, 1]
    assert memory.width == 3
    assert memory.there(memory.page(k, none)).tolist() == [[True, True, False]] * 2 + [[False] * 3]
    shown = memory.images(memory.page(k[:2], none).unsqueeze(-1).expand(2, 2), torch.arange(2).expand(2, 2))
    assert_close(shown, memory.concepts.exemplars.values[:2])


def test_controls_and_files_have_the_exemplars():
    memory = kept()
    other = memory.shuffled_concepts()
    assert_close(other.concepts.loc, memory.concepts.loc)
    assert_close(other.concepts.exemplars.values[:2], memory.concepts.exemplars.values[:2].flip(0))
    assert not memory.without_concepts().concepts.exemplars.filled.any()
    again = StructuredMemory.from_tensors(memory.to_tensors())
    for name, tensor in memory.concepts.exemplars.to_tensors().items():
        assert torch.equal(again.concepts.exemplars.to_tensors()[name], tensor)
    assert memory.to(torch.float64).concepts.exemplars.values.dtype == torch.float64
