"""The training loop: SVI with a torch optimizer, exact resume, and a clear stop."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.inference import KeepFrozen
from pyro_memory.training.batches import Epochs, arguments, stream, warn_of_order
from pyro_memory.training.checkpoints import batches_of, read, restore
from pyro_memory.training.counting import DataCount
from pyro_memory.training.kept import Kept, probe
from pyro_memory.training.log import Log
from pyro_memory.training.loop import Loop, as_trained, aside, make_parameters
from pyro_memory.training.matching import module_of
from pyro_memory.training.optimizers import OptimizerMaker, make_optimizer
from pyro_memory.training.ranks import Ranks
from pyro_memory.training.result import FitResult
from pyro_memory.training.run import Run
from pyro_memory.training.schedules import Schedule, check_schedule


@checked
def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batches: Any,
    objective: ELBO,
    *,
    steps: int,
    further: Sequence[Any] = (),
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    optimizer: OptimizerMaker = torch.optim.Adam,
    schedule: Schedule | None = None,
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
    and one pass of model and guide at the start, which makes lazy parameters and tells what does not fit together.

    Under ``torchrun`` all processes train one model: at a step each takes a batch of its own, the next in turn, and
    gradients are averaged (DistributedDataParallel around the objective). The first process writes the checkpoint,
    measures and shows the bar; a signal to any stops all after the same step. A run goes on bit for bit with as many
    processes, unless its batches have ``state_dict``: all take up the first one's. With another number it counts the
    same steps, with other batches and noise. A ``ShardedMemory`` in the first batch makes all take the same batches.

    Args:
        model: a module, or a method of one; trained in training mode (a part that alone is in evaluation mode stays
            so). Modes and ``grad`` are afterwards as they were; what is frozen stays so.
        guide: likewise, or a plain function without parameters.
        batches: the positional arguments of model and guide, as a tuple: ``batches[step]`` (modulo its length, if it
            has one), or ``batches(step)``; these two resume exactly. So does a torch ``Dataset`` with ``batch_size``.
            Any other iterable, such as a ``DataLoader``, is started again when it ends and, on resume, read up to where
            it was; one that shuffles then gives another order. A source that changes as it is read, such as a
            ``Lifetime``, has ``state_dict`` and ``load_state_dict`` of tensors, which the checkpoint keeps. Numpy
            arrays and pandas frames become tensors.
        objective: any Pyro objective, such as ``Trace_ELBO()`` or ``VIMCO(num_particles=5)``. The first step walks the
            graph of its loss, and refuses what takes part and would not be trained.
        steps: optimizer steps in total, those before a resume included.
        further: the arguments of model and guide after those of each batch, the same at each step: a fixed memory. The
            checkpoint holds the first store among them, up to 64 MB, for ``load``.
        batch_size: how many items of a torch ``Dataset``, or of ``LabelledImages``, make a batch; each epoch has an
            order of its own, from ``seed`` (0 by default), and leaves out what does not fill a batch.
        learning_rate: handed to the optimizer.
        optimizer: a torch optimizer class, or ``partial(torch.optim.AdamW, weight_decay=...)``; on resume its state
            goes to the parameters of the same names, see ``load_checkpoint``.
        schedule: gives the factor on the learning rate for a step, counted from 0.
        clip_norm: the largest norm that the whole gradient may have; clipped rightly where its square overflows.
        evaluate: gives numbers to keep, from the count of steps taken; it runs in evaluation mode, without gradients,
            and its random draws leave training unchanged.
        evaluate_every: steps between evaluations; one more comes at the end.
        information_every: steps between measurements of each site's information gain; None turns them off.
        checkpoint: the safetensors file to keep, see ``save_checkpoint``; whether it can be written is tried before the
            first step. Where a later write fails, a warning tells which step the file holds, and training goes on. An
            error from a batch, a measurement or the objective leaves with a note on it, after the file is written.
        checkpoint_every: steps between writes; one more comes at the end.
        resume: go on from the file if it exists; otherwise it is replaced at the first write.
        seed: sets Pyro's seeds at the start, not on resume.
        device: where to move model, guide and batches.
        progress: show a bar with the bound, in nats per datum where plates tell how many data a call explains.

    Raises:
        TypeError: if an argument is of another type, or ``batches`` gives what model or guide cannot be called with.
        ValueError: if an argument is unusable, sites of model and guide do not fit together or in their plates,
            something that takes part in the objective would not train or nothing does, the checkpoint cannot be
            written, is damaged or of another model.
        FloatingPointError: if the loss or the gradient is not finite, whichever it is. The parameters are those before
            that step, the checkpoint is the last one written.
    """
    _check_settings(steps, learning_rate, clip_norm, seed)
    _check_intervals(
        evaluate_every=evaluate_every, information_every=information_every, checkpoint_every=checkpoint_every
    )
    check_schedule(schedule)
    ranks = Ranks(device)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and ranks.main:
        probe(path)
    resuming = resume and path is not None and path.exists()
    content = read(path) if resuming else ({}, {})  # once, as another process may replace the file
    log = Log(**content[0]["record"]["log"]) if resuming else Log()
    if seed is not None and not resuming:
        pyro.set_rng_seed(seed)

    modules = {id(m): m for m in map(module_of, (model, guide)) if m is not None}
    with as_trained(modules.values()):
        trained = nn.ModuleList(modules.values()).to(device)
        further = arguments(further, device)
        if batch_size is not None:
            batches = Epochs(batches, batch_size, seed or 0)
        batch_at, first_batch = stream(batches, log.step, ranks)
        with aside(trained), KeepFrozen(), DataCount() as count:
            args = arguments(first_batch(), device, further)
            make_parameters(model, guide, trained, objective, args)
        ranks.divided = any(getattr(a, "divided", False) for a in args)
        parameters = _to_train(model, guide)
        made = make_optimizer(optimizer, [*parameters.values()], learning_rate)
        compute = ranks.gradients(objective, model, guide, trained)
        places = {"model": model, "guide": guide, "batches": batches, "objective": objective}
        loop = Loop(model, guide, compute, parameters, made, clip_norm, ranks, places, count.data)
        log.unit = count.unit
        settings = {"learning_rate": learning_rate, "clip_norm": clip_norm, "seed": seed, "batch_size": batch_size}
        kept = Kept(path, loop, log, settings, batches, further)
        if resuming:
            warn_of_order(content[0]["record"].get("hyperparameters", {}), settings)
            restore(path, content, model, guide, made)
            if hasattr(batches, "load_state_dict"):
                batches.load_state_dict(batches_of(content[1]))
            kept.step = log.step
            del content
        ranks.wait()  # until all have read the file that the first may write
        log.streams = ranks.draw_streams() if log.streams is None else log.streams
        ranks.streams = log.streams
        run = Run(
            loop, log, kept, trained, batch_at, further, device, steps, learning_rate, schedule,
            evaluate, evaluate_every, information_every, checkpoint_every,
        )  # fmt: skip
        stop = run.go(progress)
        ranks.wait()  # until the file is there
    if stop == signal.SIGINT:
        raise KeyboardInterrupt(f"stopped after step {log.step}; the last good checkpoint is {kept}")
    if stop:
        raise SystemExit(128 + stop)
    return FitResult(log.step, log.seconds, log.cpu_seconds, log.whole_history(), kept.file, log.units, log.unit)


def _to_train(model: Callable[..., Any], guide: Callable[..., Any]) -> dict[str, Tensor]:
    """The parameters that are not frozen, each by its first name in a checkpoint."""
    named: dict[int, tuple[str, Tensor]] = {}
    for role, module in (("model", module_of(model)), ("guide", module_of(guide))):
        for name, parameter in () if module is None else module.named_parameters():
            named.setdefault(id(parameter), (f"{role}.{name}", parameter))
    parameters = {name: p for name, p in named.values() if p.requires_grad}
    if not parameters:
        raise ValueError(
            "`model` and `guide` must have a parameter to train; all are frozen. Call `requires_grad_(True)` on some"
        )
    return parameters


def _check_settings(steps: int, learning_rate: float, clip_norm: float | None, seed: int | None) -> None:
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise ValueError("`fit` must be called where gradients are on; it is inside torch.no_grad or inference_mode")
    if steps < 0:
        raise ValueError(f"`steps` must not be negative; got {steps}")
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"`learning_rate` must be finite and not negative; got {learning_rate}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"`clip_norm` must be positive, or None to leave gradients as they are; got {clip_norm}")
    if seed is not None and not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must lie in [0, 2**32); got {seed}")


def _check_intervals(**every: int | None) -> None:
    for name, value in every.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}")
