"""Exact int8 weights: a linear layer that holds a quarter of fp32's bytes, and its way into transformers."""

from backends.int8.linear import Int8Linear
from backends.int8.quantizer import Int8Config

__all__ = ["Int8Config", "Int8Linear"]
