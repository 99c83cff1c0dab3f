"""Int8 as a method of transformers: quantised while loading, saved and loaded again bit by bit, PEFT on top."""

import shutil

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from backends import models
from backends.errors import ModelNotLoadable
from backends.int8 import Int8Config, Int8Linear

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


def quantised(folder, **changes):
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=Int8Config(group_size=64), **changes)


def int8_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None]).logits


def test_every_linear_layer_but_the_head_becomes_int8(folder):
    model = quantised(folder)
    assert len(int8_layers(model)) == 2 * 7
    assert type(model.lm_head) is nn.Linear


def test_loading_gives_what_from_linear_gives(folder):
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for name, layer in int8_layers(quantised(folder)).items():
        wanted = Int8Linear.from_linear(plain.get_submodule(name), group_size=64)
        assert torch.equal(layer.weight, wanted.weight)
        assert torch.equal(layer.scales, wanted.scales)
        assert (layer.bias is None) == (wanted.bias is None)


def test_the_output_is_close_to_full_precision(folder):
    exact = logits(AutoModelForCausalLM.from_pretrained(folder))
    error = (logits(quantised(folder)) - exact).norm() / exact.norm()
    assert 0 < error < 0.02


def test_a_saved_model_comes_back_bit_by_bit(folder, tmp_path):
    model = quantised(folder)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert int8_layers(again).keys() == int8_layers(model).keys()
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[name]) and value.dtype is other[name].dtype for name, value in state.items())
    assert torch.equal(logits(again), logits(model))


def test_a_saved_int8_model_is_loaded_as_it_is_and_for_no_other_backend(folder, tmp_path):
    quantised(folder).save_pretrained(tmp_path)
    again = models.load_base(str(tmp_path), dtype=torch.float32, device="cpu", quantization_config=Int8Config())
    assert next(iter(int8_layers(again).values())).group_size == 64
    with pytest.raises(ModelNotLoadable, match=r"already quantised \(repotune_int8\)"):
        models.load_base(str(tmp_path), dtype=torch.float32, device="cpu")


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
        assert torch.equal(logits(again), logits(model))


def test_a_weight_that_is_not_finite_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        plain.get_submodule("model.layers.0.mlp.up_proj").weight[0, 0] = float("nan")
    plain.save_pretrained(tmp_path)
    with pytest.raises(ModelNotLoadable, match="cannot be loaded"):
        models.load_base(str(tmp_path), dtype=torch.float32, device="cpu", quantization_config=Int8Config())


def test_named_modules_stay_as_they_are_and_so_does_the_head(folder):
    config = Int8Config(modules_to_not_convert=["up_proj"])
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    assert type(model.lm_head) is nn.Linear
    assert len(int8_layers(model)) == 2 * 6


def test_an_impossible_group_size_is_refused():
    with pytest.raises(ValueError, match="choose one of"):
        Int8Config(group_size=100)


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
