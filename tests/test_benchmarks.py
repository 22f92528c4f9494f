"""benchmarks/: their arithmetic, and that they run; never how long anything takes."""

import json
import math
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import cost, disk, floor, gpu, gpu_parts, growth, measure, parts, peers, threads
from infra.pairs import Pairs
from infra.relatives import METHODS
from infra.settings import parse
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


# ----------------------------------------------------------------------- one GPU: benchmarks/gpu.py


def numbers_in(found):
    """All numbers in nested lists and dicts."""
    if isinstance(found, (list, dict)):
        for value in found.values() if isinstance(found, dict) else found:
            yield from numbers_in(value)
    elif isinstance(found, (int, float)):
        yield found


def test_the_gpu_program_measures_each_part_also_after_one_that_fails(tmp_path, capsys):
    gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json"), "--data", str(tmp_path / "nowhere"),
              "--parts", "run", "grow", "training", "profile"])
    report = json.loads((tmp_path / "gpu.json").read_text())
    found = report["parts"]
    assert list(found) == ["run", "grow", "training", "profile"] and report["machine"]["torch"]
    assert found["run"]["error"] == "exit code 2" and "nowhere" in found["run"]["log"][-1]
    assert not any("error" in found[name] for name in list(found)[1:])
    assert all(map(math.isfinite, numbers_in(report)))
    sides = {name: [row["side"] for row in found[name]["rows"]] for name in ("grow", "training")}
    assert len(sides["grow"]) == 14 and len(sides["training"]) == 10
    assert {"HF float32", "ours bfloat16 compiled"} < set(sides["grow"])
    for row in found["grow"]["rows"] + found["training"]["rows"]:
        if row["side"].startswith("ours") or not peers_are_missing():
            assert row["tokens_per_second"] > 0 and "error" not in row
    assert all(row["share_of_peak"] > 0 for row in found["training"]["rows"] if "seconds" in row)
    assert [row["what"] for row in found["profile"]["rows"]] == ["Grow", "training"]
    assert all(len(row["operations"]) == 12 for row in found["profile"]["rows"])
    said = capsys.readouterr().out
    assert "run: exit code 2" in said and "ours TF32 compiled" in said and "aten::" in said


def peers_are_missing():
    return gpu.importlib.util.find_spec("transformers") is None


def test_a_side_that_fails_is_told_and_the_others_are_timed(tmp_path):
    def broken():
        raise torch.OutOfMemoryError("too large")

    rows, calls = gpu_parts.Rows(tmp_path / "rows.json"), []
    sides = {"a": lambda: lambda: calls.append(1) or time.sleep(0.01), "made": broken,
             "called": lambda: broken, "b": lambda: lambda: time.sleep(0.03)}
    gpu_parts.compare(rows, {"shape": "x"}, sides, tokens=10, rounds=3, flop=cost.H100 / 100)
    assert json.loads(rows.file.read_text()) == rows and len(calls) == 5  # once, alone, 3 rounds
    a, made, called, b = rows
    assert [row["rounds"] for row in rows] == [3, 0, 0, 3] and "seconds" not in made
    assert made["error"] == called["error"] == "OutOfMemoryError: too large"
    assert a["tokens_per_second"] == pytest.approx(10 / a["seconds"])
    assert a["share_of_peak"] == pytest.approx(0.01 / a["seconds"])
    assert 0.01 <= a["seconds"] < b["seconds"] and a["times_as_fast_as"]["b"] > 1
    assert set(b["times_as_fast_as"]) == {"a"} and b["first_call_seconds"] >= 0.03


def test_what_no_longer_fits_is_skipped_and_so_is_a_run_without_data(tmp_path, capsys):
    def skipped(*flags):
        gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json"), *flags])
        parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
        return {name: part["skipped"] for name, part in parts.items()}

    assert skipped("--minutes", "0") == dict.fromkeys(gpu.LIMITS, "0 s were left")
    assert skipped("--parts", "run") == {"run": "there is no --data"}
    assert "run: there is no --data" in capsys.readouterr().out


def test_a_part_that_takes_too_long_is_ended_and_what_it_found_is_kept(tmp_path):
    program = ("import pathlib, time; pathlib.Path('rows.json').write_text('[{\"side\": 1}]'); "
               "print('test_a.py::test_b[c d] PASSED', flush=True); time.sleep(60)")
    looked, begin = [], time.monotonic()
    line = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {program}"]
    error = gpu.watch(line, tmp_path, 3, lambda: looked.append(gpu.found_in(tmp_path)))
    assert error == "not done after 3 s" and 3 <= time.monotonic() - begin < 30
    assert looked and gpu.found_in(tmp_path) == {
        "tests": {"PASSED": 1}, "failed": [], "rows": [{"side": 1}]}
    assert gpu.watch([sys.executable, "-c", "raise SystemExit(7)"], tmp_path, 60) == "exit code 7"
    assert gpu.watch([sys.executable, "-c", ""], tmp_path, 60) is None


def test_of_a_run_that_was_killed_the_rows_so_far_are_read(tmp_path):
    (tmp_path / "log").write_text("test_cuda.py::test_a FAILED [ 5%]\ntest_cuda.py::test_b PASSED")
    (tmp_path / "run").mkdir()
    events = [{"event": "train", "step": "bc", "update": 5, "score": 7.5},
              {"event": "train", "step": "reward"}, {"event": "row", "name": "BC", "bleu": 30.0}]
    (tmp_path / "run" / "metrics.jsonl").write_text(
        "".join(json.dumps(event) + "\n" for event in events) + '{"event": "row", "na')
    assert gpu.found_in(tmp_path) == {"tests": {"FAILED": 1, "PASSED": 1}, "failed": ["test_a"],
                                      "events": [events[0], events[2]]}


def test_the_shortened_run_has_settings_that_train_mt_knows():
    """And the less time there is, the less is to be done."""
    made = [parse(cost.Settings, ["--preset", "gpu", *gpu.run_flags(seconds)],
                  preset=cost.PRESETS, method=METHODS) for seconds in (15, 120, 180, 240)]
    assert all(s.d_model == 512 and not s.compile and not s.ppo for s in made)
    assert [s.bc_updates for s in made] == [150, 750, 1500, 1500]
    assert all(s.evaluate_every <= s.updates and s.bc_evaluate_every <= s.bc_updates for s in made)


def test_time_in_which_kernels_overlap_is_busy_once():
    def event(start, end, **changes):
        return SimpleNamespace(**{"device_type": DeviceType.CUDA, "is_user_annotation": False,
                                  "time_range": SimpleNamespace(start=start, end=end)} | changes)

    events = [event(0, 10), event(30, 40), event(5, 12), event(6, 8), event(40, 41),
              event(0, 99, device_type=DeviceType.CPU), event(0, 99, is_user_annotation=True)]
    assert gpu_parts.busy_seconds(SimpleNamespace(events=lambda: events)) == pytest.approx(23e-6)


@pytest.mark.slow
def test_the_gpu_program_ends_with_a_run_and_its_rows(tmp_path, capsys):
    pytest.importorskip("sacrebleu")
    rng, words = np.random.default_rng(0), "ein zwei rote blaue Hunde Katzen laufen".split()
    for split, n in (("train", 300), ("val", 30), ("test", 30)):
        lines = [" ".join(rng.choice(words, 5)) + "." for _ in range(n)]
        for language, of in (("de", lines), ("en", [line.upper() for line in lines])):
            (tmp_path / f"{split}.{language}").write_text("\n".join(of) + "\n")
    gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json"), "--data", str(tmp_path), "--parts",
              "run"])
    run = json.loads((tmp_path / "gpu.json").read_text())["parts"]["run"]
    rows = [event for event in run["events"] if event["event"] == "row"]
    assert "error" not in run and [row["name"] for row in rows] == ["BC", *3 * ["ReST"], "PPO"]
    assert all(0 <= row["beam_bleu"] <= 100 and row["seconds"] >= 0 for row in rows)
    assert "ReST (1,2)" in capsys.readouterr().out


@pytest.mark.slow
def test_threads_and_processes_take_turns_idle_and_beside_work(capsys):
    threads.main("--sizes demo --updates 1 --rounds 1 --cores 2".split())
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 * 2 * 3  # idle and not, update and Grow, three sides
    assert all(float(line[-1]) == 1 for line in lines if "1 thread" in "".join(line))
    assert all(float(line[-1]) > 0 for line in lines)
