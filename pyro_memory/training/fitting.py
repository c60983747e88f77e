"""The training loop: SVI with a torch optimizer, exact resume, and a clear stop."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import nn
from tqdm import tqdm

from pyro_memory.diagnostics import Axes, axes_or_new
from pyro_memory.gate import checked
from pyro_memory.inference import KeepFrozen
from pyro_memory.training.batches import arguments, stream
from pyro_memory.training.checkpoints import load_batches, load_checkpoint, module_of, read_header
from pyro_memory.training.kept import Kept
from pyro_memory.training.log import Log
from pyro_memory.training.loop import Loop, aside, make_optimizer, make_parameters
from pyro_memory.training.ranks import Ranks
from pyro_memory.training.signals import deferred_signals


@checked
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

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the bound against the step on ``ax``, or on new axes, and returns them."""
        ax = axes_or_new(ax)
        ax.plot(self.history["step"], self.history["bound"])
        ax.set(xlabel="step", ylabel="bound (nats per call)")
        return ax


@checked
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
    log = Log(**read_header(path)["record"]["log"]) if resuming else Log()
    if seed is not None and not resuming:
        pyro.set_rng_seed(seed)

    modules = {id(m): m for m in map(module_of, (model, guide)) if m is not None}
    trained = nn.ModuleList(modules.values()).to(device)
    batch_at, first_batch = stream(batches, log.step, ranks)
    with aside(trained), KeepFrozen():
        args = arguments(first_batch(), device)
        make_parameters(model, guide, trained, args)
    ranks.divided = any(getattr(a, "divided", False) for a in args)
    parameters = [p for p in trained.parameters() if p.requires_grad]
    compute = ranks.gradients(objective, model, guide, trained)
    loop = Loop(
        model, guide, compute, parameters, make_optimizer(optimizer, parameters, learning_rate), clip_norm, ranks
    )
    kept = Kept(path, loop, log, {"learning_rate": learning_rate, "clip_norm": clip_norm, "seed": seed}, batches)
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
    with bar, deferred_signals(path is not None) as signals, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]inf)")  # the loop's own message says more
        stop = ranks.any(bool(signals))
        while log.step < steps and not stop:
            args = arguments(batch_at(log.step), device)
            rate = learning_rate * (1.0 if schedule is None else schedule(log.step))
            log.add(-loop.step(args, log.step, rate, str(kept)))
            if measures and _due(log.step, information_every):
                with aside(trained), torch.no_grad():
                    information_every = information_every if log.inform(model, guide, args) else None
            if measures and evaluate and (_due(log.step, evaluate_every) or log.step == steps):
                with aside(trained), torch.no_grad():
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


def _check_settings(objective: Any, steps: int, *every: int | None) -> None:
    if not isinstance(objective, ELBO):
        raise ValueError(f"`objective` must be an ELBO instance, such as Trace_ELBO(); got {objective!r}")
    if steps < 0:
        raise ValueError(f"`steps` must not be negative; got {steps}")
    names = ("evaluate_every", "information_every", "checkpoint_every")
    for name, value in zip(names, every, strict=True):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}")
