"""Weights of 8 or 4 bits: linear layers with a quarter of fp32's bytes or less, and their way into transformers."""

from backends.int8.linear import Int8Linear
from backends.int8.quantizer import Int8Config

__all__ = ["Int8Config", "Int8Linear"]
