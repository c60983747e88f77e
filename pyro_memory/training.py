"""The training loop: SVI with a torch optimizer, exact resume, and a clear stop."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from pyro_memory.checkpoints import (
    load_batches,
    load_checkpoint,
    module_of,
    random_state,
    read_header,
    restore_random_state,
    save_checkpoint,
)
from pyro_memory.ranks import Ranks

LOG_EVERY = 10
NAMES = "give each module a unique `name=`, or call pyro.clear_param_store() before building them"


@dataclass(frozen=True, repr=False)
class FitResult:
    """What a run of ``fit`` did.

    Attributes:
        steps: optimizer steps taken, those before a resume included.
        seconds: wall time, likewise.
        cpu_seconds: processor time of this process, all its threads, likewise: what a busy machine blurs less.
        history: ``"step"`` and ``"bound"``, the mean bound in nats per call over the ten steps up to there;
            ``"information"`` and ``"evaluation"``, a dict a measurement, each with its ``"step"``.
        checkpoint: the file that holds the trained state, or None.
    """

    steps: int
    seconds: float
    cpu_seconds: float
    history: dict[str, list[Any]]
    checkpoint: Path | None

    def __repr__(self) -> str:
        lines = [f"FitResult: {self.steps} steps in {self.seconds:.1f} s"]
        if self.history["bound"]:
            lines.append(f"  bound        {self.history['bound'][-1]:.3f} nats per call (mean of the last steps)")
        for kind, unit in (("information", " nats/datum"), ("evaluation", "")):
            if self.history[kind]:
                values = ", ".join(f"{k} {v:.3f}" for k, v in self.history[kind][-1].items() if k != "step")
                lines.append(f"  {kind:<12} {values}{unit}")
        return "\n".join([*lines, f"  checkpoint   {self.checkpoint or 'none kept'}"])

    def to_dict(self) -> dict[str, Any]:
        """Gives the record as plain values that JSON can hold."""
        return asdict(self) | {"checkpoint": None if self.checkpoint is None else str(self.checkpoint)}

    def plot(self, ax: Any = None) -> Any:
        """Draws the bound against the step on ``ax``, or on new axes, and returns them."""
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        ax.plot(self.history["step"], self.history["bound"])
        ax.set(xlabel="step", ylabel="bound (nats per call)")
        return ax


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batches: Any,
    objective: ELBO,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_every: int | None = None,
    information_every: int | None = 100,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    resume: bool = True,
    seed: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> FitResult:
    """Trains every parameter of model and guide by stochastic variational inference.

    With ``checkpoint``, a run that was cut off goes on from its last file when the same call is made again, on a CPU
    bit for bit as if it had not stopped. SIGINT and SIGTERM then finish the step and write the file first; a second
    signal acts at once. Cost: beside the objective, one norm over the gradients and one device synchronisation a step,
    and one pass of model and guide at the start, which makes lazy parameters.

    Under ``torchrun`` all processes train one model: at a step each takes a batch of its own, the next in turn, and
    gradients are averaged (DistributedDataParallel around the objective). The first process writes the checkpoint,
    measures and shows the bar; a signal to any stops all after the same step. A run may go on with another number of
    processes: it then counts the same steps, with other batches and noise. A ``ShardedMemory`` in the first batch
    makes all take the same batches instead.

    Args:
        model: a module, or a method of one; left in training mode.
        guide: likewise, or a plain function without parameters.
        batches: the positional arguments of model and guide, as a tuple: ``batches[step]`` (modulo its length, if it
            has one), or ``batches(step)``; these two resume exactly. Any other iterable is started again when it ends
            and, on resume, read up to where it was; one that shuffles then gives another order. A source that changes
            as it is read, such as a ``Lifetime``, has ``state_dict`` and ``load_state_dict`` of tensors, which the
            checkpoint keeps.
        objective: any Pyro objective, such as ``Trace_ELBO()`` or ``VIMCO(num_particles=5)``.
        steps: optimizer steps in total, those before a resume included.
        learning_rate: handed to the optimizer.
        optimizer: a torch optimizer class, or ``partial(torch.optim.AdamW, weight_decay=...)``.
        schedule: gives the factor on the learning rate for a step, counted from 0.
        clip_norm: the largest norm that the whole gradient may have.
        evaluate: gives numbers to keep, from the count of steps taken; it runs in evaluation mode, without gradients,
            and its random draws leave training unchanged.
        evaluate_every: steps between evaluations; one more comes at the end.
        information_every: steps between measurements of each site's information gain; None turns them off.
        checkpoint: the safetensors file to keep, see ``save_checkpoint``.
        checkpoint_every: steps between writes; one more comes at the end.
        resume: go on from the file if it exists; otherwise it is replaced at the first write.
        seed: sets Pyro's seeds at the start, not on resume.
        device: where to move model, guide and batches.
        progress: show a bar with the bound.

    Raises:
        ValueError: if an argument is unusable, something that takes part in the objective would not train, or the
            checkpoint is damaged or of another model.
        FloatingPointError: if the loss or the gradient is not finite. The parameters are those before that step.
    """
    _check_settings(objective, steps, evaluate_every, information_every, checkpoint_every)
    ranks = Ranks(device)
    path = None if checkpoint is None else Path(checkpoint)
    resuming = resume and path is not None and path.exists()
    log = _Log(**read_header(path)["record"]["log"]) if resuming else _Log()
    if seed is not None and not resuming:
        pyro.set_rng_seed(seed)

    modules = {id(m): m for m in map(module_of, (model, guide)) if m is not None}
    trained = nn.ModuleList(modules.values()).to(device)
    batch_at, first_batch = _stream(batches, log.step, ranks)
    with _aside(trained):
        args = _arguments(first_batch(), device)
        _make_parameters(model, guide, trained, args)
    ranks.divided = any(getattr(a, "divided", False) for a in args)
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = _optimizer(optimizer, parameters, learning_rate)
    compute = ranks.gradients(objective, model, guide, trained)
    loop = _Loop(model, guide, compute, parameters, optimizer, clip_norm, ranks)
    kept = _Kept(path, loop, log, {"learning_rate": learning_rate, "clip_norm": clip_norm, "seed": seed}, batches)
    if resuming:
        load_checkpoint(path, model, guide, loop.optimizer)
        if hasattr(batches, "load_state_dict"):
            batches.load_state_dict(load_batches(path))
        kept.step = log.step
    ranks.wait()  # until all have read the file that the first may write
    ranks.scatter_streams()
    measures = ranks.main or ranks.divided

    started, cpu_started = time.perf_counter() - log.seconds, time.process_time() - log.cpu_seconds
    shown = progress and ranks.main and log.step < steps
    bar = tqdm(total=steps, initial=log.step, unit="step", disable=not shown)
    with bar, _deferred_signals(path is not None) as signals, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]inf)")  # the loop's own message says more
        stop = ranks.any(bool(signals))
        while log.step < steps and not stop:
            args = _arguments(batch_at(log.step), device)
            rate = learning_rate * (1.0 if schedule is None else schedule(log.step))
            log.add(-loop.step(args, log.step, rate, kept))
            if measures and _due(log.step, information_every):
                with _aside(trained), torch.no_grad():
                    information_every = information_every if log.inform(model, guide, args) else None
            if measures and evaluate and (_due(log.step, evaluate_every) or log.step == steps):
                with _aside(trained), torch.no_grad():
                    log.note("evaluation", evaluate(log.step))
            log.seconds, log.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            stop = ranks.any(bool(signals))
            if path and (_due(log.step, checkpoint_every) or log.step == steps or stop):
                kept.save()
            bar.set_postfix_str(log.latest, refresh=False)
            bar.update()
        stop = ranks.any(bool(signals))
        if stop and path and kept.step != log.step:
            kept.save()  # the signal came after the loop had looked
    ranks.wait()  # until the file is there
    if stop and (signal.SIGTERM in signals or not signals):
        raise SystemExit(128 + signal.SIGTERM)
    if stop:
        raise KeyboardInterrupt(f"stopped after step {log.step}; {path} goes on from there")
    return FitResult(log.step, log.seconds, log.cpu_seconds, log.whole_history(), path)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


@dataclass
class _Loop:
    """One optimizer step, with the checks that keep it honest."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    compute: Callable[..., Any]
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer
    clip_norm: float | None
    ranks: Ranks
    checked: bool = False

    def step(self, args: tuple[Any, ...], step: int, rate: float, kept: _Kept) -> float:
        self.optimizer.zero_grad()
        loss = self.ranks.mean(self._loss_and_grads(args))
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"Step {step + 1} gave a loss of {loss} and a gradient of norm {norm:g}; the parameters are still "
                f"those before it. The last good checkpoint is {kept}. Lower "
                f"`learning_rate` (now {rate:g}) or `clip_norm` (now {self.clip_norm}), and look at this batch"
            )
        if self.clip_norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss

    def _loss_and_grads(self, args: tuple[Any, ...]) -> float:
        compute = partial(self.compute, *args)
        if self.checked:
            loss = compute()
        else:
            _check_arguments(args, self.parameters)
            loss = _with_capture(compute, self.parameters)
            self.checked = True
        # Wake-sleep gives a pair: the model's loss, then the guide's, which is no bound.
        return float(loss[0] if isinstance(loss, tuple) else loss)


def _with_capture(compute: Callable[[], Any], parameters: list[Tensor]) -> Any:
    """Computes gradients and refuses those that would go to something the optimizer does not hold.

    The test is the gradient, not membership in the parameter store: a store entry left by an earlier module of the same
    name is harmless, as modules use their own ``nn.Parameter``.
    """
    for _, parameter in pyro.get_param_store().named_parameters():
        parameter.grad = None
    with poutine.trace(param_only=True) as capture:
        loss = compute()
    own = {id(p) for p in parameters}
    values = {name: site["value"] for name, site in capture.trace.nodes.items()}
    leaves = {name: v.unconstrained() if hasattr(v, "unconstrained") else v for name, v in values.items()}
    strangers = [name for name, leaf in leaves.items() if id(leaf) not in own and leaf.grad is not None]
    if strangers:
        raise ValueError(
            f"`model` and `guide` must own all they train; got global parameters {strangers}, which would stay as they "
            "are. Make them `nn.Parameter` or `PyroParam` attributes of a module"
        )
    return loss


def _check_arguments(args: tuple[Any, ...], parameters: list[Tensor]) -> None:
    own = {id(p) for p in parameters}
    for index, arg in enumerate(args):
        held = arg.parameters() if isinstance(arg, nn.Module) else [arg, *getattr(arg, "__dict__", {}).values()]
        if any(isinstance(t, Tensor) and t.requires_grad and t.is_leaf and id(t) not in own for t in held):
            raise ValueError(
                f"`batches` must give data; argument {index} holds a parameter that is not of `model` or `guide` and "
                "would not train. Make it an attribute of one of them (a TemplateMemory, for slots)"
            )


def _make_parameters(
    model: Callable[..., Any], guide: Callable[..., Any], trained: nn.Module, args: tuple[Any, ...]
) -> None:
    """Runs guide and model once, so that lazy parameters exist, and refuses names that collide in Pyro's store."""
    stored = {id(p): p for _, p in pyro.get_param_store().named_parameters()}
    before = {id(p): (name, p) for name, p in trained.named_parameters()}
    guide_trace = poutine.trace(guide).get_trace(*args)
    poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    after = {id(p): (name, p) for name, p in trained.named_parameters()}
    if not after:
        raise ValueError(
            "`model` and `guide` must own parameters; got none. Global `pyro.param` statements do not train here: make "
            "them `nn.Parameter` or `PyroParam` attributes of a module"
        )
    # A PyroParam whose name is taken in the store is replaced there, silently, by the other module's.
    replaced = {name for i, (name, _) in before.items() if i not in after}
    replaced |= {name for i, (name, _) in after.items() if i not in before and i in stored}
    if replaced:
        raise ValueError(
            f"`model` and `guide` must have names of their own in Pyro's parameter store; another module's parameters "
            f"took the place of {sorted(replaced)} (index 0: model, 1: guide). Build them anew and {NAMES}"
        )


def _optimizer(
    optimizer: Callable[..., torch.optim.Optimizer], parameters: list[Tensor], learning_rate: float
) -> torch.optim.Optimizer:
    # One fused kernel over all parameters is what brings a Pyro step to the speed of plain torch.
    places = {(p.dtype, p.device.type, p.device.index) for p in parameters}
    fusible = optimizer in (torch.optim.Adam, torch.optim.AdamW) and len(places) == 1
    if fusible and next(iter(places))[:2] in {(torch.float32, "cpu"), (torch.float32, "cuda")}:
        return optimizer(parameters, lr=learning_rate, fused=True)
    return optimizer(parameters, lr=learning_rate)


def _stream(batches: Any, skip: int, ranks: Ranks) -> tuple[Callable[[int], Any], Callable[[], Any]]:
    """Gives the batch of a step, and a batch to look at before the first step, from any kind of ``batches``."""
    if hasattr(batches, "__getitem__"):
        length = len(batches) if hasattr(batches, "__len__") else None
        if length == 0:
            raise ValueError("`batches` must hold at least one batch; got none")

        def at(step: int) -> Any:
            number = ranks.share(step)
            return batches[number % length if length else number]

        return at, lambda: batches[0]
    if callable(batches):
        return lambda step: batches(ranks.share(step)), lambda: batches(0)
    if not isinstance(batches, Iterable):
        raise ValueError(f"`batches` must have `[step]`, be callable or iterable; got {type(batches).__name__}")
    endless = _endless(batches)
    first = next(endless)
    rest: Iterator[Any] | None = None

    def read(step: int) -> Any:
        nonlocal rest
        if rest is None:  # each process reads all batches and keeps its own, unless all share each batch
            rest = islice(chain([first], endless), ranks.share(skip), None, ranks.share(1) - ranks.share(0))
        return next(rest)

    return read, lambda: first


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("`batches` ran out and cannot start again; give a list or a DataLoader, not a generator")


def _arguments(batch: Any, device: torch.device | str | None) -> tuple[Any, ...]:
    if not isinstance(batch, (tuple, list)):
        raise ValueError(
            f"`batches` must give a tuple of the arguments of model and guide; got {type(batch).__name__}: write (x,)"
        )
    return tuple(a.to(device) if device is not None and hasattr(a, "to") else a for a in batch)


@contextmanager
def _aside(trained: nn.Module) -> Iterator[None]:
    """Runs its body in evaluation mode and leaves no trace in training's random streams."""
    state = random_state()
    trained.eval()
    try:
        yield
    finally:
        trained.train()
        restore_random_state(state)


@contextmanager
def _deferred_signals(active: bool) -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM of the main thread; a second one meets the old handlers."""
    caught: list[int] = []
    old: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        restore()

    if active and threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # Ignored signals stay ignored (nohup); one with a handler from outside Python could not be put back.
        old = {number: h for number, h in handlers.items() if h not in (None, signal.SIG_IGN)}
        for number in old:
            signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()


@dataclass
class _Log:
    """What a run has seen so far; a checkpoint holds it whole, so a resumed history equals an uninterrupted one."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    pending: list[float] = field(default_factory=list)
    history: dict[str, list[Any]] = field(
        default_factory=lambda: {"step": [], "bound": [], "information": [], "evaluation": []}
    )

    def add(self, bound: float) -> None:
        self.step += 1
        self.pending.append(bound)
        if self.step % LOG_EVERY == 0:
            self.history = self.whole_history()
            self.pending = []

    def note(self, kind: str, values: dict[str, float]) -> None:
        self.history[kind].append({"step": self.step} | {name: float(value) for name, value in values.items()})

    def inform(self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Notes the information gain of each site; a pair that has none is told once and trains on."""
        from pyro_memory.information import information_gain

        try:
            sites = information_gain(model, guide, *args, draws=1).sites
        except (ValueError, NotImplementedError) as error:
            warnings.warn(f"`information_every` is off: no information gain here ({error})", stacklevel=3)
            return False
        self.note("information", {name: site.mean for name, site in sites.items() if math.isfinite(site.mean)})
        return True

    @property
    def latest(self) -> str:
        bounds = self.history["bound"][-1:] or self.pending
        shown = [f"bound {bounds[-1]:.2f} nats"] if bounds else []
        for kind in ("information", "evaluation"):
            shown += [f"{k} {v:.2f}" for row in self.history[kind][-1:] for k, v in row.items() if k != "step"]
        return ", ".join(shown)

    def whole_history(self) -> dict[str, list[Any]]:
        """The history with the steps since its last entry."""
        if not self.pending:
            return self.history
        mean = sum(self.pending) / len(self.pending)
        return self.history | {
            "step": [*self.history["step"], self.step],
            "bound": [*self.history["bound"], mean],
        }


@dataclass
class _Kept:
    """The checkpoint file and the step it holds; None before this run has one."""

    path: Path | None
    loop: _Loop
    log: _Log
    settings: dict[str, Any]
    batches: Any
    step: int | None = None

    def save(self) -> None:
        if self.loop.ranks.main:
            record = {"log": asdict(self.log), "hyperparameters": self.settings}
            source = self.batches.state_dict() if hasattr(self.batches, "state_dict") else None
            save_checkpoint(
                self.path, self.loop.model, self.loop.guide, self.loop.optimizer,
                step=self.log.step, record=record, batches=source,
            )  # fmt: skip
        self.step = self.log.step

    def __str__(self) -> str:
        return "none: this run wrote none" if self.step is None else f"{self.path} (step {self.step})"


def _check_settings(objective: Any, steps: int, *every: int | None) -> None:
    if not isinstance(objective, ELBO):
        raise ValueError(f"`objective` must be an ELBO instance, such as Trace_ELBO(); got {objective!r}")
    if steps < 0:
        raise ValueError(f"`steps` must not be negative; got {steps}")
    names = ("evaluate_every", "information_every", "checkpoint_every")
    for name, value in zip(names, every, strict=True):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}")
