"""A user's own base model and guide keep the contract; broken in any one way, they fail and are told how."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_memory import Context
from pyro_memory.guides import BaseGuide, VAEBaseGuide
from pyro_memory.models import BaseModel, VAEBase
from pyro_memory.testing.bases import check_base

SHAPE = (1, 2, 3)


class Sketch(nn.Module):
    """Features of an image that was read."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 6)

    def forward(self, image):
        return (self.net(image.flatten(-3)).unflatten(-1, SHAPE),)


class Ink(nn.Module):
    support = (0.0, 1.0)

    def forward(self, logits):
        return dist.Bernoulli(logits=logits).to_event(3)


class Doodle(BaseModel):
    """A latent of two dimensions, a code of three, and the image read."""

    site = "x"

    def __init__(self):
        super().__init__()
        self.code_dim, self.content, self.likelihood = 3, Sketch(), Ink()
        self.draw, self.told = nn.Linear(2, 6), nn.Linear(3, 6, bias=False)

    def x_dist(self, z, context):
        logits = self.draw(z) + self.told(context.code)
        read = context.content[0] if context.content else torch.zeros(SHAPE).to(logits)
        return self.likelihood(logits.unflatten(-1, SHAPE) + read)

    def z_dist(self):
        return dist.Normal(self.draw.bias.new_zeros(2), 1.0).to_event(1)

    def explain(self, x, context):
        z = pyro.sample("z", self.z_dist())
        pyro.sample(self.site, self.x_dist(z, context), obs=x)

    def generate(self, context, shape=()):
        lead = torch.broadcast_shapes(tuple(shape), context.code.shape[:-1])
        return self.x_dist(self.z_dist().sample(lead), context).mean


class DoodleGuide(BaseGuide):
    site = "z"

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 2)

    def loc(self, x):
        return self.net(x.flatten(-3))

    def infer(self, x, context):
        pyro.sample(self.site, dist.Normal(self.loc(x), 0.5).to_event(1))


class MisnamedGuide(DoodleGuide):
    site = "code"


class MixesImages(DoodleGuide):
    def loc(self, x):
        return super().loc(x) - x.mean((-5, -4)).sum() if x.dim() == 5 else super().loc(x)


class OtherSite(Doodle):
    site = "image"


class MixesCodes(Doodle):
    def x_dist(self, z, context):
        return super().x_dist(z, Context(context.code - context.code.mean(-3, keepdim=True), context.content))


class IgnoresTheCode(Doodle):
    def x_dist(self, z, context):
        return super().x_dist(z, Context(context.code * 0 + self.told.weight.sum(), context.content))


class IgnoresTheImage(Doodle):
    def x_dist(self, z, context):
        content = tuple(f * 0 + self.content.net.weight.sum() + self.content.net.bias.sum() for f in context.content)
        return super().x_dist(z, Context(context.code, content))


class CannotDoWithout(Doodle):
    def x_dist(self, z, context):
        return super().x_dist(z, Context(context.code, context.content[:1] or (context.content[0],)))


class CountsTheCode(Doodle):
    def x_dist(self, z, context):
        return super().x_dist(z, Context(context.code * context.code.shape[-2], context.content))


class DrawsOne(Doodle):
    def generate(self, context, shape=()):
        return super().generate(context)


class DrawsBeyond(Doodle):
    def generate(self, context, shape=()):
        return 3 * super().generate(context, shape)


class DrawsDeaf(Doodle):
    def generate(self, context, shape=()):
        return super().generate(Context(context.code * 0, context.content), shape)


class DrawsBlind(Doodle):
    def generate(self, context, shape=()):
        return super().generate(Context(context.code), shape)


class DrawsDifferently(Doodle):
    drawn = 0

    def generate(self, context, shape=()):
        self.drawn += 1
        return super().generate(context, shape) / self.drawn


class DrawsFlat(Doodle):
    def generate(self, context, shape=()):
        images = super().generate(context, shape)
        return images if images.dim() == 5 else images[0]


class DrawsNothing(Doodle):
    def explain(self, x, context):
        if x is not None:
            super().explain(x, context)


class Bare(nn.Module):
    pass


BROKEN = {
    "a misnamed site": (Doodle, MisnamedGuide, "missing: `z`. It samples `code` instead"),
    "images that are mixed": (Doodle, MixesImages, "the weight of an image depends on another image"),
    "another name for the image": (OtherSite, DoodleGuide, "must observe the image at site `x`; observed are image"),
    "codes that are mixed": (MixesCodes, DoodleGuide, "the code of one task reaches another task's images"),
    "a code that is ignored": (IgnoresTheCode, DoodleGuide, "the code is not heeded"),
    "an image read that is ignored": (IgnoresTheImage, DoodleGuide, "the image read is not heeded"),
    "a code that is counted": (CountsTheCode, DoodleGuide, "the code once a task must say the same as repeated"),
    "nothing to be read": (
        CannotDoWithout,
        DoodleGuide,
        "where nothing can be read, .* the base fails: ",
    ),
    "one image for many": (DrawsOne, DoodleGuide, r"`generate` must give \[2, 3, 1, 2, 3\] for shape \(2, 3\)"),
    "particles that are lost": (DrawsFlat, DoodleGuide, r"`generate` must give \[5, 2, 3, 1, 2, 3\] for codes"),
    "images beyond the support": (DrawsBeyond, DoodleGuide, r"must give finite images in the support, \[0, 1\]"),
    "images that ignore the code": (DrawsDeaf, DoodleGuide, "`generate` does not heed the code"),
    "images that ignore what was read": (DrawsBlind, DoodleGuide, "`generate` does not heed the image read"),
    "images that change": (DrawsDifferently, DoodleGuide, "`generate` must give the same under the same seed"),
    "an image that is not drawn": (
        DrawsNothing,
        DoodleGuide,
        r"`explain\(None, context\)` must draw the image at",
    ),
    "no base at all": (Bare, DoodleGuide, "the base must have `explain`, `generate`, `content`, .*: inherit from"),
}


def ink():
    torch.manual_seed(0)
    return (torch.rand(6, *SHAPE) < 0.4).float()


def test_a_user_s_base_keeps_its_contract_also_after_it_has_run():
    base, guide = VAEBase(SHAPE, latent_dim=2, channels=(2,)), VAEBaseGuide(SHAPE, latent_dim=2, channels=(2,))
    guide(ink())
    base(ink())
    check_base(base, guide, ink())
    check_base(Doodle(), DoodleGuide(), ink(), make=lambda: (Doodle(), DoodleGuide()))


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_base_is_told_what_is_wrong(how):
    base, guide, message = BROKEN[how]
    with pytest.raises(AssertionError, match=message):
        check_base(base(), guide(), ink())
