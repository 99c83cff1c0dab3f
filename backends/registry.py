"""The backends by the name that `quantization.kind` gives them. Only workers open one."""

from backends.contract import Backend
from backends.devices import Device
from backends.errors import BackendUnavailable


def open_backend(kind: str, device: Device) -> Backend:
    """The backend named `kind`, known to work on `device` of this machine.

    Raises:
        BackendUnavailable: with one sentence that says why it cannot run here.
    """
    backend = _create(kind)
    sentence = backend.check(device)
    if sentence is not None:
        raise BackendUnavailable(sentence)
    return backend


def _create(kind: str) -> Backend:
    # Imported one by one: a machine needs the libraries of its own backend only.
    if kind == "int8":
        from backends.int8.backend import Int8

        return Int8()
    if kind == "int4":
        from backends.int8.backend import Int4

        return Int4()
    if kind == "nf4":
        from backends.nf4 import Nf4

        return Nf4()
    if kind == "none":
        from backends.full import FullPrecision

        return FullPrecision()
    raise BackendUnavailable(f"There is no backend {kind}: set quantization.kind to int8, int4, nf4 or none.")
