"""Products of int8 activations with int8 weights (W8A8): faster where the hardware multiplies integers, less exact.

Each token's activations get a scale of their own, each row of the weight has one, and sums are exact in int32. In the
product back the weight's scales lie along the summed side, so that they go into the gradient before it is rounded.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional

from backends import hardware, processor
from backends.devices import Device
from backends.errors import BackendUnavailable
from backends.int8 import packed

LARGEST_CODE = 127
#: Terms of a sum that int32 holds whatever they are.
LONGEST_SUM = (2**31 - 1) // LARGEST_CODE**2
#: Below this gain, rounding activations buys nothing.
WORTHWHILE_GAIN = 1.1

#: What `torch._int_mm` wants on cuda: more rows than 16, and multiples of 8.
_CUDA_ROWS = 24
_CUDA_MULTIPLE = 8
#: First NVIDIA generation whose tensor cores multiply int8 for torch: Turing.
_TURING = (7, 5)
_NO_METAL = "torch has no integer matrix product for Apple GPUs: set quantization.compute to exact."
#: Tokens, inputs, outputs: small enough for a plain loop, and large enough to tell what a layer gains.
_FIRST_LOOK = (64, 512, 512)
_MEASURED = (512, 1024, 1024)
_ROUNDS = 7
#: A gain at the first look that no size makes up for.
_HOPELESS = 0.25


_torch_int_mm = torch._int_mm  # noqa: SLF001 - the only integer product that torch has


@dataclass(frozen=True)
class IntegerWeight:
    """Codes, int8 [out, in], with one scale per row, [out, 1] (a `backends.frozen.FrozenWeight`)."""

    codes: torch.Tensor
    scales: torch.Tensor

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """See `FrozenWeight`."""
        return _product(rows.float(), self.codes, back=False).mul_(self._row_scales).to(rows.dtype)

    def multiply_back(self, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """See `FrozenWeight`."""
        product = _product(gradient.float() * self._row_scales, self.codes, back=True)
        return product.to(gradient.dtype) if onto is None else onto.add_(product)

    @property
    def _row_scales(self) -> torch.Tensor:
        return self.scales.view(1, -1).float()


def _product(values: torch.Tensor, codes: torch.Tensor, *, back: bool) -> torch.Tensor:
    """fp32 [n, in] @ codes.T (or [n, out] @ codes), the values rounded token by token; fresh memory, fp32."""
    if values.numel() == 0:
        return values.new_zeros(values.shape[0], codes.shape[1 if back else 0])
    if codes.device.type == "mps":
        raise BackendUnavailable(_NO_METAL)
    largest = values.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
    if codes.device.type == "cpu" and _packed_is_faster():
        # A token that is not finite stays so by its scale; its NaNs must not reach the range that all tokens share.
        return packed.product((values / largest).nan_to_num_(0.0), codes, back=back).mul_(largest)
    scales = largest.div_(LARGEST_CODE)
    rounded = (values / scales).round_().to(torch.int8)
    return _sums(rounded, codes if back else codes.t()).mul_(scales)


def _sums(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """int8 [n, k] @ [k, m] as fp32; sums longer than any known layer's are cut, lest they overflow."""
    parts = zip(left.split(LONGEST_SUM, dim=1), right.split(LONGEST_SUM, dim=0), strict=True)
    products = (_int_mm(*pair).float() for pair in parts)
    return functools.reduce(lambda total, product: total.add_(product), products)


def _int_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """int8 [n, k] @ [k, m] in int32, in shapes that the device takes."""
    if left.device.type != "cuda":
        return _torch_int_mm(left, right)
    left, right, (rows, columns) = _padded(left, right)
    return _torch_int_mm(left, right)[:rows, :columns]


def _padded(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Both factors with zeros added as cuda wants them, and the shape of their product without."""
    (rows, depth), columns = left.shape, right.shape[1]
    more_rows = max(_CUDA_ROWS - rows, -rows % _CUDA_MULTIPLE)
    more_depth, more_columns = -depth % _CUDA_MULTIPLE, -columns % _CUDA_MULTIPLE
    if more_rows or more_depth:
        left = functional.pad(left, (0, more_depth, 0, more_rows))
    if more_columns or more_depth:
        right = functional.pad(right, (0, more_columns, 0, more_depth))
    return left, right, (rows, columns)


@dataclass(frozen=True)
class IntegerGain:
    """What int8 products gain on a device, for a person to read before they are used."""

    #: Time of a float product over that of an int8 one, forward and back; 0 where there is none.
    gain: float
    sentence: str

    @property
    def usable(self) -> bool:
        """Whether it is worth the accuracy."""
        return self.gain >= WORTHWHILE_GAIN


@functools.cache
def integer_gain(device: Device) -> IntegerGain:
    """Look at the hardware, then time a small product: instructions alone say little of what torch does with them."""
    if device is Device.MPS:
        return IntegerGain(0.0, _NO_METAL)
    absent = hardware.missing(device)
    if absent is not None:
        return IntegerGain(0.0, absent)
    if device is Device.CUDA and torch.cuda.get_device_capability() < _TURING:
        return IntegerGain(0.0, "The tensor cores of this GPU have no int8: set quantization.compute to exact.")
    gain = _measured_gain(device)
    found = f"int8 products are {gain:.2g} times as fast as floats here ({_means(device)})"
    if gain < WORTHWHILE_GAIN:
        return IntegerGain(gain, f"{found}, not worth their rounding: set quantization.compute to exact.")
    return IntegerGain(gain, found)


def _means(device: Device) -> str:
    """What the products run on, in a few words."""
    if device is Device.CUDA:
        return "tensor cores, activations of 8 bits"
    instructions = _cpu_instructions()
    if _packed_is_faster():
        return f"{instructions}: fbgemm, activations of 7 bits, 2 bytes more a weight"
    return f"{instructions}, activations of 8 bits"


def _cpu_instructions() -> str:
    found = [name for name, probe in _PROBES.items() if getattr(torch.cpu, probe, bool)()]
    if processor.sysctl("hw.optional.arm.FEAT_I8MM") == "1":
        found.append("i8mm")
    return ", ".join(found) or f"{torch.backends.cpu.get_cpu_capability()} without VNNI"


_PROBES = {"VNNI": "_is_vnni_supported", "AMX": "_is_amx_tile_supported"}


@functools.cache
def _packed_is_faster() -> bool:
    """Whether fbgemm beats `torch._int_mm`, which is a plain loop on CPUs without VNNI; some tens of milliseconds."""
    if not packed.available():
        return False
    tokens, inputs, outputs = _FIRST_LOOK
    codes = torch.ones(outputs, inputs, dtype=torch.int8)
    values, rounded = torch.ones(tokens, inputs), torch.ones(tokens, inputs, dtype=torch.int8)
    fbgemm, loop = _seconds(
        torch.device("cpu"),
        lambda: packed.product(values, codes, back=False),
        lambda: _torch_int_mm(rounded, codes.t()),
    )
    return fbgemm < loop


def _measured_gain(device: Device) -> float:
    """Time of float products over that of int8 ones: at a glance where it is hopeless, else at a layer's size."""
    for shape in (_FIRST_LOOK, _MEASURED):
        gain = _gain(shape, torch.device(device.value), hardware.precision(device).dtype)
        if gain < _HOPELESS:
            break
    return gain


def _gain(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> float:
    tokens, inputs, outputs = shape
    weight = torch.ones(outputs, inputs, dtype=dtype, device=device)
    codes, scales = weight.to(torch.int8), weight[:, :1].half()
    rows = torch.ones(tokens, inputs, dtype=dtype, device=device)
    gradient = torch.ones(tokens, outputs, dtype=dtype, device=device)
    integers = IntegerWeight(codes, scales)
    floats, whole = _seconds(
        device,
        lambda: (rows @ weight.t(), gradient @ weight),
        lambda: (integers.multiply(rows), integers.multiply_back(gradient)),
    )
    return floats / whole


def _seconds(device: torch.device, *works: Callable[[], object]) -> list[float]:
    """The least that each took in a few rounds, in turns and after one for packing.

    On a CPU it is the time of one thread: others may use the machine, and cores that wait for each other tell nothing.
    """
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    taken: list[list[float]] = [[] for _ in works]
    with _one_thread():
        for _, (work, times) in itertools.product(range(_ROUNDS + 1), list(zip(works, taken, strict=True))):
            began = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - began)
    return [min(times[1:]) for times in taken]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
