"""Device and memory tier: the words by which jobs and workers find each other. Standard library only."""

from dataclasses import dataclass
from enum import StrEnum

GIB = 1024**3

# Nominal sizes as machines are sold. A worker of 18 GB takes the tiers up to 16.
TIERS_GIB = (2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256)

# An "8 GB" machine reports a little less than 8 GiB (firmware, ECC, GB against GiB).
NOMINAL_TOLERANCE = 0.88


class Device(StrEnum):
    """The closed list of devices that a worker can offer."""

    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"


# What a job may ask for beside a device: whichever worker comes first.
ANY = "any"

# The part of a tier's nominal memory that a job may count on.
# mps: macOS keeps about 2.5 GiB of an 8 GiB machine; cuda: the driver and other contexts keep some;
# cpu: the operating system and the worker itself live there too.
USABLE_FRACTION = {Device.CUDA: 0.92, Device.MPS: 0.68, Device.CPU: 0.80}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a worker found on its machine."""

    #: The device that jobs will run on.
    device: Device
    #: As the driver or the operating system names it, e.g. "NVIDIA RTX 2060" or "Apple M1".
    device_name: str
    #: Memory of the device in bytes: VRAM on cuda, RAM on mps and cpu.
    memory_bytes: int
    #: One sentence: why this device was chosen.
    reason: str
    #: Versions of python, torch, transformers, peft… as installed there.
    versions: dict[str, str]


def tier_for_memory(memory_bytes: int) -> int:
    """The largest tier (GiB) that a machine with this much memory satisfies; 0 when it satisfies none."""
    return max((tier for tier in TIERS_GIB if memory_bytes >= tier * GIB * NOMINAL_TOLERANCE), default=0)


def tier_for_need(need_bytes: int, device: Device) -> int | None:
    """The smallest tier (GiB) whose usable part holds `need_bytes` on `device`; None when none does."""
    usable = USABLE_FRACTION[device]
    return next((tier for tier in TIERS_GIB if tier * GIB * usable >= need_bytes), None)


def queue_name(device: str, tier: int) -> str:
    """The queue of a device (or "any") and a tier, e.g. `cuda.24g`."""
    return f"{device}.{tier}g"


def queues_served(machine: Machine) -> list[str]:
    """Every queue that this machine may take jobs from, the largest tier first: big jobs have fewer takers."""
    top = tier_for_memory(machine.memory_bytes)
    tiers = [tier for tier in reversed(TIERS_GIB) if tier <= top]
    return [queue_name(device, tier) for tier in tiers for device in (machine.device.value, ANY)]
