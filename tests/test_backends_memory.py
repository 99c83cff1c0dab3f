"""The memory model against what is: bytes of weights of real models, bytes that autograd keeps."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTBigCodeConfig, LlamaConfig, Qwen2Config, Starcoder2Config

from backends.contract import AdapterRequest, ModelRequest
from backends.devices import Device
from backends.memory import Recipe
from backends.memory import estimate as estimate_recipe
from backends.registry import open_backend

SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2}
TOKENS = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}

CONFIGS = {
    "starcoder2": Starcoder2Config(
        intermediate_size=512, residual_dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0, **SIZES, **TOKENS
    ),
    "llama": LlamaConfig(intermediate_size=344, tie_word_embeddings=False, **SIZES, **TOKENS),
    "llama with biases": LlamaConfig(intermediate_size=344, attention_bias=True, mlp_bias=True, **SIZES, **TOKENS),
    "qwen2": Qwen2Config(intermediate_size=344, tie_word_embeddings=True, **SIZES, **TOKENS),
}

STARCODER2_3B = {
    "model_type": "starcoder2",
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
}


def estimate(model_config, **recipe):
    return estimate_recipe(model_config, Recipe(**recipe))


def stored_bytes(model):
    """Base weights with their scales, as they lie in memory; tied ones once."""
    seen = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "lora_" in name or "rotary" in name:
            continue
        state = getattr(tensor, "quant_state", None)
        parts = (
            [tensor] if state is None else [tensor, state.absmax, state.code, state.state2.absmax, state.state2.code]
        )
        seen |= {part.untyped_storage().data_ptr(): part.numel() * part.element_size() for part in parts}
    return sum(seen.values())


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4", "none"])
@pytest.mark.parametrize("family", CONFIGS)
def test_weights_are_those_of_a_loaded_model(family, kind, tmp_path):
    config = CONFIGS[family]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    request = ModelRequest(name=str(tmp_path), adapter=AdapterRequest(rank=4, alpha=8), device=Device.CPU)
    loaded = open_backend(kind, Device.CPU).load(request)
    parts = estimate(config, quantization=kind, rank=4, compute_bytes=loaded.compute_dtype.itemsize)
    assert parts.weights == pytest.approx(stored_bytes(loaded.model), rel=0.02)
    trainable = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    assert parts.adapters == trainable * 8
    assert parts.optimizer == trainable * 8


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=128, **TOKENS),
        GPTBigCodeConfig(n_embd=64, n_layer=2, n_head=4, n_positions=128, **TOKENS),
    ],
    ids=["gpt2", "gpt_bigcode"],
)
def test_older_families_with_other_field_names_are_understood(config):
    model = AutoModelForCausalLM.from_config(config)
    wanted = sum(p.numel() * 4 for p in model.parameters())
    assert estimate(config, quantization="none").weights == pytest.approx(wanted, rel=0.02)
    assert estimate(config.to_dict(), quantization="none") == estimate(config, quantization="none")


@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "blocked"])
@pytest.mark.parametrize("family", ["starcoder2", "llama"])
def test_activations_are_those_that_autograd_keeps(family, attention, dtype, length, tmp_path):
    config = CONFIGS[family]
    model = lora_model(config, dtype, attention, tmp_path)
    recipe = Recipe(
        rank=4, compute_bytes=dtype.itemsize, sequence_length=length, checkpointing=False, attention=attention
    )
    expected = estimate_recipe(config, recipe)
    assert expected.activations + expected.attention == pytest.approx(kept_bytes(model, length), rel=0.04)


@pytest.mark.parametrize(
    "changes", [{"quantization": "nf4"}, {"dora": True}, {"dropout": True}], ids=["nf4", "dora", "dropout"]
)
@pytest.mark.parametrize("family", ["starcoder2", "llama"])
def test_activations_of_layers_that_are_not_fused_are_those_that_autograd_keeps(family, changes, tmp_path):
    config = CONFIGS[family]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    recipe = Recipe(rank=4, sequence_length=256, checkpointing=False, **changes)
    adapter = AdapterRequest(rank=4, alpha=8, dora=recipe.dora, dropout=0.1 if recipe.dropout else 0.0)
    request = ModelRequest(name=str(tmp_path), adapter=adapter, device=Device.CPU)
    model = open_backend(recipe.quantization, Device.CPU).load(request).model.train()
    expected = estimate_recipe(config, replace(recipe, compute_bytes=model.dtype.itemsize))
    assert expected.activations + expected.attention == pytest.approx(kept_bytes(model, 256), rel=0.06)


def lora_model(config, dtype, attention, folder):
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    from backends.adapters import attach
    from backends.attention import choose
    from backends.int8 import Int8Config
    from backends.models import load_base

    base = load_base(
        str(folder),
        dtype=dtype,
        device="cpu",
        quantization_config=Int8Config(),
        attention=lambda loaded: choose(loaded, "cpu", attention).implementation,
    )
    return attach(base, AdapterRequest(rank=4, alpha=8), seed=1).train()


def kept_bytes(model, length):
    """Storage that autograd saves in one forward pass of the decoder, parameters aside."""
    frozen = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(length)[None] % 300
    positions = torch.cat([torch.arange(length // 2)] * 2)[None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_base_model().model(input_ids=ids, position_ids=positions, use_cache=False)
    return sum(kept.values())


def test_starcoder2_3b_is_the_size_that_its_files_are():
    config = STARCODER2_3B
    parameters = estimate(config, quantization="none", compute_bytes=1).weights
    assert parameters == 3_030_371_328
    assert estimate(config, compute_bytes=2).weights / 1e9 == pytest.approx(3.23, abs=0.01)
    assert estimate(config, quantization="nf4", compute_bytes=2).weights / 1e9 == pytest.approx(1.79, abs=0.01)
    adapter = estimate(config, rank=32)
    assert (adapter.adapters + adapter.optimizer) / 16 == pytest.approx(47.68e6, rel=0.001)


def test_every_part_counts_and_recomputing_saves():
    parts = estimate(STARCODER2_3B, device="mps")
    assert parts.total == sum(vars(parts).values())
    assert all(value > 0 for value in vars(parts).values())
    assert estimate(STARCODER2_3B, device="mps", checkpointing=False).total > 1.2 * parts.total


@pytest.mark.parametrize("change", [{"micro_batch": 2}, {"sequence_length": 2048}, {"rank": 64}, {"compute_bytes": 4}])
def test_more_of_anything_needs_more(change):
    assert estimate(STARCODER2_3B, device="cuda", **change).total > estimate(STARCODER2_3B, device="cuda").total


def test_fewer_targets_need_less_and_unknown_ones_count_as_all():
    everything = estimate(STARCODER2_3B).adapters
    assert estimate(STARCODER2_3B, target=("q_proj", "self_attn.v_proj")).adapters < everything / 4
    assert estimate(STARCODER2_3B, target=("something",)).adapters == everything


@pytest.mark.parametrize("layers", ["last:1", (0,), (1,)])
def test_chosen_layers_count_and_those_below_them_keep_nothing(layers, tmp_path):
    config = CONFIGS["llama"]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    adapter = AdapterRequest(rank=4, alpha=8, layers=layers)
    loaded = open_backend("none", Device.CPU).load(ModelRequest(name=str(tmp_path), adapter=adapter, device=Device.CPU))
    recipe = {"quantization": "none", "rank": 4, "sequence_length": 256, "checkpointing": False, "layers": layers}
    parts = estimate(config, **recipe)
    assert parts.adapters == 8 * sum(one.numel() for one in loaded.model.parameters() if one.requires_grad)
    kept = kept_bytes(loaded.model.train(), 256)
    assert parts.activations + parts.attention == pytest.approx(kept, rel=0.1)
    assert parts.total < estimate(config, **recipe | {"layers": "all"}).total


def test_an_average_of_the_adapter_takes_four_bytes_a_weight():
    assert estimate(STARCODER2_3B, ema=True).adapters == 12 / 8 * estimate(STARCODER2_3B).adapters


def test_a_configuration_without_a_size_is_refused():
    with pytest.raises(ValueError, match="no hidden_size"):
        estimate({"model_type": "llama"})


def test_an_unknown_quantization_is_refused():
    with pytest.raises(ValueError, match="int3"):
        estimate(STARCODER2_3B, quantization="int3")


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="sgd"):
        estimate(STARCODER2_3B, optimizer="sgd")


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "adafactor"])
@pytest.mark.parametrize("dora", [False, True])
def test_the_optimizers_state_is_what_it_holds_after_a_step(kind, dora, tmp_path):
    from jobs.optimizer import make_optimizer
    from jobs.spec import OptimizationSection

    config = CONFIGS["llama"]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    adapter = AdapterRequest(rank=32, alpha=8, dora=dora)
    loaded = open_backend("int8", Device.CPU).load(ModelRequest(name=str(tmp_path), adapter=adapter, device=Device.CPU))
    optimizer = make_optimizer(loaded.model, OptimizationSection(optimizer=kind))
    trainable = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = {}
    for state in optimizer.state.values():
        for name, value in state.items():
            # Tables of the 8-bit code are shared, and a step's number is no state of a weight.
            if torch.is_tensor(value) and value.numel() > 1 and not name.startswith("qmap"):
                held[value.data_ptr()] = value.numel() * value.element_size()
    parts = estimate(config, rank=32, dora=dora, optimizer=kind)
    assert parts.optimizer == pytest.approx(sum(held.values()), rel=0.03)
    assert parts.adapters == 8 * sum(parameter.numel() for parameter in trainable)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("micro_batch", (1, 2, 3, 8)),
        ("sequence_length", (16, 256, 300, 4096)),
        ("rank", (1, 8, 64)),
        ("quantization", ("nf4", "int4", "int8", "none")),
        ("group_size", (None, 256, 128, 64, 32)),
        ("optimizer", ("adafactor", "adamw8bit", "adamw")),
    ],
)
def test_what_is_more_never_needs_less(device, checkpointing, field, values):
    base = {"device": device, "checkpointing": checkpointing, "compute_bytes": 2}
    parts = [estimate(STARCODER2_3B, **base, **{field: value}) for value in values]
    totals = [one.weights if field == "quantization" else one.total for one in parts]
    assert totals == sorted(totals)


def test_blocked_attention_is_linear_in_the_length():
    one, two = (
        estimate(STARCODER2_3B, attention="blocked", sequence_length=length).attention for length in (4096, 8192)
    )
    assert two < 2.2 * one
    plain = [estimate(STARCODER2_3B, attention="sdpa", sequence_length=length).attention for length in (4096, 8192)]
    assert plain[1] == 4 * plain[0]


def test_a_correction_changes_what_is_modelled_and_never_what_is_counted():
    parts = estimate(STARCODER2_3B)
    measured = parts.total + (parts.total - parts.exact) // 4
    corrected = parts.corrected(parts.factor_of(measured))
    assert corrected.total == pytest.approx(measured, abs=4)
    assert corrected.exact == parts.exact


def test_int8_products_on_a_cpu_keep_two_packed_copies():
    exact = estimate(STARCODER2_3B, group_size=None).weights
    integers = estimate(STARCODER2_3B, group_size=None, compute="int8").weights
    assert integers - exact == 2 * 2_878_341_120
    assert estimate(STARCODER2_3B, group_size=None, compute="int8", device="cuda").weights < exact


def test_the_model_and_what_it_models_agree_on_their_constants():
    from backends import head, memory, optimizers
    from backends.int8 import int4

    assert memory._LOGITS_BYTES == head.LOGIT_BYTES
    assert memory._SMALLEST_8BIT == optimizers._SMALLEST_IN_8_BITS
    assert memory._INT4_GROUP == int4.GROUP_SIZE
