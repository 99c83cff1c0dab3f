import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from backends import free_memory, merged, models  # noqa: E402
from backends.errors import RepotuneError  # noqa: E402
from jobs import converter  # noqa: E402
from jobs.context import JobContext, OutputExists, StopRequested  # noqa: E402
from jobs.converter import ConversionFailed, Converter, NoConverter  # noqa: E402
from jobs.events import Note  # noqa: E402
from jobs.export import ExportRequest, MergeDiffers, NotEnoughMemory, OutputRefused, export  # noqa: E402
from jobs.published import NoAdapter, open_published  # noqa: E402

PROMPT = [5, 60, 61, 62, 7, 80]
#: Plain transformers and PEFT, in a process that knows nothing of repotune: greedy tokens of each [model, adapter].
GREEDY = """
import json, sys, torch, transformers, peft
given = torch.tensor([json.loads(sys.argv[1])])
for folder, adapter in json.loads(sys.argv[2]):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(model, adapter).eval() if adapter else model.eval()
    print(json.dumps(model.generate(input_ids=given, max_new_tokens=12, do_sample=False)[0].tolist()))
"""


def make_adapter(folder, base, seed=3, **flags):
    """A trained-looking adapter on the tiny model, named as `train` names it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **flags)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name of yesterday
        adapted = peft.get_peft_model(model, config)
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
        if "magnitude" in name:
            parameter.data *= 20
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    (folder / "README.md").write_text("# The card\n")
    return open_published(folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model_folder):
    return make_adapter(tmp_path_factory.mktemp("adapter"), tiny_model_folder)


def run(adapter, output, should_stop=lambda: False, **wanted):
    events = []
    request = ExportRequest(adapter=adapter, base=adapter.base, **wanted)
    context = JobContext(output=output, emit=events.append, should_stop=should_stop)
    return export(request, context), events


def greedy(python_path, *sides):
    command = [sys.executable, "-W", "ignore", "-c", GREEDY, json.dumps(PROMPT), json.dumps(sides, default=str)]
    environment = os.environ | {"PYTHONPATH": python_path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def nothing_is_left(output):
    return not output.exists() and not list(output.parent.glob(f".{output.name}*"))


def test_an_adapter_is_handed_over_with_its_card_and_without_the_folders_of_this_machine(adapter, tmp_path):
    result, _ = run(adapter, tmp_path / "out")
    folder = tmp_path / "out"
    assert (folder / "adapter" / "README.md").read_text() == "# The card\n"
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == adapter.weights.read_bytes()
    assert result["made"] == {"adapter": "adapter", "use": "USE.md"}
    assert json.loads((folder / "export.json").read_text()) == result
    for file in folder.rglob("*"):
        if file.suffix in {".json", ".md"}:
            assert str(tmp_path.parent) not in file.read_text(), file


def test_the_same_adapter_gives_the_same_bytes(adapter, tmp_path):
    one, other = (run(adapter, tmp_path / name, gguf_adapter=True)[0] for name in ("one", "other"))
    assert one == other


@pytest.mark.slow
def test_merged_weights_give_transformers_the_tokens_of_base_and_adapter(
    tmp_path, tiny_model_folder, only_worker_extra
):
    sides = [(tiny_model_folder, None)]
    for name, flags in {"LoRA": {}, "DoRA": {"use_dora": True}, "rsLoRA": {"use_rslora": True}}.items():
        adapter = make_adapter(tmp_path / f"{name} adapter", tiny_model_folder, **flags)
        result, events = run(adapter, tmp_path / name, merged=True)
        assert result["logits_difference"] < 1e-5
        assert any("GB of memory" in event.message for event in events if isinstance(event, Note))
        sides += [(tiny_model_folder, adapter.folder), (tmp_path / name / "merged", None)]
    base, lora, lora_merged, dora, dora_merged, rslora, rslora_merged = greedy(only_worker_extra, *sides)
    assert (lora_merged, dora_merged, rslora_merged) == (lora, dora, rslora)
    assert base not in (lora, dora, rslora)


def test_merged_weights_keep_the_bases_type_tokenizer_and_dropouts(tmp_path, tiny_model_folder):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    text = (base / "config.json").read_text()
    (base / "config.json").write_text(text.replace('"residual_dropout": 0.0', '"residual_dropout": 0.1'))
    run(make_adapter(tmp_path / "adapter", base), tmp_path / "out", merged=True)
    config, own = (models.load_config(str(folder)) for folder in (tmp_path / "out" / "merged", base))
    assert own.residual_dropout == 0.1
    assert config.to_dict() | {"_name_or_path": ""} == own.to_dict() | {"_name_or_path": ""}
    tokenizers = [models.load_tokenizer(str(folder)) for folder in (tmp_path / "out" / "merged", base)]
    assert len({models.tokenizer_file_sha256(one) for one in tokenizers}) == 1


def test_merging_into_sixteen_bits_rounds_once(tmp_path, tiny_model_folder):
    base = tmp_path / "half"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float16)
    model.save_pretrained(base)
    models.load_tokenizer(str(tiny_model_folder)).save_pretrained(base)
    adapter = make_adapter(tmp_path / "adapter", base)
    result, _ = run(adapter, tmp_path / "out", merged=True)
    assert 0 < result["logits_difference"] < merged.TOLERANCE[torch.float16]
    loaded = merged.load_adapted(str(base), None, adapter.folder, torch.float16)
    layer = loaded.base_model.model.model.layers[0].mlp.c_fc
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    given = models.load_base(str(tmp_path / "out" / "merged"), dtype=torch.float16, device="cpu")
    assert torch.equal(given.model.layers[0].mlp.c_fc.weight, exact.half())


def test_weights_that_say_something_else_than_base_and_adapter_are_not_published(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(merged, "merge", lambda model: model.unload())  # forgets the adapter
    with pytest.raises(MergeDiffers, match="nothing was exported"):
        run(adapter, tmp_path / "out", merged=True)
    assert nothing_is_left(tmp_path / "out")


def other_base(tiny_model_folder, folder, **changes):
    """Another base with the same tokenizer."""
    shutil.copytree(tiny_model_folder, folder)
    config = transformers.Starcoder2Config.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    transformers.Starcoder2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_hidden_layers": 1}, "trained on another base"), ({"intermediate_size": 128}, "size mismatch")],
)
def test_an_adapter_is_not_merged_into_another_base(adapter, tmp_path, tiny_model_folder, changes, words):
    other = other_base(tiny_model_folder, tmp_path / "other", **changes)
    request = ExportRequest(adapter=adapter, base=str(other), merged=True)
    with pytest.raises(RepotuneError, match=words):
        export(request, JobContext(output=tmp_path / "out", emit=print))
    assert nothing_is_left(tmp_path / "out")


def test_an_adapter_handed_over_beside_a_base_of_another_name_is_told(adapter, tmp_path, tiny_model_folder):
    other, events = shutil.copytree(tiny_model_folder, tmp_path / "other"), []
    export(ExportRequest(adapter=adapter, base=str(other)), JobContext(output=tmp_path / "out", emit=events.append))
    assert any(isinstance(one, Note) and one.level == "warning" and "another base" in one.message for one in events)


def test_a_machine_with_too_little_memory_is_told_before_anything_is_loaded(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(free_memory, "free_ram", lambda: 1_000_000)
    monkeypatch.setattr(merged, "load_adapted", None)
    with pytest.raises(NotEnoughMemory, match="GB of memory"):
        run(adapter, tmp_path / "out", merged=True)
    assert nothing_is_left(tmp_path / "out")


def test_a_converter_that_fails_leaves_nothing(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(converter, "find_converter", lambda: Converter((sys.executable, "-c", "exit('no')"), "test"))
    with pytest.raises(ConversionFailed, match="no"):
        run(adapter, tmp_path / "out", gguf_merged=True)
    assert nothing_is_left(tmp_path / "out")


def test_a_gguf_of_merged_weights_alone_leaves_no_safetensors(adapter, tmp_path, monkeypatch):
    code = "import sys; open(sys.argv[3], 'w').write(sys.argv[5])"
    monkeypatch.setattr(converter, "find_converter", lambda: Converter((sys.executable, "-c", code), "test"))
    result, _ = run(adapter, tmp_path / "out", gguf_merged=True, outtype="q8_0", modelfile=True)
    assert (tmp_path / "out" / "model-q8_0.gguf").read_text() == "q8_0"
    assert not (tmp_path / "out" / "merged").exists()
    assert "merged" not in result["made"]


def test_a_missing_converter_is_told_before_anything_is_merged(adapter, tmp_path, monkeypatch):
    def none():
        raise NoConverter("none")

    monkeypatch.setattr(converter, "find_converter", none)
    monkeypatch.setattr(merged, "load_adapted", None)
    with pytest.raises(NoConverter):
        run(adapter, tmp_path / "out", gguf_merged=True)
    assert nothing_is_left(tmp_path / "out")


def test_a_stop_leaves_nothing(adapter, tmp_path):
    with pytest.raises(StopRequested):
        run(adapter, tmp_path / "out", should_stop=lambda: True, gguf_adapter=True)
    assert nothing_is_left(tmp_path / "out")


def test_a_folder_with_something_in_it_is_left_alone(adapter, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExists):
        run(adapter, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_place_where_nothing_can_be_made_is_refused(adapter, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputRefused, match="choose another --output"):
        run(adapter, tmp_path / "file" / "out")


def test_an_empty_folder_is_filled_from_within(adapter, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "empty" / ".unfinished").mkdir()  # of an export that was killed
    run(adapter, Path())
    assert {path.name for path in Path().iterdir()} == {"adapter", "USE.md", "export.json"}
    with pytest.raises(OutputExists):
        run(adapter, Path())


def test_what_a_killed_export_left_behind_goes_away(adapter, tmp_path):
    (tmp_path / ".out.unfinished" / "adapter").mkdir(parents=True)
    run(adapter, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("wanted", "words"), [({}, "needs a GGUF"), ({"gguf_adapter": True}, "Ollama takes no")])
def test_a_modelfile_that_ollama_would_refuse_is_not_written(adapter, tmp_path, wanted, words):
    with pytest.raises(NoAdapter, match=words):
        run(adapter, tmp_path / "out", modelfile=True, **wanted)
    assert nothing_is_left(tmp_path / "out")


def test_a_modelfile_fills_in_as_the_model_was_taught(adapter, tmp_path, monkeypatch):
    code = "import sys; open(sys.argv[3], 'w')"
    monkeypatch.setattr(converter, "find_converter", lambda: Converter((sys.executable, "-c", code), "test"))
    run(adapter, tmp_path / "out", gguf_merged=True, modelfile=True)
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model-f16.gguf\n")
    assert "<fim_prefix>{{ .Prompt }}<fim_suffix>{{ .Suffix }}<fim_middle>{{ else }}{{ .Prompt }}" in text
    assert 'PARAMETER stop "<|endoftext|>"' in text


def test_the_one_liners_are_of_what_was_made(adapter, tmp_path):
    run(adapter, tmp_path / "out", gguf_adapter=True)
    text = (tmp_path / "out" / "USE.md").read_text()
    assert "--lora adapter-f16.gguf" in text
    assert "--max-lora-rank 8" in text
    assert "./merged" not in text
    assert "mlx-lm reads adapters of its own format only" in text
    # They name the base by its last part, which the commands find only there.
    assert f"Run the commands in this folder, with the folder `{Path(adapter.base).name}` put into it." in text
