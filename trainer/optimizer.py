"""The optimizer: a learning rate for each stage of the network."""

import torch
from torch import nn

from trainer.model import PixelNetwork
from trainer.recipes import Recipe


def new_optimizer(network: PixelNetwork, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; a rate of its own for each stage of the backbone and for the new head.

    No weight decay on biases, normalisation, class token and positions; nothing for what is frozen.
    """
    stages = list(network.stage_parameters())
    parts = [
        (parameters, recipe.stage_decay ** (len(stages) - 1 - i))
        for i, parameters in enumerate(stages)
    ]
    parts.append((list(network.head.named_parameters()), recipe.head_learning_rate_factor))
    groups = []
    for parameters, factor in parts:
        learnt = [(name, p) for name, p in parameters if p.requires_grad]
        for decayed, decay in ((True, recipe.weight_decay), (False, 0.0)):
            rate = recipe.learning_rate * factor
            chosen = [p for name, p in learnt if has_weight_decay(name, p) == decayed]
            groups.append({"params": chosen, "weight_decay": decay, "lr": rate, "peak_lr": rate})
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def has_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith(("class_token", "pos_embedding"))


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
