"""The device against the CPU: decoding, training, ReST as a whole, on a GPU where there is one.

    python -m pytest -m cuda tests/test_cuda.py

Without a GPU the device is the CPU itself, so that these very tests are run in the suite too; those
that are skipped then need CUDA's queue or its compiler.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import model as model_py
import rest
from helpers import (MAX_LEN, oracle, some_bc, some_policy, some_sources, some_task, weights)
from infra import trainer
from infra.batches import collate, pad, to_device
from infra.beam import beam_search
from infra.cli import choose_device
from infra.measures import evaluate
from infra.pairs import Pairs
from infra.run import Run
from infra.sampling import logprobs_of, sample_outputs
from infra.settings import RunSettings
from infra.storage import load
from infra.trainer import Training, compiled
from losses import LOSSES, PPO, ReferenceModels
from model import (BOS, EOS, PAD, Cache, Dropout, Transformer, sample, shift_right, token_logprobs)
from rest import Settings, improve
from reward import RewardModel, ValueModel, train_reward, train_value

pytestmark = pytest.mark.cuda

# On the CPU the two sides are the same program, and differ by nothing; a GPU sums in another order.
TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 1e-4)]
V = 12
HP = Training(updates=8, batch_tokens=200, lr=3e-3, warmup=2, dropout=False)
SETTINGS = Settings(grow=2, improve=(1,), samples=6, updates=30, evaluate_every=15,
                    batch_tokens=256, lr=3e-3, filter="threshold", thresholds=(0.25, 0.75),
                    sample_batch_size=256, seed=5, value_updates=4, gold_sync=3, ppo_batch=32,
                    ppo_group=4, ppo_updates=2, ppo_samples=128)
ALL_LOSSES = LOSSES | {"ppo": PPO}


@pytest.fixture(scope="module")
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def only_on_a_gpu(device):
    if device.type != "cuda":
        pytest.skip("no CUDA device")


@pytest.fixture
def compiler(device, only_on_a_gpu):
    if not trainer.can_compile(device.type):
        pytest.skip("there is no compiler")
    torch._dynamo.reset()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def both(device, seed=2, dtype=torch.float32, **changes):
    """A random policy on the CPU, and on the device; its outputs differ in length."""
    sizes = dict(n_encoder_layers=2, n_decoder_layers=2, max_len=12, vocab_size=V)
    policy = some_policy(seed, **sizes | changes)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=rng(seed))
    policy = policy.to(dtype)
    return policy, copy.deepcopy(policy).to(device)


def ragged(*lengths, seed=0):
    """Sources of these lengths, right-padded."""
    src = torch.randint(EOS + 1, V, (len(lengths), max(lengths)), generator=rng(seed))
    return src.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None], PAD)


def logits_of(policy):
    """What a policy says of some outputs; unlike weights, of which some have no gradient but noise:
    a bias of keys changes nothing, and Adam makes whole steps of it."""
    src = ragged(5, 2, 4, seed=7)
    tgt = torch.randint(EOS, V, (3, 5), generator=rng(8))
    device = policy.embedding.weight.device
    with torch.no_grad():
        return policy.eval()(src.to(device), tgt.to(device)).double().cpu()


def far(a, b):
    return float((a.double().cpu() - b.double().cpu()).abs().max())


def exact(device, tolerance):
    """On the CPU nothing may differ."""
    return tolerance if device.type == "cuda" else 0.0


# ------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
@torch.no_grad()
def test_cached_logits_on_the_device_are_the_uncached_ones_of_the_cpu(device, dtype, tolerance,
                                                                      monkeypatch):
    """Ragged sources, 3 samples of each; rows are dropped and repeated, a buffer has to grow."""
    monkeypatch.setattr(Cache, "ROOM", 5)
    policy, moved = both(device, dtype=dtype)
    src, source = ragged(2, 6, 4), torch.arange(3).repeat_interleave(3)
    tgt = torch.randint(EOS, V, (9, 12), generator=rng(1))
    tgt[:, 0] = BOS
    whole = policy(src[source], tgt)
    assert far(moved(src[source].to(device), tgt.to(device)), whole) < tolerance
    cache = Cache(moved, src.to(device), 3)
    for t in range(12):
        if rows := {3: [2, 0, 4, 4, 6], 7: [1, 0, 4], 8: [1, 2]}.get(t):
            cache.select(torch.tensor(rows, device=device))
            source, tgt = source[rows], tgt[rows]
        cache.advance()
        cached = moved.step(tgt[:, t].to(device), cache)
        assert cached.device.type == device.type
        assert far(cached, policy(src[source], tgt[:, : t + 1])[:, -1]) < tolerance


@pytest.mark.parametrize("how", [{}, dict(temperature=0.5), dict(temperature=0),
                                 dict(temperature=2.0, top_k=6, top_p=0.7)], ids=str)
@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
def test_samples_carry_the_log_probabilities_of_the_policy(device, dtype, tolerance, how,
                                                           monkeypatch):
    """While rows are dropped all the time; by the policy on the CPU."""
    monkeypatch.setitem(model_py.CHECK_EVERY, device.type, 1)
    left, select = [], Cache.select
    monkeypatch.setattr(Cache, "select", lambda cache, rows: (left.append(len(rows)),
                                                              select(cache, rows)))
    (policy, moved), src = both(device, dtype=dtype), ragged(5, 2, 9, 3, 6, 4)
    out = sample(moved, src.to(device), 5, generator=rng(2), **how)
    tokens = out.tokens.cpu()
    assert left and len(set((tokens != PAD).sum(-1).flatten().tolist())) > 1
    with torch.no_grad():
        own = token_logprobs(policy, src.repeat_interleave(5, 0), tokens.flatten(0, 1))
    assert far(out.logprobs.flatten(0, 1), own) < tolerance


def test_the_same_seed_draws_the_same_samples_and_those_of_the_cpu(device):
    """In float64, where another order of the sums decides no draw."""
    (policy, moved), src = both(device, dtype=torch.float64), ragged(5, 2, 9, 3)
    drawn, again, other = (sample(moved, src.to(device), 25, generator=rng(seed)).tokens.cpu()
                           for seed in (3, 3, 4))
    assert torch.equal(drawn, again) and drawn.tolist() != other.tolist()
    assert torch.equal(drawn, sample(policy, src, 25, generator=rng(3)).tokens)
    sources = [x[x != PAD].numpy() for x in src]
    pairs, of_cpu = (sample_outputs(p, sources, 7, ("a", 1), 12, 0.7, batch_size=14)
                     for p in (moved, policy))
    assert np.array_equal(pairs.tokens, of_cpu.tokens) and len(pairs) == 28
    np.testing.assert_allclose(pairs.logprobs, of_cpu.logprobs, atol=1e-5)


def test_greedy_and_beam_outputs_are_those_of_the_cpu(device):
    """Of a trained policy, in float32, for sources whose best tokens stand well apart."""
    policy, sources = some_bc(), some_sources(80, 9)
    moved = copy.deepcopy(policy).to(device)
    expected, found = (sample_outputs(p, sources, 1, 0, MAX_LEN, temperature=0)
                       for p in (policy, moved))
    with torch.no_grad():
        tokens = pad(expected.targets())
        first, second = policy(pad(sources), shift_right(tokens)).topk(2).values.unbind(-1)
    apart = ((first - second > 1e-3) | (tokens == PAD)).all(1).numpy()
    assert apart.mean() > 0.8 and len({tuple(y) for y in expected.targets()}) > 3
    for i in np.flatnonzero(apart):
        assert np.array_equal(found.target(i), expected.target(i))
    (policy, moved), src = both(device, dtype=torch.float64), ragged(5, 2, 9, 3)
    assert torch.equal(beam_search(moved, src.to(device), 4, n_best=3).cpu(),
                       beam_search(policy, src, 4, n_best=3))


def test_decoding_waits_for_the_gpu_only_where_it_looks_at_what_has_ended(device, only_on_a_gpu,
                                                                          monkeypatch):
    """Between the first step and the last, CUDA itself raises at whatever makes it wait."""
    monkeypatch.setitem(model_py.CHECK_EVERY, "cuda", 10**9)
    _, moved = both(device)
    steps = []

    def step(*args):
        steps.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(steps) < 12 else "default")
        return Transformer.step(*args)

    for how in ({}, dict(temperature=0), dict(temperature=0.5, top_k=3, top_p=0.9)):
        steps.clear()
        try:
            sample(moved, ragged(5, 2, 9).to(device), 4, 12, generator=rng(), step=step, **how)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(steps) == 12


def test_a_batch_reaches_the_device_as_it_was(device):
    """Also while the device is busy, and the pinned memory of earlier batches is used again."""
    made = []
    for k in range(60):
        if device.type == "cuda":
            torch.cuda._sleep(2_000_000)  # about a millisecond, in which the copies pile up
        array = np.random.default_rng(k).integers(0, 1000, (50, 20 + k % 7))
        made.append((array.copy(), to_device(torch.from_numpy(array), device)))
        del array
    for array, moved in made:
        assert moved.device.type == device.type and np.array_equal(moved.cpu().numpy(), array)


# ------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def D_g():
    """Scored pairs of the task, with log-probabilities of the policy that drew them."""
    task = some_task()
    drawn = sample_outputs(some_bc(), task.sources, 4, 1, MAX_LEN)
    pairs = Pairs.join([drawn, task.data])
    return replace(pairs, reward=np.random.default_rng(0).random(len(pairs)).astype(np.float32))


def loss_on(device, name, policy):
    """A loss whose reference models are other policies, all on the device."""
    value = ValueModel.from_policy(some_policy(4).to(device))
    value.head.weight.data[0] = torch.linspace(-1, 1, value.head.weight.numel())
    reference = ReferenceModels(*(some_policy(seed).to(device) for seed in (1, 3)), value)
    return ALL_LOSSES[name](SETTINGS, policy, reference)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_each_loss_and_its_gradient_are_those_of_the_cpu(name, device, D_g):
    sources, found = some_task().sources, []
    for where in ("cpu", device):
        policy = some_bc().to(where)
        loss = loss_on(where, name, policy).to(where)
        batch = collate(D_g, sources, np.arange(0, 300, 7), where)
        assert {x.device.type for x in vars(batch).values()} == {torch.device(where).type}
        total = loss(policy(batch.source, shift_right(batch.tokens)), batch, 0, 8)
        total.backward()
        own = [p for p in loss.parameters() if p.requires_grad]
        found.append((total.detach(), [p.grad for p in (*policy.parameters(), *own)]))
    (of_cpu, gradients), (total, moved) = found
    assert total.item() == pytest.approx(of_cpu.item(), rel=1e-4)
    largest = max(float(g.abs().max()) for g in gradients)
    assert largest > 1e-3 and all(g.device.type == device.type for g in moved)
    for a, b in zip(moved, gradients, strict=True):
        assert torch.isfinite(a).all() and far(a, b) <= 1e-4 * largest


def trained(where, policy, pairs=None, hp=HP, name=None, seed=0, **trainer_args):
    """A copy of the policy, trained on the device; and what its training says."""
    task, new = some_task(), copy.deepcopy(policy).to(where)
    loss = name and loss_on(where, name, new)
    done = improve(new, task.data if pairs is None else pairs, task.sources, SETTINGS, hp, seed,
                   loss, **trainer_args)
    return new, done


def descent(model):
    """Plain gradient descent, which makes nothing of a gradient that is only noise."""
    return torch.optim.SGD(model.parameters(), 1.0)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_training_on_the_device_is_training_on_the_cpu(name, device, D_g):
    bc = some_bc()
    (of_cpu, _), (moved, done) = (trained(where, bc, D_g, name=name) for where in ("cpu", device))
    assert done["updates"] == 8 and all(p.device.type == device.type for p in moved.parameters())
    assert far(logits_of(of_cpu), logits_of(bc)) > 0.3
    assert far(logits_of(moved), logits_of(of_cpu)) <= exact(device, 0.03)


def test_dropout_is_seeded_on_the_device_whose_generator_is_left_alone(device):
    """The same training twice, whatever else is drawn there; another seed is another training."""
    bc, hp = some_bc(), replace(HP, dropout=True)
    state = torch.cuda.get_rng_state if device.type == "cuda" else torch.get_rng_state
    torch.rand(3, device=device)
    before = state()
    first = logits_of(trained(device, bc, hp=hp)[0])
    assert torch.equal(state(), before)
    torch.rand(7, device=device)
    again, dry, other = (logits_of(trained(device, bc, **how)[0])
                         for how in (dict(hp=hp), dict(), dict(hp=hp, seed=1)))
    assert far(first, again) <= exact(device, 0.03)
    assert min(far(first, dry), far(first, other)) > 0.1


def test_a_reward_model_leaves_the_generator_of_the_device_alone(device):
    policy = some_policy().to(device)
    torch.manual_seed(3)
    expected = torch.rand(5, device=device)
    torch.manual_seed(3)
    RewardModel.from_policy(policy)
    assert torch.equal(torch.rand(5, device=device), expected)


def test_of_two_gpus_the_chosen_one_is_current():
    """Or what is seeded without a device, torch.cuda.manual_seed for dropout, is the other's."""
    if torch.cuda.device_count() < 2:
        pytest.skip("no second CUDA device")
    current = torch.cuda.current_device()
    try:
        device = choose_device("cuda:1")
        assert (device.index, torch.cuda.current_device()) == (1, 1)
    finally:
        torch.cuda.set_device(current)


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_drops_its_share_on_the_device(p, device):
    torch.manual_seed(0)
    x = torch.ones(300, 101, device=device)
    y = Dropout(p).train()(x)
    assert y.device.type == device.type and y.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=0.02)
    assert not torch.equal(Dropout(p).train()(x), y)


def test_the_reward_model_scores_and_learns_on_the_device_as_on_the_cpu(device, D_g):
    sources = some_task().sources
    given = [sources[i] for i in D_g.source]
    for preferences in (False, True):
        scores = []
        for where in ("cpu", device):
            model = RewardModel.from_policy(some_bc().to(where))
            before = model.score(given, D_g.targets(), batch_tokens=300)
            train_reward(model, sources, D_g, replace(HP, lr=1.0), 0, preferences,
                         optimizer=descent(model))
            scores.append((before, model.score(given, D_g.targets(), batch_tokens=300)))
        (before, after), (moved_before, moved_after) = scores
        assert np.abs(after - before).max() > 0.02 and len(np.unique(before)) > 50
        assert np.abs(moved_before - before).max() <= exact(device, 1e-5)
        assert np.abs(moved_after - after).max() <= exact(device, 1e-3)


def test_the_value_model_learns_on_the_device_as_on_the_cpu(device, D_g):
    values = []
    for where in ("cpu", device):
        model = ValueModel.from_policy(some_bc().to(where))
        before = logits_of(model.body)
        train_value(model, some_task().sources, D_g, replace(HP, lr=0.1), 0,
                    optimizer=descent(model))
        assert far(logits_of(model.body), before) > 0.02
        batch = collate(D_g, some_task().sources, np.arange(20), where)
        with torch.no_grad():
            values.append(model.eval()(batch.source, batch.tokens)[batch.mask > 0])
    assert far(*values) <= exact(device, 1e-3) and float(values[0].std()) > 1e-3


# ------------------------------------------------------------------------------------- bfloat16


def test_bfloat16_draws_from_the_policy_but_for_rounding(device):
    """Each token within 0.2 nats of float32, and within 0.02 on average; and rounding there is."""
    policy, sources = both(device)[1], some_sources(60, 0)
    drawn = sample_outputs(policy, sources, 8, (1,), 12, precision="bfloat16")
    off = np.abs(drawn.logprobs - logprobs_of(policy, sources, drawn))
    assert 1e-4 < off.mean() < 0.02 and off.max() < 0.2
    assert all(p.dtype == torch.float32 for p in policy.parameters())


def test_bfloat16_trains_to_what_float32_trains_to(device, D_g):
    """Evaluations, which draw in inference mode, come between the updates, as in a run."""
    task, bc, losses, logits = some_task(), some_bc(), {}, {}
    for precision in ("float32", "bfloat16"):
        log, hp = [], replace(HP, updates=30, precision=precision, evaluate_every=10)
        settings = replace(SETTINGS, precision=precision)

        def held_out(policy):
            drawn = sample_outputs(policy, task.eval_sources, 1, 0, MAX_LEN, **settings.decoding())
            assert np.isfinite(drawn.logprobs).all()
            return float(len(log))  # always better: the last weights stand

        moved, _ = trained(device, bc, D_g, hp, held_out=held_out, log=log.append)
        losses[precision], logits[precision] = log[-1]["loss"], logits_of(moved)
        assert {p.dtype for p in moved.parameters()} == {torch.float32} and len(log) == 4
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    apart = far(logits["bfloat16"], logits["float32"])
    assert 0 < apart < 0.4 * far(logits["float32"], logits_of(bc))


# ------------------------------------------------------------------------------- ReST as a whole


def opened(folder, **settings):
    """A run in the folder, or that run gone on with."""
    return Run(RunSettings(out=str(folder), resume=True, **settings), "x")


class Killed(BaseException):
    """Passes through every handler, like the process's end."""


def went(device, bc, settings, run=None):
    """A whole ReST, then PPO -> the rows, and the last policy of both."""
    task = some_task(reward=oracle)
    rows, ends = [], []
    for steps in (rest.rest, rest.online):
        for row, policy, *_ in steps(bc, task, settings, run):
            rows.append(row)
            assert {p.device.type for p in policy.parameters()} == {device.type}
        ends.append(policy)
    return rows, ends


@pytest.mark.parametrize("loss, precision", [*((name, "float32") for name in LOSSES),
                                             ("bvmpo", "bfloat16")])
def test_a_whole_run_on_the_device(loss, precision, device):
    bc = some_bc().to(device)
    before, settings = weights(bc).cpu(), replace(SETTINGS, loss=loss, precision=precision)
    rows, (policy, ppo) = went(device, bc, settings)
    assert [(row["name"], row["grow"], row["improve"]) for row in rows] == [
        ("ReST", 1, 0), ("ReST", 1, 1), ("ReST", 2, 1), ("PPO", 4, 2)]
    for row in rows:
        numbers = [x for x in row.values() if isinstance(x, (int, float))]
        assert np.isfinite(numbers).all() and row["updates"] >= 0
    start = evaluate(bc, bc, some_task(), settings)
    assert abs(start["kl_to_bc"]) < (1e-5 if precision == "float32" else 0.02)
    assert max(row["reward"] for row in rows[:3]) > start["reward"] + 0.02
    assert torch.equal(weights(bc).cpu(), before)
    for moved in (policy, ppo):
        assert far(weights(moved), before) > 1e-3 and torch.isfinite(weights(moved)).all()


def test_a_run_that_is_killed_in_an_improve_and_in_ppo_is_resumed(device, tmp_path, save_always,
                                                                  monkeypatch):
    """What was saved on the device is read on the CPU and goes on where the device left it."""
    bc = some_bc().to(device)
    settings = replace(SETTINGS, grow=1, improve=(1,), loss="bvmpo", updates=10, evaluate_every=4,
                       checkpoint="last", ppo_lr=2e-3)
    whole, ends = went(device, bc, settings, opened(tmp_path / "whole"))
    step = trainer.Trainer.step
    # the value model's 4 updates, 10, 10, of which two are kept of the killed; 4 rounds of PPO's 2
    for at, where in ((17, "improve-1-1"), (14, "ppo-1")):
        calls = []

        def counted(self):
            calls.append(1)
            if len(calls) == at:
                raise Killed
            step(self)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(trainer.Trainer, "step", counted)
            with opened(tmp_path / "killed") as run:
                went(device, bc, settings, run)
        assert load(tmp_path / "killed" / "checkpoint.pt")["step"] == where
    with opened(tmp_path / "killed") as run:
        resumed, resumed_ends = went(device, bc, settings, run)
    assert [row["name"] for row in resumed] == [row["name"] for row in whole]
    for a, b in zip(resumed_ends, ends):
        moved = far(logits_of(b), logits_of(bc))
        assert moved > 0.1 and far(logits_of(a), logits_of(b)) <= exact(device, 0.1 * moved)


# ------------------------------------------------------------------------------------- compiling


def test_a_compiled_dropout_drops_the_same_on_the_way_back(device, compiler):
    drop = compiled(Dropout(0.5).train(), device)
    for size in (300, 301):
        x = torch.ones(size, 20, device=device, requires_grad=True)
        y = drop(x * 3)
        y.sum().backward()
        torch.testing.assert_close(x.grad, y.detach())
        assert 0.3 < float((y == 0).float().mean()) < 0.7


def test_compiled_training_is_training_but_for_rounding(device, compiler, D_g):
    bc = some_bc()
    plain, _ = trained(device, bc, D_g)
    settings, task, fast = replace(SETTINGS, compile=True), some_task(), some_bc().to(device)
    improve(fast, D_g, task.sources, settings, HP, 0)
    assert far(logits_of(fast), logits_of(plain)) < 0.03 < 0.3 < far(logits_of(fast),
                                                                    logits_of(bc))


def test_a_compiled_grow_draws_the_same_samples_but_for_rounding(device, compiler):
    """While rows are dropped; in float64 the very same, in bfloat16 from the same policy."""
    policy = both(device, dtype=torch.float64, n_encoder_layers=1, n_decoder_layers=1)[1]
    sources = some_sources(20, 0)
    found, expected = (sample_outputs(policy, sources, 3, (1,), 12, batch_size=15, compile=how)
                       for how in (True, False))
    assert np.array_equal(found.tokens, expected.tokens) and len(set(found.lengths)) > 2
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
    drawn = sample_outputs(policy.float(), sources, 3, (1,), 12, batch_size=15, compile=True,
                           precision="bfloat16")
    off = np.abs(drawn.logprobs - logprobs_of(policy, sources, drawn))
    assert 1e-4 < off.mean() < 0.02 and off.max() < 0.2
