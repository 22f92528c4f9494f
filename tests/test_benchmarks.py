"""benchmarks/: their arithmetic, and that they run; never how long anything takes."""

import json

import numpy as np
import pytest
import torch

from benchmarks import cost, disk, floor, growth, measure, parts, peers
from infra.pairs import Pairs
from model import EOS, PAD, Cache, Config, Transformer, sample, shift_right

SIZES = Config(40, 16, 2, 2, 2, 32, 0.1, 20)


def test_a_ratio_is_the_median_of_the_ratios_of_each_round():
    seconds = {"ours": [1.0, 2.0, 10.0], "theirs": [3.0, 4.0, 10.0]}
    assert measure.times_faster(seconds, "ours", "theirs") == 2.0
    assert measure.times_faster(seconds, "theirs", "ours") == 0.5


def test_all_sides_take_turns_and_the_warm_up_does_not_count():
    calls = []
    seconds = measure.side_by_side({name: lambda name=name: calls.append(name) for name in "ab"},
                                   rounds=3, warm_up=1)
    assert calls == 4 * ["a", "b"] and {name: len(s) for name, s in seconds.items()} == {"a": 3,
                                                                                         "b": 3}


def test_a_side_that_measures_for_itself_is_believed():
    seconds = measure.side_by_side({"floor": lambda: 5.0, "loss": lambda: 5.0}, 3, own=["floor"])
    assert seconds["floor"] == [5.0] * 3 and max(seconds["loss"]) < 5


def test_the_last_line_is_json(capsys):
    table = measure.Table("what", "number")
    table.add("a", 1.5)
    table.add("b", None)
    table.end()
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["what", "number"] and lines[0].split() == ["a", "1.50"]
    assert json.loads(last)["lines"] == [{"what": "a", "number": 1.5}, {"what": "b",
                                                                        "number": None}]


def test_forced_samples_never_end():
    torch.manual_seed(0)
    policy = peers.NeverEnding(SIZES).eval()
    drawn = sample(policy, torch.tensor([[5, 6, 2], [7, 2, 0]]), 50, 20)
    assert drawn.tokens.shape == (2, 50, 20) and drawn.tokens.min() > EOS


def test_textbook_sampling_has_the_shape_of_ours():
    torch.manual_seed(0)
    drawn = growth.uncached(peers.NeverEnding(SIZES).eval(), torch.tensor([[5, 6, 2]]), 3, 7)
    assert drawn.shape == (3, 7) and drawn.min() > EOS


def test_the_floor_counts_every_product(monkeypatch):
    """One second for each multiply-add: then the floor is the number of them."""
    monkeypatch.setattr(floor, "linear",
                        lambda n, a, b, training=False: n * a * b * (3 if training else 1))
    monkeypatch.setattr(floor, "attention", lambda n, q, k, w, training=False:
                        2 * n * q * k * w * (3 if training else 1))
    counted = []

    def count(module, inputs, output):
        counted.append(inputs[0].numel() * module.out_features)

    model = Transformer(SIZES)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    src, tokens = torch.full((6, 5), 7), torch.full((6, 8), 7)
    model(src, shift_right(tokens))
    D, attention = SIZES.d_model, 2 * 6 * SIZES.d_model * (2 * 5 * 5 + 2 * 8 * 8 + 2 * 8 * 5)
    assert floor.training_step(SIZES, 6, 5, 8) == 3 * (sum(counted) + attention
                                                       + 6 * 8 * D * SIZES.vocab_size)
    long = floor.training_step(SIZES, 6, 5, 9)
    assert floor.training(SIZES, [(src, tokens), (src, tokens), (src, torch.full((6, 9), 7))]) == (
        2 * floor.training_step(SIZES, 6, 5, 8) + long)
    maps, attention = 6 * D * D + 2 * D * SIZES.d_ff, 2 * D * 4 + 2 * D * 5
    assert floor.decode_step(SIZES, 6, 1, 5, 4) == 6 * (2 * (maps + attention)
                                                        + D * SIZES.vocab_size)
    counted.clear()
    with torch.inference_mode():
        Cache(model, src, 1)
    assert floor.grow(SIZES, 6, 1, 5, 8) == (sum(counted) + 2 * 2 * 6 * D * 5 * 5
                                             + 8 * floor.decode_step(SIZES, 6, 1, 5, 4))


def test_what_a_large_run_costs(capsys):
    cost.main("--preset smoke --sources 2 --samples 3 --rounds 1 --share 0.2".split())
    lines = json.loads(capsys.readouterr().out.splitlines()[-1])["lines"]
    assert [line["what"] for line in lines[:3]] == ["Grow", "score", "train, one epoch"]
    for small, large in zip(lines[:3], lines[3:]):
        assert small["GB of disk"] == pytest.approx(3.47, rel=0.01)  # 17 + 25 * 8 bytes a pair
        for key in ("GB of disk", "hours here"):
            assert large[key] / small[key] == pytest.approx(890 / 16)
        seconds = 16e6 * float(small["FLOP a pair"]) / (0.2 * 989e12)
        assert small["h at 0.2 H100"] == pytest.approx(seconds / 3600, rel=0.01)


def test_operations_are_counted():
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    assert cost.flop(lambda: torch.nn.functional.linear(x, w)) == 2 * 3 * 4 * 5
    assert cost.flop(lambda: torch.nn.functional.linear(x, w).sum().backward()) == 6 * 3 * 4 * 5


@pytest.mark.parametrize("part", [*parts.TRAINING.values(), *parts.GROW.values()],
                         ids=[*parts.TRAINING, *parts.GROW])
def test_a_part_is_left_out_and_put_back(part):
    target, name, replacement = part
    seen, whole = [], getattr(target, name)
    parts.without(part, lambda: seen.append(getattr(target, name)))()
    parts.without(None, lambda: seen.append(getattr(target, name)))()
    assert seen == [replacement, whole] and whole is not replacement


def test_training_and_drawing_run_without_any_of_their_parts():
    src = torch.randint(4, 40, (3, 5))
    for parts_of, run in (
            (parts.GROW, lambda: sample(peers.NeverEnding(SIZES).eval(), src, 2, 5)),
            (parts.TRAINING, parts.ours(SIZES, [(src, src)]))):
        for part in parts_of.values():
            parts.without(part, run)()


def test_pairs_on_disk_are_filtered_and_read(tmp_path, capsys):
    disk.main(f"--out {tmp_path} --millions 0.002 --batches 3 --width 16".split())
    out = capsys.readouterr().out
    assert "times as fast as training" in out
    names = [line["what"] for line in json.loads(out.splitlines()[-1])["lines"]]
    assert {"quantile", "threshold", "read"} <= set(names)
    pairs = Pairs.load(tmp_path / "pairs-0.002M")
    assert len(pairs) == 2000 and pairs.lengths.min() >= 5 and not pairs.human.any()
    assert np.mean(pairs.reward > 0.9) == pytest.approx(0.1, abs=0.03)


def test_the_peers_have_the_same_weights():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    policy = Transformer(SIZES).eval()
    for p in policy.parameters():
        torch.nn.init.normal_(p, std=0.3)
    src = torch.tensor([[5, 6, 9, 2], [7, 2, 0, 0]])
    tgt = shift_right(torch.tensor([[8, 9, 2], [7, 8, 9]]))
    theirs = peers.same_policy(policy)
    with torch.no_grad():
        logits = theirs(input_ids=src, attention_mask=(src != PAD).long(),
                        decoder_input_ids=tgt).logits
        torch.testing.assert_close(logits, policy(src, tgt), atol=1e-5, rtol=1e-5)
