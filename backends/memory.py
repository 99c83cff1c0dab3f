"""What a training needs in memory, from the model's configuration alone: bytes by part, before anything is downloaded.

Standard library only: the submitter computes with it too. Weights, adapters and optimizer are exact. Activations follow
from the sizes of one decoder layer and what the backward pass keeps of it, a term for each thing kept; the constants
were measured on whole trainings (benchmarks/memory_model.py). What a machine measured of itself corrects the parts
that are not exact (`MemoryEstimate.corrected`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from backends.shape import Linear, Shape, adapted_layers, adapted_linears, read_shape

MIB = 1024**2

#: Bytes of an fp32 number.
_FP32 = 4

#: fp32 parameter and gradient of an adapter weight.
_ADAPTER_BYTES = 4 + 4
#: AdamW: two fp32 moments. In 8 bits: one byte each, and an fp32 scale of each for every so many weights.
_MOMENTS = 4 + 4
_MOMENTS_8BIT = 1 + 1
_MOMENT_BLOCK = 256
#: Tensors that are smaller keep their moments in fp32.
_SMALLEST_8BIT = 4096

#: Rows of a weight that the int8 backend dequantises at a time on a CPU.
_TILE_ROWS = 512
#: The buffer of logits that exists at a time, and how many of its size are live: logits and what replaces them.
_LOGITS_BYTES = 48_000_000

#: Memory of a process before any model: python, torch and transformers on cpu; a context and its libraries on cuda;
#: Metal's on mps.
PROCESS_BYTES = {"cpu": 325 * MIB, "cuda": 600 * MIB, "mps": 800 * MIB}

#: Bytes per head and pair of tokens that attention keeps where it runs as separate steps (mps): scores and
#: probabilities, in fp32. Live in the backward pass are as many again, nearly.
_SCORES_KEPT = 5
_SCORES_LIVE = 4
#: Scores that blocked attention computes at a time, and how many of that size are live in its backward pass.
_SCORE_BYTES = 4 * MIB
_SCORE_BYTES_ELSEWHERE = 32 * MIB
_SCORE_COPIES = 3

#: While weights load, the largest layer exists in several forms: so many times its size in fp32.
_LOADING_COPIES = 1.3

#: On cpu: freed blocks between others at the peak, for each tensor of its middle that an MLP keeps (measured); and the
#: size from which glibc keeps none.
_HOLES = 8
_LARGEST_KEPT_BLOCK = 32 * MIB

#: nf4: weights that share a one-byte scale, scales that share an fp32 scale, and the two tables beside them.
_NF4_BLOCK = 64
_NF4_SCALES = 256
_NF4_TABLES = 16 * 4 + 256 * 4 + 4
#: int4: weights that share an fp16 scale and an fp16 zero point.
_INT4_GROUP = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained, as far as memory and time depend on it."""

    #: int8, int4, nf4 or none.
    quantization: str = "int8"
    #: Weights of a row that share a scale (int8); None: all of them.
    group_size: int | None = 128
    #: How quantised layers multiply: exact or int8.
    compute: str = "exact"
    #: Of the adapter.
    rank: int = 32
    #: all-linear, or names of the layers that get an adapter. Another pattern counts as all-linear.
    target: str | tuple[str, ...] = "all-linear"
    #: Decoder layers that get an adapter: all, last:N or numbers.
    layers: str | tuple[int, ...] = "all"
    #: Whether a moving average of the adapter is kept.
    ema: bool = False
    dora: bool = False
    #: Whether there is dropout on the adapters' inputs.
    dropout: bool = False
    #: adamw, adamw8bit or adafactor.
    optimizer: str = "adamw"
    #: sdpa, blocked or auto: blocked where torch's own keeps or multiplies every score (all but cuda).
    attention: str = "auto"
    #: Rows of one forward pass.
    micro_batch: int = 1
    #: Tokens of a row.
    sequence_length: int = 1024
    #: Whether each layer's activations are computed again in the backward pass.
    checkpointing: bool = True
    #: cpu, cuda or mps.
    device: str = "cpu"
    #: Bytes per number of the compute type; None means 4 on cpu, 2 elsewhere.
    compute_bytes: int | None = None

    @property
    def width(self) -> int:
        """Bytes per number of the compute type."""
        return self.compute_bytes or (_FP32 if self.device == "cpu" else 2)

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass."""
        return self.micro_batch * self.sequence_length

    @property
    def fused(self) -> bool:
        """Whether base and adapter are one function that keeps less (`backends.fusion`)."""
        return self.quantization != "nf4" and not self.dropout

    @property
    def blocked(self) -> bool:
        """Whether attention takes queries block by block."""
        return self.attention == "blocked" or (self.attention == "auto" and self.device != "cuda")


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of device memory that a training takes at its peak, by part."""

    #: Base model: quantised layers with their scales, embedding, head, norms, biases.
    weights: int
    #: Adapter weights, their gradients, and their moving average where there is one.
    adapters: int
    #: State of the optimizer.
    optimizer: int
    #: What the backward pass needs of the forward pass, attention aside.
    activations: int
    #: Mask of packed documents, and scores of tokens for each other where they are kept.
    attention: int
    #: What exists for a moment at the peak: gradients inside one layer or the logits of a chunk, and weights that are
    #: dequantised; or copies of the largest tensor while it loads.
    working: int
    #: The process itself, before any model.
    process: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def exact(self) -> int:
        """The parts that are counted, not modelled."""
        return self.weights + self.adapters + self.optimizer

    def corrected(self, factor: float) -> "MemoryEstimate":
        """The same with the parts that are modelled multiplied by what this machine measured (`factor_of`)."""
        modelled = ("activations", "attention", "working", "process")
        return replace(self, **{name: round(getattr(self, name) * factor) for name in modelled})

    def factor_of(self, measured_bytes: int) -> float:
        """By how much the modelled parts must be multiplied for the total to be `measured_bytes`."""
        return max(0.0, measured_bytes - self.exact) / max(1, self.total - self.exact)


def estimate(model_config: Any, recipe: Recipe) -> MemoryEstimate:
    """Bytes that a LoRA training takes on a device at its peak.

    Args:
        model_config: Configuration as transformers names its fields: a mapping, or an object with such attributes.
        recipe: How it is trained.

    Raises:
        ModelNotLoadable: the model lacks a decoder layer that is to get an adapter.
        ValueError: the configuration lacks a size, or quantization or optimizer are unknown.
    """
    shape = read_shape(model_config)
    adapted = adapted_linears(shape, recipe.target)
    weights = _weights(shape, recipe)
    layers = len(adapted_layers(shape.layers, recipe.layers))
    adapter = adapter_size(adapted, recipe) * layers
    activations = recipe.tokens * _activations_per_token(shape, adapted, recipe)
    attention = _attention(shape, recipe)
    working = max(
        recipe.tokens * _mlp_working_per_token(shape, recipe),
        _attention_working(shape, recipe),
        _loss_working(shape, recipe),
    )
    working += _scratch(shape, recipe) + _holes(shape, recipe)
    return MemoryEstimate(
        weights=weights,
        adapters=adapter * (_ADAPTER_BYTES + (_FP32 if recipe.ema else 0)),
        optimizer=layers * sum(_optimizer_bytes(one, recipe) for one in adapted),
        activations=activations,
        attention=attention,
        working=max(working, _loading(shape, recipe) - activations - attention),
        process=PROCESS_BYTES[recipe.device],
    )


def adapter_size(adapted: Iterable[Linear], recipe: Recipe) -> int:
    """Weights of the adapter in one decoder layer."""
    return sum(recipe.rank * (one.inputs + one.outputs) + (one.outputs if recipe.dora else 0) for one in adapted)


# ---- what is counted ----


def _weights(shape: Shape, recipe: Recipe) -> int:
    rest = (shape.embedding + shape.norms + shape.biases) * recipe.width
    return rest + shape.layers * sum(_linear_bytes(one, recipe) for one in shape.linears)


def _linear_bytes(linear: Linear, recipe: Recipe) -> int:
    kind = recipe.quantization
    if kind == "none" or linear.count > 1:
        return linear.size * recipe.width
    if kind == "int8":
        # CPUs without instructions for integers want a packed copy for each direction (`backends.int8.packed`).
        copies = 2 if recipe.compute == "int8" and recipe.device == "cpu" else 0
        return linear.size * (1 + copies) + 2 * linear.outputs * _groups(linear, recipe.group_size)
    if kind == "int4":
        groups = _groups(linear, _INT4_GROUP)
        return linear.outputs * groups * (_INT4_GROUP // 2 + 2 + 2)
    if kind == "nf4":
        blocks = -(-linear.size // _NF4_BLOCK)
        return -(-linear.size // 2) + blocks + 4 * -(-blocks // _NF4_SCALES) + _NF4_TABLES
    raise ValueError(f"There is no estimate for the quantization {kind}: int8, int4, nf4 and none are known.")


def _groups(linear: Linear, group_size: int | None) -> int:
    return 1 if group_size is None else -(-linear.inputs // group_size)


def _optimizer_bytes(linear: Linear, recipe: Recipe) -> int:
    """State of the adapter of one linear layer: A [rank, in], B [out, rank], DoRA's magnitudes [out]."""
    matrices = [(recipe.rank, linear.inputs), (linear.outputs, recipe.rank)]
    magnitudes = linear.outputs if recipe.dora else 0
    if recipe.optimizer == "adamw":
        return _MOMENTS * (sum(rows * columns for rows, columns in matrices) + magnitudes)
    if recipe.optimizer == "adamw8bit":
        return sum(_moments_8bit(rows * columns) for rows, columns in matrices) + _moments_8bit(magnitudes)
    if recipe.optimizer == "adafactor":
        return _FP32 * (sum(rows + columns for rows, columns in matrices) + magnitudes)
    raise ValueError(
        f"There is no estimate for the optimizer {recipe.optimizer}: adamw, adamw8bit and adafactor are known."
    )


def _moments_8bit(size: int) -> int:
    if size < _SMALLEST_8BIT:
        return _MOMENTS * size
    return _MOMENTS_8BIT * size + 2 * _FP32 * -(-size // _MOMENT_BLOCK)


# ---- what is modelled ----


def _activations_per_token(shape: Shape, adapted: tuple[Linear, ...], recipe: Recipe) -> int:
    kept = _kept_per_token(shape, adapted, recipe)
    # The last norm's input, and the cosines and sines of the positions.
    once = (shape.hidden + 2 * shape.head_size) * recipe.width
    depth = _depth(shape, recipe)
    if not recipe.checkpointing:
        return depth * kept + once
    return depth * shape.hidden * recipe.width + kept + once


def _depth(shape: Shape, recipe: Recipe) -> int:
    """Decoder layers that gradients pass: from the lowest with an adapter up; below it nothing is kept."""
    return shape.layers - adapted_layers(shape.layers, recipe.layers)[0]


def _kept_per_token(shape: Shape, adapted: tuple[Linear, ...], recipe: Recipe) -> int:
    """Bytes that autograd keeps of one decoder layer for each token."""
    parts = (
        _kept_by_norms(shape, recipe),
        _kept_by_attention(shape, recipe),
        _kept_by_mlp(shape, recipe),
        _kept_by_adapters(adapted, recipe),
    )
    return sum(parts) + (_kept_by_dora(shape, adapted, recipe) if recipe.dora else 0)


def _kept_by_norms(shape: Shape, recipe: Recipe) -> int:
    """Their inputs; what they give is made again. Unfused RMS norms keep theirs in fp32."""
    return 2 * shape.hidden * (_FP32 if shape.gated and not recipe.fused else recipe.width)


def _kept_by_attention(shape: Shape, recipe: Recipe) -> int:
    """Queries, keys, values and the output, which is the next layer's input; torch's own has the former per head."""
    queries, keys = (heads * shape.head_size for heads in (shape.heads, shape.kv_heads))
    pairs = keys if recipe.blocked else queries
    return (2 * queries + 2 * pairs) * recipe.width


def _kept_by_mlp(shape: Shape, recipe: Recipe) -> int:
    """What goes into the activation and the gate's other factor; unfused, the activation and the product too."""
    before = 2 if shape.gated else 1
    after = 0 if recipe.fused else before
    return shape.intermediate * recipe.width * (before + after)


def _kept_by_adapters(adapted: tuple[Linear, ...], recipe: Recipe) -> int:
    """The narrow middle. Unfused, the input too: as it is in fp32, else an fp32 copy for every layer."""
    narrow = recipe.rank * len(adapted)
    if recipe.fused:
        return narrow * recipe.width
    shared = {linear.source: linear.inputs for linear in adapted if linear.source in {"attention", "mlp"}}
    inputs = sum(shared.values()) if recipe.width == _FP32 else sum(linear.inputs for linear in adapted)
    # Every layer has a dropped input of its own, and a mask of bytes.
    dropped = (_FP32 + 1) * sum(linear.inputs for linear in adapted) if recipe.dropout else 0
    return _FP32 * (inputs + narrow) + dropped


def _kept_by_dora(shape: Shape, adapted: tuple[Linear, ...], recipe: Recipe) -> int:
    """The outputs before the magnitudes; the MLP is not one function then and keeps its middle."""
    # Where nothing is added to it, such an output is what the activation keeps.
    same = {linear.name for linear in adapted if linear.source == "mlp"} - shape.biased
    outputs = sum(linear.outputs for linear in adapted if linear.name not in same)
    return recipe.width * (outputs + shape.intermediate * (2 if shape.gated else 1))


def _mlp_working_per_token(shape: Shape, recipe: Recipe) -> int:
    """Inside one MLP in the backward pass: its middle made again, and gradients."""
    return recipe.width * (3 * shape.hidden + shape.intermediate * (5 if shape.gated else 3))


def _loss_working(shape: Shape, recipe: Recipe) -> int:
    """At the head: hidden states, their gradient twice, and one chunk of logits."""
    chunk = min(_LOGITS_BYTES, recipe.tokens * shape.vocabulary * _FP32)
    return 3 * recipe.tokens * shape.hidden * recipe.width + chunk


def _attention(shape: Shape, recipe: Recipe) -> int:
    if recipe.blocked:
        return _blocked_attention(shape, recipe)
    pairs = recipe.micro_batch * recipe.sequence_length**2
    layers = 1 if recipe.checkpointing else _depth(shape, recipe)
    # The mask of packed documents as numbers to add to the scores, made and kept by every layer; recomputing keeps
    # what it is made from.
    masks = pairs * (recipe.width * layers + (1 if recipe.checkpointing else 0))
    if recipe.device != "mps":  # fused kernels: no scores are kept
        return masks
    return masks + pairs * shape.heads * (_SCORES_KEPT * layers + _SCORES_LIVE)


def _blocked_attention(shape: Shape, recipe: Recipe) -> int:
    """One fp32 number per query and head, beside what `_kept_by_attention` counts."""
    return (1 if recipe.checkpointing else _depth(shape, recipe)) * recipe.tokens * shape.heads * _FP32


def _attention_working(shape: Shape, recipe: Recipe) -> int:
    """Inside one attention in the backward pass: gradients of its inputs and output; in blocks, the scores of one."""
    gradients = 3 * recipe.tokens * shape.heads * shape.head_size * recipe.width
    if not recipe.blocked:
        return gradients
    budget = _SCORE_BYTES if recipe.device == "cpu" else _SCORE_BYTES_ELSEWHERE
    scores = min(budget, shape.heads * recipe.sequence_length**2 * _FP32)
    return gradients + _SCORE_COPIES * scores


def _scratch(shape: Shape, recipe: Recipe) -> int:
    if recipe.quantization == "none":
        return 0
    largest = max(linear.inputs * linear.outputs for linear in shape.linears)
    if recipe.device == "cpu" and recipe.quantization in {"int8", "int4"}:
        largest = max(min(_TILE_ROWS, linear.outputs) * linear.inputs for linear in shape.linears)
    return largest * recipe.width


def _holes(shape: Shape, recipe: Recipe) -> int:
    """Freed blocks that the C library keeps on a CPU; where memory is short, they go back (`backends.allocator`)."""
    if recipe.device != "cpu" or recipe.checkpointing:
        return 0
    block = min(recipe.tokens * shape.intermediate * recipe.width, _LARGEST_KEPT_BLOCK)
    return _HOLES * block * (2 if shape.gated else 1) * (1 if recipe.fused else 3)


def _loading(shape: Shape, recipe: Recipe) -> int:
    """A layer that is quantised exists in fp32 too; what is not goes from the mapped file to its place."""
    if recipe.quantization == "none":
        return 0
    return round(_LOADING_COPIES * _FP32 * max(linear.inputs * linear.outputs for linear in shape.linears))
