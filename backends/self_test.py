"""Trains a tiny model on a device and on the CPU and compares: a GPU that computes wrongly must not train for a night.

`python -P -m backends.self_test mps` prints what it found as one JSON object:

    {"device": "mps", "dtype": "float16", "fault": null, "untested": null, "seconds": 2.7,
     "differences": {"loss": 0.0003, "gradient": 0.0021, "recomputed gradient": 0.0, "loss after 4 steps": 0.0009}}

`fault` is a sentence where the device must not be used. The whole path of a training is taken: weights quantised while
they load, adapters, several documents in a row, recomputed activations with dropout, an optimizer.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backends import mps
from backends.contract import AdapterRequest, LoadedModel, ModelRequest
from backends.devices import Device
from backends.errors import RepotuneError

_VOCABULARY = 128
#: Documents of the one row, in tokens.
_DOCUMENTS = (29, 7, 28)
_STEPS = 4
_LEARNING_RATE = 5e-3
_ADAPTER_DROPOUT = 0.2
#: What the loss is multiplied by before the backward pass: small gradients would vanish in fp16.
_LOSS_SCALE = 256.0

#: What loads the model: `load` of a backend.
Load = Callable[[ModelRequest], LoadedModel]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far rounding may take a device from the CPU, relative. Wrong masks or kernels are off by a tenth and more."""

    loss: float
    gradient: float


#: By the type that products are computed in. Rounding alone makes about a quarter of these.
TOLERANCES = {
    "float32": Tolerance(loss=1e-4, gradient=2e-3),
    "float16": Tolerance(loss=2e-3, gradient=2e-2),
    "bfloat16": Tolerance(loss=2e-2, gradient=1e-1),
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a few steps of training came to."""

    dtype: str
    #: Of each step, nats.
    losses: tuple[float, ...]
    #: Of the first step, by the parameter's name: fp32 on the CPU.
    gradients: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a device was found to do."""

    device: str
    dtype: str = ""
    #: Why the device must not be used; None where it computes rightly.
    fault: str | None = None
    #: Why nothing is known; None where it was tested.
    untested: str | None = None
    seconds: float = 0.0
    #: The largest relative differences from the CPU.
    differences: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, line: str) -> "Verdict":
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(**json.loads(line))
        except TypeError as error:
            raise ValueError(str(error)) from error

    @property
    def summary(self) -> str:
        """A few words for a line about the machine."""
        if self.untested:
            return f"not tested: {self.untested}"
        if self.fault:
            return self.fault
        worst = max(self.differences.values(), default=0.0)
        return f"agrees with the CPU within {worst:.2%} in {self.dtype}, {self.seconds:.1f} s"


def main() -> None:
    """Test the device named on the command line."""
    mps.set_environment()
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)  # the matrices are tiny
    print(examine(Device(sys.argv[1])).to_json())  # noqa: T201 - the answer


def examine(device: Device, load: Load | None = None) -> Verdict:
    """Compare `device` with the CPU.

    Args:
        device: Must be there.
        load: Loads the model on it; None takes the int8 backend, which the CPU always takes.
    """
    began = time.perf_counter()
    try:
        verdict = _compare(device, load or _int8())
    except (RepotuneError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        verdict = _failed(device, error)
    return Verdict(**(vars(verdict) | {"seconds": round(time.perf_counter() - began, 2)}))


def _failed(device: Device, error: Exception) -> Verdict:
    from backends.gguf_cache import first_line
    from backends.hardware import is_out_of_memory

    if is_out_of_memory(error):
        return Verdict(device=device.value, untested=f"{device} has no free memory now")
    fault = f"{device} cannot train a tiny model ({first_line(error)}): update PyTorch and the driver or system."
    return Verdict(device=device.value, fault=fault)


def _compare(device: Device, load: Load) -> Verdict:
    differences: dict[str, float] = {}
    dtype = ""
    for family in ("starcoder2", "llama"):
        with tempfile.TemporaryDirectory(prefix="repotune-self-test-") as name:
            folder = Path(name)
            _save_model(family, folder)
            expected = _train(_int8()(_request(folder, Device.CPU)))
            request = _request(folder, device)
            found = _train(load(request))
            request = replace(request, adapter=replace(request.adapter, dropout=_ADAPTER_DROPOUT))
            plain = _train(load(request), steps=1)
            recomputed = _train(load(replace(request, gradient_checkpointing=True)), steps=1)
        dtype = found.dtype
        for quantity, difference, allowed in _differences(expected, found, plain, recomputed):
            differences[quantity] = max(differences.get(quantity, 0.0), difference)
            if not difference <= allowed:  # NaN too is a fault
                fault = _sentence(device, quantity, difference, allowed)
                return Verdict(device=device.value, dtype=dtype, fault=fault, differences=differences)
    return Verdict(device=device.value, dtype=dtype, differences=differences)


def _differences(
    expected: Trained, found: Trained, plain: Trained, recomputed: Trained
) -> Iterator[tuple[str, float, float]]:
    """Each quantity, by how much the device is off, and how much may be rounding."""
    allowed = TOLERANCES[found.dtype]
    yield "loss", _relative(found.losses[0], expected.losses[0]), allowed.loss
    yield "gradient", _largest(found.gradients, expected.gradients), allowed.gradient
    yield "recomputed gradient", _largest(recomputed.gradients, plain.gradients), allowed.gradient
    yield f"loss after {_STEPS} steps", _relative(found.losses[-1], expected.losses[-1]), 2 * allowed.loss


def _sentence(device: Device, quantity: str, difference: float, allowed: float) -> str:
    than = "the one without recomputing activations" if quantity.startswith("recomputed") else "the CPU's"
    return (
        f"{device} computes wrongly here: the {quantity} of a tiny model differs from {than} by {difference:.1%}, "
        f"and rounding explains {allowed:.1%} at most. Update PyTorch and the driver or system, or use --device cpu."
    )


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


def _largest(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest relative difference of a tensor; small tensors are measured against the largest one too."""
    if found.keys() != expected.keys():
        return math.nan
    largest = max(float(gradient.norm()) for gradient in expected.values())
    differences = [
        float((found[name] - gradient).norm()) / (float(gradient.norm()) + 0.05 * largest)
        for name, gradient in expected.items()
    ]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _request(folder: Path, device: Device) -> ModelRequest:
    return ModelRequest(name=str(folder), adapter=AdapterRequest(rank=4, alpha=8), device=device, group_size=32)


def _int8() -> Load:
    from backends.int8.backend import Int8

    return Int8().load


def _save_model(family: str, folder: Path) -> None:
    """Two layers with random weights, large enough for every part to matter, rounded so that fp16 holds them."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Starcoder2Config

    sizes: dict[str, Any] = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    no_dropout: dict[str, Any] = {"residual_dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0}
    config = Starcoder2Config(**sizes, **no_dropout) if family == "starcoder2" else LlamaConfig(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(folder)


def _train(loaded: LoadedModel, steps: int = _STEPS) -> Trained:
    import torch

    model = loaded.model.train()
    parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    _fill(parameters)
    optimizer = torch.optim.AdamW(parameters.values(), lr=_LEARNING_RATE, weight_decay=0.0)
    scale = _LOSS_SCALE if loaded.compute_dtype is torch.float16 else 1.0
    gradients: dict[str, Any] = {}
    losses = []
    torch.manual_seed(29)  # of every device: the dropout masks
    for _ in range(steps + 1):
        loss = _loss(loaded)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        (loss * scale).backward()
        for parameter in parameters.values():
            parameter.grad /= scale
        gradients = gradients or {name: tensor.grad.float().cpu().clone() for name, tensor in parameters.items()}
        optimizer.step()
    return Trained(dtype=str(loaded.compute_dtype).partition(".")[2], losses=tuple(losses), gradients=gradients)


def _fill(parameters: dict[str, Any]) -> None:
    """The same random adapter on every device; a fresh one is half zeros, and so would be its gradients."""
    import torch

    generator = torch.Generator().manual_seed(23)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def _loss(loaded: LoadedModel) -> Any:
    """Of a row that holds several documents: they must not see each other."""
    import torch

    generator = torch.Generator().manual_seed(31)
    ids = torch.randint(0, _VOCABULARY, (1, sum(_DOCUMENTS)), generator=generator).to(loaded.torch_device)
    positions = torch.cat([torch.arange(length) for length in _DOCUMENTS])[None].to(loaded.torch_device)
    logits = loaded.model(input_ids=ids, attention_mask=None, position_ids=positions, use_cache=False).logits
    targets = ids[:, 1:].masked_fill(positions[:, 1:] == 0, -100)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


if __name__ == "__main__":
    main()
