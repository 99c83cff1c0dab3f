"""GGUF files become folders that load fast: once, whole or not at all, whoever asks."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from backends import gguf_cache, models
from backends.errors import ModelNotLoadable
from backends.int8 import Int8Config, Int8Linear

HIDDEN, MLP, HEADS = 32, 64, 2


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, tiny_model_folder):
    """A one-layer Llama in fp32 with the tiny tokenizer, as llama.cpp's tools write it."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model_folder, size=0.2)


def write_gguf(file, tiny_model_folder, size):
    """Weights are random, of about this size."""
    gguf = pytest.importorskip("gguf")
    tokenizer = json.loads((tiny_model_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    writer = gguf.GGUFWriter(str(file), "llama")
    write_shape(writer, len(tokenizer["vocab"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, shape in tensors(len(tokenizer["vocab"])).items():
        writer.add_tensor(name, torch.randn(shape, generator=torch.Generator().manual_seed(1)).numpy() * size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_shape(writer, vocabulary):
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)


def tensors(vocabulary):
    block = {f"attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
    block |= {"ffn_gate": (MLP, HIDDEN), "ffn_up": (MLP, HIDDEN), "ffn_down": (HIDDEN, MLP)}
    block |= {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
    return {
        "token_embd.weight": (vocabulary, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        **{f"blk.0.{name}.weight": shape for name, shape in block.items()},
    }


def test_a_converted_file_loads_as_any_folder_does(gguf_file, tmp_path):
    folder = models.model_folder(str(gguf_file), cache=tmp_path)
    model = models.load_base(folder, dtype=torch.float32, device="cpu", quantization_config=Int8Config())
    assert isinstance(model.get_submodule("model.layers.0.mlp.up_proj"), Int8Linear)
    tokenizer = models.load_tokenizer(folder)
    assert tokenizer.decode(tokenizer("def area(width):")["input_ids"]) == "def area(width):"
    assert models.document_end_id(tokenizer) == 0


def test_a_converted_model_computes_what_the_file_holds(gguf_file, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = gguf_cache.converted(gguf_file, tmp_path)
    direct = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = direct(input_ids=ids).logits
        ours = models.load_base(str(folder), dtype=torch.float32, device="cpu")(input_ids=ids).logits
    torch.testing.assert_close(ours, wanted, rtol=1e-2, atol=1e-2)


def test_a_converted_model_is_kept_in_fp16_or_where_that_cannot_hold_it_in_bf16(gguf_file, tiny_model_folder, tmp_path):
    huge = write_gguf(tmp_path / "huge.gguf", tiny_model_folder, size=1e5)
    for file, dtype in ((gguf_file, torch.float16), (huge, torch.bfloat16)):
        weights = load_file(gguf_cache.converted(file, tmp_path / "cache") / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {dtype}
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_transformers_itself_does_not_quantise_a_gguf_while_it_reads_it(gguf_file):
    """The reason for the way over a folder; should this fail one day, that way is no longer needed."""
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match="cannot combine"):
        AutoModelForCausalLM.from_pretrained(
            gguf_file.parent, gguf_file=gguf_file.name, quantization_config=Int8Config()
        )


def test_every_way_of_holding_weights_takes_a_converted_file(gguf_file, tmp_path):
    folder = str(gguf_cache.converted(gguf_file, tmp_path))
    plain = models.load_base(folder, dtype=torch.float32, device="cpu")
    for config in (Int8Config(), Int8Config(group_size=None), Int8Config(bits=4)):
        model = models.load_base(folder, dtype=torch.float32, device="cpu", quantization_config=config)
        layer = model.get_submodule("model.layers.0.mlp.up_proj")
        wanted = plain.get_submodule("model.layers.0.mlp.up_proj").weight
        error = (layer.dequantize() - wanted).norm() / wanted.norm()
        assert error < (0.01 if config.bits == 8 else 0.12)


def test_a_file_is_converted_once_and_again_when_it_changes(gguf_file, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_file.read_bytes())
    first = gguf_cache.converted(file, tmp_path / "cache")
    weights = (first / "model.safetensors").stat().st_ino
    assert gguf_cache.converted(file, tmp_path / "cache") == first
    assert (first / "model.safetensors").stat().st_ino == weights
    file.write_bytes(gguf_file.read_bytes() + b"\0")
    assert gguf_cache.converted(file, tmp_path / "cache") != first


def test_the_cache_is_where_the_environment_says(gguf_file, tmp_path, monkeypatch):
    monkeypatch.setenv("REPOTUNE_CACHE", str(tmp_path / "elsewhere"))
    assert gguf_cache.converted(gguf_file).parent == tmp_path / "elsewhere" / "models"


def test_two_processes_that_want_the_same_file_end_with_one_folder(gguf_file, tmp_path):
    program = "import sys, pathlib, backends.gguf_cache as c; print(c.converted(*map(pathlib.Path, sys.argv[1:])))"
    command = [sys.executable, "-c", program, str(gguf_file), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=240)[0].strip().splitlines()[-1] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    assert [str(path) for path in tmp_path.iterdir() if path.is_dir()] == list(folders)


def test_what_a_killed_conversion_left_is_swept_and_never_used(gguf_file, tmp_path):
    name = f"gguf-{gguf_cache._identity(gguf_file.resolve())}"
    leftover = tmp_path / f".{name}-dead"
    leftover.mkdir()
    (leftover / "config.json").write_text("{}")
    folder = gguf_cache.converted(gguf_file, tmp_path)
    assert not leftover.exists()
    assert (folder / "model.safetensors").is_file()


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    file = tmp_path / "cut.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(ModelNotLoadable, match="could not be read as a GGUF model"):
        gguf_cache.converted(file, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_a_file_that_is_no_gguf_is_told(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelNotLoadable, match="not a GGUF file"):
        gguf_cache.converted(file, tmp_path)
