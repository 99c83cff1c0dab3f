"""Completes prompts greedily, token by token, with the adapter or without it: the same model gives the same tokens."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from backends.models import document_end_id


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    stop: frozenset[int] = frozenset(),
    adapter: bool = True,
) -> list[list[int]]:
    """The likeliest next token again and again, one prompt at a time: the length of others changes no rounding.

    Args:
        model: A PEFT model around a causal language model.
        tokenizer: Its own; the token that ends a document ends a completion.
        prompts: Token ids, at least one each.
        new_tokens: At most, of each completion.
        stop: Tokens that end a completion, too.
        adapter: Whether the adapter is at work.

    Returns:
        The new tokens of each prompt; the one that ended it is the last of them.
    """
    ends = stop | {document_end_id(tokenizer)}
    with torch.no_grad(), evaluating(model), side(model, adapter=adapter):
        return [_completed(model, prompt, new_tokens, ends) for prompt in prompts]


def side(model: Any, *, adapter: bool) -> AbstractContextManager[None]:
    """Inside, a PEFT model computes with its adapter or, with the same weights, as its base."""
    return nullcontext() if adapter else model.disable_adapter()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside, dropout is off; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _completed(model: Any, prompt: Sequence[int], new_tokens: int, ends: frozenset[int]) -> list[int]:
    from transformers import DynamicCache

    cache = DynamicCache()
    device = model.get_base_model().get_input_embeddings().weight.device
    given, found = torch.tensor([list(prompt)], device=device), list[int]()
    while len(found) < new_tokens:
        logits = model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        given = logits[:, -1:].argmax(dim=-1)
        found.append(int(given))
        if found[-1] in ends:
            break
    return found
