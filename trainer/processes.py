"""Several training processes as one, as `torchrun` starts them; one alone is the ordinary case."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import msgspec
import numpy as np
import torch
from torch import distributed

from packshot.errors import InvalidInput, ServiceFailed
from packshot.prediction import Logits

# The others wait while the first one scans the data and fills the cache.
TIMEOUT = timedelta(hours=4)

Item = TypeVar("Item")


class Processes(msgspec.Struct, frozen=True):
    """This process among `count`; `rank` counts over all machines, `local_rank` on this one.

    What they tell each other travels by gloo, on the CPU, gradients on GPUs by NCCL. Nothing is
    pickled.
    """

    rank: int = 0
    local_rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """The one that writes files and talks to people."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th of the items, beginning with the `rank`-th."""
        return items[self.rank :: self.count]

    def greatest(self, number: int) -> int:
        """Of the processes' numbers. All of them must ask."""
        if self.count == 1:
            return number
        numbers = torch.tensor([number])
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return int(numbers.item())

    def mean(self, value: float) -> float:
        """Over the processes. All of them must ask."""
        if self.count == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(total)
        return float(total.item()) / self.count

    def gathered(self, rows: Logits, total: int) -> Logits:
        """The rows [total, width] of which each process has its share; the same in all of them."""
        if self.count == 1:
            return rows
        width = torch.tensor([rows.shape[1] if len(rows) else 0])
        distributed.all_reduce(width, distributed.ReduceOp.MAX)  # a share may be empty
        mine = torch.zeros(-(-total // self.count), int(width.item()))
        mine[: len(rows)] = torch.from_numpy(rows)
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        distributed.all_gather(parts, mine)
        together = np.empty((total, mine.shape[1]), np.float32)
        for rank, part in enumerate(parts):
            length = len(range(rank, total, self.count))
            together[rank :: self.count] = part[:length].numpy()
        return together

    def from_first(self, make: Callable[[], bytes]) -> bytes:
        """What `make` gives in the first process, in all; the others wait for it.

        Raises in the first process what `make` raises, and ServiceFailed in the others.
        """
        if self.count == 1:
            return make()
        if not self.first:
            content = _received()
            if not content:
                raise ServiceFailed("the first process gave up: its error says why")
            return content
        try:
            content = make()
        except BaseException:
            _send(b"")  # or the others would wait for hours
            raise
        _send(content)
        return content

    def in_turn(self, act: Callable[[], Item]) -> Item:
        """The first process acts, then the others do, and find what it wrote. Raises as above."""
        done: list[Item] = []

        def act_first() -> bytes:
            done.append(act())
            return b"done"

        self.from_first(act_first)
        return done[0] if done else act()

    def same_as_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites the tensors by those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)


def join(environment: Mapping[str, str]) -> Processes:
    """Joins the others, if `torchrun` started this process. Raises InvalidInput."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Processes()
    backend = "gloo"
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise InvalidInput(
                f"process {local_rank} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}: start torchrun with --nproc-per-node gpu"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    return Processes(distributed.get_rank(), local_rank, distributed.get_world_size())


def leave(processes: Processes) -> None:
    """All at once: who leaves early may wait for the others. After an error nobody must."""
    if processes.count > 1:
        distributed.destroy_process_group()


def _send(content: bytes) -> None:
    distributed.broadcast(torch.tensor([len(content)]), 0)
    if content:
        distributed.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0)


def _received() -> bytes:
    length = torch.zeros(1, dtype=torch.int64)
    distributed.broadcast(length, 0)
    content = torch.empty(int(length.item()), dtype=torch.uint8)
    if len(content):
        distributed.broadcast(content, 0)
    return content.numpy().tobytes()
