"""The state of every random generator that training draws from, as JSON: taken at a checkpoint, put back on resume."""

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Start every generator from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that libraries draw from when told nothing
    torch.manual_seed(seed)  # seeds cuda and mps too


def random_state() -> dict[str, Any]:
    """The generators' state: python, numpy, torch on the CPU, and the GPU's where there is one."""
    version, numbers, gauss = random.getstate()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": _numpy_to_json(np.random.get_state(legacy=False)),  # noqa: NPY002
        "torch": _to_hex(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _to_hex(torch.cuda.get_rng_state())
    if torch.backends.mps.is_available():
        state["mps"] = _to_hex(torch.mps.get_rng_state())
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` took. A GPU's state is skipped on a machine without that GPU."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(_numpy_from_json(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(_from_hex(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_hex(state["cuda"]))
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(_from_hex(state["mps"]))


def _numpy_to_json(state: Any) -> dict[str, Any]:
    inner = state["state"]
    return {**state, "state": {"key": inner["key"].tolist(), "pos": int(inner["pos"])}}


def _numpy_from_json(state: dict[str, Any]) -> dict[str, Any]:
    key = np.array(state["state"]["key"], dtype=np.uint32)
    return {**state, "state": {"key": key, "pos": state["state"]["pos"]}}


def _to_hex(state: torch.Tensor) -> str:
    return bytes(state.numpy()).hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
