"""The spec of a job: every configuration key with its sentence, and the value that travels as JSON.

`Config` is the whole YAML file: sections, and per-device sections that override the rest on that device.
`JobSpec` is what a job record carries: the kind, the config, the source, the device asked for.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
)
from pydantic_core import ErrorDetails

from backends.devices import Device
from backends.errors import ExitCode, RepotuneError
from jobs.globs import matcher
from jobs.not_yet import refuse_not_yet


class InvalidSpec(RepotuneError):
    """The configuration or a flag is wrong: an unknown key, a wrong type, an impossible value."""

    exit_code = ExitCode.USAGE


class Section(BaseModel):
    """A section of the YAML file: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_honoured(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what would be ignored."""
        name = info.field_name or ""
        section = cls.__name__.removesuffix("Section").lower()
        refuse_not_yet(f"{section}.{name}", value, cls.model_fields[name].default)
        return value


class ModelSection(Section):
    """Which base model is adapted."""

    name: str = Field(
        "bigcode/starcoder2-3b",
        min_length=1,
        description="Hub id, folder with a saved model, or path of a .gguf file. The worker must be able to reach it.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model; null means its main branch.")


#: The only group size of int4: larger ones lose too much, smaller ones save too little.
INT4_GROUP = 64


class QuantizationSection(Section):
    """How the frozen base weights are held in memory."""

    kind: Literal["int8", "int4", "nf4", "none"] = Field(
        "int8",
        description="int8: our exact 8-bit weights; int4: our 4-bit weights; nf4: bitsandbytes 4-bit; none: as stored.",
    )
    group_size: Literal[32, 64, 128, 256, "row"] = Field(
        128,
        description="Weights of a row that share one scale in int8, or row for one scale per row, which int8 compute "
        "always has; int4 always has 64.",
    )
    compute: Literal["exact", "int8"] = Field(
        "exact",
        description="exact: weights are dequantised and multiplied in the compute dtype; int8: activations are "
        "quantised too and multiplied as integers, with kind int8 on cpu and cuda only.",
    )

    @field_validator("compute")
    @classmethod
    def _fits_the_weights(cls, compute: str, info: ValidationInfo) -> str:
        """Integer products need one scale per row of int8 weights; 128 is what stands where nothing was chosen."""
        kind, group_size = info.data.get("kind", "int8"), info.data.get("group_size", "row")
        if compute == "int8" and kind != "int8":
            raise ValueError(f"int8 needs quantization.kind int8, not {kind}: set that, or quantization.compute exact")
        if compute == "int8" and group_size not in {"row", 128}:
            raise ValueError(
                f"int8 has one scale per row: set quantization.group_size to row, not {group_size}, "
                "or quantization.compute to exact"
            )
        return compute

    @property
    def scale_group(self) -> int | None:
        """Weights of a row that share one scale as the backend will hold them; None gives each row one scale."""
        if self.kind == "int4":
            return INT4_GROUP
        if self.group_size == "row" or self.compute == "int8":
            return None
        return self.group_size

    @property
    def chosen_group(self) -> int | str | None:
        """The group size that tells two bases of this kind and compute apart; None where there is no choice of one."""
        if self.kind != "int8":
            return None
        return "row" if self.scale_group is None else self.scale_group


def _layers(value: str | tuple[int, ...]) -> str | tuple[int, ...]:
    """Only the form: how many layers there are is the model's to say."""
    if isinstance(value, str):
        if value != "all" and not re.fullmatch(r"last:[1-9][0-9]*", value):
            raise ValueError(f"expected all, last:N or a list of layer numbers, not {value!r}")
    elif not value or min(value) < 0 or len(set(value)) < len(value):
        raise ValueError(f"expected layer numbers from 0 up, each once, not {list(value)}")
    return value


class LoraSection(Section):
    """The adapter that is trained."""

    rank: int = Field(32, ge=1, le=1024, description="Rank of the update matrices.")
    alpha: float = Field(64, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: str | tuple[str, ...] = Field(
        "all-linear", description="Layers that get an adapter: all-linear, or a list of module names."
    )
    layers: Annotated[str | tuple[int, ...], AfterValidator(_layers)] = Field(
        "all", description="Decoder layers that get an adapter: all, last:N, or a list of numbers counted from 0."
    )
    rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) instead (rank-stabilised LoRA).")
    dora: bool = Field(
        default=False, description="Learn direction and magnitude of every row apart (DoRA): slower, sometimes better."
    )


def _readable(globs: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is no glob when the configuration is read, not when the dataset is built."""
    matcher(globs)
    return globs


Globs = Annotated[tuple[str, ...], AfterValidator(_readable)]


#: Share of the training tokens that commits and documentation may be together: code is what they are measured by.
MOST_BESIDE_CODE = 0.9


class FurtherRepository(Section):
    """One more repository that goes into the dataset, as the person names it."""

    repository: str = Field(min_length=1, description="A folder or a URL.")
    ref: str | None = Field(None, description="Branch, tag or commit, or a range A..B; null means HEAD.")
    weight: float | None = Field(
        None, gt=0, description="Training tokens of it for one of the main repository; null takes all of it."
    )


class DatasetSection(Section):
    """What of the repository is learned, and in which shape."""

    also: tuple[FurtherRepository, ...] = Field(
        (),
        description="Further repositories: a list of {repository, ref, weight}. Where weights are given, training "
        "tokens stand in their ratio, the main repository having 1; null takes all of one.",
    )
    include: Globs = Field((), description="Globs of paths to take; empty means all text files.")
    exclude: Globs = Field((), description="Globs of paths to leave out.")
    sequence_length: int = Field(1024, ge=16, le=131072, description="Tokens of every packed row.")
    max_file_bytes: int = Field(1_000_000, ge=1, description="Larger files are left out.")
    held_out: float = Field(
        0.05, gt=0, lt=0.5, description="Share of files that are never trained on and measure the result."
    )
    fim_rate: float = Field(0.5, ge=0, le=1, description="Share of code samples turned into fill-in-the-middle.")
    fim_spm_rate: float = Field(0.5, ge=0, le=1, description="Share of those in suffix-prefix-middle order.")
    fim_syntax_rate: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of those whose middle is a whole piece of syntax, not any run of characters.",
    )
    future: float = Field(
        0.05,
        ge=0,
        lt=0.5,
        description="Share of commits, the newest, 64 at most, that are never trained on and measure tomorrow's code.",
    )
    commit_share: float = Field(0.25, ge=0, le=0.8, description="Share of the training tokens that are commits.")
    doc_share: float = Field(0.1, ge=0, le=0.8, description="Share of the training tokens that are documentation.")
    tokens: int | None = Field(
        None, ge=1000, description="Training tokens at most; null takes all code once and other kinds in proportion."
    )
    scanner: Literal["auto", "built-in"] = Field(
        "auto", description="What finds secrets: betterleaks where it is installed and our rules, or our rules alone."
    )
    encoding: Literal["latin-1"] | None = Field(
        None, description="How to read files that are no UTF-8 and have no byte order mark; null leaves them out."
    )
    max_overlap: float = Field(
        0.5, gt=0, le=1, description="Share of a held-out file's 13-word runs that one training file may hold."
    )
    seed: int = Field(17, ge=0, lt=2**32, description="Seed of the split and of the fill-in-the-middle cuts.")

    @field_validator("doc_share")
    @classmethod
    def _leaves_room_for_code(cls, doc_share: float, info: ValidationInfo) -> float:
        """Code is what the shares of commits and documentation leave."""
        commit_share = info.data.get("commit_share", 0.0)
        if commit_share + doc_share > MOST_BESIDE_CODE:
            raise ValueError(
                f"{doc_share:g} beside a commit_share of {commit_share:g} leaves no room for code: "
                f"the two may be {MOST_BESIDE_CODE:g} together"
            )
        return doc_share


class OptimizationSection(Section):
    """How the adapter's weights move."""

    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = Field(
        "adamw",
        description="adamw: 8 bytes of state per adapter weight; adamw8bit: about 2, by bitsandbytes where it runs; "
        "adafactor: almost none, no momentum.",
    )
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak learning rate.")
    micro_batch: int = Field(1, ge=1, le=4096, description="Rows of one forward pass.")
    accumulation: int = Field(16, ge=1, le=65536, description="Forward passes per optimizer step.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of all steps spent warming up.")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine",
        description="Shape of the learning rate after warm-up; wsd: stays at the peak, then falls in a straight line.",
    )
    decay_ratio: float = Field(0.2, gt=0, le=1, description="Share of all steps in which wsd falls, the last ones.")
    min_ratio: float = Field(0.0, ge=0, lt=1, description="The learning rate falls to this share of its peak.")
    lora_plus_ratio: float | None = Field(
        None, ge=1, description="Learning rate of the B matrices over that of the A ones (LoRA+); null: the same."
    )
    weight_decay: float = Field(0.0, ge=0, lt=1, description="Decoupled weight decay, times the learning rate.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this global L2 norm.")


def _switch(value: Any) -> Any:
    """YAML reads a bare on or off as a truth value."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class TrainingSection(Section):
    """How long to train, when to save and when to measure."""

    epochs: int = Field(3, ge=1, le=10_000, description="Passes over the training split.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many optimizer steps; null: epochs decide.")
    checkpoint_every_steps: int = Field(100, ge=1, description="Save at least every so many optimizer steps.")
    checkpoint_every_minutes: float = Field(5.0, gt=0, description="Save at least every so many minutes.")
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="Held-out loss every so many steps; null means only before and after."
    )
    evaluation_rows: int = Field(64, ge=1, description="Held-out rows measured at most, the same ones every time.")
    early_stopping: int | None = Field(
        None,
        ge=1,
        description="Stop after so many held-out measurements in a row without a gain; needs evaluate_every_steps.",
    )
    early_stopping_delta: float = Field(0.0, ge=0, description="A smaller fall of the held-out loss is no gain, nats.")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the adapter, which is then what is measured and published.",
    )
    neftune_alpha: float | None = Field(
        None, gt=0, description="Noise on the input embeddings in training (NEFTune), usually 5 to 15."
    )
    compile: Annotated[Literal["off", "on", "auto"], BeforeValidator(_switch)] = Field(
        "off", description="torch.compile. So far only off: on and auto are refused, they do nothing yet."
    )
    gradient_checkpointing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = Field(
        "auto", description="Recompute activations in the backward pass; auto lets the memory model decide."
    )
    attention: Literal["auto", "sdpa", "blocked"] = Field(
        "auto",
        description="sdpa: torch's own; blocked: memory linear in the length, for devices where torch's is not; "
        "auto: the better one for the device.",
    )
    max_wall_hours: float | None = Field(None, gt=0, description="The job fails after so many hours; null means never.")
    seed: int = Field(17, ge=0, lt=2**32, description="Seed of adapter, shuffling and dropout.")

    @field_validator("early_stopping")
    @classmethod
    def _has_measurements(cls, measurements: int | None, info: ValidationInfo) -> int | None:
        if measurements is not None and info.data.get("evaluate_every_steps") is None:
            raise ValueError("it counts measurements, and there are none on the way: set training.evaluate_every_steps")
        return measurements


class EvaluationSection(Section):
    """How much is measured when base and adapter are compared, and for how long at most."""

    rows: int = Field(64, ge=1, description="Held-out rows whose loss is measured at most.")
    future_rows: int = Field(64, ge=0, description="Rows of newer commits whose loss is measured at most.")
    prompts: int = Field(32, ge=0, description="Places in code that are completed, with base and adapter, at most.")
    new_tokens: int = Field(48, ge=1, le=4096, description="Tokens of a completion at most.")
    resamples: int = Field(1000, ge=100, le=1_000_000, description="Draws of the bootstrap behind each interval.")
    minutes: float = Field(
        10.0,
        gt=0,
        description="Nothing further is measured after so many minutes, nor after a tenth of a training's own time.",
    )
    samples: int = Field(6, ge=0, description="Completions that are shown side by side.")


class OutputSection(Section):
    """What is kept."""

    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept; older ones are removed.")
    keep_best: bool = Field(default=True, description="Keep the checkpoint of the best held-out loss as well.")
    publish: Literal["last", "best"] = Field(
        "last", description="Which adapter is the result: of the last step, or of the best held-out loss."
    )
    sinks: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = Field(
        (), description="Trackers that get the metrics too: tensorboard, wandb, trackio, mlflow."
    )
    project: str = Field("repotune", min_length=1, description="Name of the project in those trackers.")


class Override(Section):
    """Keys that replace others. Written out, it holds only those that were set: the rest would come back as null."""

    @model_serializer(mode="wrap")
    def _only_what_was_set(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in write(self).items() if key in self.model_fields_set}


def _partial(section: type[Section]) -> Any:
    """The same section with every key optional: what a device section may override."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        if field.metadata:
            annotation = Annotated[(annotation, *field.metadata)]
        fields[name] = (annotation, Field(None, description=field.description))
    return create_model(f"{section.__name__}Override", __base__=Override, __doc__=section.__doc__, **fields)


_SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "quantization": QuantizationSection,
    "lora": LoraSection,
    "dataset": DatasetSection,
    "optimization": OptimizationSection,
    "training": TrainingSection,
    "evaluation": EvaluationSection,
    "output": OutputSection,
}

_Overrides: Any = create_model(  # type: ignore[call-overload]
    "DeviceSection",
    __base__=Override,
    __doc__="Keys that differ on this device.",
    **{name: (_partial(section) | None, None) for name, section in _SECTIONS.items()},
)


_NO_INT8_COMPUTE_ON_MPS = (
    "quantization.compute: int8 cannot run on mps, where torch has no integer matrix product: set "
    "mps.quantization.compute to exact, or ask for another device."
)


def _on_device(error: ValidationError, device: Device) -> str:
    """The first problem of keys that meet on `device`, as one sentence."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"On {device}: {key}: {reason(first)}."


def reason(problem: ErrorDetails) -> str:
    """What pydantic found wrong, as a clause: our own words where a validator of ours raised them."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"]
    return f"{message[0].lower()}{message[1:]}, not {problem['input']!r}"


class Config(Section):
    """The whole configuration file."""

    model: ModelSection = ModelSection()
    quantization: QuantizationSection = QuantizationSection()
    lora: LoraSection = LoraSection()
    dataset: DatasetSection = DatasetSection()
    optimization: OptimizationSection = OptimizationSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    output: OutputSection = OutputSection()
    mps: _Overrides = Field(default_factory=_Overrides, description="Overrides on Apple GPUs.")
    cuda: _Overrides = Field(default_factory=_Overrides, description="Overrides on NVIDIA GPUs.")
    cpu: _Overrides = Field(default_factory=_Overrides, description="Overrides on CPUs.")

    def without_repositories(self) -> "Config":
        """The configuration once the further repositories that it names are pinned: what they were called is done."""
        return self.model_copy(update={"dataset": self.dataset.model_copy(update={"also": ()})})

    def for_device(self, device: Device) -> "Config":
        """The configuration as it holds on `device`: its section laid over the rest, the device sections emptied.

        Raises:
            InvalidSpec: keys that are right one by one do not go together on this device.
        """
        base = self.model_dump(exclude={device.value for device in Device})
        overrides = getattr(self, device.value).model_dump(exclude_unset=True)
        for section, values in overrides.items():
            base[section] |= values or {}
        try:
            config = Config.model_validate(base)
        except ValidationError as error:
            raise InvalidSpec(_on_device(error, device)) from error
        if device is Device.MPS and config.quantization.compute == "int8":
            raise InvalidSpec(_NO_INT8_COMPUTE_ON_MPS)
        return config


class Kind(StrEnum):
    """What a job does."""

    DATASET = "dataset"
    TRAINING = "training"


class Pinned(Section):
    """A repository pinned to a commit."""

    repository: str = Field(description="As the person named it: a path or a URL. Shown to people.")
    commit: str = Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$", description="Commit id, resolved by the submitter.")
    since: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$",
        description="Commit whose history is left out: the A of a range A..B; null takes the whole history.",
    )
    bundle: str | None = Field(None, description="Artifact path of the git bundle; null: the worker fetches the URL.")
    weight: float | None = Field(
        None, gt=0, description="Training tokens for one of the main repository; null takes all of it."
    )


class Source(Pinned):
    """The repository that a dataset is built from, and those that are learned with it."""

    also: tuple[Pinned, ...] = Field((), description="Further repositories.")

    @property
    def repositories(self) -> tuple[Pinned, ...]:
        """All of them, the main one first."""
        return (self, *self.also)


class JobSpec(Section):
    """What a job record carries; frozen, JSON both ways."""

    kind: Kind
    name: str = Field("", description="What people call the job; the repository's name by default.")
    device: Literal["cuda", "mps", "cpu", "any"] = Field("any", description="The device that must run it.")
    config: Config
    source: Source | None = Field(None, description="Set on dataset jobs.")
    dataset_job: str | None = Field(None, description="Set on training jobs: the job whose result is the dataset.")
