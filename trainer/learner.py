"""One step of learning, and all that it changes: weights, optimizer, average, loss scale."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from packshot.errors import DamagedFile, InvalidInput
from trainer.average import Average
from trainer.hardware import Hardware
from trainer.log import say
from trainer.model import PixelNetwork
from trainer.objective import mixing_for, summed_loss
from trainer.optimizer import new_optimizer, set_learning_rate
from trainer.recipes import FEWEST_FOR_BATCHNORM, Recipe

# With fewer images in each process, BatchNorm takes its statistics over all of them.
FEW_IN_A_PROCESS = 16


class Scalars(msgspec.Struct, frozen=True, kw_only=True):
    """What of a learner's state is no tensor."""

    taken: int
    parts: int
    scaler: dict[str, int | float]


class Learner:
    """Takes steps. `weight`: of each class in the loss; `steps`: of the whole run, for the average.

    A batch is worked through in parts, whose gradients add up: as many as the recipe says, and
    twice as many each time that the GPU's memory does not hold one.
    """

    def __init__(
        self,
        network: PixelNetwork,
        recipe: Recipe,
        hardware: Hardware,
        *,
        weight: torch.Tensor,
        steps: int,
    ) -> None:
        self._recipe, self._hardware = recipe, hardware
        network.to(hardware.device).to(memory_format=torch.channels_last)
        network.freeze(recipe.frozen_stages, batchnorm=recipe.frozen_batchnorm)
        self.network = _with_shared_statistics(network, recipe, hardware)
        self._shared = _shared(self.network, hardware)
        inner = self._shared or self.network
        self._forward = torch.compile(inner) if hardware.compiled else inner
        self._optimizer = new_optimizer(self.network, recipe)
        self._average = Average(self.network, steps) if recipe.ema else None
        in_half = hardware.autocast is torch.float16
        self._scaler = torch.amp.GradScaler(hardware.device.type, enabled=in_half)
        self._weight = weight.to(hardware.device)
        self._mix = mixing_for(recipe, len(weight))
        self._parts = recipe.accumulate
        self._taken = 0
        self.network.train()

    @property
    def candidate(self) -> PixelNetwork:
        """What is evaluated and kept: the average of the weights, if there is one."""
        return self.network if self._average is None else self._average.network

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, learning_rate_share: float
    ) -> torch.Tensor:
        """Learns from this process's share of a batch, uint8 [N, H, W, 3]; returns its mean loss.

        The loss stays on the device: reading it means waiting for it. Raises InvalidInput if not
        even one image at a time fits into the GPU's memory.
        """
        set_learning_rate(self._optimizer, learning_rate_share)
        device = self._hardware.device
        images, targets = self._mix(
            images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        )
        while (loss := self._gradients(images, targets)) is None:
            self._take_smaller_parts(len(images))
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self._recipe.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        self._taken += 1
        if self._average is not None:
            self._average.update(self.network, self._taken)
        return loss

    def _gradients(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """Adds up the gradients of the parts; the mean loss, or None if memory ran out."""
        total = torch.zeros((), device=images.device)
        parts = list(zip(images.chunk(self._parts), targets.chunk(self._parts), strict=True))
        try:
            for number, (some, wanted) in enumerate(parts, start=1):
                with self._exchange(number == len(parts)):
                    loss = self._loss(some, wanted) / len(images)
                    self._scaler.scale(loss).backward()
                total += loss.detach()
        except torch.OutOfMemoryError:
            return None
        return total

    def _loss(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        half = self._hardware.autocast
        with torch.autocast(images.device.type, half, enabled=half is not None):
            logits, _ = self._forward(images)
        return summed_loss(logits, targets, self._weight, self._recipe)

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients with the last part of a batch only."""
        return nullcontext() if last or self._shared is None else self._shared.no_sync()

    def _take_smaller_parts(self, images: int) -> None:
        if self._hardware.processes.count > 1:  # the others wait for gradients
            raise InvalidInput(
                f"the GPU's memory does not hold {-(-images // self._parts)} images at a time: set "
                f"--batch-size {self._recipe.batch_size // 2} --accumulate {2 * self._parts}: the "
                "same steps in smaller parts"
            )
        if self._parts >= images:
            raise InvalidInput(
                "the GPU's memory does not hold a single image: free it of other programs, or "
                "choose a smaller --arch"
            )
        self._optimizer.zero_grad()
        if self._hardware.gpu:
            torch.cuda.empty_cache()
        self._parts *= 2
        at_once = -(-images // self._parts)
        few = at_once < FEWEST_FOR_BATCHNORM and not self._recipe.frozen_batchnorm
        say(
            f"out of GPU memory: going on with {at_once} images at a time, in {self._parts} parts a"
            f" step{'; BatchNorm averages over so few' if few else ''}"
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of its state, by name; with `scalars` enough to go on from here."""
        networks = {"network": self.network}
        if self._average is not None:
            networks["average"] = self._average.network
        found = {
            f"{kind}.{name}": value
            for kind, network in networks.items()
            for name, value in network.state_dict().items()
        }
        for number, state in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        return found

    def scalars(self) -> Scalars:
        return Scalars(taken=self._taken, parts=self._parts, scaler=self._scaler.state_dict())

    def restore(self, tensors: Mapping[str, torch.Tensor], scalars: Scalars) -> None:
        """Goes on from where these were taken. Raises DamagedFile if they do not fit."""
        try:
            self.network.load_state_dict(_named(tensors, "network"))
            if self._average is not None:
                self._average.network.load_state_dict(_named(tensors, "average"))
            self._optimizer.load_state_dict(self._optimizer_state(_named(tensors, "optimizer")))
        except (RuntimeError, ValueError, IndexError) as error:
            raise DamagedFile(f"the state does not fit the network: {error}") from error
        if scalars.scaler:
            self._scaler.load_state_dict(dict(scalars.scaler))
        self._parts, self._taken = scalars.parts, scalars.taken

    def _optimizer_state(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        groups = self._optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            number, moment = name.split(".", 1)
            like = parameters[int(number)]
            if value.shape == like.shape:  # laid out as the weights are, which fused kernels want
                value = torch.empty_like(like).copy_(value)
            state.setdefault(int(number), {})[moment] = value
        return {"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]}


def _named(tensors: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{kind}."
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def _with_shared_statistics(
    network: PixelNetwork, recipe: Recipe, hardware: Hardware
) -> PixelNetwork:
    """On several GPUs, BatchNorm over all of a batch, if a process's share of it is small."""
    processes = hardware.processes
    each = recipe.batch_size // processes.count
    if processes.count == 1 or not hardware.gpu or each >= FEW_IN_A_PROCESS:
        return network
    convert: Callable[[nn.Module], Any] = nn.SyncBatchNorm.convert_sync_batchnorm
    converted: PixelNetwork = convert(network)
    converted.freeze(recipe.frozen_stages, batchnorm=recipe.frozen_batchnorm)  # the new layers
    return converted


def _shared(network: PixelNetwork, hardware: Hardware) -> DistributedDataParallel | None:
    if hardware.processes.count == 1:
        return None
    return DistributedDataParallel(network, [hardware.device] if hardware.gpu else None)
