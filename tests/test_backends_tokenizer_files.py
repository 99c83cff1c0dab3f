"""A tokenizer read from its files alone is the one that transformers makes of them, or is not read that way at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backends import models, tokenizer_files
from backends.errors import ModelNotLoadable

TEXT = "def area(width):\n    return width ** 2  # 1234 été <fim_prefix>\n"
STARCODER2 = Path(__file__).resolve().parents[2] / "shared" / "models" / "starcoder2-tokenizer"
TRUNCATION = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPOTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """A copy of the tiny model's tokenizer that a test may change."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny_model_folder.glob("*.json"):
        shutil.copy(file, copy)
    return copy


def change(file, **changes):
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(content | changes), encoding="utf-8")


def assert_the_same(ours, theirs):
    assert models.tokenizer_file_sha256(ours) == models.tokenizer_file_sha256(theirs)
    assert models.document_end_id(ours) == models.document_end_id(theirs)
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.backend_tokenizer.encode(TEXT).ids == theirs.backend_tokenizer.encode(TEXT).ids


def test_files_alone_give_the_tokenizer_of_transformers(folder):
    light = tokenizer_files.plain_tokenizer(folder)
    assert light is not None
    assert_the_same(light, models.load_tokenizer(str(folder)))


@pytest.mark.skipif(not STARCODER2.is_dir(), reason="StarCoder2's tokenizer is not at hand")
@pytest.mark.parametrize("kind", ["TokenizersBackend", "PreTrainedTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast"])
def test_so_they_do_for_starcoder2_whatever_class_it_names(tmp_path, kind):
    for file in STARCODER2.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path / "tokenizer_config.json", tokenizer_class=kind)
    change(tmp_path / "config.json", model_type="starcoder2")
    theirs = models.load_tokenizer(str(tmp_path))
    light = tokenizer_files.plain_tokenizer(tmp_path)
    assert (light is None) == kind.startswith("GPT2")
    assert_the_same(light or models.read_tokenizer(tmp_path), theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"pad_token": "<fim_pad>"},
        {"eos_token": {"content": "<file_sep>", "__type": "AddedToken"}},
        {"eos_token": None, "bos_token": None},
        {"additional_special_tokens": ["<fim_prefix>"]},
    ],
    ids=str,
)
def test_named_tokens_are_found_as_transformers_finds_them(folder, settings):
    change(folder / "tokenizer_config.json", **settings)
    light = tokenizer_files.plain_tokenizer(folder)
    assert light is not None
    assert_the_same(light, models.load_tokenizer(str(folder)))


def test_a_legacy_map_of_special_tokens_goes_before(folder):
    eos = {"content": "<file_sep>", "lstrip": False}
    change(folder / "special_tokens_map.json", eos_token=eos, pad_token="<fim_pad>")
    light = tokenizer_files.plain_tokenizer(folder)
    assert light.eos_token_id == light.get_vocab()["<file_sep>"]
    assert_the_same(light, models.load_tokenizer(str(folder)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": None}),
        ("tokenizer_config.json", {"pad_token": "<a new one>"}),
        ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<a new one>"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}),
        ("config.json", {"model_type": "qwen2"}),
        ("config.json", {"model_type": "mistral"}),
        ("tokenizer.json", {"truncation": TRUNCATION}),
    ],
    ids=str,
)
def test_what_transformers_would_make_otherwise_is_left_to_it(folder, name, changes):
    change(folder / name, **changes)
    assert tokenizer_files.plain_tokenizer(folder) is None


@pytest.mark.parametrize("content", ["{", "[]", "null", ""])
def test_damaged_files_are_left_to_transformers(folder, content):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(content, encoding="utf-8")
        assert tokenizer_files.plain_tokenizer(folder) is None


def test_what_transformers_made_is_kept_and_read_the_next_time(folder, monkeypatch):
    change(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    theirs = models.load_tokenizer(str(folder))
    assert tokenizer_files.kept_tokenizer(folder) is None
    assert_the_same(models.read_tokenizer(folder), theirs)
    monkeypatch.setattr(models, "load_tokenizer", None)
    assert_the_same(models.read_tokenizer(folder), theirs)


@pytest.mark.parametrize("damage", ["{", "{}", '{"tokenizer": "{", "eos": 1, "pad": 1}'])
def test_what_was_kept_and_damaged_is_made_anew(folder, damage):
    change(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    models.read_tokenizer(folder)
    (kept,) = tokenizer_files.cache_folder().glob("tokenizer-*.json")
    kept.write_text(damage, encoding="utf-8")
    assert_the_same(models.read_tokenizer(folder), models.load_tokenizer(str(folder)))
    assert len(kept.read_text(encoding="utf-8")) > 100


def test_a_cache_that_cannot_be_written_costs_time_only(folder, monkeypatch, tmp_path):
    change(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("REPOTUNE_CACHE", str(tmp_path / "file"))
    assert models.read_tokenizer(folder).eos_token_id == 0


def test_the_key_follows_every_file_that_matters_and_no_other(folder):
    first = tokenizer_files.files_key(folder)
    (folder / "README.md").write_text("x", encoding="utf-8")
    assert tokenizer_files.files_key(folder) == first
    change(folder / "special_tokens_map.json", pad_token="<fim_pad>")
    second = tokenizer_files.files_key(folder)
    change(folder / "config.json", model_type="llama")
    assert len({first, second, tokenizer_files.files_key(folder)}) == 3


def test_a_folder_with_a_tokenizer_is_enough_and_one_without_is_told(folder, tmp_path):
    (folder / "config.json").unlink()
    assert models.tokenizer_folder(str(folder)) == folder.resolve()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelNotLoadable, match="has no tokenizer"):
        models.tokenizer_folder(str(tmp_path / "empty"))
    with pytest.raises(ModelNotLoadable, match="no such file or folder"):
        models.tokenizer_folder("./nope")
    with pytest.raises(ModelNotLoadable, match="no such file or folder"):
        models.tokenizer_folder("")
    with pytest.raises(ModelNotLoadable, match="has no revisions"):
        models.tokenizer_folder(str(folder), "main")


def test_a_hub_model_is_asked_for_its_small_files_only(folder, monkeypatch):
    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert models.tokenizer_folder("someone/a-model", "v1") == folder
    assert asked["name"] == "someone/a-model"
    assert asked["revision"] == "v1"
    assert not any("safetensors" in pattern for pattern in asked["allow_patterns"])


_LIGHT = """
import sys
from pathlib import Path
from backends import models
from jobs.dataset.tokens import Vocabulary, tokenizer_key
folder = models.tokenizer_folder(sys.argv[1])
tokenizer_key(folder)
Vocabulary.of_folder(folder).encode(["a = 1"])
print(sorted({"torch", "transformers", "huggingface_hub"} & set(sys.modules)))
"""


def test_a_vocabulary_needs_neither_transformers_nor_torch(folder):
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT, str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
