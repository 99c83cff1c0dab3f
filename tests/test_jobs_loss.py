import numpy as np
import pytest
import torch
import transformers
from torch import nn

from backends import head as head_module
from backends.adapters import attach
from backends.contract import AdapterRequest
from backends.logits import LogitShape, find_shape
from jobs import shards
from jobs.evaluation import measure
from jobs.loss import NextTokenLoss, make_batch

torch.set_num_threads(1)

CPU = torch.device("cpu")
VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SMALL_MAMBA = {
    "target_modules": ("q_proj", "up_proj"),
    "mamba_d_ssm": 32,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_chunk_size": 16,
}
#: A family, what its configuration says of logits, and the shape that this comes to.
FAMILIES = [
    ("Starcoder2", {}, LogitShape()),
    ("Llama", {"tie_word_embeddings": False}, LogitShape()),
    ("Qwen2", {}, LogitShape()),
    ("Phi", {"tie_word_embeddings": False}, LogitShape()),  # its head has a bias
    ("Gemma2", {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 50.0}, LogitShape(cap=3.0)),
    ("Gemma2", {"final_logit_softcapping": None}, LogitShape()),
    ("Gemma3", {"final_logit_softcapping": 30.0, "text": True}, LogitShape(cap=30.0)),
    ("Granite", {"logits_scaling": 8.0}, LogitShape(scale=0.125)),
    ("Cohere", {"logit_scale": 0.0625}, LogitShape(scale=0.0625)),
    ("FalconH1", {"lm_head_multiplier": 0.5, **SMALL_MAMBA}, LogitShape(scale=0.5)),
]


def make_model(family, target_modules="all-linear", dropout=0.0, **settings):
    torch.manual_seed(17)
    text = "_text" if settings.pop("text", False) else ""
    config = transformers.AutoConfig.for_model(_type(family) + text, **{**SIZES, **settings})
    base = transformers.AutoModelForCausalLM.from_config(config)
    model = attach(base, AdapterRequest(rank=4, alpha=8, dropout=dropout, target_modules=target_modules), seed=17)
    with torch.no_grad():  # a trained adapter, and logits that are not all alike
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        model.get_base_model().get_output_embeddings().weight.mul_(20)
    return model.eval()


def _type(family):
    return {"FalconH1": "falcon_h1"}.get(family, family.lower())


def row_of(*lengths, seed=0):
    """A row of documents of the given lengths; a third of the tokens after a document's first is no label."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, VOCABULARY, sum(lengths))
    flags = np.where(generator.random(sum(lengths)) < 0.67, shards.LABEL, 0).astype(np.uint8)
    flags[np.cumsum([0, *lengths[:-1]])] = shards.DOCUMENT_START
    return shards.Row(ids.astype(np.int64), flags)


@pytest.fixture
def batch():
    return make_batch([row_of(5, 9, 2, 16, seed=1), row_of(20, 12, seed=2), row_of(32, seed=3)], CPU)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(head_module, "LOGIT_BYTES", 7 * VOCABULARY * 4)


def own_loss(model, batch):
    row = {"input_ids": batch.ids, "position_ids": batch.position_ids, "use_cache": False}
    return model(**row, labels=batch.labels, num_items_in_batch=1).loss


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def assert_same_loss(model, loss, batch):
    expected = own_loss(model, batch)
    expected_gradient = gradients(model, expected)
    found = loss(batch)
    gradient = gradients(model, found)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
    with torch.no_grad():
        assert loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("family", "settings", "shape"), FAMILIES, ids=str)
def test_loss_and_gradient_of_packed_rows_are_the_models_own(family, settings, shape, batch):
    model = make_model(family, **settings)
    loss = NextTokenLoss.of(model, CPU)
    assert loss.shape == shape
    assert_same_loss(model, loss, batch)


def test_the_logits_of_a_row_never_exist(batch, monkeypatch):
    model = make_model("Gemma2", final_logit_softcapping=3.0)
    loss = NextTokenLoss.of(model, CPU)
    monkeypatch.setattr(type(model.get_base_model()), "forward", _refuse)
    loss(batch).backward()


def _refuse(*_arguments, **_settings):
    raise AssertionError


def test_a_model_with_logits_of_its_own_making_computes_them_itself(batch):
    model = make_model("Starcoder2")
    model.get_base_model().register_forward_hook(_shift)
    loss = NextTokenLoss.of(model, CPU)
    assert loss.shape is None
    expected = torch.nn.functional.cross_entropy(
        model(input_ids=batch.ids, position_ids=batch.position_ids, use_cache=False).logits[:, :-1].flatten(0, 1),
        batch.labels[:, 1:].flatten(),
        reduction="sum",
    )
    torch.testing.assert_close(loss(batch), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients(model, loss(batch)), gradients(model, expected), rtol=1e-4, atol=1e-4)


def _shift(_module, _inputs, output):
    output["logits"] = output["logits"] + torch.linspace(0, 2, VOCABULARY)
    return output


def test_a_cap_that_the_configuration_does_not_tell_of_is_noticed_though_small_logits_hide_it():
    model = make_model("Llama")
    model.get_base_model().get_output_embeddings().weight.data.mul_(1e-3)
    model.get_base_model().register_forward_hook(_cap)
    assert find_shape(model, CPU) is None


def _cap(_module, _inputs, output):
    output["logits"] = torch.tanh(output["logits"] / 30) * 30
    return output


def test_a_number_that_the_model_does_not_use_is_not_believed():
    model = make_model("Llama")
    model.get_base_model().config.logit_scale = 0.5
    model.get_base_model().config.final_logit_softcapping = 30.0
    assert find_shape(model, CPU) == LogitShape()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number", [0, 4, 7, 8])
def test_the_shape_is_found_in_sixteen_bits_too(number, dtype):
    family, settings, shape = FAMILIES[number]
    assert find_shape(make_model(family, **settings).to(dtype), CPU) == shape


def test_finding_out_leaves_modes_and_random_numbers_alone():
    model = make_model("Starcoder2", dropout=0.5).train()
    frozen = model.get_base_model().model.norm.eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert find_shape(model, CPU) == LogitShape()
    assert torch.equal(torch.get_rng_state(), before)
    modes = {module for module in model.modules() if not module.training}
    assert modes == {frozen}


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_an_adapter_on_the_head_gets_the_models_own_gradient(family, batch):
    model = make_model(family, tie_word_embeddings=False, target_modules=("lm_head", "q_proj"))
    assert any("lm_head" in name for name, each in model.named_parameters() if each.requires_grad)
    assert_same_loss(model, NextTokenLoss.of(model, CPU), batch)


def test_a_row_without_labels_changes_no_gradient(batch):
    model = make_model("Llama")
    unasked = make_batch([shards.Row(batch.ids[0].numpy(), np.zeros(32, dtype=np.uint8))], CPU)
    loss = NextTokenLoss.of(model, CPU)(unasked)
    assert loss.item() == 0
    assert not gradients(model, loss).any()


def test_measuring_takes_the_memory_of_a_chunk_and_no_graph(monkeypatch):
    model = make_model("Llama")
    loss, seen = NextTokenLoss.of(model, CPU), []
    monkeypatch.setattr(
        "jobs.loss.summed_loss", lambda *given: seen.append(given[2]) or head_module.summed_loss(*given)
    )
    measure(loss, [row_of(32)], micro_batch=1, device=CPU, step=0)
    assert [states.requires_grad for states in seen] == [False]


def test_a_model_without_a_head_to_call_computes_its_logits_itself():
    model = make_model("Llama")
    model.get_base_model().lm_head = None
    assert find_shape(model, CPU) is None
    assert isinstance(make_model("Llama").get_base_model().get_output_embeddings(), nn.Linear)
