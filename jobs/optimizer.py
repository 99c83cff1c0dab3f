"""The optimizer of the adapter's weights, its state kept by parameter name in safetensors.

By name and not by number, so that a run begun on one machine goes on under another backend; nothing is pickled. What
several parameters share (the tables of 8-bit codes) is written once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from backends import optimizers
from backends.devices import Device
from backends.errors import BackendUnavailable
from jobs.checkpoint import CheckpointDamaged
from jobs.spec import OptimizationSection

FILE = "optimizer.safetensors"

#: Stands for the parameter's name where all parameters have the same tensor.
_ALL = "*"


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name: the only ones that require gradients."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def refuse_unavailable(section: OptimizationSection, device: Device, *, resumes: bool) -> None:
    """Say before a model is loaded that the optimizer cannot run here.

    Raises:
        BackendUnavailable: with what to set; a run that `resumes` can only go on where its optimizer runs.
    """
    sentence = optimizers.check(section.optimizer, device)
    if sentence is not None and resumes:
        sentence = (
            f"{sentence.removesuffix('.')} for a new run; this one began with {section.optimizer} "
            "and goes on where that is available."
        )
    if sentence is not None:
        raise BackendUnavailable(sentence)


def make_optimizer(model: Any, section: OptimizationSection) -> Any:
    """The optimizer that the configuration names, over the adapter; the base has no part in it."""
    return optimizers.make(
        section.optimizer,
        _groups(model, section.lora_plus_ratio),
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
    )


def _groups(model: Any, ratio: float | None) -> list[dict[str, Any]]:
    """The parameters, those that LoRA+ moves faster apart: B, which starts at zero (Hayou et al. 2024)."""
    parameters = trainable(model)
    if ratio is None:
        return [{"params": list(parameters.values())}]
    faster = [parameter for name, parameter in parameters.items() if _is_b(name)]
    others = [parameter for name, parameter in parameters.items() if not _is_b(name)]
    return [{"params": others}, {"params": faster, "factor": ratio}]


def _is_b(name: str) -> bool:
    """Whether PEFT calls a parameter so that it is the second matrix of an adapter."""
    return ".lora_B." in name or ".lora_embedding_B." in name


def set_rate(optimizer: Any, lr: float) -> None:
    """Give every group of parameters the learning rate `lr`, times the group's own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def save_optimizer(optimizer: Any, model: Any, folder: Path) -> None:
    """Write the optimizer's state to `folder`; empty before the first step."""
    tensors = {}
    for name, parameter in trainable(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            owner = _ALL if key in optimizers.TABLES else name
            tensors[f"{owner}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, folder / FILE)


def load_optimizer(optimizer: Any, model: Any, folder: Path) -> None:
    """Put back what `save_optimizer` wrote; tensors move to their parameter's device.

    Raises:
        CheckpointDamaged: the state belongs to other parameters.
    """
    parameters = trainable(model)
    numbers = _numbers(optimizer, parameters)
    states: dict[int, dict[str, Any]] = {}
    tables: dict[str, torch.Tensor] = {}
    for full_name, tensor in load_file(folder / FILE).items():
        name, _, key = full_name.rpartition("/")
        if name == _ALL:
            tables[key] = tensor.to(next(iter(parameters.values())).device)
        elif name not in numbers:
            raise CheckpointDamaged(f"Checkpoint {folder} holds optimizer state of {name}, which this model lacks.")
        else:
            states.setdefault(numbers[name], {})[key] = _value(tensor)
    for state in states.values():
        if optimizers.has_codes(state):
            state.update(tables)
    if states:
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _numbers(optimizer: Any, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, int]:
    """The number under which torch keeps the state of each parameter: it counts group by group."""
    places = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    by_parameter = {place: number for number, place in enumerate(places)}
    return {name: by_parameter[id(parameter)] for name, parameter in parameters.items()}


def _value(tensor: torch.Tensor) -> torch.Tensor | int:
    """Numbers were written as int64; the step counters that are tensors in memory too are float (torch's own)."""
    return int(tensor) if tensor.ndim == 0 and tensor.dtype == torch.int64 else tensor
