"""Backends by name."""

import pytest

from backends.devices import Device
from backends.errors import BackendUnavailable
from backends.registry import open_backend


@pytest.mark.parametrize("kind", ["int8", "int4", "none"])
def test_a_kind_opens_the_backend_of_that_name(kind):
    assert open_backend(kind, Device.CPU).name == kind


def test_an_unknown_kind_is_told_with_those_there_are():
    with pytest.raises(BackendUnavailable, match=r"no backend int3.* to int8, int4, nf4 or none"):
        open_backend("int3", Device.CPU)
