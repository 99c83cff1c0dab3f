import pytest
import torch

from backends.memory import Recipe
from backends.product_rate import measure_product_rate, seconds_worth
from backends.shape import read_shape
from backends.throughput import Range, time_text, tokens_per_second, training_seconds, work_per_token

STARCODER2_3B = {
    "model_type": "starcoder2",
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
}
SHAPE = read_shape(STARCODER2_3B)


def test_starcoder2_3b_takes_the_operations_that_its_sizes_give():
    work = work_per_token(SHAPE, Recipe(checkpointing=False))
    weights = 2_878_341_120 + 49152 * 3072
    assert work.forward == work.backward == 2 * weights
    assert work.recomputation == 0
    assert work.adapters == 3 * 2 * 47_677_440


def test_recomputing_costs_a_forward_pass_without_the_head():
    work = work_per_token(SHAPE, Recipe(checkpointing=True))
    head = 2 * 49152 * 3072
    assert work.recomputation == pytest.approx(work.forward - head + work.adapters / 3 + work.attention / 3)


def test_gradients_end_at_the_lowest_layer_with_an_adapter():
    work, half = (work_per_token(SHAPE, Recipe(layers=layers)) for layers in ("all", "last:15"))
    head = 2 * 49152 * 3072
    assert half.forward == work.forward
    assert half.backward - head == pytest.approx((work.backward - head) / 2)
    assert half.adapters == pytest.approx(work.adapters / 2)
    assert half.recomputation == pytest.approx(work.recomputation / 2)
    assert half.attention == pytest.approx(work.attention * 2 / 3)


def test_operations_are_those_that_torch_counts_in_a_real_model():
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.arange(32)[None]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    work = work_per_token(read_shape(config), Recipe(sequence_length=32, checkpointing=False))
    # torch computes both halves of the scores; ours are those below the diagonal.
    counted = work.forward + 2 * work.attention / 3
    assert counter.get_total_flops() / 32 == pytest.approx(counted, rel=0.01)


def test_of_many_experts_only_those_that_a_token_passes_compute():
    config = STARCODER2_3B | {"num_local_experts": 8, "num_experts_per_tok": 2}
    dense, sparse = work_per_token(SHAPE, Recipe()), work_per_token(read_shape(config), Recipe())
    mlp = 2 * 30 * 2 * 3072 * 12288
    assert sparse.forward == pytest.approx(dense.forward + mlp)


def test_a_share_that_this_machine_measured_narrows_the_range():
    work = work_per_token(SHAPE, Recipe())
    guess, known = tokens_per_second(work, 1e12), tokens_per_second(work, 1e12, 0.5)
    assert known.high - known.low < (guess.high - guess.low) / 2
    assert known.low < 0.5e12 / work.total < known.high


def test_slow_is_long():
    assert training_seconds(1000, Range(10, 50)) == Range(20, 100)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (11_400, 18_000, "3 h 10 min to 5 h"),
        (120, 200, "2 to 3 min"),
        (0.1, 0.2, "1 s"),
        (40, 100, "40 s to 2 min"),
        (3500, 3700, "58 min to 1 h"),
        (3590, 7200, "1 to 2 h"),
        (100_000, 200_000, "28 to 56 h"),
    ],
)
def test_a_range_of_time_reads_as_people_say_it(low, high, text):
    assert time_text(Range(low, high)) == text


def test_the_rate_is_measured_in_the_time_given_and_draws_no_random_numbers():
    state = torch.get_rng_state()
    rate = measure_product_rate(SHAPE, 8, torch.float32, torch.device("cpu"), 0.0)
    assert 1e6 < rate < 1e16
    assert torch.equal(torch.get_rng_state(), state)


def test_a_short_training_is_not_worth_a_long_measurement():
    assert seconds_worth(1) == 0
    assert seconds_worth(100) == pytest.approx(0.5)
    assert seconds_worth(1e6) == 2
