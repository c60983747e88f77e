"""The processes that train one model together: what ``fit`` needs to know and say among them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pyro
import torch
import torch.distributed
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pyro_memory.gate import checked


@checked
class Ranks:
    """Is this process among those that ``torchrun`` started; alone without it.

    Attributes:
        size: how many processes there are.
        rank: which one this is; 0 writes files and shows progress.
        divided: whether they share each batch because a memory is divided over them, instead of taking batches in turn.
        streams: what the random streams of the other processes are made from; None before it is drawn.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
        if started and not torch.distributed.is_initialized():
            on_cuda = device is not None and torch.device(device).type == "cuda"
            if on_cuda:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            torch.distributed.init_process_group("nccl" if on_cuda else "gloo")
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.size = torch.distributed.get_world_size() if together else 1
        self.rank = torch.distributed.get_rank() if together else 0
        self.divided = False
        self.streams: int | None = None
        self._device = "cpu" if not together or torch.distributed.get_backend() == "gloo" else "cuda"

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, step: int) -> int:
        """The number of the batch that this process takes at a step."""
        return step if self.divided else step * self.size + self.rank

    def draw_streams(self) -> int:
        """Draws in the first process, whose stream stays where it is, what the streams of the others are made from."""
        with torch.random.fork_rng(devices=[]):
            drawn = int(torch.randint(2**31, (), device="cpu"))
        return int(self.mean(float(drawn * self.size if self.main else 0)))

    def begin_step(self, step: int) -> None:
        """Gives the other processes streams of their own, made from the step's number: no file has to hold them."""
        if self.rank and self.streams is not None and not self.divided:
            pyro.set_rng_seed((self.streams + step * self.size + self.rank) % 2**32)

    def mean(self, value: float) -> float:
        """Averages over processes."""
        return value if self.size == 1 else self._reduced(value, torch.distributed.ReduceOp.SUM) / self.size

    def any(self, flag: bool) -> bool:
        """Whether it is true in some process: then all stop at the same step."""
        return flag if self.size == 1 else bool(self._reduced(float(flag), torch.distributed.ReduceOp.MAX))

    def _reduced(self, value: float, operation: Any) -> float:
        tensor = torch.tensor(value, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(tensor, operation)
        return tensor.item()

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def gradients(
        self, objective: ELBO, model: Callable[..., Any], guide: Callable[..., Any], trained: nn.Module
    ) -> Callable[..., Any]:
        """Gives the function that computes the loss and adds its gradient, averaged over processes.

        Raises:
            ValueError: for an objective without ``differentiable_loss``, where there are several processes.
        """
        if self.size == 1:
            return lambda *args: objective.loss_and_grads(model, guide, *args)
        if not hasattr(objective, "differentiable_loss"):
            raise ValueError(
                f"`objective` must have differentiable_loss to train in several processes, as Trace_ELBO and VIMCO do; "
                f"got {type(objective).__name__}"
            )
        # Some parameters may take no part in a step, which must not make the others wait for them.
        parallel = DistributedDataParallel(_Loss(objective, model, guide, trained), find_unused_parameters=True)

        def loss_and_grads(*args: Any) -> float:
            loss = parallel(*args)
            loss.backward()
            return loss.item()

        return loss_and_grads


class _Loss(nn.Module):
    """The objective as the forward pass of a module that owns what it trains."""

    def __init__(
        self, objective: ELBO, model: Callable[..., Any], guide: Callable[..., Any], trained: nn.Module
    ) -> None:
        super().__init__()
        self.trained = trained
        self._pair = (objective, model, guide)  # in a tuple, where they do not register a second time

    def forward(self, *args: Any) -> Tensor:
        objective, model, guide = self._pair
        return objective.differentiable_loss(model, guide, *args)
