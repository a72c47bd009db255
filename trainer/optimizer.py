"""The optimizer: a learning rate for each stage, and its course over the run."""

import math

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


def learning_rate_share(recipe: Recipe, step: int, steps: int, progress: float) -> float:
    """Share of the peak rate: linear warm-up over steps, times a cosine over the pixels trained on.

    Counting pixels leaves the early, cheap steps on small pictures a high rate for longer.
    """
    warmup = min(1.0, step / max(1.0, recipe.warmup_share * steps))
    low = recipe.final_learning_rate_share
    return warmup * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
