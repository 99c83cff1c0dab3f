"""What cannot be trained on is one sentence before the first step."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, PretrainedConfig

from backends import soundness
from backends.devices import Device
from backends.errors import ExitCode, ModelNotLoadable
from backends.positions import refuse_long_rows
from backends.registry import open_backend
from jobs import shards
from jobs.context import JobContext
from jobs.events import StepDone
from jobs.spec import Config
from jobs.training import train

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("no_picture")


def write_dataset(folder: Path, length: int = 32, **manifest) -> Path:
    files, splits = {}, {}
    for split in ("train", "held_out"):
        with shards.ShardWriter(folder, split, length, "uint16") as writer:
            for _ in range(4):
                flags = np.full(length, shards.LABEL, dtype=np.uint8)
                flags[0] = shards.DOCUMENT_START
                writer.append(np.arange(length) % 50, flags)
        files |= writer.files
        splits[split] = {"rows": 4, "tokens": 4 * length}
    known = {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": length, "commit": "c" * 40}
    shards.write_manifest(folder, known | manifest)
    return folder


def copy_of(model_folder: Path, folder: Path, **changes) -> Path:
    shutil.copytree(model_folder, folder, dirs_exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


def spoil(model_folder: Path, name: str, value: float) -> None:
    file = model_folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[3] = value
    save_file(tensors, file, metadata={"format": "pt"})


def run(folder: Path, model: Path, dataset: Path, kind: str = "none", **lora):
    events = []
    context = JobContext(output=folder / "out", emit=events.append)
    values = {"model": {"name": str(model)}, "quantization": {"kind": kind}, "lora": {"rank": 2, "alpha": 4, **lora}}
    values["training"] = {"max_steps": 1}
    config = Config.model_validate(values)
    try:
        train(config, dataset, open_backend(kind, Device.CPU), Device.CPU, context)
    finally:
        assert not any(isinstance(event, StepDone) for event in events)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("none", "model.norm.bias", float("inf")),
        ("none", "model.layers.1.self_attn.q_proj.weight", float("nan")),
        ("int8", "model.layers.1.self_attn.q_proj.weight", float("nan")),
        ("int8", "model.embed_tokens.weight", float("nan")),
        ("int4", "model.layers.1.self_attn.q_proj.weight", float("inf")),
        ("nf4", "model.layers.1.self_attn.q_proj.weight", float("nan")),
        ("nf4", "model.layers.1.self_attn.q_proj.weight", float("inf")),
    ],
)
def test_a_base_weight_that_is_no_number_is_named(tmp_path, tiny_model_folder, kind, value, name):
    model = copy_of(tiny_model_folder, tmp_path / "model")
    spoil(model, name, value)
    layer = name.removesuffix(".weight").removesuffix(".bias")
    with pytest.raises(ModelNotLoadable, match=layer.replace(".", r"\.")) as raised:
        run(tmp_path, model, write_dataset(tmp_path / "dataset"), kind)
    assert "finite" in str(raised.value)
    assert raised.value.exit_code is ExitCode.USAGE


def test_large_numbers_are_still_numbers():
    model = torch.nn.Linear(4, 4)
    torch.nn.init.constant_(model.weight, torch.finfo(torch.float32).max)
    soundness.refuse_unsound(model, "loud")


def test_rows_longer_than_the_models_positions_are_refused_with_the_longest_that_go(tmp_path, tiny_model_folder):
    dataset = write_dataset(tmp_path / "dataset", length=1024)
    with pytest.raises(
        ModelNotLoadable, match=r"Rows of 1024 .* 512 positions .*set dataset.sequence_length to 512 or less"
    ):
        run(tmp_path, tiny_model_folder, dataset)


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        (LlamaConfig(max_position_embeddings=64), True),
        (LlamaConfig(max_position_embeddings=128), False),
        (PretrainedConfig(), False),
        ({"n_positions": 64}, False),
        (None, False),
        ({"text_config": {"max_position_embeddings": 64}}, True),
    ],
    ids=[
        "too short",
        "long enough",
        "no limit known",
        "another word for it",
        "nothing known",
        "a part that reads text",
    ],
)
def test_only_a_known_limit_is_one(config, refused):
    if not refused:
        assert refuse_long_rows(config, 128, "model") is None
        return
    with pytest.raises(ModelNotLoadable):
        refuse_long_rows(config, 128, "model")


@pytest.mark.parametrize("each_kind", [True, False])
def test_positions_that_are_stretched_are_a_warning_by_config_json_too(each_kind):
    stretched = {"rope_type": "yarn", "factor": 4.0}
    parameters = (
        {"full_attention": stretched, "sliding_attention": {"rope_type": "default"}} if each_kind else stretched
    )
    config = {"max_position_embeddings": 64, "rope_parameters": parameters}
    assert "longer than the 64 positions" in refuse_long_rows(config, 128, "model")


def test_positions_that_are_stretched_are_a_warning():
    config = LlamaConfig(
        max_position_embeddings=64, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    )
    assert "longer than the 64 positions" in refuse_long_rows(config, 128, "model")


def test_a_dataset_of_another_tokenizer_is_refused_though_its_size_is_the_same(tmp_path, tiny_model_folder):
    dataset = write_dataset(tmp_path / "dataset", tokenizer={"sha256": "0" * 64, "vocabulary_size": 8})
    with pytest.raises(ModelNotLoadable, match=r"another tokenizer than that of .*build the dataset with this model"):
        run(tmp_path, tiny_model_folder, dataset)


def test_a_dataset_of_the_models_own_tokenizer_is_taken(tiny_model_folder):
    from backends.models import load_tokenizer, tokenizer_file_sha256

    own = tokenizer_file_sha256(load_tokenizer(str(tiny_model_folder)))
    soundness.refuse_other_tokenizer({"tokenizer": {"sha256": own}}, str(tiny_model_folder), None)


def test_a_model_without_a_tokenizer_takes_any_dataset(tmp_path):
    soundness.refuse_other_tokenizer({"tokenizer": {"sha256": "0" * 64}}, str(tmp_path), None)


def test_a_model_that_brings_program_code_is_refused_with_the_reason(tmp_path, tiny_model_folder):
    changes = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    model = copy_of(tiny_model_folder, tmp_path / "model", **changes)
    with pytest.raises(ModelNotLoadable, match=r"trust_remote_code.*never runs such code"):
        run(tmp_path, model, write_dataset(tmp_path / "dataset"))


def test_targets_that_match_nothing_are_refused_with_those_that_would(tmp_path, tiny_model_folder):
    with pytest.raises(ModelNotLoadable, match=r"nonsense.*do not fit this model.*q_proj"):
        run(tmp_path, tiny_model_folder, write_dataset(tmp_path / "dataset"), target_modules=["nonsense"])


@pytest.mark.parametrize(
    ("layers", "said"), [("last:3", "2 decoder layers.*last:2"), ([0, 2], "no decoder layer 2.*from 0 to 1")]
)
def test_layers_that_the_model_lacks_are_refused(tmp_path, tiny_model_folder, layers, said):
    with pytest.raises(ModelNotLoadable, match=said):
        run(tmp_path, tiny_model_folder, write_dataset(tmp_path / "dataset"), layers=layers)


def test_a_rank_of_zero_names_the_key():
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=r"lora\.rank"):
        Config.model_validate({"lora": {"rank": 0}})
