"""The optimizers that `optimization.optimizer` names, made for the device that the adapter's weights are on.

All take the learning rate from `group["lr"]` before each step and decouple weight decay, and one learning rate does for
all of them. Second door to bitsandbytes, beside `backends.nf4`.
"""

import warnings
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from backends.devices import Device
from backends.errors import BackendUnavailable

#: Adam's averages of gradients and squares; of the 8-bit one too.
_BETAS = (0.9, 0.999)

#: Tensors below this stay in 32 bits, as bitsandbytes advises. LoRA's matrices of real models are larger; those of one
#: dimension (DoRA's magnitudes) and tiny models would save nothing that counts.
_SMALLEST_IN_8_BITS = 4096

#: Adafactor's two. The first guards divisions: torch's own (1e-7) is larger than the mean square of an adapter's
#: clipped gradient, which it would flatten. The second is the least size by which steps are scaled: LoRA's B is zero
#: at first and would hardly move. At 1 the step is the learning rate itself, as AdamW's is (DoRA's magnitudes, the only
#: ones above 1, take steps relative to their size). benchmarks/optimizers.py: with torch's own the loss stays put.
_ADAFACTOR_EPS = (1e-15, 1.0)

#: Parts of a state that are one table for all parameters: what the 8-bit codes stand for.
TABLES = frozenset({"qmap1", "qmap2"})

_INSTEAD = "set optimization.optimizer to adamw or adafactor."


def check(name: str, device: Device) -> str | None:
    """None when the optimizer `name` runs on `device` of this machine; otherwise one sentence that says why not."""
    if name != "adamw8bit":
        return None
    if find_spec("bitsandbytes") is None:
        return f"The optimizer adamw8bit needs bitsandbytes, which is not installed on this machine: {_INSTEAD}"
    return _cannot_step(device.value)


def make(name: str, parameters: Iterable[Any], *, learning_rate: float, weight_decay: float) -> Any:
    """The optimizer `name` over `parameters`, all of one device.

    Args:
        name: adamw, adamw8bit or adafactor.
        parameters: Them, or groups of them as torch takes groups: a mapping with the key `params` each.
        learning_rate: Of all of them.
        weight_decay: Decoupled; of all of them.

    Returns:
        A `torch.optim.Optimizer`. Its state holds, for each parameter, tensors and integers only.

    Raises:
        BackendUnavailable: what `check` would have said.
    """
    import torch

    parameters = list(parameters)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, betas=_BETAS)
    if name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=learning_rate, weight_decay=weight_decay, eps=_ADAFACTOR_EPS)
    if name == "adamw8bit":
        first = parameters[0]["params"][0] if isinstance(parameters[0], dict) else parameters[0]
        sentence = check(name, Device(first.device.type))
        if sentence is not None:
            raise BackendUnavailable(sentence)
        return _adamw8bit(parameters, learning_rate, weight_decay)
    raise BackendUnavailable(
        f"There is no optimizer {name}: set optimization.optimizer to adamw, adamw8bit or adafactor."
    )


def has_codes(state: Mapping[str, Any]) -> bool:
    """Whether the state of a parameter is held in 8-bit codes, which mean nothing without the tables."""
    import torch

    return any(getattr(value, "dtype", None) == torch.uint8 for value in state.values())


def _adamw8bit(parameters: list[Any], learning_rate: float, weight_decay: float) -> Any:
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(
        parameters,
        lr=learning_rate,
        weight_decay=weight_decay,
        betas=_BETAS,
        min_8bit_size=_SMALLEST_IN_8_BITS,
    )


def _cannot_step(device: str) -> str | None:
    """Take one step on the device: which kernels an installed version has, only it knows."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weight = torch.nn.Parameter(torch.zeros(_SMALLEST_IN_8_BITS, device=device))
            weight.grad = torch.ones_like(weight)
            optimizer = _adamw8bit([weight], 1e-3, 0.0)
            optimizer.step()
            # A fallback that works on copies may move the weight and forget the state, or neither.
            moved = bool((weight < 0).all() and (optimizer.state[weight]["absmax1"] > 0).all())
    except (AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError):
        moved = False
    if not moved:
        return f"This machine's bitsandbytes has no 8-bit AdamW on {device}: {_INSTEAD}"
    return None
