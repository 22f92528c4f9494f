"""trainer.py and batches.py: batches of like length, and what stands behind a training loop."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn

import losses
from infra import batches as batches_py
from infra import trainer as trainer_py
from infra.batches import batches, bucket_by_length, pad, to_device
from infra.pairs import Pairs
from infra.storage import Checkpoint
from infra.trainer import Trainer, Training, adamw, compiled
from model import EOS, PAD, Config, Dropout, Transformer, shift_right


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

    monkeypatch.setattr(batches_py, "bucket_by_length", spied)
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


def test_buckets_by_length():
    def cut(lengths, *args):
        return [list(index) for index in bucket_by_length(np.array(lengths), *args)]

    lengths = [5, 1, 3, 1, 2, 5]
    assert cut(lengths, 6) == [[1, 3, 4], [2], [0], [5]]
    assert cut(lengths, 6, np.array([5, 4, 2])) == [[4, 2], [5]]
    assert cut([0, 0], 6) == [[0, 1]]


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


# ------------------------------------------------------------------------------------ a training


class Net(nn.Module):
    """A regression with dropout that counts its losses, in what is saved of it."""

    def __init__(self, dropout=0.25):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 1)
        self.dropout = Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        return self.outer(self.dropout(self.inner(x).tanh()))[:, 0]


class Squares(nn.Module):
    """The loss of a Net, with a parameter of its own. fail_at: the call that is interrupted."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.shift, self.fail_at, self.seen = nn.Parameter(torch.zeros(())), fail_at, []

    def forward(self, net, index, update):
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append(update)
        net.calls += 1
        return ((net(X[index]) + self.shift - Y[index]) ** 2).sum()


N = 40
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = X.sum(1)
LENGTHS = random_lengths(N, high=8)
HP = Training(updates=12, batch_tokens=20, lr=1e-2, warmup=3, evaluate_every=3, patience=2)
STEP = Training(updates=1, batch_tokens=10**6, warmup=0, lr=1.0, clip=1e9)  # one, on all items


def loop(net, loss_of, lengths, counts, hp, seed, evaluate=None, **trainer_args):
    """The loop of trainer.py's docstring, which all trainings share but for their loss."""
    with Trainer(net, lengths, counts, hp, seed, **trainer_args) as trainer:
        while True:
            if evaluate and trainer.is_evaluation_due():
                trainer.track_best(evaluate())
            if trainer.is_done():
                break
            for index in trainer.next_update():
                trainer.backward(loss_of(index, trainer.update))
            trainer.step()
    return trainer.result()


def trained(hp=HP, seed=5, net=None, counts=np.ones(N), loss=None, fail_at=None, **kwargs):
    """A Net, and what its training says. loss: one whose parameter is trained, too."""
    net, squares = net or Net(), loss or Squares(fail_at)
    result = loop(net, lambda *args: squares(net, *args), LENGTHS, counts, hp, seed, loss=loss,
                  **kwargs)
    return net, result


def weights(model):
    return torch.cat([x.detach().flatten().double() for x in model.state_dict().values()])


def moved(net):
    """How far its parameters are from those of a new Net."""
    return torch.cat([(a - b).detach().flatten()
                      for a, b in zip(net.parameters(), Net().parameters())])


def sgd(net):
    """Plain gradient descent at rate 1: the update is the gradient."""
    return torch.optim.SGD(net.parameters(), 1.0)


def test_one_batch_of_ragged_lengths_equals_its_micro_batches():
    """float64, no dropout: the update of one batch of 24 pairs and that of 2, 3 or more parts."""
    torch.manual_seed(2)
    policy = Transformer(Config(11, 16, 2, 1, 1, 32, 0.0, 12)).double()
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, 11, n) for n in rng.integers(1, 12, 24)]
    pairs = Pairs.of(range(24), [rng.integers(3, 11, n) for n in rng.integers(1, 12, 24)])
    lengths = pairs.padded_lengths(sources)

    def update(batch_tokens, accumulate):
        net = copy.deepcopy(policy)

        def loss_of(index, _):
            tokens = pad(pairs.targets(index))
            logits = net(pad([sources[i] for i in index]), shift_right(tokens))
            return losses.bc(logits, tokens)

        hp = replace(STEP, batch_tokens=batch_tokens, accumulate=accumulate)
        loop(net, loss_of, lengths, pairs.lengths, hp, 0, optimizer=sgd(net))
        return weights(policy) - weights(net)

    whole = update(10**6, 1)
    assert whole.abs().max() > 1e-3
    for batch_tokens in (150, 100, 40):
        k = len(bucket_by_length(lengths, batch_tokens))
        parts = [len(index) for index in bucket_by_length(lengths, batch_tokens)]
        assert k > 1 and len(set(parts)) > 1  # or this test would say little
        assert (update(batch_tokens, k) - whole).abs().max() < 1e-12


def test_the_loss_is_divided_by_the_tokens_of_the_update():
    """With their counts doubled the gradient is halved."""
    def update(counts):
        net = Net(dropout=0.0)
        trained(STEP, 0, net, counts, optimizer=sgd(net))
        return moved(net)

    assert update(np.ones(N)).abs().max() > 1e-3
    torch.testing.assert_close(update(np.ones(N)), 2 * update(2 * np.ones(N)))


def test_gradients_are_clipped():
    net = Net()
    trained(replace(STEP, clip=1e-3), 0, net, optimizer=sgd(net))
    assert moved(net).norm().item() == pytest.approx(1e-3, rel=1e-2)


def scripted(net, scores, seen=None):
    """evaluate: the scores by the number of updates so far; notes the weights it saw."""

    def evaluate():
        step = int(net.calls)
        if seen is not None:
            seen[step] = weights(net)
        return scores[step]

    return evaluate


def test_it_returns_to_the_best_checkpoint_of_equal_ones_the_later():
    scores, seen, log = {0: 0.1, 3: 0.3, 6: 0.5, 9: 0.5, 12: 0.4}, {}, []
    net = Net()
    _, result = trained(net=net, evaluate=scripted(net, scores, seen), log=log.append)
    assert list(seen) == [0, 3, 6, 9, 12]
    assert torch.equal(weights(net), seen[9])
    assert not torch.equal(seen[9], seen[6]) and not torch.equal(seen[9], seen[12])
    assert (result["updates"], result["score"], result["first_score"]) == (9, 0.5, 0.1)
    assert not net.training
    assert [(e["update"], e["score"], e["best"]) for e in log] == [
        (0, 0.1, True), (3, 0.3, True), (6, 0.5, True), (9, 0.5, False), (12, 0.4, False)]
    assert all(np.isfinite(e["loss"]) for e in log) and log[1]["loss"] > 0


def test_it_can_end_where_it_began():
    net = Net()
    _, result = trained(net=net, evaluate=scripted(net, {0: 0.9, 3: 0.3, 6: 0.5}))
    assert torch.equal(weights(net), weights(Net()))
    assert (result["updates"], result["score"], result["first_score"]) == (0, 0.9, 0.9)


@pytest.mark.parametrize("patience, last", [(1, 3), (2, 6), (9, 12)])
def test_a_score_that_never_changes_ends_with_the_last_weights(patience, last):
    """And not with those before any update; but patience counts, as it is never better."""
    net, seen = Net(), {}
    scores = dict.fromkeys(range(13), 0.5)
    _, result = trained(replace(HP, patience=patience), net=net,
                        evaluate=scripted(net, scores, seen))
    assert max(seen) == last and torch.equal(weights(net), seen[last])
    assert (result["updates"], result["score"], result["first_score"]) == (last, 0.5, 0.5)


@pytest.mark.parametrize("patience, last", [(1, 6), (2, 9), (3, 12)])
def test_patience_stops_it(patience, last):
    seen, net = {}, Net()
    scores = {0: 0.1, 3: 0.5, 6: 0.2, 9: 0.3, 12: 0.4}
    trained(replace(HP, patience=patience), net=net, evaluate=scripted(net, scores, seen))
    assert max(seen) == last


def test_the_last_update_is_evaluated():
    seen, net = {}, Net()
    _, result = trained(replace(HP, updates=7), net=net,
                        evaluate=scripted(net, {0: 1, 3: 2, 6: 3, 7: 4}, seen))
    assert list(seen) == [0, 3, 6, 7] and result["updates"] == 7
    assert torch.equal(weights(net), seen[7])


def test_without_evaluation_all_updates_are_made():
    net, result = trained()
    assert result["updates"] == HP.updates == int(net.calls) and result["first_score"] is None
    assert not torch.equal(weights(net), weights(Net()))
    assert not net.training


@pytest.mark.parametrize("accumulate", [1, 2])
def test_tokens_are_those_of_all_updates(accumulate):
    """Also of those after the best checkpoint, and until patience ends it."""
    counts, hp = np.arange(1, N + 1), replace(HP, accumulate=accumulate)

    def updates_and_losses(scores):
        net, squares, seen = Net(), Squares(), []
        evaluate = scripted(net, {accumulate * k: v for k, v in scores.items()}) if scores else None

        def loss_of(index, update):
            seen.append(counts[index].sum())
            return squares(net, index, update)

        result = loop(net, loss_of, LENGTHS, counts, hp, 5, evaluate)
        assert type(result["tokens"]) is int and result["tokens"] == sum(seen)
        return result["updates"], len(seen)

    assert updates_and_losses(None) == (12, 12 * accumulate)
    assert updates_and_losses({0: 0.1, 3: 0.5, 6: 0.2, 9: 0.3}) == (3, 9 * accumulate)


def test_it_learns():
    net, _ = trained(Training(updates=200, batch_tokens=40, lr=4e-2, warmup=20, dropout=False))
    assert ((net(X) - Y) ** 2).mean() < 0.05 * (Y**2).mean()


def test_same_seed_same_weights():
    a, _ = trained(seed=5)
    torch.manual_seed(77)  # whatever the program has drawn
    b, _ = trained(seed=5)
    c, _ = trained(seed=6)
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(c))


def test_dropout_can_be_left_off():
    dry = replace(HP, dropout=False)
    with_dropout, without = trained(dry, net=Net(0.25))[0], trained(dry, net=Net(0.0))[0]
    assert torch.equal(weights(with_dropout), weights(without))
    assert not torch.equal(weights(trained(HP, net=Net(0.25))[0]), weights(without))


def test_the_global_generator_is_left_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trained()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyboardInterrupt):
        trained(fail_at=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_update_and_learning_rate_at_every_update():
    """Of every micro-batch; the loss's own parameters have their own, constant rate."""
    net, loss, rates = Net(), Squares(), []
    optimizer = adamw(net.parameters(), HP)
    step = optimizer.step
    optimizer.step = lambda: (rates.append([g["lr"] for g in optimizer.param_groups]), step())
    hp = replace(HP, accumulate=2, loss_lr=0.03)
    trained(hp, net=net, loss=loss, optimizer=optimizer)
    assert loss.seen == [update for update in range(12) for _ in range(2)]
    assert rates == [[hp.lr_at(update), 0.03] for update in range(12)]
    assert loss.shift.item() != 0


# --------------------------------------------------------------------------------------- resume

# by the number of updates: the best one comes twice, and patience ends before the last
SCORES = {0: 0.1, 3: 0.4, 6: 0.3, 9: 0.6, 12: 0.6, 15: 0.3, 18: 0.9}


@pytest.mark.parametrize("dropout, with_loss, accumulate", [(True, True, 2), (False, False, 1)])
def test_a_resumed_training_equals_an_uninterrupted_one(dropout, with_loss, accumulate, tmp_path,
                                                        save_always):
    """Bitwise, killed in any of its updates or evaluations, and more than once."""
    hp = replace(HP, updates=18, dropout=dropout, accumulate=accumulate)

    def run(path=None, fail_at=None, fail_in_evaluation=None):
        net, squares = Net(0.25 if dropout else 0.0), Squares(fail_at)
        evaluations = itertools.count()

        def evaluate():
            if next(evaluations) == fail_in_evaluation:
                raise KeyboardInterrupt
            return SCORES[int(net.calls) // accumulate]

        result = loop(net, lambda *args: squares(net, *args), LENGTHS, np.ones(N), hp, 5, evaluate,
                      checkpoint=path and Checkpoint(path), loss=squares if with_loss else None)
        del result["seconds"]
        return weights(net), squares.shift.item(), result

    whole = run()
    assert whole[2] == {"updates": 12, "score": 0.6, "first_score": 0.1,
                        "tokens": whole[2]["tokens"]}
    assert whole[2]["tokens"] > 0 and (whole[1] != 0) == with_loss
    path = tmp_path / "checkpoint.pt"
    for kills in [[{"fail_at": k}] for k in (1, 8, 13)] + [
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


def test_a_resumed_training_does_not_begin_again(tmp_path, save_always):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(loss=Squares(fail_at=8), checkpoint=Checkpoint(path))
    again = Squares()
    trained(loss=again, checkpoint=Checkpoint(path))
    assert again.seen == list(range(8, 12))


def test_checkpoints_are_rare(tmp_path):
    """None within the first minute: tiny trainings are not slowed down."""
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(fail_at=8, checkpoint=Checkpoint(path))
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


@pytest.mark.slow
def test_without_a_compiler_one_line_says_so(capsys):
    trainer_py.can_compile.cache_clear()
    torch._dynamo.reset()
    nowhere = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(nowhere):
        net, cpu = Net(), torch.device("cpu")
        assert compiled(net, cpu) is net and compiled(net, cpu) is net
    said = "".join(capsys.readouterr())
    assert said.count("nothing is compiled: ") == 1 and len(said.splitlines()) == 1
    trainer_py.can_compile.cache_clear()


@pytest.mark.slow
def test_a_compiled_policy_is_the_same_function():
    """And so are its gradients, for batches of several shapes."""
    if not trainer_py.can_compile("cpu"):
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
