"""Sample quality in a classifier's features."""

import pytest
import torch
from torch.testing import assert_close

from pyro_memory.data import glyphs
from pyro_memory.diagnostics import class_agreement, frechet_distance, prototype_sets, train_classifier


def normal(count, mean, deviation, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.tensor(mean) + torch.tensor(deviation) * torch.randn(count, len(mean), generator=g)


def test_the_distance_of_diagonal_normals_has_a_closed_form():
    a = normal(40_000, [0.0, 1.0, 2.0], [1.0, 0.5, 2.0])
    b = normal(40_000, [1.0, 1.0, 0.0], [2.0, 0.5, 1.0], seed=1)
    measured = frechet_distance(a, b)
    assert abs(measured.distance - (1 + 4 + 1 + 1)) < 5 * measured.se
    assert measured.se < 0.2


def test_the_distance_is_that_of_the_definition_for_any_covariances():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(60, 4, generator=g).double() @ torch.randn(4, 4, generator=g).double() for _ in range(2))
    values, vectors = torch.linalg.eig(a.T.cov() @ b.T.cov())
    root = (vectors @ values.sqrt().diag() @ torch.linalg.inv(vectors)).real
    wanted = (a.mean(0) - b.mean(0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()
    assert_close(frechet_distance(a, b).distance, wanted.item(), rtol=1e-6, atol=1e-6)


def test_a_set_is_at_no_distance_from_itself():
    a = normal(50, [0.0, 1.0], [1.0, 2.0])
    assert abs(frechet_distance(a, a).distance) < 1e-9


def test_agreement_counts_the_nearest_prototypes():
    centres = 10 * torch.eye(3)
    right = centres.unsqueeze(1).expand(3, 4, 3)
    wrong = right.clone()
    wrong[0, :2] = centres[1]
    record = class_agreement(wrong, right, right)
    assert record.agreement == pytest.approx((0.5 + 1 + 1) / 3)
    assert record.real == 1
    assert record.chance == pytest.approx(1 / 3)
    assert record.se == pytest.approx(torch.tensor([0.5, 1, 1]).std().item() / 3**0.5)


def test_a_trained_classifier_s_features_know_classes_it_has_not_seen():
    state = torch.random.get_rng_state()
    model = train_classifier(glyphs("background"), steps=60, batch=64, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert 0 <= model.accuracy <= 1
    assert f"accuracy on held-out images {model.accuracy:.3f}" in repr(model)
    data = glyphs("evaluation")
    _, real, prototypes = prototype_sets(data, torch.arange(10), support=2)
    assert not set(real.flatten().tolist()) & set(prototypes.flatten().tolist())
    features = [model.features(data[i]) for i in (real, prototypes)]
    record = class_agreement(features[0], *features)
    assert record.real > 3 * record.chance


@pytest.mark.unchecked
def test_bad_input_is_refused():
    a = normal(30, [0.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="20 images or more; got"):
        frechet_distance(a[:10], a)
    with pytest.raises(ValueError, match=r"`other` must be .* with dim = 2, as `one` has"):
        frechet_distance(a, a[:, :1])
    with pytest.raises(ValueError, match="of the same two or more classes"):
        class_agreement(a[None], a[None], a[None])
    with pytest.raises(ValueError, match="`support` must leave two images of each class"):
        prototype_sets(glyphs("evaluation"), torch.arange(2), support=19)
