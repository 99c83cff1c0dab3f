import json
import math

import pytest

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
safetensors = pytest.importorskip("safetensors.numpy")
transformers = pytest.importorskip("transformers")

from backends.errors import ModelNotLoadable  # noqa: E402
from jobs.gguf_adapter import write_gguf_adapter  # noqa: E402
from jobs.published import NoAdapter, open_published, other_name  # noqa: E402

RANK = 4
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
Q, K, UP = "self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"


def config_of(kind="llama"):
    classes = {"llama": transformers.LlamaConfig, "starcoder2": transformers.Starcoder2Config}
    other = transformers.GPTNeoXConfig
    return classes.get(kind, other)(vocab_size=64, num_hidden_layers=2, bos_token_id=0, eos_token_id=0, **SIZES)


def adapter(folder, shapes, **changes):
    """An adapter on disk with random weights: layer 1's `shapes` of (module, out, in)."""
    random = np.random.default_rng(17)
    weights = {}
    for module, out, into in shapes:
        prefix = f"base_model.model.model.layers.1.{module}"
        weights[f"{prefix}.lora_A.weight"] = random.standard_normal((RANK, into), np.float32)
        weights[f"{prefix}.lora_B.weight"] = random.standard_normal((out, RANK), np.float32)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8.0, "use_rslora": False, "use_dora": False}
    safetensors.save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return open_published(folder), weights


def written(tmp_path, published, kind="llama", outtype="f32"):
    file = tmp_path / "adapter.gguf"
    layers = write_gguf_adapter(published, config_of(kind), file, name="tiny", outtype=outtype)
    read = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in read.fields.items()}
    return layers, fields, {tensor.name: np.array(tensor.data) for tensor in read.tensors}


def test_an_adapter_says_what_it_is_and_how_it_is_scaled(tmp_path):
    layers, fields, tensors = written(tmp_path, adapter(tmp_path, [(Q, 32, 32), (UP, 64, 32)])[0])
    assert layers == 2
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.lora.alpha"] == 8.0
    assert tensors["blk.1.ffn_up.weight.lora_a"].shape == (RANK, 32)
    assert tensors["blk.1.ffn_up.weight.lora_b"].shape == (64, RANK)


def test_alpha_of_an_rslora_adapter_is_told_so_that_llama_cpp_scales_as_peft_does(tmp_path):
    _, fields, _ = written(tmp_path, adapter(tmp_path, [(Q, 32, 32)], use_rslora=True)[0])
    assert fields["adapter.lora.alpha"] / RANK == pytest.approx(8.0 / math.sqrt(RANK))


def test_rows_of_queries_and_keys_stand_in_pairs_for_llama(tmp_path):
    published, weights = adapter(tmp_path, [(Q, 32, 32), (K, 16, 32), (UP, 64, 32)])
    _, _, tensors = written(tmp_path, published)
    size = 8  # of a head
    for module, name, heads in ((Q, "attn_q", 4), (K, "attn_k", 2)):
        theirs = weights[f"base_model.model.model.layers.1.{module}.lora_B.weight"]
        ours = tensors[f"blk.1.{name}.weight.lora_b"]
        for head in range(heads):
            for place in range(size):
                half, pair = place % 2, place // 2
                assert (ours[head * size + place] == theirs[head * size + half * size // 2 + pair]).all()
        first = weights[f"base_model.model.model.layers.1.{module}.lora_A.weight"]
        assert (tensors[f"blk.1.{name}.weight.lora_a"] == first).all()
    other = weights[f"base_model.model.model.layers.1.{UP}.lora_B.weight"]
    assert (tensors["blk.1.ffn_up.weight.lora_b"] == other).all()


def test_rows_of_starcoder2_stay_where_they_are(tmp_path):
    published, weights = adapter(tmp_path, [(Q, 32, 32), ("mlp.c_fc", 64, 32)])
    _, fields, tensors = written(tmp_path, published, "starcoder2", "f16")
    assert fields["general.architecture"] == "starcoder2"
    theirs = weights[f"base_model.model.model.layers.1.{Q}.lora_B.weight"]
    assert (tensors["blk.1.attn_q.weight.lora_b"] == theirs.astype(np.float16)).all()
    assert "blk.1.ffn_up.weight.lora_a" in tensors


@pytest.mark.parametrize(
    ("changes", "kind", "error", "words"),
    [
        ({"use_dora": True}, "llama", NoAdapter, "--gguf merged"),
        ({}, "gpt_neox", ModelNotLoadable, "--gguf merged"),
    ],
)
def test_what_gguf_adapters_cannot_hold_is_refused_with_the_way_out(tmp_path, changes, kind, error, words):
    published, _ = adapter(tmp_path, [(Q, 32, 32)], **changes)
    with pytest.raises(error, match=words):
        written(tmp_path, published, kind)
    assert not (tmp_path / "adapter.gguf").exists()


def test_a_tensor_of_no_known_layer_is_named(tmp_path):
    published, _ = adapter(tmp_path, [("mlp.mystery", 8, 8)])
    with pytest.raises(NoAdapter, match=r"mystery\.lora_A"):
        written(tmp_path, published)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    published, weights = adapter(tmp_path, [(Q, 32, 32)])
    next(iter(weights.values()))[0, 0] = 1e6  # beyond fp16
    safetensors.save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(NoAdapter, match="not finite in f16"):
        written(tmp_path, published, outtype="f16")


#: As PEFT writes it, of a kind that is taken.
PLAIN = '{"peft_type": "LORA", "r": 4, "lora_alpha": 8}'


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no adapter in"),
        ({"adapter_config.json": "{", "adapter_model.safetensors": ""}, "cannot be read: adapter_config"),
        ({"adapter_config.json": '{"peft_type": "IA3"}', "adapter_model.safetensors": ""}, "no LoRA adapter"),
        ({"adapter_config.json": PLAIN[:-1] + ', "bias": "all"}', "adapter_model.safetensors": ""}, "no LoRA adapter"),
        ({"adapter_config.json": PLAIN}, r"no adapter_model\.safetensors"),
        ({"adapter_config.json": PLAIN, "adapter_model.safetensors": "{"}, "cannot be read: adapter_model"),
    ],
)
def test_a_folder_without_an_adapter_that_can_be_handed_over_is_refused(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(NoAdapter, match=words):
        open_published(tmp_path)


def test_an_adapter_that_was_cut_or_is_no_number_is_refused_by_name(tmp_path):
    _, weights = adapter(tmp_path, [(Q, 32, 32)])
    name = min(weights)
    weights[name][0, 3] = float("nan")
    safetensors.save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(NoAdapter, match=f"damaged: {name} holds numbers that are not finite"):
        open_published(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(NoAdapter, match="cannot be read: adapter_model"):
        open_published(tmp_path)


@pytest.mark.parametrize(("named", "differs"), [("/elsewhere/base", False), ("me/base", False), ("/here/other", True)])
def test_a_base_by_another_name_is_worth_a_warning_wherever_it_lies(tmp_path, named, differs):
    published, _ = adapter(tmp_path, [(Q, 32, 32)], base_model_name_or_path="/here/base")
    assert bool(other_name(published, named)) is differs


def test_the_folder_of_a_run_leads_to_its_adapter(tmp_path):
    (tmp_path / "adapter").mkdir()
    adapter(tmp_path / "adapter", [(Q, 32, 32)])
    assert open_published(tmp_path).folder == tmp_path / "adapter"
