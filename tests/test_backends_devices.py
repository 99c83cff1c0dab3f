"""Tiers and queues: a job goes to the smallest tier that holds it, a machine takes every tier it satisfies."""

import pytest

from backends.devices import GIB, TIERS_GIB, Device, Machine, queues_served, tier_for_memory, tier_for_need


def machine(device, gib):
    return Machine(device=device, device_name="x", memory_bytes=int(gib * GIB), reason="", versions={})


def test_an_eight_gb_card_that_reports_less_satisfies_the_eight_tier():
    assert tier_for_memory(int(7.6 * GIB)) == 8


def test_a_machine_with_almost_no_memory_satisfies_no_tier():
    assert tier_for_memory(GIB) == 0
    assert queues_served(machine(Device.CPU, 1)) == []


def test_a_machine_serves_its_own_and_smaller_tiers_of_its_device_and_of_any():
    assert queues_served(machine(Device.MPS, 8)) == ["mps.8g", "any.8g", "mps.4g", "any.4g", "mps.2g", "any.2g"]


def test_five_gib_needs_eight_on_cuda_and_eight_on_mps_and_six_no_longer_fits_there():
    assert tier_for_need(5 * GIB, Device.CUDA) == 8
    assert tier_for_need(5 * GIB, Device.MPS) == 8
    assert tier_for_need(6 * GIB, Device.MPS) == 12


def test_a_need_beyond_every_tier_has_none():
    assert tier_for_need(10_000 * GIB, Device.CUDA) is None


@pytest.mark.parametrize("device", Device)
@pytest.mark.parametrize("tier", TIERS_GIB)
def test_a_machine_of_a_tier_serves_the_queue_of_that_tier(device, tier):
    assert f"{device}.{tier}g" in queues_served(machine(device, tier))
