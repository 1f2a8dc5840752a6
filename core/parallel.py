"""What the processes of a data-parallel run must agree on. Knows nothing of networks, gates or schedules."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def averaged(x: Tensor) -> Tensor:
    """Mean of `x` over all processes, the same bits in each; `x` itself where torch.distributed is not in use.

    Same shape and dtype everywhere; without gradient. Every process must call it as often and in the same order.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
