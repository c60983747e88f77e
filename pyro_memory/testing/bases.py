"""The contract of a base generative model and its guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.inference import stochastic_sites
from pyro_memory.naming import unique_name
from pyro_memory.nets import Context
from pyro_memory.testing.demands import copied, demand, demand_close, isolated, made
from pyro_memory.testing.pairs import check_pair

TASKS = 2
Task = tuple[Tensor, Tensor | None, Tensor | None]  # images, codes, images to be read


class Told(PyroModule):
    """A memory model in small: each task has a code, uncertain as a latent is, and an image that was read."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(unique_name(self))
        self.base = base

    def forward(self, x: Tensor, code: Tensor | None, shown: Tensor | None) -> None:
        with pyro.plate("task", x.shape[0], dim=-2):
            code = None if code is None else code + _doubt(code)
            content = () if self.base.content is None or shown is None else self.base.content(shown)
            with pyro.plate("item", x.shape[1], dim=-1):
                self.base.explain(x, Context(code, content))


class ToldGuide(PyroModule):
    """Its guide."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(unique_name(self))
        self.base = base

    def forward(self, x: Tensor, code: Tensor | None, shown: Tensor | None) -> None:
        with pyro.plate("task", x.shape[0], dim=-2):
            code = None if code is None else code + _doubt(code)
            with pyro.plate("item", x.shape[1], dim=-1):
                self.base.infer(x, Context(code))


def _doubt(code: Tensor) -> Tensor:
    return pyro.sample("doubt", dist.Normal(torch.zeros_like(code[:, :1]), 0.3).to_event(1))


@checked
def check_base(
    base: nn.Module,
    guide: nn.Module,
    x: Tensor,
    *,
    make: Callable[[], tuple[nn.Module, nn.Module]] | None = None,
    objective: ELBO | None = None,
) -> None:
    """Checks what a base model and its guide must keep for a memory model to call them inside its plates.

    A base has ``explain(x, context)``, ``generate(context, shape)``, ``content``, ``code_dim`` and ``likelihood``, its
    guide ``infer(x, context)``, as ``BaseModel`` and ``BaseGuide``.

    - Told a code and an image that was read, one a task, within plates of tasks and of images, the two keep the
      contract of a pair (see ``check_pair``): same sites, particles in one pass, a gradient for every parameter,
      copies. Where there is nothing to be told and to read, they keep it by themselves.
    - A context of one row a task says the same as one repeated for each image; it is heeded, and only by its own task.
    - A datum's weight does not depend on other data. Where nothing can be read, ``content=()``, it is finite.
    - ``generate`` gives finite images within ``likelihood.support``, of the shape of context and ``shape`` broadcast,
      that heed the context; ``explain(None, context)`` draws images of the plates' shape.

    Args:
        base, guide: the two; they stay as they are.
        x: four images or more that the base can explain, ``[image, channel, height, width]``.
        make: builds another such two.
        objective: what trains them; ``Trace_ELBO()`` by default.

    Raises:
        AssertionError: if something does not hold.

    Example::

        check_base(MyBase(code_dim=3), MyBaseGuide(code_dim=3), x, make=lambda: (MyBase(code_dim=3), ...))
    """
    objective = Trace_ELBO() if objective is None else objective
    for role, module, names in (
        ("base", base, ("explain", "generate", "content", "code_dim", "likelihood")),
        ("guide", guide, ("infer",)),
    ):
        lacking = [name for name in names if not hasattr(module, name)]
        demand(not lacking, f"the {role} must have {', '.join(f'`{n}`' for n in lacking)}: inherit from "
               f"{'BaseModel' if role == 'base' else 'BaseGuide'}")  # fmt: skip
    demand(len(x) >= 2 * TASKS, f"`x` must hold at least {2 * TASKS} images; got {len(x)}")
    with isolated():
        images = x[: len(x) // TASKS * TASKS].reshape(TASKS, -1, *x.shape[1:])
        code = torch.randn(TASKS, 1, base.code_dim) if base.code_dim else None
        shown = images[:, :1].flip(0) if base.content is not None else None
        task = images, code, shown
        one, other = copied((base, guide), "base and guide")
        again = None if make is None else lambda: _told(*made(make))
        check_pair(*_told(one, other), *task, make=again, objective=objective)
        if code is None and shown is None:
            check_pair(base, guide, x, make=make, objective=objective)
        pair = copied((base, guide), "base and guide")
        with torch.no_grad():
            for module in pair:
                module.double().eval()
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))  # a layer of zeros would hide what it is told
            exact: Any = tuple(None if t is None else t.double() for t in task)
            _check_weights(*_told(*pair), exact)
            _check_images(pair[0], exact)


def _told(base: nn.Module, guide: nn.Module) -> tuple[Told, ToldGuide]:
    for module in (*base.modules(), *guide.modules()):
        if isinstance(module, PyroModule):
            module._pyro_context.used = False  # Pyro takes none that has run by itself into another; these are copies
    return Told(base), ToldGuide(guide)


def _log_weight(model: Told, guide: ToldGuide, task: Task, drawn: Any = None) -> tuple[Tensor, Any]:
    """The log weight of each image, ``[task, image]``, for given or new latents."""
    q = poutine.trace(guide if drawn is None else poutine.replay(guide, trace=drawn)).get_trace(*task)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*task)
    observed = [name for name, s in p.nodes.items() if s["type"] == "sample" and s["is_observed"]]
    demand(
        "x" in observed, f"`explain` must observe the image at site `x`; observed are {', '.join(observed) or 'none'}"
    )
    sites = []
    for trace, sign in ((p, 1), (q, -1)):
        trace.compute_log_prob()
        own = [s for name, s in stochastic_sites(trace).items() if name != "doubt"]
        sites += [sign * site["log_prob"] for site in own]
    return sum(sites), q


def _check_weights(model: Told, guide: ToldGuide, task: Task) -> None:
    x, code, shown = task
    weight, drawn = _log_weight(model, guide, task)
    demand(weight.shape == x.shape[:2], f"each image must have a weight of its own, {list(x.shape[:2])}; got "
           f"{list(weight.shape)}. Keep event dimensions by .to_event(3)")  # fmt: skip
    changed = x.clone()
    changed[1, 0] = x[0, 1]
    after, _ = _log_weight(model, guide, (changed, code, shown), drawn)
    others = torch.ones_like(weight, dtype=torch.bool)
    others[1, 0] = False
    demand_close(after[others], weight[others], "the weight of an image depends on another image. Reduce over "
                 "pixels and channels only")  # fmt: skip
    demand(after[1, 0] != weight[1, 0], "the weight of an image does not depend on the image")
    for name, place, value in (("the code", 1, code), ("the image read", 2, shown)):
        if value is None:
            continue
        repeated = [t if i != place else t.expand(-1, x.shape[1], *t.shape[2:]) for i, t in enumerate(task)]
        same, _ = _log_weight(model, guide, tuple(repeated), drawn)
        demand_close(same, weight, f"{name} once a task must say the same as repeated for each image. Let it broadcast")
        elsewhere = value.clone()
        elsewhere[1] = 1 - value[1]
        told = tuple(t if i != place else elsewhere for i, t in enumerate(task))
        after, _ = _log_weight(model, guide, told, drawn)
        demand_close(after[0], weight[0], f"{name} of one task reaches another task's images")
        demand(bool((after[1] != weight[1]).any()), f"{name} is not heeded: the weights are the same with another one")
    try:
        nothing, _ = _log_weight(model, guide, (x, code, None), drawn)
    except Exception as error:
        raise AssertionError(
            f"where nothing can be read, content=(), the base fails: {error}. Take zeros for the features then"
        ) from error
    demand(nothing.isfinite().all(), "where nothing can be read, content=(), weights must be finite")


def _check_images(base: nn.Module, task: Task) -> None:
    x, code, shown = task
    event = x.shape[2:]

    def drawn(code: Tensor | None, shown: Tensor | None) -> Tensor:
        torch.manual_seed(0)
        content = () if shown is None else base.content(shown)
        return base.generate(Context(code, content), (TASKS, 3))

    images = drawn(code, shown)
    demand(
        images.shape == (TASKS, 3, *event),
        f"`generate` must give {[TASKS, 3, *event]} for shape ({TASKS}, 3) and a context a task; got "
        f"{list(images.shape)}",
    )
    low, high = getattr(base.likelihood, "support", None) or (-torch.inf, torch.inf)
    demand(
        images.isfinite().all() and bool((images >= low).all()) and bool((images <= high).all()),
        f"`generate` must give finite images in the support, [{low:g}, {high:g}]; got {images.min():.3g} to "
        f"{images.max():.3g}",
    )
    demand_close(drawn(code, shown), images, "`generate` must give the same under the same seed")
    if code is not None:
        demand((drawn(code + 1, shown) != images).any(), "`generate` does not heed the code")
        many = drawn(code.expand(5, *code.shape), shown)
        demand(
            many.shape == (5, TASKS, 3, *event),
            f"`generate` must give {[5, TASKS, 3, *event]} for codes {[5, TASKS, 1]} and shape ({TASKS}, 3): let a "
            f"context of particles broadcast; got {list(many.shape)}",
        )
    if shown is not None:
        demand((drawn(code, 1 - shown) != images).any(), "`generate` does not heed the image read")
    context = Context(code, () if shown is None else base.content(shown))
    with pyro.plate("task", TASKS, dim=-2), pyro.plate("item", 3, dim=-1):
        sites = poutine.trace(base.explain).get_trace(None, context).nodes
    shape = sites["x"]["value"].shape if "x" in sites else ()
    demand(
        tuple(shape) == (TASKS, 3, *event),
        f"`explain(None, context)` must draw the image at site `x`, {[TASKS, 3, *event]}; got {list(shape)}",
    )
