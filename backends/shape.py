"""The sizes of a causal language model, from its configuration alone: what memory and time follow from.

Standard library only: the submitter computes with it too.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from backends.errors import ModelNotLoadable

#: Families whose MLP is two matrices around an activation; all others multiply the activation by a third (a gate).
_PLAIN_MLP = frozenset(
    (
        "starcoder2",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gpt_neo",
        "gptj",
        "codegen",
        "phi",
        "opt",
        "bloom",
        "falcon",
        "mpt",
    )
)
#: Families with a table of positions beside the one of tokens.
_POSITION_TABLE = frozenset(("gpt2", "gpt_bigcode", "gpt_neo", "opt"))


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer that occurs in every decoder layer."""

    name: str
    inputs: int
    outputs: int
    #: Which linear layers share its input: autograd keeps that input once.
    source: str
    #: Copies in one decoder layer: experts.
    count: int = 1

    @property
    def size(self) -> int:
        """Weights of all copies."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a causal language model that memory and time depend on."""

    #: As transformers names the architecture: starcoder2, llama, qwen2…
    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    positions: int
    tied: bool
    gated: bool
    #: Numbers per norm and channel: weight, and bias where it has one.
    norm_width: int
    #: Biases of the linear layers, by name of the layer.
    biased: frozenset[str]
    experts: int
    #: Of those, the ones that a token passes.
    experts_per_token: int

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = (
            Linear(name="q_proj", inputs=self.hidden, outputs=queries, source="attention"),
            Linear(name="k_proj", inputs=self.hidden, outputs=keys, source="attention"),
            Linear(name="v_proj", inputs=self.hidden, outputs=keys, source="attention"),
            Linear(name="o_proj", inputs=queries, outputs=self.hidden, source="o_proj"),
        )
        into = ("gate_proj", "up_proj") if self.gated else ("c_fc",)
        out = "down_proj" if self.gated else "c_proj"
        widen = tuple(
            Linear(name=name, inputs=self.hidden, outputs=self.intermediate, source="mlp", count=self.experts)
            for name in into
        )
        narrow = Linear(name=out, inputs=self.intermediate, outputs=self.hidden, source=out, count=self.experts)
        return (*attention, *widen, narrow)

    @property
    def embedding(self) -> int:
        """Weights of the tables of tokens and positions and of an untied head."""
        return self.hidden * (self.vocabulary * (1 if self.tied else 2) + self.positions)

    @property
    def norms(self) -> int:
        """Weights of all norms."""
        return (2 * self.layers + 1) * self.hidden * self.norm_width

    @property
    def biases(self) -> int:
        """Biases of all linear layers."""
        return self.layers * sum(linear.outputs for linear in self.linears if linear.name in self.biased)


def read_shape(model_config: Any) -> Shape:
    """The sizes in a configuration of transformers, a mapping or an object, whichever names the family uses.

    Raises:
        ValueError: a size that every model has is not there.
    """
    get = _getter(model_config)
    family = str(get("model_type") or "")
    hidden = _size(get, "hidden_size", "n_embd", "d_model")
    heads = _size(get, "num_attention_heads", "n_head", "num_heads")
    plain = family in _PLAIN_MLP
    kv_heads = int(get("num_key_value_heads") or (1 if get("multi_query") else heads))
    tied = get("tie_word_embeddings")
    positions = int(get("n_positions", "max_position_embeddings") or 0) if family in _POSITION_TABLE else 0
    shape = Shape(
        family=family,
        layers=_size(get, "num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        intermediate=int(get("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden),
        heads=heads,
        kv_heads=kv_heads,
        head_size=int(get("head_dim") or hidden // heads),
        vocabulary=_size(get, "vocab_size"),
        positions=positions,
        tied=True if tied is None else bool(tied),
        gated=not plain,
        norm_width=2 if plain else 1,
        biased=frozenset(),
        experts=int(get("num_local_experts", "num_experts", "n_routed_experts") or 1),
        experts_per_token=int(get("num_experts_per_tok", "num_experts_per_token") or 1),
    )
    return _with_biases(shape, family, get)


def _with_biases(shape: Shape, family: str, get: Callable[..., Any]) -> Shape:
    names = {linear.name for linear in shape.linears}
    attention = {name for name in names if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))}
    biased: set[str] = set()
    if family in _PLAIN_MLP and get("use_bias", "bias") is not False:
        biased = names
    if family.startswith("qwen2"):
        biased = attention - {"o_proj"}
    if get("attention_bias"):
        biased |= attention
    if get("mlp_bias"):
        biased |= names - attention
    return replace(shape, biased=frozenset(biased))


def _getter(model_config: Any) -> Callable[..., Any]:
    """Looks a field up by the first of its names that is set; multimodal models keep the text model's one deeper."""
    source = model_config
    nested = _field(source, "text_config")
    if nested is not None and _field(source, "vocab_size") is None:
        source = nested

    def get(*names: str) -> Any:
        return next((value for name in names if (value := _field(source, name)) is not None), None)

    return get


def _field(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _size(get: Callable[..., Any], *names: str) -> int:
    value = get(*names)
    if value is None:
        raise ValueError(f"The model's configuration has no {names[0]}.")
    return int(value)


def adapted_layers(layers: int, chosen: str | Iterable[int]) -> tuple[int, ...]:
    """The numbers of the decoder layers that get an adapter, the lowest first.

    Args:
        layers: Of the model.
        chosen: all, last:N or numbers from 0.

    Raises:
        ModelNotLoadable: the model has no such layer.
    """
    if chosen == "all":
        return tuple(range(layers))
    if isinstance(chosen, str):
        count = int(chosen.removeprefix("last:"))
        if count > layers:
            raise ModelNotLoadable(f"The model has {layers} decoder layers: set lora.layers to last:{layers} at most.")
        return tuple(range(layers - count, layers))
    numbers = tuple(sorted(chosen))
    if numbers[-1] >= layers:
        raise ModelNotLoadable(
            f"The model has no decoder layer {numbers[-1]}: set lora.layers to numbers from 0 to {layers - 1}."
        )
    return numbers


def adapted_linears(shape: Shape, target: str | Iterable[str]) -> tuple[Linear, ...]:
    """The linear layers of a decoder layer that get an adapter.

    Args:
        shape: Of the model.
        target: all-linear, or names of layers. Another pattern counts as all-linear.
    """
    # Experts are one tensor each and no linear layers: no adapter goes there.
    linears = tuple(linear for linear in shape.linears if linear.count == 1)
    if isinstance(target, str):
        return linears
    names = [name.rpartition(".")[2] for name in target]
    chosen = tuple(linear for linear in linears if linear.name in names)
    # A name that only the model knows may be any layer: count them all.
    return chosen if {linear.name for linear in chosen} == set(names) else linears
