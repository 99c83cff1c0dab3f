"""Int8 as a method of transformers: quantised while loading, saved and loaded again bit by bit, PEFT on top."""

import json
import shutil

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from backends import models
from backends.errors import ModelNotLoadable
from backends.int8 import Int8Config, Int8Linear
from backends.int8.layer import layer_class
from backends.int8.quantized import QuantizedLinear

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(request, tmp_path_factory):
    """A saved Llama whose columns do not divide by any group size."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=72,
        intermediate_size=140,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=request.param == "tied",
    )
    path = tmp_path_factory.mktemp(request.param)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


CONFIGS = {
    "groups": Int8Config(group_size=64),
    "rows": Int8Config(group_size=None),
    "int8 compute": Int8Config(group_size=None, compute="int8"),
    "int4": Int8Config(bits=4),
}


def quantised(folder, config=CONFIGS["groups"], **changes):
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, **changes)


def int8_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def same(model, other):
    """Whether both hold the same tensors of the same types under the same names."""
    state, others = model.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(
        value.dtype is others[name].dtype and torch.equal(value, others[name]) for name, value in state.items()
    )


@pytest.fixture
def quantisations(monkeypatch):
    """The shape of each weight that is quantised."""
    shapes = []
    for kind in map(layer_class, (8, 4)):
        encode = kind.encode

        def counted(rows, group_size, encode=encode):
            shapes.append(tuple(rows.shape))
            return encode(rows, group_size)

        monkeypatch.setattr(kind, "encode", counted)
    return shapes


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None]).logits


def test_every_linear_layer_but_the_head_becomes_int8(folder):
    model = quantised(folder)
    assert len(int8_layers(model)) == 2 * 7
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_loading_gives_what_from_linear_gives(folder, config):
    plain = AutoModelForCausalLM.from_pretrained(folder)
    kind = layer_class(config.bits)
    for name, layer in int8_layers(quantised(folder, config)).items():
        wanted = kind.from_linear(plain.get_submodule(name), group_size=config.group_size)
        assert type(layer) is kind
        assert same(layer, wanted)
        assert (layer.bias is None) == (wanted.bias is None)
        assert (layer.group_size, layer.compute) == (config.group_size, config.compute)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", ["1GB", "40KB"], ids=["whole", "sharded"])
def test_checkpoints_of_every_float_type_are_quantised_whole_or_sharded(folder, tmp_path, stored, shard):
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=stored)
    plain.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "40KB")
    model = models.load_base(str(tmp_path), dtype=torch.float32, device="cpu", quantization_config=CONFIGS["groups"])
    for name, layer in int8_layers(model).items():
        assert torch.equal(layer.weight, Int8Linear.from_linear(plain.get_submodule(name), group_size=64).weight)
    assert model.model.embed_tokens.weight.dtype is torch.float32


def test_the_output_is_close_to_full_precision(folder):
    exact = logits(AutoModelForCausalLM.from_pretrained(folder))
    error = (logits(quantised(folder)) - exact).norm() / exact.norm()
    assert 0 < error < 0.02


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_saved_model_comes_back_bit_by_bit_without_being_quantised_again(folder, tmp_path, config, quantisations):
    model = quantised(folder, config)
    assert len(quantisations) == 2 * 7
    model.save_pretrained(tmp_path)
    quantisations.clear()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert quantisations == []
    assert int8_layers(again).keys() == int8_layers(model).keys()
    assert same(again, model)
    assert torch.equal(logits(again), logits(model))


def test_a_sharded_quantised_model_comes_back_bit_by_bit(folder, tmp_path):
    model = quantised(folder)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_configuration_is_in_the_saved_folder_and_read_back(folder, tmp_path, config):
    quantised(folder, config).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert stored == config.to_dict()
    assert Int8Config.from_dict(stored).to_dict() == config.to_dict()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.quantization_config.to_dict() == config.to_dict()


def load_base(folder, config):
    return models.load_base(str(folder), dtype=torch.float32, device="cpu", quantization_config=config)


def test_a_saved_int8_model_is_loaded_as_it_is_and_for_no_other_backend(folder, tmp_path):
    quantised(folder).save_pretrained(tmp_path)
    again = load_base(tmp_path, Int8Config())
    assert next(iter(int8_layers(again).values())).group_size == 64
    with pytest.raises(ModelNotLoadable, match=r"already quantised \(repotune_int8\)"):
        load_base(tmp_path, None)
    with pytest.raises(ModelNotLoadable, match="quantised to 8 bits, and 4 are asked for"):
        load_base(tmp_path, Int8Config(bits=4))


def test_how_a_saved_model_multiplies_is_chosen_when_it_is_loaded(folder, tmp_path):
    quantised(folder, CONFIGS["rows"]).save_pretrained(tmp_path)
    again = load_base(tmp_path, CONFIGS["int8 compute"])
    assert {layer.compute for layer in int8_layers(again).values()} == {"int8"}
    assert {layer.compute for layer in int8_layers(load_base(tmp_path, Int8Config())).values()} == {"exact"}


def test_saved_groups_are_not_multiplied_in_int8(folder, tmp_path):
    quantised(folder).save_pretrained(tmp_path)
    with pytest.raises(ModelNotLoadable, match="quantised in groups of 64, and products in int8 need one scale"):
        load_base(tmp_path, CONFIGS["int8 compute"])


def test_scales_in_fp32_survive_saving_or_are_refused(folder, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        plain.get_submodule("model.layers.0.mlp.up_proj").weight[0, 0] = 3e7
    plain.save_pretrained(tmp_path / "plain")
    model = quantised(tmp_path / "plain")
    assert model.get_submodule("model.layers.0.mlp.up_proj").scales.dtype is torch.float32
    model.save_pretrained(tmp_path / "saved")
    try:
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    except ValueError as error:  # transformers up to 5.17 casts them to fp16
        assert "finite scales" in str(error)  # noqa: PT017
    else:
        assert same(again, model)


def test_a_weight_that_is_not_finite_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        plain.get_submodule("model.layers.0.mlp.up_proj").weight[0, 0] = float("nan")
    plain.save_pretrained(tmp_path)
    with pytest.raises(ModelNotLoadable, match=r"layers\.0\.mlp\.up_proj could not be quantised: not all .* finite"):
        load_base(tmp_path, Int8Config())


def test_named_modules_stay_as_they_are_and_so_does_the_head(folder):
    config = Int8Config(modules_to_not_convert=["up_proj"])
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    assert type(model.lm_head) is nn.Linear
    assert len(int8_layers(model)) == 2 * 6


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"group_size": 100}, "100 is not possible: choose one of"),
        ({"group_size": 64.0}, "64.0 is not possible: give a number"),
        ({"group_size": True}, "True is not possible: give a number"),
        ({"group_size": "row"}, "'row' is not possible: give a number"),
        ({"bits": 3}, "3 bits are not possible"),
        ({"bits": 8.0}, "8.0 bits are not possible"),
        ({"bits": 4, "group_size": 32}, "32 is not possible: choose one of 64"),
        ({"bits": 4, "group_size": None}, "None is not possible: choose one of 64"),
        ({"bits": 4, "compute": "int8"}, "4-bit weights cannot compute 'int8'"),
        ({"compute": "int8"}, "need one scale per row"),
        ({"compute": "fast"}, "cannot compute 'fast'"),
        ({"modules_to_not_convert": "lm_head"}, "a list of names or None, not 'lm_head'"),
        ({"groupsize": 64}, "knows no groupsize: correct the name"),
        ({"quant_method": "gptq"}, "another quantisation method, 'gptq'"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_in_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Int8Config(**wrong)


def test_four_bits_have_their_own_group_size():
    assert Int8Config(bits=4).group_size == 64


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_without_linear_layers_is_refused(tmp_path, bits):
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32)).save_pretrained(tmp_path)
    with pytest.raises(ModelNotLoadable, match=f"No layer of this GPT2LMHeadModel can be held in {bits} bits"):
        load_base(tmp_path, Int8Config(bits=bits))


def test_a_wide_weight_is_quantised_in_small_blocks(quantisations):
    layer_class(8).quantize(torch.randn(400, 12288), 128)
    assert sum(rows for rows, _ in quantisations) == 400
    assert max(rows * columns for rows, columns in quantisations) <= 2**20


def test_dora_measures_the_rows_that_the_codes_stand_for(folder):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(quantised(folder), LoraConfig(r=2, target_modules=["up_proj"], use_dora=True))
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude, layer.base_layer.dequantize().norm(dim=1))


def test_merging_an_adapter_into_int8_fails_aloud_and_changes_nothing(folder):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(quantised(folder), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    before = logits(model)
    with pytest.raises(RuntimeError, match="can't be cast"):
        model.merge_adapter()
    assert torch.equal(logits(model), before)
