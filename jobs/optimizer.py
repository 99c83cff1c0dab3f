"""AdamW on the adapter's weights, its state kept by parameter name in safetensors.

By name and not by number, so that a run begun on one machine goes on under another backend; nothing is pickled.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from jobs.checkpoint import CheckpointDamaged
from jobs.spec import OptimizationSection

FILE = "optimizer.safetensors"


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name: the only ones that require gradients."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(model: Any, section: OptimizationSection) -> torch.optim.AdamW:
    """AdamW over the adapter; the base has no part in it."""
    return torch.optim.AdamW(
        trainable(model).values(), lr=section.learning_rate, weight_decay=section.weight_decay, betas=(0.9, 0.999)
    )


def save_optimizer(optimizer: Any, model: Any, folder: Path) -> None:
    """Write the optimizer's state to `folder`; empty before the first step."""
    states = optimizer.state_dict()["state"]
    tensors = {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for number, name in enumerate(trainable(model))
        for key, value in states.get(number, {}).items()
    }
    save_file(tensors, folder / FILE)


def load_optimizer(optimizer: Any, model: Any, folder: Path) -> None:
    """Put back what `save_optimizer` wrote; tensors move to their parameter's device.

    Raises:
        CheckpointDamaged: the state belongs to other parameters.
    """
    numbers = {name: number for number, name in enumerate(trainable(model))}
    states: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, tensor in load_file(folder / FILE).items():
        name, _, key = full_name.rpartition("/")
        if name not in numbers:
            raise CheckpointDamaged(f"Checkpoint {folder} holds optimizer state of {name}, which this model lacks.")
        states.setdefault(numbers[name], {})[key] = tensor
    if states:
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
