"""How good generated images are, in the features of a classifier trained on other classes' drawings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm

from pyro_memory.data import LabelledImages
from pyro_memory.diagnostics.tables import Record, Rows
from pyro_memory.gate import checked
from pyro_memory.nets import ImagePyramid


@checked
class FeatureClassifier(nn.Module):
    """A small convolutional classifier whose last hidden layer is what images are compared by.

    Attributes:
        accuracy: the share of held-out images that it names rightly; None before it was measured.
        classes: how many classes it tells apart.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, dim: int = 64) -> None:
        super().__init__()
        self.pyramid = ImagePyramid(shape, (16, 32, 64))
        self.hidden = nn.Linear(self.pyramid.out_features, dim)
        self.out = nn.Linear(dim, classes)
        self.classes = classes
        self.accuracy: float | None = None

    def features(self, images: Float[Tensor, "*batch channel height width"]) -> Float[Tensor, "*batch dim"]:
        """The last hidden layer."""
        return torch.relu(self.hidden(self.pyramid(images)[-1].flatten(-3)))

    def forward(self, images: Float[Tensor, "*batch channel height width"]) -> Float[Tensor, "*batch class"]:
        return self.out(self.features(images))

    def __repr__(self) -> str:
        accuracy = "not measured" if self.accuracy is None else f"{self.accuracy:.3f}"
        return f"FeatureClassifier({self.classes} classes, accuracy on held-out images {accuracy})"


@checked
def train_classifier(
    data: LabelledImages, *, steps: int = 1500, batch: int = 128, seed: int = 0, progress: bool = True
) -> FeatureClassifier:
    """Trains a classifier on nine tenths of each class's images and measures it on the rest.

    Images are shifted by up to two pixels while training. Leaves the global random state as it was.

    Raises:
        ValueError: for fewer than two classes or a class of fewer than two images.
    """
    if data.classes < 2 or min(len(m) for m in data.members) < 2:
        raise ValueError(f"`data` must have two or more classes of two or more images; got {data}")
    generator = torch.Generator("cpu").manual_seed(seed)
    train, test = [], []
    for members in data.members:
        order = members[torch.randperm(len(members), generator=generator, device="cpu")]
        cut = max(1, len(members) // 10)
        test.append(order[:cut])
        train.append(order[cut:])
    learned, held = torch.cat(train), torch.cat(test)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FeatureClassifier(data.shape, data.classes)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    bar = tqdm(range(steps), desc="classifier", disable=not progress, unit="step")
    for _ in bar:
        chosen = learned[torch.randint(len(learned), (batch,), generator=generator, device="cpu")]
        shift = torch.randint(-2, 3, (2,), generator=generator, device="cpu").tolist()
        loss = cross_entropy(model(data[chosen].roll(shift, (-2, -1))), data.labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix_str(f"loss {loss.item():.2f}", refresh=False)
    with torch.no_grad():
        right = [(model(data[part]).argmax(-1) == data.labels[part]).float() for part in held.split(512)]
    model.accuracy = torch.cat(right).mean().item()
    return model.eval().requires_grad_(False)


@checked
@dataclass(frozen=True, repr=False)
class FrechetDistance(Record):
    """How far apart two sets of images lie: the squared Frechet distance of normals fitted to their features.

    Attributes:
        distance: the estimate; biased upwards, the more so the fewer images there are.
        se: its standard error, by a jackknife over ten blocks of each set.
        counts: how many images each set has.
    """

    distance: float
    se: float
    counts: tuple[int, int]

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        one, other = self.counts
        said = f"{self.distance:.4g}, se {self.se:.2g}, in squared features; {one} and {other} images"
        return f"FrechetDistance {said}", (), ()

    def to_dict(self) -> dict[str, Any]:
        """Gives the record as plain numbers."""
        return {"distance": self.distance, "se": self.se, "counts": list(self.counts)}


@checked
@torch.no_grad()
def frechet_distance(one: Float[Tensor, "image dim"], other: Float[Tensor, "other dim"]) -> FrechetDistance:
    r"""Computes ``|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2})`` of two sets of features.

    Compare distances of equal numbers of images only: the estimate is biased, and the bias depends on them.

    Raises:
        ValueError: for sets of fewer than 20 images, or of different features.

    Cost: O(images dim^2 + dim^3), eleven times.

    References: GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017), https://arxiv.org/abs/1706.08500
    """
    if one.dim() != 2 or other.dim() != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 20:
        raise ValueError(
            "`one` and `other` must be [image, dim] of one dim, 20 images or more; got "
            f"{list(one.shape)} and {list(other.shape)}"
        )
    one, other = one.double(), other.double()
    whole = _frechet(one, other)
    blocks = 10
    left = torch.stack(
        [_frechet(one[_without(len(one), b, blocks)], other[_without(len(other), b, blocks)]) for b in range(blocks)]
    )
    se = ((blocks - 1) / blocks * (left - left.mean()).square().sum()).sqrt()
    return FrechetDistance(whole.item(), se.item(), (len(one), len(other)))


def _without(count: int, block: int, blocks: int) -> Tensor:
    return torch.arange(count, device="cpu") % blocks != block


def _frechet(one: Tensor, other: Tensor) -> Tensor:
    a, b = torch.atleast_2d(one.T.cov()), torch.atleast_2d(other.T.cov())
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()  # tr (a b)^{1/2}
    return (one.mean(0) - other.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross


@checked
@dataclass(frozen=True, repr=False)
class ClassAgreement(Record):
    """How often generated images look like the class that they were generated for.

    Attributes:
        agreement, se: the share whose nearest class prototype is theirs, and its standard error over classes.
        real, real_se: the same of real images of those classes that made no prototype: what can be reached.
        chance: one in the number of classes.
    """

    agreement: float
    se: float
    real: float
    real_se: float
    chance: float

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        said = (
            f"ClassAgreement, images of the right class: {self.agreement:.1%} of those generated (se {self.se:.1%}), "
            f"{self.real:.1%} of real ones (se {self.real_se:.1%}), {self.chance:.1%} by chance; se over classes"
        )
        return said, (), ()

    def to_dict(self) -> dict[str, float]:
        """Gives the record as plain numbers."""
        return vars(self).copy()


@checked
@torch.no_grad()
def class_agreement(
    generated: Float[Tensor, "class image dim"],
    real: Float[Tensor, "class image dim"],
    prototypes: Float[Tensor, "class example dim"],
) -> ClassAgreement:
    """Compares features of generated and of real images with the mean features of each class, by their cosine.

    Args:
        generated: features of images generated for each class.
        real: features of real images of each class.
        prototypes: features of further real images of each class.

    Raises:
        ValueError: if the classes or features differ, or there are fewer than two classes.
    """
    shapes = [t.shape[::2] for t in (generated, real, prototypes)]
    if len(set(shapes)) != 1 or len(generated) < 2:
        raise ValueError(
            "`generated`, `real` and `prototypes` must be [class, image, dim] of the same two or more classes; got "
            f"{[list(t.shape) for t in (generated, real, prototypes)]}"
        )
    centres = normalize(prototypes.mean(1), dim=-1)
    shares = []
    for features in (generated, real):
        nearest = (normalize(features, dim=-1) @ centres.T).argmax(-1)
        right = (nearest == torch.arange(len(centres), device=nearest.device).unsqueeze(-1)).double().mean(-1)
        shares.append((right.mean().item(), (right.std() / math.sqrt(len(right))).item()))
    return ClassAgreement(*shares[0], *shares[1], 1 / len(centres))


@checked
def prototype_sets(
    data: LabelledImages, classes: Int[Tensor, " class"], *, support: int, seed: int = 0
) -> tuple[Int[Tensor, "class support"], Int[Tensor, "class image"], Int[Tensor, "class example"]]:
    """Divides the images of some classes into a support, images to compare with, and prototypes; all different."""
    generator = torch.Generator("cpu").manual_seed(seed)
    parts = []
    for label in classes.tolist():
        members = data.members[label]
        order = members[torch.randperm(len(members), generator=generator, device="cpu")]
        half = (len(order) - support) // 2
        if half < 1:
            raise ValueError(f"`support` must leave two images of each class; got {support} of {len(order)}")
        parts.append((order[:support], order[support : support + half], order[support + half : support + 2 * half]))
    given, compared, examples = (torch.stack(column) for column in zip(*parts, strict=True))
    return given, compared, examples
