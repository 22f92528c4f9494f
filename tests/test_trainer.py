"""trainer.py: batches of like length, and the one optimiser loop."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn as nn

import losses
from infra import trainer
from infra.batches import batches, bucket_by_length, pad, to_device
from infra.pairs import Pairs
from infra.storage import Checkpoint
from infra.trainer import Training, compiled, fit
from model import Config, Dropout, EOS, PAD, Transformer, shift_right


# -------------------------------------------------------------------------------------- batches


def test_pad():
    padded = pad([[3, 4, EOS], np.array([5], np.int32), []])
    assert padded.dtype == torch.int64
    assert padded.tolist() == [[3, 4, EOS], [5, PAD, PAD], [PAD, PAD, PAD]]
    assert pad([[], []]).tolist() == [[PAD], [PAD]]  # never of width 0


def random_lengths(n, high=30, seed=0):
    return np.random.default_rng(seed).integers(1, high, n)


def one_epoch(lengths, stream):
    """The next batches that hold, together, as many items as there are."""
    cut, n = [], 0
    while n < len(lengths):
        cut.append(next(stream))
        n += len(cut[-1])
    return cut


@pytest.mark.parametrize("n, batch_tokens", [(1, 64), (7, 64), (500, 64), (3000, 40), (200, 10**6)])
def test_every_item_once_an_epoch_and_no_batch_too_large(n, batch_tokens):
    lengths = random_lengths(n)
    stream = batches(lengths, batch_tokens, seed=1)
    for _ in range(3):
        cut = one_epoch(lengths, stream)
        assert sorted(np.concatenate(cut)) == list(range(n))
        assert max(len(index) * lengths[index].max() for index in cut) <= batch_tokens


def test_an_item_larger_than_a_batch_stands_alone():
    lengths = np.array([3, 100, 3, 4])
    cut = one_epoch(lengths, batches(lengths, 10, seed=0))
    assert [1] in [list(index) for index in cut]
    assert sorted(np.concatenate(cut)) == [0, 1, 2, 3]


def test_batches_depend_on_seed_and_epoch_alone():
    lengths = random_lengths(300)
    first = batches(lengths, 100, seed=1)
    epochs = [[list(index) for index in one_epoch(lengths, first)] for _ in range(2)]
    np.random.seed(3)
    torch.manual_seed(3)
    again = batches(lengths, 100, seed=1)
    assert [[list(index) for index in one_epoch(lengths, again)] for _ in range(2)] == epochs
    other = [list(index) for index in one_epoch(lengths, batches(lengths, 100, seed=2))]
    assert epochs[0] != epochs[1] and epochs[0] != other
    mixed = [{frozenset(index) for index in epoch} for epoch in epochs]
    assert len(mixed[0] & mixed[1]) < len(mixed[0]) / 4  # new mixtures, not a new order of the old


def test_batches_are_cut_no_sooner_than_they_are_asked_for(monkeypatch):
    """A pool is cut when those before have been given out; all pools together are an epoch."""
    lengths, pools, given = random_lengths(5000), [], []

    def spied(lengths, batch_tokens, index):
        assert len(given) == sum(map(len, pools))
        pools.append(index)
        return bucket_by_length(lengths, batch_tokens, index)

    monkeypatch.setattr(trainer, "by_length", spied)
    stream = batches(lengths, 100, seed=1)
    assert pools == []
    given += list(next(stream))
    assert len(pools) == 1 and len(pools[0]) < len(lengths) / 10
    while len(given) < len(lengths):
        given += list(next(stream))
    assert len(pools) > 10 and sorted(np.concatenate(pools)) == list(range(len(lengths)))
    for pool, at in zip(pools, np.cumsum([0, *map(len, pools)])):
        assert sorted(given[at : at + len(pool)]) == sorted(pool)


def test_batches_waste_little_on_padding():
    lengths = random_lengths(5000, high=60)
    cut = one_epoch(lengths, batches(lengths, 600, seed=0))
    padded = sum(len(index) * lengths[index].max() for index in cut)
    assert lengths.sum() > 0.9 * padded


def test_by_length():
    lengths = np.array([5, 1, 3, 1, 2, 5])
    cut = bucket_by_length(lengths, 6)
    assert [list(index) for index in cut] == [[1, 3, 4], [2], [0], [5]]
    assert [list(index) for index in bucket_by_length(lengths, 6, np.array([5, 4, 2]))] == [[4, 2], [5]]
    assert [list(index) for index in bucket_by_length(np.array([0, 0]), 6)] == [[0, 1]]


# -------------------------------------------------------------------------------- learning rate


def test_learning_rate_rises_to_the_peak_and_falls_to_the_end():
    hp = Training(updates=100, lr=2.0, warmup=10, final_lr=0.1)
    rates = [hp.lr_at(update) for update in range(101)]
    assert rates[0] == pytest.approx(0.2)  # the first step is not lost on a rate of 0
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert np.diff(rates[:10]) == pytest.approx(np.full(9, 0.2))
    assert np.diff(rates[10:]) == pytest.approx(np.full(90, -1.8 / 90))
    assert rates[100] == pytest.approx(0.2)


@pytest.mark.parametrize("warmup, updates", [(0, 5), (5, 5), (20, 5)])
def test_learning_rate_of_short_runs(warmup, updates):
    hp = Training(updates=updates, lr=1.0, warmup=warmup, final_lr=0.0)
    rates = [hp.lr_at(update) for update in range(updates)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[0] == (1.0 if warmup == 0 else 1 / warmup)
    flat = Training(updates=updates, lr=1.0, warmup=0, final_lr=1.0)
    assert {flat.lr_at(update) for update in range(updates)} == {1.0}


# ------------------------------------------------------------------------------------------ fit


class Net(nn.Module):
    """A regression with dropout that counts its training steps, in what is saved of it."""

    def __init__(self, dropout=0.25):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 1)
        self.dropout = Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        return self.outer(self.dropout(self.inner(x).tanh()))[:, 0]


N = 40
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = X.sum(1)
LENGTHS = random_lengths(N, high=8)
HP = Training(updates=12, batch_tokens=20, lr=1e-2, warmup=3, evaluate_every=3, patience=2)


def squares(net, shift=None, fail_at=None):
    """loss_of for fit. fail_at: the call that raises KeyboardInterrupt."""
    calls = itertools.count()

    def loss_of(index, progress):
        if next(calls) == fail_at:
            raise KeyboardInterrupt
        net.calls += 1
        return ((net(X[index]) + (0 if shift is None else shift) - Y[index]) ** 2).sum()

    return loss_of


def weights(model):
    return torch.cat([x.detach().flatten().double() for x in model.state_dict().values()])


def trained(hp=HP, seed=5, net=None, **kwargs):
    net = net or Net()
    result = fit(net, squares(net), LENGTHS, np.ones(N), hp, seed, **kwargs)
    return net, result


def test_one_batch_of_ragged_lengths_equals_its_micro_batches():
    """float64, no dropout: the update of one batch of 24 pairs and that of 2, 3 or more parts."""
    torch.manual_seed(2)
    policy = Transformer(Config(11, 16, 2, 1, 1, 32, 0.0, 12)).double()
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, 11, n) for n in rng.integers(1, 12, 24)]
    pairs = Pairs.of(range(24), [rng.integers(3, 11, n) for n in rng.integers(1, 12, 24)])
    lengths = np.maximum(pairs.lengths, [len(x) for x in sources])

    def update(batch_tokens, accumulate):
        net = copy.deepcopy(policy)

        def loss_of(index, progress):
            tokens = pad(pairs.targets(index))
            logits = net(pad([sources[i] for i in index]), shift_right(tokens))
            return losses.bc(logits, tokens)

        hp = Training(updates=1, batch_tokens=batch_tokens, accumulate=accumulate, warmup=0,
                      lr=1.0, clip=1e9)
        sgd = torch.optim.SGD(net.parameters(), 1.0)  # so that the update is the gradient
        fit(net, loss_of, lengths, pairs.lengths, hp, 0, optimizer=sgd)
        return weights(policy) - weights(net)

    whole = update(10**6, 1)
    assert whole.abs().max() > 1e-3
    for batch_tokens in (150, 100, 40):
        k = len(bucket_by_length(lengths, batch_tokens))
        parts = [len(index) for index in bucket_by_length(lengths, batch_tokens)]
        assert k > 1 and len(set(parts)) > 1  # or this test would say little
        assert (update(batch_tokens, k) - whole).abs().max() < 1e-12


def test_the_loss_is_divided_by_the_units_of_the_step():
    """With units doubled the gradient is halved."""
    hp = Training(updates=1, batch_tokens=10**6, warmup=0, lr=1.0, clip=1e9, dropout=False)

    def update(units):
        net = Net()
        fit(net, squares(net), LENGTHS, units, hp, 0,
            optimizer=torch.optim.SGD(net.parameters(), 1.0))
        return torch.cat([(a - b).flatten() for a, b in zip(Net().parameters(), net.parameters())])

    torch.testing.assert_close(update(np.ones(N)), 2 * update(2 * np.ones(N)))


def test_gradients_are_clipped():
    hp = Training(updates=1, batch_tokens=10**6, warmup=0, lr=1.0, clip=1e-3)
    net = Net()
    fit(net, squares(net), LENGTHS, np.ones(N), hp, 0,
        optimizer=torch.optim.SGD(net.parameters(), 1.0))
    moved = torch.cat([(a - b).flatten() for a, b in zip(Net().parameters(), net.parameters())])
    assert to_device.norm().item() == pytest.approx(1e-3, rel=1e-2)


def scripted(net, scores, seen=None):
    """evaluate: the scores by the number of updates so far; notes the weights it saw."""

    def evaluate():
        step = int(net.calls)
        if seen is not None:
            seen[step] = weights(net)
        return scores[step]

    return evaluate


def test_fit_returns_to_the_best_checkpoint():
    scores, seen, log = {0: 0.1, 3: 0.3, 6: 0.5, 9: 0.5, 12: 0.4}, {}, []
    net = Net()
    _, result = trained(net=net, evaluate=scripted(net, scores, seen), log=log.append)
    assert list(seen) == [0, 3, 6, 9, 12]
    assert torch.equal(weights(net), seen[6])
    assert not torch.equal(seen[6], seen[12])
    assert (result["updates"], result["score"]) == (6, 0.5)
    assert not net.training
    assert [(e["update"], e["score"], e["best"]) for e in log] == [
        (0, 0.1, True), (3, 0.3, True), (6, 0.5, True), (9, 0.5, False), (12, 0.4, False)]
    assert all(np.isfinite(e["loss"]) for e in log) and log[1]["loss"] > 0


def test_fit_can_end_where_it_began():
    net = Net()
    _, result = trained(net=net, evaluate=scripted(net, {0: 0.9, 3: 0.3, 6: 0.5}))
    assert torch.equal(weights(net), weights(Net()))
    assert (result["updates"], result["score"]) == (0, 0.9)


@pytest.mark.parametrize("patience, last", [(1, 6), (2, 9), (3, 12)])
def test_patience_stops_it(patience, last):
    seen, net = {}, Net()
    hp = Training(**vars(HP) | {"patience": patience})
    scores = {0: 0.1, 3: 0.5, 6: 0.2, 9: 0.3, 12: 0.4}
    trained(hp, net=net, evaluate=scripted(net, scores, seen))
    assert max(seen) == last


def test_the_last_update_is_evaluated():
    seen, net = {}, Net()
    hp = Training(**vars(HP) | {"updates": 7})
    _, result = trained(hp, net=net, evaluate=scripted(net, {0: 1, 3: 2, 6: 3, 7: 4}, seen))
    assert list(seen) == [0, 3, 6, 7] and result["updates"] == 7
    assert torch.equal(weights(net), seen[7])


def test_without_evaluation_all_updates_are_made():
    net, result = trained()
    assert result["updates"] == HP.updates == int(net.calls)
    assert not torch.equal(weights(net), weights(Net()))
    assert not net.training


@pytest.mark.parametrize("accumulate", [1, 2])
def test_units_are_those_of_all_updates(accumulate):
    """Also of those after the best checkpoint, and until patience ends it."""
    units, seen = np.arange(1, N + 1), []
    hp = Training(**vars(HP) | {"accumulate": accumulate})

    def trained_units(scores):
        net, _ = Net(), seen.clear()
        loss_of = squares(net)
        evaluate = scripted(net, {accumulate * k: v for k, v in scores.items()}) if scores else None
        result = fit(net, lambda index, progress: (seen.append(units[index].sum()),
                                                   loss_of(index, progress))[1],
                     LENGTHS, units, hp, 5, evaluate=evaluate)
        assert type(result["units"]) is int and result["units"] == sum(seen)
        return result["updates"], len(seen)

    assert trained_units(None) == (12, 12 * accumulate)
    assert trained_units({0: 0.1, 3: 0.5, 6: 0.2, 9: 0.3}) == (3, 9 * accumulate)


def test_fit_learns():
    net, _ = trained(Training(updates=400, batch_tokens=40, lr=2e-2, dropout=False))
    assert ((net(X) - Y) ** 2).mean() < 0.05 * (Y**2).mean()


def test_same_seed_same_weights():
    a, _ = trained(seed=5)
    torch.manual_seed(77)  # whatever the program has drawn
    b, _ = trained(seed=5)
    c, _ = trained(seed=6)
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(c))


def test_dropout_can_be_left_off():
    dry = Training(**vars(HP) | {"dropout": False})
    net, other = Net(dropout=0.25), Net(dropout=0.0)
    for model in (net, other):
        fit(model, lambda index, progress: ((model(X[index]) - Y[index]) ** 2).sum(), LENGTHS,
            np.ones(N), dry, 5)
    assert torch.equal(weights(net), weights(other))
    net = Net(dropout=0.25)
    fit(net, lambda index, progress: ((net(X[index]) - Y[index]) ** 2).sum(), LENGTHS, np.ones(N),
        HP, 5)
    assert not torch.equal(weights(net), weights(other))


def test_the_global_generator_is_left_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trained()
    assert torch.equal(torch.get_rng_state(), before)
    net = Net()
    with pytest.raises(KeyboardInterrupt):
        fit(net, squares(net, fail_at=5), LENGTHS, np.ones(N), HP, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_and_learning_rate_at_every_update():
    """Of every micro-batch; `extra` has its own, constant rate."""
    net, shift = Net(), torch.zeros((), requires_grad=True)
    optimizer = trainer.adamw(net.parameters(), HP)
    seen, rates, loss_of = [], [], squares(net, shift)

    def spy(index, progress):
        seen.append(progress)
        return loss_of(index, progress)

    step = optimizer.step
    optimizer.step = lambda: (rates.append([g["lr"] for g in optimizer.param_groups]), step())
    hp = Training(**vars(HP) | {"accumulate": 2, "extra_lr": 0.03})
    fit(net, spy, LENGTHS, np.ones(N), hp, 5, extra=(shift,), optimizer=optimizer)
    assert seen == [update / 12 for update in range(12) for _ in range(2)]
    assert rates == [[hp.lr_at(update), 0.03] for update in range(12)]
    assert shift.item() != 0


# --------------------------------------------------------------------------------------- resume

SCORES = dict(zip(range(0, 61, 3), [0.1, 0.4, 0.3, 0.5, 0.2, 0.6, 0.1, 0.3, 0.9] + 12 * [0.0]))


@pytest.mark.parametrize("dropout, with_extra, accumulate", [
    (True, True, 2), (True, False, 1), (False, True, 1), (False, False, 2)])
def test_a_resumed_fit_equals_an_uninterrupted_one(dropout, with_extra, accumulate, tmp_path,
                                                   save_always):
    """Bitwise, killed in any of its updates or evaluations, and more than once."""
    hp = Training(**vars(HP) | {"updates": 24, "dropout": dropout, "accumulate": accumulate})

    def run(path=None, fail_at=None, fail_in_evaluation=None):
        net = Net(0.25 if dropout else 0.0)
        shift = torch.zeros((), requires_grad=True)
        evaluations = itertools.count()

        def evaluate():
            if next(evaluations) == fail_in_evaluation:
                raise KeyboardInterrupt
            return SCORES[int(net.calls) // accumulate]

        result = fit(net, squares(net, shift, fail_at), LENGTHS, np.ones(N), hp, 5,
                     evaluate=evaluate, checkpoint=path and Checkpoint(path), extra=(shift,) if with_extra else ())
        return (weights(net), shift.item(), result["updates"], result["score"],
                result["units"])

    whole = run()
    assert whole[2:4] == (15, 0.6) and whole[4] > 0 and (whole[1] != 0) == with_extra
    path = tmp_path / "checkpoint.pt"
    for kills in [[{"fail_at": k}] for k in (1, 8, 16)] + [
            [{"fail_at": 3 * accumulate}, {"fail_at": 3 * accumulate}, {"fail_at": 0}],
            [{"fail_at": 6 * accumulate}],  # the first update after an evaluation
            [{"fail_in_evaluation": 2}], [{"fail_in_evaluation": 0}],
            [{"fail_in_evaluation": 3}, {"fail_in_evaluation": 1}]]:
        for kill in kills:
            torch.manual_seed(len(kills))  # each process has drawn something else before
            with pytest.raises(KeyboardInterrupt):
                run(path, **kill)
        resumed = run(path)
        assert torch.equal(resumed[0], whole[0]), kills
        assert resumed[1:] == whole[1:], kills
        path.unlink()  # as a run does at the end of a step


def test_a_resumed_fit_does_not_begin_again(tmp_path, save_always):
    path = tmp_path / "checkpoint.pt"
    net = Net()
    with pytest.raises(KeyboardInterrupt):
        fit(net, squares(net, fail_at=8), LENGTHS, np.ones(N), HP, 5,
            checkpoint=Checkpoint(path))
    seen = []
    net = Net()
    loss_of = squares(net)

    def spy(index, progress):
        seen.append(progress)
        return loss_of(index, progress)

    fit(net, spy, LENGTHS, np.ones(N), HP, 5, checkpoint=Checkpoint(path))
    assert seen == [update / 12 for update in range(8, 12)]


def test_checkpoints_are_rare(tmp_path):
    """None within the first minute: tiny fits are not slowed down."""
    net = Net()
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(net, squares(net, fail_at=8), LENGTHS, np.ones(N), HP, 5,
            checkpoint=Checkpoint(path))
    assert not path.exists() and Checkpoint.EVERY >= 10


# -------------------------------------------------------------------------------------- compiling


def test_only_to_a_gpu_a_copy_goes_by_pinned_memory_and_does_not_wait():
    class Recorder:
        pinned = False

        def pin_memory(self):
            self.pinned = True
            return self

        def to(self, device, non_blocking):
            return device, self.pinned, non_blocking

    assert to_device(Recorder(), "cuda") == ("cuda", True, True)
    assert to_device(Recorder(), "cpu")[1] is False
    assert pad([[3, 4], [5]]).tolist() == [[3, 4], [5, PAD]]


def test_without_a_compiler_one_line_says_so(capsys):
    trainer.can_compile.cache_clear()
    torch._dynamo.reset()
    nowhere = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(nowhere):
        net, cpu = Net(), torch.device("cpu")
        assert compiled(net, cpu) is net and compiled(net, cpu) is net
    said = "".join(capsys.readouterr())
    assert said.count("nothing is compiled: ") == 1 and len(said.splitlines()) == 1
    trainer.can_compile.cache_clear()


@pytest.mark.slow
def test_a_compiled_policy_is_the_same_function():
    """And so are its gradients, for batches of several shapes."""
    if not trainer.can_compile("cpu"):
        pytest.skip("there is no compiler")
    torch.manual_seed(0)
    policy = Transformer(Config(30, 16, 2, 1, 1, 32, 0.0, 20))
    fast = compiled(policy, torch.device("cpu"))
    for B, S, T in ((2, 5, 7), (3, 9, 4), (5, 6, 6)):
        src, tgt = torch.randint(3, 30, (B, S)), torch.randint(3, 30, (B, T))
        found = []
        for forward in (policy, fast):
            policy.zero_grad()
            logits = forward(src, tgt)
            logits.logsumexp(-1).sum().backward()
            found.append((logits.detach(), policy.embedding.weight.grad.clone()))
        for a, b in zip(*found):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
