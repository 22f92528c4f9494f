"""infra/relatives.py: each method's settings, what they make of the loop, and whole little runs.

What a method makes of the loop is looked at on helpers.py's task of two words.
"""

import copy
import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import losses
import rest
import train_mt
import train_toy
from helpers import BASE_HP, FakeRun, kept_by, oracle, some_bc, some_task, spy, weights
from infra import figures
from infra.cli import run_cli
from infra.pairs import Pairs
from infra.relatives import METHODS
from infra.settings import choices_of, parse
from rest import Settings, online
from test_train_toy import TINY

LINE = 0.85  # right and wrong, in the tests' own task
FIELDS = {field.name: field for field in fields(train_mt.Settings)}
LOOP = {name: {k: v for k, v in method.items() if k != "ppo"}  # whether it runs, programs say
        for name, method in METHODS.items()}
USUAL = [{}, *(problem.usual for problem in train_toy.TASKS.values()), *train_toy.PRESETS.values(),
         *train_mt.PRESETS.values()]  # what the programs have in place of the defaults


# -------------------------------------------------------------------------------------- settings


def test_the_first_is_rest_itself():
    assert next(iter(METHODS)) == "rest" and METHODS["rest"] == {}
    assert parse(Settings, [], method=METHODS) == Settings()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_of_settings(name):
    """Of their types and among their choices, for a table is checked by no one else."""
    for key, value in METHODS[name].items():
        field = FIELDS[key]
        assert type(value) is type(field.default), key
        if isinstance(value, tuple):
            assert {type(x) for x in value} == {type(x) for x in field.default or (0.0,)}, key
        assert choices_of(field) is None or value in choices_of(field), key
        assert any(value != table.get(key, field.default) for table in USUAL), key  # it says this
    settings = parse(train_toy.Settings, ["--method", name], method=METHODS)
    assert settings == train_toy.Settings(**METHODS[name])


@pytest.mark.parametrize("program", [train_toy, train_mt])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_budget_and_rates_to_the_program(program, name):
    """What the programs say of their own, and its presets, is about other settings."""
    own = {"samples", "updates", "evaluate_every", "lr", "lr_decay", "batch_tokens", "patience",
           "grow_sources", "ppo_samples", "ppo_batch", "ppo_group", "ppo_lr", "ppo_kl", "seed"}
    assert not own & set(METHODS[name])
    plain, chosen = (vars(parse(program.Settings, argv, method=METHODS))
                     for argv in ([], ["--method", name]))
    assert {k for k in chosen if chosen[k] != plain[k]} <= {*METHODS[name], "thresholds"}
    given = {k: value for k, value in METHODS[name].items() if value != "auto"}
    assert {k: chosen[k] for k in given} == given


def test_a_method_overrules_a_preset_and_a_flag_both():
    def parsed(*argv):
        return parse(train_mt.Settings, argv, preset=train_mt.PRESETS, method=METHODS)

    both = parsed("--preset", "smoke", "--method", "rest-em")
    assert both.improve == (1,) and both.filter == "quantile"  # the method's
    assert both.grow == 1 and both.samples == 4 and both.d_model == 32  # the preset's
    assert parsed("--method", "rft", "--preset", "gpu").grow == 1
    assert parsed("--method", "raft").filter == "top"  # not the preset's percentile
    assert parsed("--method", "policy-gradient").ppo and not parsed().ppo
    for name in ("rest-em", "expert-iteration", "rft"):  # nor is 0.8 one: the best fifth of D_g
        method = parsed("--method", name)
        assert (method.filter, method.thresholds) == ("quantile", (0.8,))
    flags = parsed("--preset", "smoke", "--method", "rest-em", "--improve", "3", "--samples", "9")
    assert flags.improve == (3,) and flags.samples == 9 and flags.start == "base"


# ------------------------------------------------------------------------- what becomes of the loop


@pytest.fixture(scope="module")
def bc():
    return some_bc()


@pytest.fixture(scope="module")
def task(bc):
    """Its base is almost BC: as good, but not the same."""
    base = copy.deepcopy(bc)
    with torch.no_grad():
        base.embedding.weight += 1e-3
    return replace(some_task(), base=(base, BASE_HP))


SIZES = Settings(samples=6, updates=4, evaluate_every=2, batch_tokens=256, lr=3e-3, seed=5,
                 ppo_batch=32, ppo_group=4, ppo_samples=96)


def went(name, bc, task):
    """The rows of a method, and for each the Improve's call, the Grow's, the policy, and D_g."""
    settings = replace(SIZES, **dict(filter="auto", thresholds=()) | LOOP[name])
    if settings.filter == "quantile" and name != "rest":  # this task's reward knows what is right
        settings = replace(settings, filter="threshold", thresholds=(LINE,))
    assert not torch.equal(weights(bc), weights(task.base[0]))
    with pytest.MonkeyPatch.context() as patch:
        improves = spy(patch, "improve", lambda args: weights(args[0]))
        grows = spy(patch, "sample_outputs", lambda args: weights(args[0]))
        yielded = [(row, weights(policy), D_g) for row, policy, D_g in
                   rest.rest(bc, task, settings, FakeRun())]
    grows = [call for call in grows if call["args"][2] == settings.samples]
    assert len(improves) == len(yielded)
    assert len(grows) == len({row["grow"] for row, *_ in yielded})
    return [(row, improve, grows[row["grow"] - 1], policy, D_g)
            for (row, policy, D_g), improve in zip(yielded, improves)]


def steps(yielded):
    return [(row["grow"], row["improve"]) for row, *_ in yielded]


def graded(sources, outputs):
    """The oracle, and among its equals an order of no meaning: so that quantiles differ."""
    order = [sum(int(i) * (k + 3) for k, i in enumerate([x[0], len(x), *y])) % 97 / 200
             for x, y in zip(sources, outputs)]
    return oracle(sources, outputs) / 2 + np.array(order, np.float32)


def test_rest_is_as_it_was(bc, task):
    yielded = went("rest", bc, replace(task, reward=graded))
    assert steps(yielded) == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3)]
    before = weights(bc)
    for row, improve, grow, policy, D_g in yielded:
        assert torch.equal(improve["before"], before) and D_g.human.sum() == len(task.data)
        assert grow["args"][5] == 0.8 and improve["args"][4].updates == SIZES.updates
        lines = [None, *(np.quantile(D_g.reward, q) for q in (0.5, 0.7, 0.85, 0.95))]
        assert row["threshold"] == lines[row["improve"]]
        kept = D_g.reward > (row["threshold"] or -1)
        np.testing.assert_array_equal(kept_by(improve).reward, D_g.reward[kept])
        before = policy


def best_of_each(D_g, task):
    best = np.full(len(task.sources), -1.0)
    np.maximum.at(best, D_g.source, D_g.reward)
    return best


@pytest.mark.parametrize("name", ["raft", "llama2"])
def test_the_best_of_each_source(name, bc, task):
    """RAFT: of this Grow, from the policy before. Llama 2: of all Grows, from the base."""
    yielded, before = went(name, bc, task), weights(bc)
    assert steps(yielded) == [(1, 1), (2, 1)]
    for row, improve, grow, policy, D_g in yielded:
        kept = kept_by(improve)
        assert not D_g.human.any() and list(np.bincount(kept.source)) == 60 * [1]
        np.testing.assert_array_equal(kept.reward[np.argsort(kept.source)],
                                      best_of_each(D_g, task).astype(np.float32))
        assert len(D_g) == 360 * (row["grow"] if name == "llama2" else 1)
        start = before if name == "raft" else weights(task.base[0])
        assert torch.equal(improve["before"], start)
        assert (improve["args"][4] is task.base[1]) == (name == "llama2")
        assert grow["args"][5] == 1.0 and torch.equal(grow["before"], before)
        before = policy


@pytest.mark.parametrize("name", ["rest-em", "expert-iteration"])
def test_what_is_right(name, bc, task):
    """ReST-EM: three of each source, from the base. Expert iteration: all, from the policy."""
    yielded, before = went(name, bc, task), weights(bc)
    assert steps(yielded) == [(1, 1), (2, 1)]
    for row, improve, grow, policy, D_g in yielded:
        kept, right = kept_by(improve), D_g.select(D_g.reward > LINE)
        assert not D_g.human.any() and len(D_g) == 360 and row["threshold"] == LINE
        assert (kept.reward == 1).all() and 0 < len(kept) < len(D_g)
        count, all_right = (np.bincount(x.source, minlength=60) for x in (kept, right))
        most = 3 if name == "rest-em" else 6
        np.testing.assert_array_equal(count, np.minimum(all_right, most))
        assert all_right.max() > 3
        start = weights(task.base[0]) if name == "rest-em" else before
        assert torch.equal(improve["before"], start)
        assert improve["args"][4] == (BASE_HP if name == "rest-em" else
                                      SIZES.training(lr=0.8 * SIZES.lr))
        assert grow["args"][5:7] == ((0.7, 40) if name == "rest-em" else (1.0, 0))
        assert torch.equal(grow["before"], before)
        before = policy


def test_rft_adds_different_right_outputs_to_D(bc, task):
    (row, improve, grow, _, D_g), = went("rft", bc, task)
    kept = kept_by(improve)
    assert (row["grow"], row["improve"], row["kept_data"]) == (1, 1, 1)
    assert list(kept.source[kept.human]) == list(range(60)) and (kept.reward[kept.human] < 1).any()
    samples = kept.select(~kept.human)
    drawn = grow["result"]
    right = {(int(x), *y.tolist()) for x, y in zip(drawn.source, drawn.targets())
             if oracle([task.sources[x]], [y])[0] > LINE}
    assert sorted((int(x), *y.tolist()) for x, y in zip(samples.source, samples.targets())) == (
        sorted(right))
    assert torch.equal(improve["before"], weights(task.base[0])) and grow["args"][5] == 0.7


def test_impossible_distillation_has_two_students_of_what_is_right(bc, task):
    """Each new, from the base; what the second learns from is the first one's."""
    yielded, before = went("impossible-distillation", bc, task), weights(bc)
    assert steps(yielded) == [(1, 1), (2, 1)]
    for row, improve, grow, policy, D_g in yielded:
        outputs = {(int(x), *y.tolist()) for x, y in zip(D_g.source, D_g.targets())}
        assert not D_g.human.any() and len(outputs) == len(D_g) <= 360
        kept = kept_by(improve)
        assert 0 < len(kept) == (D_g.reward > LINE).sum() and (kept.reward == 1).all()
        assert torch.equal(improve["before"], weights(task.base[0]))
        assert improve["args"][4] is task.base[1]
        assert torch.equal(grow["before"], before) and grow["args"][5] == 1.0
        before = policy


def test_policy_gradient_is_online_and_never_clipped(bc, task, monkeypatch):
    """One update a round, each on all that the same policy has just drawn."""
    settings, ratios, ppo = replace(SIZES, **LOOP["policy-gradient"]), [], losses.ppo

    def spied(logprobs, old_logprobs, advantages, kl, mask, **kwargs):
        ratios.append(((logprobs - old_logprobs) * mask).detach().exp())
        return ppo(logprobs, old_logprobs, advantages, kl, mask, **kwargs)

    monkeypatch.setattr(losses, "ppo", spied)
    assert went("policy-gradient", bc, task) == []
    (row, policy), = online(bc, task, settings, FakeRun())
    assert row["grow"] == row["updates"] == 3 and row["tokens_trained"] == row["tokens_drawn"]
    assert [len(ratio) for ratio in ratios] == [32, 32, 32]
    assert max((ratio - 1).abs().max() for ratio in ratios) < 1e-4
    assert not torch.equal(weights(policy), weights(bc))
    ratios.clear()
    list(online(bc, task, replace(settings, ppo_updates=4), FakeRun()))
    assert max((ratio - 1).abs().max() for ratio in ratios) > 1e-3  # as PPO's are


# ------------------------------------------------------------------------------- whole little runs


TINIER = [*TINY, "--demonstrations", "40", "--bc-updates", "6", "--evaluate-every", "3",
          "--updates", "3"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder of the toy in which BC and the reward model are trained."""
    folder = tmp_path_factory.mktemp("methods") / "begun"
    run_cli(lambda: train_toy.main([*TINIER, "--out", str(folder), "--stop-after", "evaluate-bc"]))
    return folder


@pytest.fixture
def rows_only(monkeypatch):
    """No figures, and no examples beside the rows."""
    monkeypatch.setattr(figures, "draw", lambda folder: [])
    monkeypatch.setattr(train_toy.demo, "example_lines", lambda *args: [])


AT = TINIER.index("--grow")
SHORT = TINIER[:AT] + TINIER[AT + 5 :]  # without --grow 2 --improve 2 1, which overrule a method


@pytest.mark.parametrize("name, rows, kept", [
    ("rest", [(0, 0), (1, 0), (1, 1), (1, 2), (2, 1)], None),
    ("raft", [(0, 0), (1, 1), (2, 1)], [1 / 4, 1 / 4]),
    ("rest-em", [(0, 0), (1, 1), (2, 1)], [3 / 4, 3 / 4]),
    ("policy-gradient", [(0, 0), (2, 1)], [1]),
    pytest.param("expert-iteration", [(0, 0), (1, 1), (2, 1)], [1, 1], marks=pytest.mark.slow),
    pytest.param("rft", [(0, 0), (1, 1)], [1], marks=pytest.mark.slow),
    pytest.param("impossible-distillation", [(0, 0), (1, 1), (2, 1)], [1, 1],
                 marks=pytest.mark.slow),
    pytest.param("llama2", [(0, 0), (1, 1), (2, 1)], [1 / 4, 1 / 8], marks=pytest.mark.slow)])
def test_every_method_runs_from_start_to_end(name, rows, kept, begun, tmp_path, rows_only):
    """With a threshold that all rewards are above, where the method has one for all sources."""
    folder = tmp_path / "run"
    shutil.copytree(begun / "steps", folder / "steps")
    flags = ["--method", name, "--out", str(folder), "--samples", "4", "--best-of", "1"]
    flags += [] if name == "policy-gradient" else ["--no-ppo"]
    flags += ["--improve", "2", "1"] if name == "rest" else []
    everything = ["--filter", "threshold", "--thresholds", "0"]
    flags += everything if METHODS[name].get("thresholds") == (0.8,) else []
    train_toy.main([*SHORT, *flags])
    results = json.loads((folder / "results.json").read_text())
    assert [(row["grow"], row["improve"]) for row in results["rows"]] == rows
    last = "PPO" if name == "policy-gradient" else "ReST"
    assert {row["name"] for row in results["rows"][1:]} == {last}
    if kept:
        assert [row["kept_samples"] for row in results["rows"][1:]] == pytest.approx(kept)
    for row in results["rows"][1:]:
        assert np.isfinite([row["reward"], row["oracle"], row["kl_to_bc"]]).all()
        assert row["updates"] >= 0 and row["tokens_trained"] > 0 and row["tokens_drawn"] > 0
        if name != "rest":
            assert row["kept_data"] == (1 if name == "rft" else None)
    settings = json.loads((folder / "config.json").read_text())["settings"]
    saved = {k: list(v) if isinstance(v, tuple) else v for k, v in METHODS[name].items()}
    line = {"filter", "thresholds"}
    others = saved.keys() - line
    assert {k: settings[k] for k in others} == {k: saved[k] for k in others}
    if last == "ReST":
        D_g = Pairs.load(folder / "steps" / f"score-{rows[-1][0]}")
        assert D_g.human.sum() == (40 if name in ("rest", "rft") else 0)


def test_a_run_of_a_method_is_resumed_with_its_name(begun, tmp_path, rows_only, capsys):
    folder = tmp_path / "run"
    shutil.copytree(begun / "steps", folder / "steps")

    def main(*flags):
        run_cli(lambda: train_toy.main([*TINIER, "--out", str(folder), "--no-ppo", "--best-of", "1",
                                        *flags]))

    main("--method", "raft", "--stop-after", "score-1")
    with pytest.raises(SystemExit):
        main("--resume")
    assert "filter was top, now quantile" in capsys.readouterr().err
    main("--method", "raft", "--resume")
    assert (folder / "results.json").exists()
