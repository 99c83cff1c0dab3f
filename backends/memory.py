"""What a training needs in memory, from the model's configuration alone: bytes by part, before anything is downloaded.

Standard library only: the submitter computes with it too. Weights are exact; activations follow from the shapes of one
decoder layer and what autograd keeps of it (measured on whole models, see the tests); overhead is what a process with
torch holds before any model.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

MIB = 1024**2

#: Bytes of an fp32 number.
_FP32 = 4

#: fp32 parameter and gradient of an adapter weight, and AdamW's two moments.
_ADAPTER_BYTES = 4 + 4
_OPTIMIZER_BYTES = 4 + 4

#: Rows of a weight that the int8 backend dequantises at a time on a CPU, and tokens whose logits exist at a time.
_TILE_ROWS = 512
_LOSS_CHUNK = 256

#: Memory of a process before any model: python and torch on cpu; a context and its libraries on cuda; Metal's on mps.
_PROCESS_BYTES = {"cpu": 450 * MIB, "cuda": 600 * MIB, "mps": 800 * MIB}

#: Bytes per head and pair of tokens that attention keeps where it runs as separate steps (mps): scores and
#: probabilities, in fp32. Live in the backward pass are as many again, nearly.
_ATTENTION_KEPT = 5
_ATTENTION_LIVE = 4

#: nf4: weights that share a one-byte scale, scales that share an fp32 scale, and the two tables beside them.
_NF4_BLOCK = 64
_NF4_SCALES = 256
_NF4_TABLES = 16 * 4 + 256 * 4 + 4

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
class MemoryEstimate:
    """Bytes of device memory that a training takes, by part."""

    #: Base model: quantised layers with their scales, embedding, head, norms, biases.
    weights: int
    #: Adapter weights and their gradients.
    adapters: int
    #: Moments of AdamW.
    optimizer: int
    #: What the backward pass needs of the forward pass, attention and loss aside.
    activations: int
    #: Scores of every token for every other, and the mask that keeps packed documents apart.
    attention: int
    #: Hidden states at the head and the logits of one chunk.
    loss: int
    #: The process itself, and the scratch that weights are dequantised into.
    overhead: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, field.name) for field in fields(self))


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
    """The sizes of a causal language model that memory depends on."""

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


def estimate(
    model_config: Any,
    *,
    quantization: str = "int8",
    group_size: int = 128,
    rank: int = 32,
    target: str | Iterable[str] = "all-linear",
    micro_batch: int = 1,
    sequence_length: int = 1024,
    checkpointing: bool = True,
    compute_bytes: int | None = None,
    device: str = "cpu",
) -> MemoryEstimate:
    """Bytes that a LoRA training takes on a device.

    Args:
        model_config: Configuration as transformers names its fields: a mapping, or an object with such attributes.
        quantization: int8, nf4 or none.
        group_size: Weights that share a scale (int8).
        rank: Of the adapter.
        target: all-linear, or names of the layers that get an adapter. Another pattern counts as all-linear.
        micro_batch: Rows of one forward pass.
        sequence_length: Tokens of a row.
        checkpointing: Whether activations are computed again in the backward pass.
        compute_bytes: Bytes per number of the compute type; None means 4 on cpu, 2 elsewhere.
        device: cpu, cuda or mps.

    Raises:
        ValueError: the configuration lacks a size, or the quantization is unknown.
    """
    shape = read_shape(model_config)
    width = compute_bytes or (4 if device == "cpu" else 2)
    tokens = micro_batch * sequence_length
    adapted = _adapted(shape, target)
    adapter = rank * shape.layers * sum((one.inputs + one.outputs) * one.count for one in adapted)
    return MemoryEstimate(
        weights=_weights(shape, quantization, group_size, width),
        adapters=adapter * _ADAPTER_BYTES,
        optimizer=adapter * _OPTIMIZER_BYTES,
        activations=tokens * _activations_per_token(shape, adapted, rank, width, checkpointing=checkpointing),
        attention=_attention(shape, micro_batch, sequence_length, width, device, checkpointing=checkpointing),
        loss=_loss(shape, tokens, width),
        overhead=_PROCESS_BYTES[device] + _scratch(shape, quantization, width, device),
    )


def _adapted(shape: Shape, target: str | Iterable[str]) -> tuple[Linear, ...]:
    # Experts are one tensor each and no linear layers: no adapter goes there.
    linears = tuple(linear for linear in shape.linears if linear.count == 1)
    if isinstance(target, str):
        return linears
    names = [name.rpartition(".")[2] for name in target]
    chosen = tuple(linear for linear in linears if linear.name in names)
    # A name that only the model knows may be any layer: count them all.
    return chosen if {linear.name for linear in chosen} == set(names) else linears


def _weights(shape: Shape, quantization: str, group_size: int, width: int) -> int:
    rest = (shape.embedding + shape.norms + shape.biases) * width
    return rest + shape.layers * sum(_linear_bytes(one, quantization, group_size, width) for one in shape.linears)


def _linear_bytes(linear: Linear, quantization: str, group_size: int, width: int) -> int:
    if quantization == "none" or linear.count > 1:
        return linear.size * width
    if quantization == "int8":
        return linear.size + 2 * linear.outputs * -(-linear.inputs // group_size)
    if quantization == "nf4":
        blocks = -(-linear.size // _NF4_BLOCK)
        return -(-linear.size // 2) + blocks + 4 * -(-blocks // _NF4_SCALES) + _NF4_TABLES
    raise ValueError(f"There is no estimate for the quantization {quantization}: int8, nf4 and none are known.")


def _activations_per_token(
    shape: Shape, adapted: tuple[Linear, ...], rank: int, width: int, *, checkpointing: bool
) -> int:
    kept = _kept_per_token(shape, adapted, rank, width)
    boundary = shape.hidden * width
    if checkpointing:
        return shape.layers * boundary + kept + _live_per_token(shape, width)
    return shape.layers * kept + _live_per_token(shape, width)


def _kept_per_token(shape: Shape, adapted: tuple[Linear, ...], rank: int, width: int) -> int:
    """Bytes that autograd keeps of one decoder layer for each token."""
    queries = shape.heads * shape.head_size
    # RMS norms compute in fp32, layer norms in the compute type; both keep their input.
    norms = 2 * shape.hidden * (4 if shape.gated else width)
    # Queries, and keys and values repeated for every head; the output is the next adapter's input in fp32 already.
    attention = (3 if width == _FP32 else 4) * queries * width
    # Before the activation; with a gate, after it and the other factor too.
    mlp = shape.intermediate * width * (3 if shape.gated else 1)
    return norms + attention + mlp + _adapter_inputs(adapted, width) + 4 * rank * len(adapted)


def _adapter_inputs(adapted: tuple[Linear, ...], width: int) -> int:
    """Adapters are fp32 and keep an fp32 copy of their input; in an fp32 model that is the tensor itself, shared."""
    if width == _FP32:
        return 4 * sum({linear.source: linear.inputs for linear in adapted}.values())
    return 4 * sum(linear.inputs for linear in adapted)


def _live_per_token(shape: Shape, width: int) -> int:
    """Gradients of one layer that exist at the same time in the backward pass."""
    return width * (3 * shape.hidden // 2 + shape.intermediate * (3 if shape.gated else 2))


def _attention(shape: Shape, rows: int, length: int, width: int, device: str, *, checkpointing: bool) -> int:
    pairs = rows * length * length
    mask = pairs * (1 + width)
    if device != "mps":  # fused kernels: no scores are kept
        return mask
    kept = _ATTENTION_KEPT * (1 if checkpointing else shape.layers)
    return mask + pairs * shape.heads * (kept + _ATTENTION_LIVE)


def _loss(shape: Shape, tokens: int, width: int) -> int:
    states = 2 * tokens * shape.hidden * width
    # Logits, in fp32, their log-probabilities, and the gradients of each.
    per_logit = 2 * width + 8 + (0 if width == _FP32 else 4)
    return states + min(tokens, _LOSS_CHUNK) * shape.vocabulary * per_logit


def _scratch(shape: Shape, quantization: str, width: int, device: str) -> int:
    if quantization == "none":
        return 0
    if quantization == "int8" and device == "cpu":
        return max(min(_TILE_ROWS, linear.outputs) * linear.inputs for linear in shape.linears) * width * 2
    return max(linear.inputs * linear.outputs for linear in shape.linears) * width
