"""Which layer holds weights of so many bits."""

from backends.int8.int4 import Int4Linear
from backends.int8.linear import Int8Linear
from backends.int8.quantized import QuantizedLinear

_CLASSES: dict[int, type[QuantizedLinear]] = {kind.bits: kind for kind in (Int8Linear, Int4Linear)}


def layer_class(bits: int) -> type[QuantizedLinear]:
    """The layer with weights of `bits` bits.

    Raises:
        ValueError: there is none.
    """
    if bits not in _CLASSES:
        raise ValueError(f"Weights of {bits} bits are not possible: choose one of {', '.join(map(str, _CLASSES))}.")
    return _CLASSES[bits]
