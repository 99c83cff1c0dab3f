"""Folders where this machine keeps what later jobs can use again, beside its converted models."""

from pathlib import Path

from backends.gguf_cache import cache_folder


def dataset_cache() -> Path:
    """What dataset jobs worked out."""
    return cache_folder().parent / "datasets"


def mirrors() -> Path:
    """Repositories that were fetched from URLs."""
    return cache_folder().parent / "repositories"
