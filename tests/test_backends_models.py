"""From a name to a model: every way in which a name can be wrong has its sentence, and good ones load."""

import json
import shutil

import pytest
import torch

from backends import models
from backends.errors import ExitCode, ModelNotLoadable


@pytest.fixture
def folder_with_config(tmp_path):
    def make(text):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        return str(tmp_path)

    return make


@pytest.mark.parametrize("name", ["does/not/exist", "./x", "../x/y", "~/does-not-exist", "/nope", "nope.gguf", ""])
def test_a_path_that_does_not_exist_is_named_as_such(name):
    with pytest.raises(ModelNotLoadable, match="no such file or folder") as raised:
        models.model_folder(name)
    assert raised.value.exit_code is ExitCode.USAGE


def test_a_folder_without_a_config_holds_no_model(tmp_path):
    with pytest.raises(ModelNotLoadable, match=r"no config\.json"):
        models.model_folder(str(tmp_path))


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(ModelNotLoadable, match="has no revisions"):
        models.model_folder(str(tmp_path), revision="main")


def test_a_hub_id_stays_as_it_is():
    assert models.model_folder("bigcode/starcoder2-3b") == "bigcode/starcoder2-3b"


def test_a_model_that_neither_hub_nor_cache_gives_says_what_was_tried(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotLoadable, match=r"nobody/nothing is no folder here, is not in the hub's cache"):
        models.load_tokenizer("nobody/nothing")


@pytest.mark.parametrize("text", ["not json", "{}", "[]", '{"model_type": "nope"}'])
def test_a_configuration_that_transformers_does_not_know_is_told(folder_with_config, text):
    with pytest.raises(ModelNotLoadable, match=r"configuration of .* cannot be read"):
        models.load_config(folder_with_config(text))


def test_code_that_came_with_a_model_is_never_run(folder_with_config):
    name = folder_with_config(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}))
    with pytest.raises(ModelNotLoadable, match=r"program code .*trust_remote_code.*never runs such code"):
        models.load_config(name)


@pytest.mark.parametrize("config", [{"model_type": "t5"}, {"model_type": "bert", "architectures": ["BertForMaskedLM"]}])
def test_a_model_that_is_not_causal_is_refused(folder_with_config, config):
    with pytest.raises(ModelNotLoadable, match="not a causal language model"):
        models.load_config(folder_with_config(json.dumps(config)))


def test_a_model_without_tokenizer_is_told(tiny_model_folder, tmp_path):
    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    with pytest.raises(ModelNotLoadable, match="has no tokenizer"):
        models.load_tokenizer(str(tmp_path))


def test_a_broken_tokenizer_is_told(tmp_path, tiny_model_folder):
    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelNotLoadable, match=r"tokenizer of .* cannot be read"):
        models.load_tokenizer(str(tmp_path))


def test_a_model_without_weights_is_told(tiny_model_folder, tmp_path):
    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    with pytest.raises(ModelNotLoadable, match=r"weights of .* cannot be loaded"):
        models.load_base(str(tmp_path), dtype=torch.float32, device="cpu")


def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(tiny_model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    weights = load_file(tiny_model_folder / "model.safetensors")
    del weights["model.layers.1.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelNotLoadable, match=r"incomplete: 1 weights .* model\.layers\.1\.mlp\.c_fc\.weight"):
        models.load_base(str(tmp_path), dtype=torch.float32, device="cpu")


def test_the_dropouts_of_the_model_itself_are_off(tiny_model_folder, tmp_path):
    shutil.copytree(tiny_model_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"residual_dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = models.load_base(str(tmp_path), dtype=torch.float32, device="cpu").train()
    ids = torch.arange(8)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_decoder_that_is_half_of_an_encoder_decoder_is_refused(folder_with_config):
    config = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}
    with pytest.raises(ModelNotLoadable, match="not a causal language model") as raised:
        models.load_config(folder_with_config(json.dumps(config)))
    assert raised.value.exit_code is ExitCode.USAGE


def test_a_head_that_is_neither_tied_nor_in_the_files_is_refused(tiny_model_folder, tmp_path):
    shutil.copytree(tiny_model_folder, tmp_path, dirs_exist_ok=True)
    change_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ModelNotLoadable, match=r"incomplete: 1 weights .* lm_head\.weight"):
        models.load_base(str(tmp_path), dtype=torch.float32, device="cpu")


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"\x08", None], ids=["empty", "no header", "cut"])
def test_a_damaged_file_of_weights_is_told(tiny_model_folder, tmp_path, content):
    shutil.copytree(tiny_model_folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelNotLoadable, match=r"weights of .* cannot be loaded"):
        models.load_base(str(tmp_path), dtype=torch.float32, device="cpu")


def test_a_shard_that_is_absent_is_named(tiny_model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_model_folder).save_pretrained(tmp_path, max_shard_size="20KB")
    min(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(ModelNotLoadable, match="model-00001-of"):
        models.load_base(str(tmp_path), dtype=torch.float32, device="cpu")


def test_pickled_weights_are_not_opened(tiny_model_folder, tmp_path):
    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelNotLoadable, match=r"weights of .* cannot be loaded"):
        models.load_base(str(tmp_path), dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"already quantised \(gptq\)"),
        ({"quant_method": "awq", "bits": 4}, r"already quantised \(awq\)"),
        ({"bits": 4}, r"already quantised \(in an unnamed way\)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "already quantised to 8 bits, and 4 are asked for"),
    ],
)
def test_weights_that_another_method_quantised_are_refused(tiny_model_folder, tmp_path, stored, sentence):
    from transformers import BitsAndBytesConfig

    shutil.copytree(tiny_model_folder, tmp_path, dirs_exist_ok=True)
    change_config(tmp_path, quantization_config=stored)
    wanted = BitsAndBytesConfig(load_in_4bit=True)
    with pytest.raises(ModelNotLoadable, match=sentence) as raised:
        models.load_base(str(tmp_path), dtype=torch.float32, device="cpu", quantization_config=wanted)
    assert raised.value.exit_code is ExitCode.USAGE


def test_code_that_came_with_a_model_is_not_run_for_its_weights(tiny_model_folder, tmp_path):
    shutil.copytree(tiny_model_folder, tmp_path, dirs_exist_ok=True)
    trap = tmp_path / "was_run"
    (tmp_path / "own.py").write_text(f"open({str(trap)!r}, 'w')", encoding="utf-8")
    change_config(tmp_path, auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.Config"})
    models.load_base(str(tmp_path), dtype=torch.float32, device="cpu")
    assert not trap.exists()


def test_the_identity_of_a_tokenizer_is_its_content(tiny_model_folder, tmp_path):
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    first = models.tokenizer_file_sha256(tokenizer)
    tokenizer(["a", "bb ccc"], padding=False, truncation=True, max_length=2)
    assert models.tokenizer_file_sha256(tokenizer) == first
    shutil.copytree(tiny_model_folder, tmp_path / "elsewhere")
    assert models.tokenizer_file_sha256(models.load_tokenizer(str(tmp_path / "elsewhere"))) == first
    tokenizer.add_tokens(["<more>"])
    assert models.tokenizer_file_sha256(tokenizer) != first


def test_a_document_ends_with_endoftext_even_where_a_chat_model_has_another_eos(tiny_model_folder):
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    tokenizer.eos_token = "<file_sep>"
    assert models.document_end_id(tokenizer) == tokenizer.get_vocab()["<|endoftext|>"] != tokenizer.eos_token_id
