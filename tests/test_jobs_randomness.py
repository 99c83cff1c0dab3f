"""Random generators go through a checkpoint, that of an absent GPU too."""

import json
import random

import numpy as np
import torch

from jobs.randomness import random_state, restore_random_state, seed_everything


def draws():
    return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002


def test_every_generator_goes_on_where_it_was():
    seed_everything(7)
    state = json.loads(json.dumps(random_state()))
    expected = draws()
    draws()
    restore_random_state(state)
    assert draws() == expected


def test_metals_generator_is_part_of_the_state_where_there_is_metal(monkeypatch):
    put = []
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.mps.get_rng_state", lambda: torch.tensor([1, 2, 250], dtype=torch.uint8))
    monkeypatch.setattr("torch.mps.set_rng_state", put.append)
    state = json.loads(json.dumps(random_state()))
    restore_random_state(state)
    assert [tensor.tolist() for tensor in put] == [[1, 2, 250]]


def test_a_state_with_a_gpu_is_restored_on_a_machine_without_one(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    restore_random_state(random_state() | {"mps": "0102fa", "cuda": "00"})
