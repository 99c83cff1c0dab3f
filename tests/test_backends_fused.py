"""The fused functions against the plain modules: same numbers, same gradients, less kept for the backward pass."""

import copy
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Gemma2Config, LlamaConfig, OPTConfig, Qwen2Config, Starcoder2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from backends import merging
from backends.frozen import PlainWeight
from backends.fused import Magnitudes, Mlp, Projection, adapted, adapted_mlp, layer_norm, rms_norm
from backends.fusion import fuse
from backends.int8 import Int8Linear, integer, packed

# PEFT asks transformers by a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "starcoder2": Starcoder2Config(**SIZES, residual_dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0),
    "gemma2": Gemma2Config(**SIZES, head_dim=8),
    "linear activation": LlamaConfig(**SIZES, hidden_act="linear"),
    # A decoder layer of this family holds the layers of its MLP itself.
    "opt": OPTConfig(
        vocab_size=97,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        dropout=0.0,
        init_std=0.2,
    ),
}


def double(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def matrices(inputs, outputs, rank=3, seed=5):
    down = double(rank, inputs, seed=seed).requires_grad_()
    up = double(outputs, rank, seed=seed + 1).requires_grad_()
    return down, up


def projection(inputs, outputs, seed=5):
    down, up = matrices(inputs, outputs, seed=seed)
    return Projection(
        PlainWeight(double(outputs, inputs, seed=seed + 2)), double(outputs, seed=seed + 3), down, up, 0.5
    )


def test_the_gradient_of_base_and_adapter_is_right():
    one = projection(6, 5)
    x = double(2, 4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, _down, _up: adapted(x, one), (x, *one.matrices))


@pytest.mark.parametrize("gated", [True, False])
def test_the_gradient_of_an_mlp_is_right(gated):
    mlp = Mlp(
        gate=projection(4, 6, seed=10) if gated else None,
        wide=projection(4, 6, seed=20),
        narrow=projection(6, 4, seed=30),
        activation=nn.functional.silu if gated else nn.GELU("tanh"),
    )
    x = double(3, 4).requires_grad_()
    inputs = [one for one in mlp.matrices if one is not None]
    assert torch.autograd.gradcheck(lambda x, *_: adapted_mlp(x, mlp), (x, *inputs))


def test_the_gradient_of_the_norm_is_right():
    x, weight = double(3, 8).requires_grad_(), double(8, seed=2)
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight, 1e-6), (x,))


def test_the_magnitudes_of_dora_are_the_true_lengths_of_rows():
    one = projection(6, 5)
    weight = one.weight.weight
    magnitudes = Magnitudes(torch.ones(5), torch.linalg.vector_norm(weight, dim=1).float())
    exact = torch.linalg.vector_norm(weight + 0.5 * one.up @ one.down, dim=1)
    plain = Projection(PlainWeight(weight.float()), None, one.down.float(), one.up.float(), 0.5)
    torch.testing.assert_close(1 / magnitudes.factors(plain, torch.float32), exact.float().detach())


def test_dora_is_one_function_with_the_gradients_of_peft():
    linear = nn.Linear(6, 5)
    model = get_peft_model(nn.Sequential(linear), LoraConfig(r=3, target_modules=["0"], use_dora=True))
    torch.nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    fused = copy.deepcopy(model)
    assert fuse(fused) == 1
    x = torch.randn(7, 6)
    for one in (model, fused):
        one(x).square().sum().backward()
    torch.testing.assert_close(fused(x), model(x))
    for (name, ours), theirs in zip(fused.named_parameters(), model.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def adapted_model(family, **lora):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    model.config.use_cache = False
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **lora)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.train()


def loss_and_gradients(model):
    ids = torch.arange(40).reshape(2, 20)
    positions = torch.cat([torch.arange(8), torch.arange(12)]).expand(2, -1)
    loss = model(input_ids=ids, position_ids=positions, labels=ids).loss
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_model_learns_as_the_plain_one(family, lora):
    plain = adapted_model(family, **lora)
    fused = copy.deepcopy(plain)
    assert fuse(fused) > 0
    (loss, gradients), (other_loss, others) = loss_and_gradients(fused), loss_and_gradients(plain)
    torch.testing.assert_close(loss, other_loss)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-5, msg=name)


def kept_bytes(model):
    kept = {}
    owned = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in owned:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(input_ids=torch.arange(40)[None] % 97)
    return sum(kept.values())


@pytest.mark.parametrize("family", ["llama", "starcoder2"])
def test_a_fused_model_keeps_less_for_the_backward_pass(family):
    plain = adapted_model(family)
    fused = copy.deepcopy(plain)
    fuse(fused)
    assert kept_bytes(fused) < 0.8 * kept_bytes(plain)


def test_names_and_files_of_a_fused_model_are_those_of_peft(tmp_path):
    plain = adapted_model("llama")
    fused = copy.deepcopy(plain)
    fuse(fused)
    assert list(fused.state_dict()) == list(plain.state_dict())
    fused.save_pretrained(tmp_path)
    torch.manual_seed(3)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_config(FAMILIES["llama"]), tmp_path)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, fused.eval()(input_ids=ids).logits)


def test_dropout_on_the_adapter_is_left_to_peft():
    fused = adapted_model("llama", lora_dropout=0.9)
    plain = copy.deepcopy(fused)
    fuse(fused)
    ids = torch.arange(20)[None]
    torch.manual_seed(1)
    ours = fused(input_ids=ids).logits
    torch.manual_seed(1)
    torch.testing.assert_close(ours, plain(input_ids=ids).logits)


def test_a_switched_off_adapter_has_no_part_in_the_result():
    fused = adapted_model("llama")
    plain = copy.deepcopy(fused)
    fuse(fused)
    ids = torch.arange(20)[None]
    with torch.no_grad(), fused.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(fused(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_a_norm_that_computes_something_else_stays_as_it_is():
    fused = adapted_model("gemma2")  # its norms multiply by 1 + weight
    fuse(fused)
    assert not any(type(module).__name__ == "FusedGemma2RMSNorm" for module in fused.modules())


class GatedRMSNorm(nn.Module):
    """As those of state-space layers: Mamba's may be called without a gate, Qwen3-Next's may not."""

    def __init__(self, width, *, needs_gate):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width), requires_grad=False)
        self.variance_epsilon = 1e-6
        self.needs_gate = needs_gate

    def forward(self, hidden_states, gate=None):
        if gate is not None or self.needs_gate:
            hidden_states = hidden_states * nn.functional.silu(gate.float())
        return self.weight * hidden_states * (hidden_states.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


@pytest.mark.parametrize("needs_gate", [False, True])
def test_a_norm_with_a_gate_computes_as_before(needs_gate):
    norm = GatedRMSNorm(32, needs_gate=needs_gate)
    x, gate = torch.randn(3, 32), torch.randn(3, 32)
    wanted = norm(x, gate=gate)
    fuse(norm)
    torch.testing.assert_close(norm(x, gate=gate), wanted)
    torch.testing.assert_close(norm(x, gate), wanted)


class ClampedMlp(nn.Module):
    """As that of DeepSeek V4: what is large is clamped."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)
        self.act_fn = nn.SiLU()
        self.requires_grad_(requires_grad=False)

    def forward(self, x):
        up = self.up_proj(x).clamp(min=-7.0, max=7.0)
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7.0)) * up)


def test_an_mlp_that_clamps_large_values_only_stays_as_it_is():
    torch.manual_seed(3)
    mlp = ClampedMlp()
    assert fuse(mlp) == 0
    assert type(mlp) is ClampedMlp


def quantised_model(group_size=32, compute="exact", **lora):
    torch.manual_seed(3)
    linears = nn.Linear(64, 48), nn.Linear(48, 32)
    first, last = (Int8Linear.from_linear(one, group_size, compute=compute) for one in linears)
    model = nn.Sequential(first, nn.ReLU(), last)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["0", "2"], **lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    fuse(model)
    return model


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_merging_into_int8_costs_no_more_than_quantising(lora):
    model = quantised_model(**lora)
    x = torch.randn(9, 64)
    before = model(x).detach()
    codes = [module.weight.clone() for module in model.modules() if isinstance(module, Int8Linear)]
    model.merge_adapter()
    report = merging.report(model)
    assert report.layers == 2
    assert 0 < report.mean_error <= report.worst_error < 0.01
    torch.testing.assert_close(model(x), before, rtol=0, atol=0.02 * before.abs().max().item())
    model.unmerge_adapter()
    assert merging.report(model) is None
    assert torch.equal(model(x), before)
    again = [module.weight for module in model.modules() if isinstance(module, Int8Linear)]
    assert all(torch.equal(one, other) for one, other in zip(codes, again, strict=True))


def test_copies_packed_of_merged_codes_are_not_used_when_the_adapter_is_out_again(monkeypatch):
    if not packed.available():
        pytest.skip("this torch has no fbgemm")
    monkeypatch.setattr(integer, "_packed_is_faster", lambda: True)
    model = quantised_model(None, "int8")
    x = torch.randn(9, 64)
    with torch.no_grad():
        before = model(x)
        model.merge_adapter()
        model(x)
        model.unmerge_adapter()
        assert torch.equal(model(x), before)


def test_a_merged_adapter_can_be_unloaded():
    model = quantised_model()
    x = torch.randn(9, 64)
    before = model(x).detach()
    plain = model.merge_and_unload()
    assert isinstance(plain[0], Int8Linear)
    torch.testing.assert_close(plain(x), before, rtol=0, atol=0.02 * before.abs().max().item())


def test_an_adapter_that_is_not_finite_is_not_merged():
    model = quantised_model()
    layer = model.base_model.model[0]
    layer.lora_B["default"].weight.data.fill_(float("nan"))
    codes = layer.base_layer.weight.clone()
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter()
    assert torch.equal(layer.base_layer.weight, codes)


def test_a_fused_model_can_be_pickled_and_copied():
    fused = adapted_model("llama")
    fuse(fused)
    ids = torch.arange(20)[None]
    for again in (pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):  # noqa: S301 - our own bytes
        assert type(again) is type(fused)
        assert {type(one) for one in again.modules()} == {type(one) for one in fused.modules()}
        assert torch.equal(again(input_ids=ids).logits, fused(input_ids=ids).logits)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_norm_changed_in_place_is_kept_as_it_is(norm):
    x, weight, one = double(7, 6), double(6, seed=2), projection(6, 5)

    def gradient_of_down(kept):
        normed = rms_norm(x, weight, 1e-6) if norm == "rms" else layer_norm(x, weight, None, 1e-6)
        normed.mul_(3)
        out = adapted(normed if kept else normed.clone(), one)
        return torch.autograd.grad(out.square().sum(), one.down)[0]

    torch.testing.assert_close(gradient_of_down(kept=True), gradient_of_down(kept=False))


def test_an_input_that_needs_no_gradient_costs_no_product_back():
    one = projection(6, 5)
    asked = []
    counting = Counting(one.weight.weight, asked)
    adapted(double(4, 6), replace(one, weight=counting)).sum().backward()
    assert one.down.grad is not None
    assert not asked


@dataclass(frozen=True)
class Counting(PlainWeight):
    asked: list

    def multiply_back(self, gradient, onto=None):
        self.asked.append(1)
        return super().multiply_back(gradient, onto)
