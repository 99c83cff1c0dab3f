"""Attention in blocks against torch's own: numbers, gradients, memory, and transformers' models around it."""

import inspect
import math
import random
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, masking_utils

from backends import attention
from backends.attention import BLOCKED, choose
from backends.blocked_attention import Rule, blocked_attention, plan_blocks, queries_per_block
from backends.devices import Device
from backends.errors import BackendUnavailable

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "attention_dropout": 0.0,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 24, "sliding_window": 6}
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0, "sliding_window": 7},
    "Mistral": {"sliding_window": 5},
    "Granite": {"attention_multiplier": 0.3},
    "Gemma2": {**GEMMA, "attn_logit_softcapping": 3.0, "layer_types": ["sliding_attention", "full_attention"]},
    "Gemma3Text": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "GPTNeoX": {"hidden_dropout": 0.0},
    "Phi3": {"sliding_window": 4, "resid_pdrop": 0.0},
}
DOCUMENTS = (5, 1, 20, 3, 12)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(family):
    return getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])


def tiny_model(family, implementation):
    attention.register()
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config_of(family), attn_implementation=implementation)
    # Scores of a fresh model hardly differ; these do, so that windows, caps and documents show.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name or "qkv" in name or "query_key_value" in name:
                weight.mul_(12)
    return model.train()


def packed(documents=DOCUMENTS, rows=2):
    torch.manual_seed(4)
    ids = torch.randint(1, 96, (rows, sum(documents)))
    return ids, torch.cat([torch.arange(length) for length in documents]).expand(rows, -1)


def logits_and_gradients(model, ids, positions):
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    logits.mul(torch.linspace(-1, 1, 96)).sum().backward()
    return logits.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def table_of(first):
    """Which keys each query sees, as torch's attention takes it: [batch, 1, length, length]."""
    keys = torch.arange(first.shape[1])
    return ((keys >= first[..., None]) & (keys <= keys[:, None]))[:, None]


def ask_for_mask(mask_function, length, rows=1, **arguments):
    """Ask as transformers does; 5.0 named the positions of queries, later versions say how many there are."""
    old = "cache_position" in inspect.signature(masking_utils.sdpa_mask).parameters
    queries = {"cache_position": torch.arange(length)} if old else {"q_length": length, "q_offset": 0}
    return attention.first_visible_keys(
        batch_size=rows, kv_length=length, mask_function=mask_function, **queries, **arguments
    )


def random_first(generator, rows, length):
    """First visible keys of rows of documents of random lengths, half of the time in a window."""
    window = generator.choice([length, generator.randint(1, length)])
    result = []
    for _ in range(rows):
        starts = sorted({0, *(generator.randrange(length) for _ in range(generator.randint(0, 5)))})
        begins = [max(start for start in starts if start <= place) for place in range(length)]
        result.append([max(begin, place - window + 1) for place, begin in enumerate(begins)])
    return torch.tensor(result)


def plain_attention(query, key, value, first, *, scale, softcap=None):
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~table_of(first), -math.inf).softmax(-1) @ value).transpose(1, 2)


def inputs(rows, heads, shared, length, size, *, value_size=None, dtype=torch.float64):
    return [
        torch.randn(rows, count, length, width, dtype=dtype, requires_grad=True)
        for count, width in ((heads, size), (heads // shared, size), (heads // shared, value_size or size))
    ]


@pytest.mark.parametrize("seed", range(30))
def test_any_documents_windows_groups_and_lengths_give_the_numbers_of_plain_attention(seed):
    generator = random.Random(seed)
    torch.manual_seed(seed)
    rows, length, size = generator.randint(1, 3), generator.randint(1, 90), generator.choice([4, 8])
    shared, key_heads = generator.choice([1, 2, 5]), generator.choice([1, 2, 3])
    tensors = inputs(rows, shared * key_heads, shared, length, size, value_size=generator.choice([None, 7]))
    first = random_first(generator, rows, length)
    scale, softcap = generator.choice([0.1, 1.0]), generator.choice([None, 2.0])
    expected = plain_attention(*tensors, first, scale=scale, softcap=softcap)
    got = blocked_attention(*tensors, rule=Rule(scale=scale, softcap=softcap), first=first, score_bytes=1)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got, tensors, direction), torch.autograd.grad(expected, tensors, direction)
    )


@pytest.mark.parametrize(("softcap", "dropout"), [(None, 0.0), (1.5, 0.0), (None, 0.3), (1.5, 0.3)])
def test_the_gradient_is_that_of_finite_differences(softcap, dropout):
    torch.manual_seed(1)
    tensors = inputs(2, 4, 2, 35, 3, value_size=2)
    first = random_first(random.Random(5), 2, 35)
    rule = Rule(scale=0.7, softcap=softcap, dropout=dropout, seed=11)
    assert torch.autograd.gradcheck(
        lambda *those: blocked_attention(*those, rule=rule, first=first, score_bytes=1), tensors, fast_mode=True
    )


def test_without_bounds_every_earlier_key_is_seen():
    tensors = inputs(1, 2, 1, 40, 8)
    expected = functional.scaled_dot_product_attention(*tensors, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(blocked_attention(*tensors, score_bytes=1), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_scores_of_16_bit_inputs_are_computed_in_32(dtype, tolerance):
    torch.manual_seed(2)
    narrow = [one.detach().to(dtype).requires_grad_() for one in inputs(1, 4, 2, 50, 16, dtype=torch.float32)]
    wide = [one.detach().float().requires_grad_() for one in narrow]
    got, expected = blocked_attention(*narrow, score_bytes=1), blocked_attention(*wide, score_bytes=1)
    assert got.dtype is dtype
    torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance)
    got.float().sum().backward()
    expected.sum().backward()
    for one, other in zip(narrow, wide, strict=True):
        torch.testing.assert_close(one.grad.float(), other.grad, rtol=4 * tolerance, atol=4 * tolerance)


def test_scores_too_large_for_16_bits_do_no_harm():
    query = torch.full((1, 1, 20, 64), 200.0, dtype=torch.float16, requires_grad=True)
    out = blocked_attention(query, query, query)
    out.float().sum().backward()
    assert out.isfinite().all()
    assert query.grad.isfinite().all()


def test_autocast_around_it_does_not_narrow_its_products():
    tensors = inputs(1, 2, 1, 30, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = blocked_attention(*tensors)
    assert torch.equal(got, blocked_attention(*tensors))


def test_inputs_as_models_lay_them_out_need_no_copy_to_be_right():
    tensors = [torch.randn(2, 30, heads, 8).transpose(1, 2) for heads in (6, 2, 2)]
    same = [one.contiguous() for one in tensors]
    torch.testing.assert_close(blocked_attention(*tensors, score_bytes=1), blocked_attention(*same, score_bytes=1))


def test_dropout_drops_as_often_as_asked_and_scales_the_rest():
    ones = torch.ones(1, 8, 64, 4)
    rule = Rule(scale=1.0, dropout=0.25, seed=3)
    out = blocked_attention(ones, ones, ones, rule=rule)
    assert out[:, 1:].std() > 0.05
    assert abs(out.mean().item() - 1) < 0.02
    assert torch.equal(out, blocked_attention(ones, ones, ones, rule=rule))
    assert not torch.equal(out, blocked_attention(ones, ones, ones, rule=Rule(scale=1.0, dropout=0.25, seed=4)))


def test_only_inputs_output_and_one_number_per_query_are_kept():
    kept = {}
    tensors = inputs(1, 4, 2, 256, 8, dtype=torch.float32)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = blocked_attention(*tensors)
    expected = [*tensors, out]
    assert sum(kept.values()) == sum(one.nbytes for one in expected) + 4 * 256 * 4


def test_blocks_cover_each_query_once_and_every_key_that_it_sees():
    first = random_first(random.Random(8), 2, 333)
    blocks = list(plan_blocks(2, 4, 333, first.tolist(), 1))
    for row in range(2):
        mine = [block for block in blocks if block.row == row]
        assert [place for block in mine for place in range(333)[block.queries]] == list(range(333))
        for block in mine:
            assert block.keys.start <= first[row, block.queries].min()
            assert block.keys.stop >= block.queries.stop
            assert block.cut == bool((first[row, block.queries] > block.keys.start).any())


def test_scores_of_a_block_fit_the_budget_and_key_ranges_have_few_lengths():
    for heads, length in ((24, 1024), (24, 4096), (32, 8192), (4, 100)):
        size = queries_per_block(heads, length, 32 * 2**20)
        assert size * heads * length * 4 <= 32 * 2**20
        bounds = random_first(random.Random(heads), 1, length).tolist()
        blocks = list(plan_blocks(1, heads, length, bounds, 32 * 2**20))
        assert len({block.keys.stop - block.keys.start for block in blocks}) <= 64


def test_keys_of_earlier_documents_are_not_multiplied():
    bounds = [[place // 64 * 64 for place in range(512)]]
    widths = [block.keys.stop - block.keys.start for block in plan_blocks(1, 4, 512, bounds, 1)]
    assert max(widths) == 64


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 4, 8, 4), (1, 3, 8, 4), (1, 3, 8, 4)],
        [(1, 4, 8, 4), (1, 4, 9, 4), (1, 4, 9, 4)],
        [(1, 4, 8, 4), (1, 4, 8, 4), (1, 2, 8, 4)],
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"fit|share"):
        blocked_attention(*(torch.zeros(shape) for shape in shapes))


def test_first_visible_keys_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="first visible"):
        blocked_attention(*(torch.zeros(1, 2, 8, 4) for _ in range(3)), first=torch.zeros(1, 7))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_of_a_model_give_the_logits_and_gradients_of_its_usual_attention(family):
    usual = "eager" if family == "Gemma2" else "sdpa"
    ids, positions = packed()
    expected, expected_gradients = logits_and_gradients(tiny_model(family, usual), ids, positions)
    got, gradients = logits_and_gradients(tiny_model(family, BLOCKED), ids, positions)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max() + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_give_the_logits_of_documents_alone(family):
    model = tiny_model(family, BLOCKED)
    ids, positions = packed()
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    alone = [model(input_ids=document, use_cache=False).logits for document in ids.split(DOCUMENTS, dim=1)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["Llama", "Starcoder2", "Gemma2"])
def test_no_table_of_pairs_is_ever_built_for_packed_rows(family, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a table of pairs was built")

    monkeypatch.setattr(masking_utils, "sdpa_mask", refuse)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", refuse)
    ids, positions = packed()
    logits_and_gradients(tiny_model(family, BLOCKED), ids, positions)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_heeded(family, side):
    ids, _ = packed((9,))
    empty, ones = torch.zeros(2, 4, dtype=torch.long), torch.ones_like(ids)
    parts = (lambda x: [empty, x]) if side == "left" else (lambda x: [x, empty])
    padded, mask = torch.cat(parts(ids), 1), torch.cat(parts(ones), 1)
    model = tiny_model(family, BLOCKED).eval()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        got = model(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False).logits
        expected = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(got[mask.bool()].view_as(expected), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2"])
def test_generation_with_a_cache_and_padding_writes_the_same_text(family):
    texts = []
    ids, _ = packed((11,))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for implementation in ("eager", BLOCKED):
        model = tiny_model(family, implementation).eval()
        texts.append(model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False))
    assert torch.equal(*texts)


def test_a_mask_of_ones_is_no_padding():
    ones = torch.ones(2, 9, dtype=torch.bool)
    mask = ask_for_mask(masking_utils.causal_mask_function, 9, rows=2, attention_mask=ones)
    assert mask.dtype is torch.int32
    assert not mask.any()


def test_chunks_are_found():
    chunked = masking_utils.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))
    assert ask_for_mask(chunked, 12).flatten().tolist() == [place // 4 * 4 for place in range(12)]


def test_a_pattern_of_several_functions_is_left_to_torch():
    assert ask_for_mask(masking_utils.causal_mask_function, 12, use_vmap=True) is None


def image_in_the_middle(_row, _head, query, key):
    return ((query >= 2) & (query < 5) & (key >= 2) & (key < 5)) | (key <= query)


def sink_at_the_start(_row, _head, query, key):
    return ((key > query - 4) | (key == 0)) & (key <= query)


@pytest.mark.parametrize("pattern", [image_in_the_middle, sink_at_the_start])
def test_a_pattern_that_no_first_key_explains_is_noticed(pattern):
    table = ask_for_mask(pattern, 40, allow_is_causal_skip=False)
    assert torch.equal(table[0, 0], pattern(0, 0, torch.arange(40)[:, None], torch.arange(40)))


def test_bounds_that_a_mask_lost_are_read_from_it():
    ids, positions = packed()
    tensors = inputs(2, 4, 2, ids.shape[1], 8)
    first = positions.new_tensor([place - offset for place, offset in enumerate(positions[0])]).expand(2, -1)
    mask = first.to(torch.int32)[:, None, :, None]
    got, _ = attention.attend(None, *tensors, mask)
    torch.testing.assert_close(got, plain_attention(*tensors, first, scale=8**-0.5))


@pytest.mark.parametrize("name", ["s_aux", "position_bias"])
def test_a_term_that_blocks_do_not_know_is_refused_in_a_sentence(name):
    tensors = inputs(1, 2, 1, 8, 4)
    mask = torch.zeros(1, 1, 8, 1, dtype=torch.int32)
    with pytest.raises(BackendUnavailable, match=f"{name}.*training.attention"):
        attention.attend(None, *tensors, mask, **{name: torch.ones(2)})


def test_a_mask_of_numbers_is_refused_and_not_taken_for_ours():
    with pytest.raises(BackendUnavailable, match=r"mask of torch\.float32"):
        attention.attend(None, *inputs(1, 2, 1, 8, 4), torch.zeros(1, 1, 8, 8))


def test_dropout_is_drawn_again_when_a_layer_is_recomputed():
    tensors = inputs(1, 4, 2, 40, 8)
    mask = torch.zeros(1, 1, 40, 1, dtype=torch.int32)

    def layer(*those):
        return attention.attend(None, *those, mask, dropout=0.3)[0].square().sum()

    torch.manual_seed(6)
    plain = torch.autograd.grad(layer(*tensors), tensors)
    torch.manual_seed(6)
    recomputed = torch.autograd.grad(checkpoint(layer, *tensors, use_reentrant=False), tensors)
    torch.testing.assert_close(recomputed, plain)


def test_a_recomputed_model_has_the_gradients_of_a_plain_one():
    ids, positions = packed()
    _, expected = logits_and_gradients(tiny_model("Starcoder2", BLOCKED), ids, positions)
    model = tiny_model("Starcoder2", BLOCKED)
    name = "activation_checkpointing_enable"  # transformers 5.23 renamed it
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")({"use_reentrant": False})
    _, gradients = logits_and_gradients(model, ids, positions)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient)


def test_the_implementation_is_not_written_into_saved_models(tmp_path):
    tiny_model("Llama", BLOCKED).save_pretrained(tmp_path)
    assert BLOCKED not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_a_model_loads_with_the_chosen_name(tmp_path):
    tiny_model("Llama", "sdpa").save_pretrained(tmp_path)
    choice = choose(config_of("Llama"), Device.MPS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=choice.implementation)
    assert model.config._attn_implementation == BLOCKED


@pytest.mark.parametrize(
    ("family", "device", "requested", "expected"),
    [
        ("Llama", "mps", "auto", BLOCKED),
        ("Llama", "cpu", "auto", BLOCKED),
        ("Llama", "cpu", "sdpa", "sdpa"),
        ("Llama", "cuda", "auto", "sdpa"),
        ("Llama", "mps", "sdpa", "sdpa"),
        ("Llama", "cuda", "blocked", BLOCKED),
        ("Gemma2", "cuda", "auto", BLOCKED),
        ("Gemma2", "mps", "sdpa", "eager"),
    ],
)
def test_the_choice_follows_device_model_and_wish(family, device, requested, expected):
    choice = choose(config_of(family), device, requested)
    assert choice.implementation == expected
    assert choice.blocked == (expected == BLOCKED)
    assert "\n" not in choice.note


@pytest.mark.parametrize("family", ["Llama", "Starcoder2", "Gemma2"])
def test_a_row_of_one_document_gives_the_numbers_of_usual_attention(family):
    usual = "eager" if family == "Gemma2" else "sdpa"
    ids, positions = packed((41,))
    expected, expected_gradients = logits_and_gradients(tiny_model(family, usual), ids, positions)
    got, gradients = logits_and_gradients(tiny_model(family, BLOCKED), ids, positions)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max() + 1))


def test_torchs_kernel_on_a_cpu_serves_rows_of_one_document_only():
    causal, windowed = masking_utils.causal_mask_function, masking_utils.sliding_window_causal_mask_function(3)
    assert ask_for_mask(causal, 12).whole
    assert not ask_for_mask(windowed, 12).whole
    assert ask_for_mask(windowed, 3).whole


@pytest.mark.parametrize("model_type", ["bloom", "mpt", "gpt_oss"])
def test_models_whose_attention_cannot_be_replaced_keep_their_own(model_type):
    config = transformers.AutoConfig.for_model(model_type)
    choice = choose(config, Device.MPS)
    assert not choice.blocked
    assert choice.note


def test_an_unknown_configuration_is_left_to_transformers():
    assert choose(SimpleNamespace(), Device.MPS).implementation == "eager"
