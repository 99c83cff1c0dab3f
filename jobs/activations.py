"""Whether activations are kept or computed again in the backward pass: slower by a third, and far smaller."""

from backends import memory, models
from backends.devices import GIB, Device
from backends.free_memory import free_bytes
from jobs.spec import Config

#: Part of the free memory that the estimate without recomputation may fill: other programs grow too.
_SHARE = 0.8


def choose_checkpointing(config: Config, device: Device, micro_batch: int, sequence_length: int) -> tuple[bool, str]:
    """Whether to recompute activations, and one line for people that says why."""
    choice = config.training.gradient_checkpointing
    if choice != "auto":
        return choice == "on", f"Gradient checkpointing is {choice}, as configured"
    free = int(free_bytes(device) * _SHARE)
    try:
        need = memory.estimate(
            models.load_config(config.model.name, config.model.revision),
            quantization=config.quantization.kind,
            group_size=config.quantization.group_size,
            rank=config.lora.rank,
            target=config.lora.target_modules,
            micro_batch=micro_batch,
            sequence_length=sequence_length,
            checkpointing=False,
            device=device.value,
        ).total
    except ValueError:
        return True, "Gradient checkpointing is on: the memory need of this architecture is not known"
    state, verb = ("on", "would take") if need > free else ("off", "takes")
    return need > free, (
        f"Gradient checkpointing is {state}: without it the training {verb} about {need / GIB:.1f} GiB, "
        f"and {free / GIB:.1f} GiB may be used"
    )
