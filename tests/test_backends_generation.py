import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends import attention
from backends.adapters import attach
from backends.contract import AdapterRequest
from backends.generation import complete, evaluating, side
from backends.int8 import Int8Config

torch.set_num_threads(1)

PROMPTS = [[5, 9, 200, 41], [7], [300, 12, 12, 80, 9, 33]]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module", params=["sdpa", attention.BLOCKED])
def model(request, tiny_model_folder):
    attention.register()
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, attn_implementation=request.param)
    model = attach(base, AdapterRequest(rank=4, alpha=32, dropout=0.5), seed=17)
    torch.manual_seed(4)
    with torch.no_grad():  # a trained adapter: B is not zero
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.config.use_cache = False
    return model.train()


def without_cache(model, prompt, new_tokens, stop=()):
    """The same by the model's whole forward pass for every token."""
    ids = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in {0, *stop}:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("adapter", [True, False])
def test_completions_are_the_likeliest_tokens_one_after_the_other(model, tokenizer, adapter):
    found = complete(model, tokenizer, PROMPTS, new_tokens=12, adapter=adapter)
    with evaluating(model), side(model, adapter=adapter):
        assert found == [without_cache(model, prompt, 12) for prompt in PROMPTS]
    assert found == [complete(model, tokenizer, [prompt], new_tokens=12, adapter=adapter)[0] for prompt in PROMPTS]


def test_the_adapter_changes_what_is_said(model, tokenizer):
    base, adapted = (complete(model, tokenizer, PROMPTS, new_tokens=12, adapter=one) for one in (False, True))
    assert base != adapted


def test_a_stop_token_ends_a_completion(model, tokenizer):
    whole = complete(model, tokenizer, PROMPTS[:1], new_tokens=12)[0]
    stop = whole[3]
    found = complete(model, tokenizer, PROMPTS[:1], new_tokens=12, stop=frozenset({stop}))[0]
    assert found == whole[: whole.index(stop) + 1]


def test_completing_draws_no_chance_and_leaves_the_model_as_it_was(model, tokenizer):
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    model.get_base_model().lm_head.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    complete(model, tokenizer, PROMPTS, new_tokens=3, adapter=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert model.config.use_cache is False


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["full", "int8"])
def test_without_its_adapter_a_model_is_its_base(tiny_model_folder, dora, kind):
    def base():
        quantization = Int8Config(group_size=32) if kind == "int8" else None
        return AutoModelForCausalLM.from_pretrained(tiny_model_folder, quantization_config=quantization).eval()

    model = attach(base(), AdapterRequest(rank=4, alpha=8, dora=dora), seed=17).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        ids = torch.tensor(PROMPTS[:1])
        with side(model, adapter=False):
            alone = model(input_ids=ids).logits
        torch.testing.assert_close(alone, base()(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(alone, model(input_ids=ids).logits, atol=1e-2)
