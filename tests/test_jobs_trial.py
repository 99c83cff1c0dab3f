import shutil

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from backends.devices import Device  # noqa: E402
from backends.full import FullPrecision  # noqa: E402
from backends.models import load_tokenizer  # noqa: E402
from jobs.config import load_config  # noqa: E402
from jobs.context import JobContext, StopRequested  # noqa: E402
from jobs.published import NoAdapter, open_published  # noqa: E402
from jobs.trial import NoCursor, read_cursor, try_adapter  # noqa: E402

TEXT = "import os\n\n\ndef area(width):\n    return width * 2\n"


@pytest.fixture
def file(tmp_path):
    (tmp_path / ".git").mkdir()
    path = tmp_path / "package" / "shapes.py"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


def test_the_cursor_stands_at_the_end_of_its_line_and_nothing_is_lost(file):
    cursor = read_cursor(file, 4)
    assert cursor.prefix.endswith("def area(width):")
    assert cursor.prefix + cursor.suffix == TEXT
    assert cursor.path == "package/shapes.py"


def test_lines_are_counted_as_editors_do_and_keep_their_ends(file):
    file.write_bytes(b"one\r\ntwo\fstill\x1ctwo\r\nthree")
    cursor = read_cursor(file, 2)
    assert (cursor.prefix, cursor.suffix) == ("one\r\ntwo\fstill\x1ctwo", "\r\nthree")
    assert read_cursor(file, 3).suffix == ""


def test_without_a_line_the_cursor_stands_at_the_end_of_the_file(file):
    assert (read_cursor(file, None).prefix, read_cursor(file, None).suffix) == (TEXT, "")


@pytest.mark.parametrize("line", [0, 6, -1])
def test_a_line_that_is_not_there_is_refused_with_how_many_there_are(file, line):
    with pytest.raises(NoCursor, match="has 5 lines"):
        read_cursor(file, line)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(NoCursor, match="as text"):
        read_cursor(tmp_path / "x.png", None)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model_folder):
    """An adapter with weights that change what the tiny model says."""
    request = _request(tiny_model_folder)
    model = FullPrecision().load(request).model
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return open_published(folder)


def _request(model):
    from backends.contract import AdapterRequest, ModelRequest

    return ModelRequest(name=str(model), adapter=AdapterRequest(rank=4, alpha=8), device=Device.CPU)


def run(adapter, file, line, model, *, should_stop=lambda: False, new_tokens=8):
    config = load_config(None, [f"model.name={model}"]).for_device(Device.CPU)
    context = JobContext(output=file.parent, emit=lambda _event: None, should_stop=should_stop)
    cursor = read_cursor(file, line)
    return try_adapter(config, adapter, cursor, FullPrecision(), Device.CPU, context, new_tokens=new_tokens)


def test_both_sides_are_told_and_the_adapter_matters(adapter, file, tiny_model_folder):
    result = run(adapter, file, 4, tiny_model_folder)
    assert result["base_tokens"] != result["adapter_tokens"]
    tokenizer = load_tokenizer(str(tiny_model_folder))
    for side in ("base", "adapter"):
        assert 1 <= len(result[f"{side}_tokens"]) <= 8
        assert result[side] == tokenizer.decode(result[f"{side}_tokens"], skip_special_tokens=True)
    assert result == run(adapter, file, 4, tiny_model_folder)


def test_a_model_that_fills_in_is_shown_what_stands_behind_the_cursor(adapter, file, tiny_model_folder):
    assert run(adapter, file, 4, tiny_model_folder)["fills_in"] is True
    assert run(adapter, file, None, tiny_model_folder)["fills_in"] is False


def test_a_stop_ends_it_between_the_sides(adapter, file, tiny_model_folder):
    with pytest.raises(StopRequested):
        run(adapter, file, 4, tiny_model_folder, should_stop=lambda: True)


def test_a_prompt_keeps_half_of_the_positions_whatever_is_asked_for(adapter, file, tiny_model_folder):
    few = run(adapter, file, 4, tiny_model_folder)
    many = run(adapter, file, 4, tiny_model_folder, new_tokens=1000)
    assert many["prompt_tokens"] == few["prompt_tokens"]
    assert max(len(many[f"{side}_tokens"]) for side in ("base", "adapter")) <= 256


def test_an_adapter_of_another_base_is_not_tried(adapter, file, tiny_model_folder, tmp_path):
    shutil.copytree(tiny_model_folder, tmp_path / "other")
    config = transformers.Starcoder2Config.from_pretrained(tmp_path / "other")
    config.num_hidden_layers = 1
    transformers.Starcoder2ForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(NoAdapter, match="trained on another base"):
        run(adapter, file, 4, tmp_path / "other")
