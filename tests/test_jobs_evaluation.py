import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from backends.adapters import attach
from backends.contract import AdapterRequest
from backends.logits import LogitShape
from jobs import shards
from jobs.evaluation import HeldOut, NoHeldOutRows, evaluation_rows, measure
from jobs.loss import Batch, NextTokenLoss, count_labels, make_batch
from jobs.order import Order, Position
from jobs.randomness import random_state, restore_random_state, seed_everything
from jobs.schedule import CheckpointClock, LearningRate

torch.set_num_threads(1)

CPU = torch.device("cpu")
VOCABULARY = 61


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(17)
    config = Starcoder2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = attach(Starcoder2ForCausalLM(config), AdapterRequest(rank=4, alpha=8), seed=17)
    with torch.no_grad():  # a trained adapter: B is not zero
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model.eval()


def row_of(*lengths, seed=0):
    """A row of documents of the given lengths, every token after a document's first a label."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, sum(lengths))
    flags = np.full(sum(lengths), shards.LABEL, dtype=np.uint8)
    flags[np.cumsum([0, *lengths[:-1]])] = shards.DOCUMENT_START
    return shards.Row(ids.astype(np.int64), flags)


def loss_of(model, rows):
    with torch.no_grad():
        return float(NextTokenLoss.of(model, CPU)(make_batch(rows, CPU)))


def test_packed_documents_have_the_loss_they_have_alone(model):
    packed = row_of(5, 9, 2, 16)
    starts = [0, 5, 14, 16, 32]
    alone = [shards.Row(packed.ids[begin:end], packed.flags[begin:end]) for begin, end in pairwise(starts)]
    assert loss_of(model, [packed]) == pytest.approx(sum(loss_of(model, [row]) for row in alone), abs=1e-4)


def test_an_adapter_on_the_head_sees_one_dropout_mask_in_both_passes():
    config = Starcoder2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    request = AdapterRequest(rank=4, alpha=8, dropout=0.5, target_modules=("lm_head",))
    model = attach(Starcoder2ForCausalLM(config), request, seed=17)
    loss, batch = NextTokenLoss.of(model, CPU), make_batch([row_of(12)], CPU)
    (weight,) = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    gradients = []
    for total in (loss, lambda batch: logits_loss(model, batch)):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(total(batch), weight)[0])
    torch.testing.assert_close(*gradients)


def logits_loss(model, batch):
    logits = model(input_ids=batch.ids, position_ids=batch.position_ids, use_cache=False).logits
    targets = batch.labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits[0, :-1], targets, ignore_index=-100, reduction="sum")


def test_documents_are_alone_in_every_row_of_a_micro_batch(model):
    rows = [row_of(20, 12, seed=1), row_of(4, 10, 18, seed=2), row_of(32, seed=3)]
    together = loss_of(model, rows)
    assert together == pytest.approx(sum(loss_of(model, [row]) for row in rows), abs=1e-4)
    before = hidden(model, rows)
    ids = rows[1].ids.copy()
    ids[:14] = (ids[:14] + 1) % VOCABULARY  # the first two documents of the second row change
    after = hidden(model, [rows[0], shards.Row(ids, rows[1].flags), rows[2]])
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1, 14:], before[1, 14:])
    torch.testing.assert_close(after[2], before[2])
    assert not torch.allclose(after[1, :14], before[1, :14])


def hidden(model, rows):
    batch = make_batch(rows, CPU)
    decoder = model.get_base_model().model
    with torch.no_grad():
        return decoder(
            input_ids=batch.ids, attention_mask=None, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state


def test_documents_would_see_each_other_with_an_attention_mask(model):
    """The trap that the loss avoids is still there; should this fail, transformers has changed."""
    rows = [row_of(20, 12, seed=1)]
    batch = make_batch(rows, CPU)
    with torch.no_grad():
        logits = model(
            input_ids=batch.ids,
            attention_mask=torch.ones_like(batch.ids),
            position_ids=batch.position_ids,
            use_cache=False,
        ).logits
    masked = torch.nn.functional.cross_entropy(logits[0, :-1], batch.labels[0, 1:], reduction="sum")
    assert abs(float(masked) - loss_of(model, rows)) > 1e-3


def test_the_loss_and_its_gradient_are_those_of_full_logits(model):
    # Longer than a chunk, and not a multiple of it.
    batch = make_batch([row_of(60, 40, seed=seed) for seed in range(7)], CPU)
    loss = NextTokenLoss.of(model, CPU)
    assert loss.shape == LogitShape()
    expected, expected_gradient = gradients(model, full_loss, batch)
    found, gradient = gradients(model, lambda _model, batch: loss(batch), batch)
    assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    whole, whole_gradient = gradients(model, lambda _model, batch: NextTokenLoss(model, shape=None)(batch), batch)
    assert whole == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(whole_gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def full_loss(model, batch: Batch):
    logits = model(input_ids=batch.ids, position_ids=batch.position_ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.labels[:, 1:].flatten(), reduction="sum", ignore_index=-100
    )


def gradients(model, function, batch):
    model.zero_grad()
    value = function(model, batch)
    value.backward()
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad])
    model.zero_grad()
    return value.item(), found


def test_a_model_that_changes_its_logits_after_the_head_is_noticed(model):
    hook = model.get_base_model().register_forward_hook(lambda _module, _inputs, output: cap(output))
    try:
        loss = NextTokenLoss.of(model, CPU)
    finally:
        hook.remove()
    assert loss.shape is None


def cap(output):
    output["logits"] = torch.tanh(output["logits"]) * 0.5
    return output


def test_held_out_loss_is_a_mean_over_tokens_not_over_rows(model):
    rows = [row_of(32, seed=1), row_of(*[2] * 16, seed=2), row_of(30, 2, seed=3)]
    total = sum(loss_of(model, [row]) for row in rows)
    found = measure(NextTokenLoss.of(model, CPU), rows, micro_batch=2, device=CPU, step=4)
    assert found.tokens == count_labels(rows) == 31 + 16 + 30
    assert found.loss == pytest.approx(total / found.tokens, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.step == 4


def test_measuring_draws_no_random_numbers_and_keeps_the_model_training(model):
    model.train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    measure(NextTokenLoss.of(model, CPU), [row_of(32)], micro_batch=1, device=CPU, step=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    model.eval()


def test_the_rows_measured_are_spread_over_the_split():
    assert evaluation_rows(5, 64) == [0, 1, 2, 3, 4]
    assert evaluation_rows(100, 4) == [0, 25, 50, 75]
    with pytest.raises(NoHeldOutRows, match=r"dataset\.held_out"):
        evaluation_rows(0, 4)


def test_rows_without_labels_cannot_be_measured(model):
    row = shards.Row(np.zeros(8, dtype=np.int64), np.array([shards.DOCUMENT_START] + [0] * 7, dtype=np.uint8))
    with pytest.raises(NoHeldOutRows, match="no token to predict"):
        measure(NextTokenLoss.of(model, CPU), [row], micro_batch=1, device=CPU, step=0)


def test_a_loss_beyond_a_float_has_an_infinite_perplexity():
    assert HeldOut(step=0, loss=5000.0, tokens=1).perplexity == math.inf


def test_every_epoch_sees_every_row_once_in_another_order():
    order = Order(rows=10, effective_batch=4, seed=17, epochs=3)
    steps = list(order.steps_from(Position()))
    assert len(steps) == order.total_steps == 9
    assert [len(rows) for rows, _ in steps] == [4, 4, 2] * 3
    epochs = [[row for rows, _ in steps[start : start + 3] for row in rows] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_goes_on_from_any_position_as_if_never_left():
    order = Order(rows=10, effective_batch=4, seed=17, epochs=3, max_steps=8)
    steps = list(order.steps_from(Position()))
    assert len(steps) == 8
    for done, (_, position) in enumerate(steps, start=1):
        assert list(order.steps_from(position)) == steps[done:]
        assert order.step_of(position) == done


def test_the_order_is_the_same_on_every_machine():
    assert Order(rows=8, effective_batch=2, seed=17, epochs=1).permutation(0) == [6, 1, 5, 7, 0, 3, 2, 4]


def test_the_learning_rate_rises_to_its_peak_and_falls_along_a_cosine():
    rate = LearningRate(peak=1.0, total_steps=104, warmup_ratio=0.04)
    assert rate.warmup_steps == 5
    assert rate.at(1) == pytest.approx(0.2)
    assert rate.at(5) == rate.at(6) == 1.0
    assert rate.at(5 + 1 + 49) == pytest.approx(0.5, abs=0.02)
    assert 0 < rate.at(104) < 1e-3


def test_a_run_of_one_step_has_a_learning_rate():
    assert LearningRate(peak=1.0, total_steps=1, warmup_ratio=0.03).at(1) == 1.0
    assert LearningRate(peak=1.0, total_steps=1, warmup_ratio=0.0).at(1) == 1.0


def test_a_checkpoint_is_due_by_steps_or_by_minutes():
    now = [0.0]
    clock = CheckpointClock(every_steps=10, every_minutes=2, step=0, clock=lambda: now[0])
    assert not clock.is_due(9)
    assert clock.is_due(10)
    clock.saved(10)
    assert not clock.is_due(11)
    now[0] = 120
    assert clock.is_due(11)


def test_every_random_generator_goes_on_where_it_was():
    seed_everything(5)
    random.gauss(0, 1)
    state = random_state()
    first = draw()
    restore_random_state(state)
    assert draw() == first


def draw():
    return random.random(), random.gauss(0, 1), np.random.random(), torch.rand(3).tolist()  # noqa: NPY002
