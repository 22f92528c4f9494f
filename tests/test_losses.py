"""losses.py: loops written from the equations, special cases, gradients, and exact enumeration.

All in float64 and on the CPU. A batch here is ragged: lengths from 1 to T, padding at the right.
At the end the modules that Improve uses, against the functions, and in a training.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import losses
import rest
from infra.batches import collate
from infra.pairs import Pairs
from infra.storage import Checkpoint
from infra.trainer import Training
from losses import ReferenceModels
from model import EOS, Config, Transformer, shift_right, token_logprobs
from reward import ValueModel

V = 7
LENGTHS = [4, 1, 9, 6, 2, 7]
SUMS = ["bc", "bc_smoothed", "gold_p", "gold_s", "oac", "ppo"]  # all but BVMPO
ALL = SUMS + ["bvmpo"]


def make_batch(seed, lengths=LENGTHS):
    """What a caller holds: the policy's logits, the targets, and all that carries no gradient."""
    g = torch.Generator().manual_seed(seed)
    B, T = len(lengths), max(lengths)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).double()
    targets = torch.randint(1, V, (B, T), generator=g) * mask.long()
    logits = normal(B, T, V)
    near = logits + 0.3 * normal(B, T, V)  # so that some of PPO's ratios are clipped
    pick = lambda x: x.log_softmax(-1).gather(-1, targets[..., None])[..., 0] * mask
    return {"logits": logits, "targets": targets, "mask": mask, "advantages": normal(B, T),
            "old": pick(near), "frozen": pick(normal(B, T, V)), "anchor": normal(B, T, V),
            "mle": pick(15 * normal(B, T, V))}  # some log p < -10, where GOLD's c matters


def evaluate(name, b, logits=None, log_eta=torch.tensor(-0.4, dtype=torch.float64)):
    """The loss `name` on the batch b, from the logits on, as the training loop calls it."""
    logits, targets, mask = b["logits"] if logits is None else logits, b["targets"], b["mask"]
    logprobs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    if name.startswith("bc"):
        return losses.bc(logits, targets, label_smoothing=0.1 if name == "bc_smoothed" else 0.0)
    if name.startswith("gold"):
        return losses.gold(logprobs, b["frozen"], b["mle"], mask, reward=name[-1])
    if name == "oac":
        return losses.oac(logprobs, b["advantages"], mask)
    if name == "ppo":
        kl = losses.kl_divergence(logits, b["anchor"])
        return losses.ppo(logprobs, b["old"], b["advantages"], kl, mask, kl_weight=0.05)
    kl = losses.kl_divergence(b["anchor"], logits)
    return losses.bvmpo(logprobs, b["advantages"], kl, mask, log_eta, kl_weight=0.3)


def value_and_grad(name, b):
    logits = b["logits"].clone().requires_grad_()
    value = evaluate(name, b, logits)
    return value.item(), torch.autograd.grad(value, logits)[0]


def leaf(x):
    return x.clone().requires_grad_()


def close(a, b, tolerance=1e-12):
    return np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------
# Against loops in numpy, one token at a time

def np_log_softmax(x):
    return x - math.log(sum(math.exp(v) for v in x))


def tokens_of(b):
    """(row, position, log π_θ(y_t)) of each real token; and the batch as numpy arrays."""
    n = {k: v.numpy() for k, v in b.items()}
    return n, [(i, t, np_log_softmax(n["logits"][i, t])[n["targets"][i, t]])
               for i, t in np.argwhere(n["mask"] == 1)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bc_is_the_loop(smoothing):
    b = make_batch(1)
    n, tokens = tokens_of(b)
    expected = 0.0
    for i, t, _ in tokens:
        q = np.full(V, smoothing / V)  # the smoothed target
        q[n["targets"][i, t]] += 1 - smoothing
        expected -= (q * np_log_softmax(n["logits"][i, t])).sum()
    close(losses.bc(b["logits"], b["targets"], smoothing).item(), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_bc_is_torchs_cross_entropy(smoothing):
    b = make_batch(2)
    expected = F.cross_entropy(b["logits"].transpose(1, 2), b["targets"], ignore_index=0,
                               label_smoothing=smoothing, reduction="sum")
    close(losses.bc(b["logits"], b["targets"], smoothing).item(), expected.item())


@pytest.mark.parametrize("reward", ["p", "s"])
@pytest.mark.parametrize("steps, gamma, u, c, offset", [(5, 1.0, 0.2, 0.1, 10.0),
                                                        (2, 0.7, 0.4, 0.3, 3.0),
                                                        (0, 1.0, 0.0, 0.0, 1.0)])
def test_gold_is_the_loop(reward, steps, gamma, u, c, offset):
    b = make_batch(3)
    n, tokens = tokens_of(b)
    expected = 0.0
    for i, t, logprob in tokens:
        q = 0.0
        for k in range(steps + 1):
            p = math.exp(n["mle"][i, t + k]) if t + k < LENGTHS[i] else 1.0
            q += gamma**k * max(c, p if reward == "s" else math.log(p) + offset)
        expected -= min(max(math.exp(n["frozen"][i, t]), u), 1.0) * q * logprob
    logprobs = b["logits"].log_softmax(-1).gather(-1, b["targets"][..., None])[..., 0]
    got = losses.gold(logprobs, b["frozen"], b["mle"], b["mask"], reward, steps, gamma, u, c,
                      offset)
    close(got.item(), expected)


def test_gold_defaults_and_its_bounds_are_active():
    b = make_batch(3)
    real = b["mask"].bool()
    assert (b["mle"][real] < -9.9).any() and (b["frozen"][real].exp() < 0.2).any()
    for reward in "ps":
        logprobs = b["logits"].log_softmax(-1).gather(-1, b["targets"][..., None])[..., 0]
        close(evaluate("gold_" + reward, b).item(),
              losses.gold(logprobs, b["frozen"], b["mle"], b["mask"], reward, steps=5, gamma=1.0,
                          min_weight=0.2, min_reward=0.1, offset=10.0).item())
    with pytest.raises(ValueError, match='"p"'):
        losses.gold(logprobs, b["frozen"], b["mle"], b["mask"], reward="q")


def test_oac_is_the_loop():
    b = make_batch(4)
    n, tokens = tokens_of(b)
    close(evaluate("oac", b).item(), -sum(n["advantages"][i, t] * lp for i, t, lp in tokens))


def test_ppo_is_the_loop():
    b = make_batch(5)
    n, tokens = tokens_of(b)
    expected, clipped = 0.0, 0
    for i, t, logprob in tokens:
        ratio, advantage = math.exp(logprob - n["old"][i, t]), n["advantages"][i, t]
        bounded = min(max(ratio, 0.8), 1.2)
        p, q = np_log_softmax(n["logits"][i, t]), np_log_softmax(n["anchor"][i, t])
        expected -= min(ratio * advantage, bounded * advantage)
        expected += 0.05 * (np.exp(p) * (p - q)).sum()  # the penalty, in the policy's direction
        clipped += ratio != bounded
    assert 3 < clipped < len(tokens) - 3
    close(evaluate("ppo", b).item(), expected)


def np_vmpo(logprobs, advantages, eta, epsilon):
    """L_π, L_η and ψ from flat arrays over the real tokens; an odd one counts as top half."""
    top = np.argsort(-advantages)[: math.ceil(len(advantages) / 2)]
    weights = np.exp(advantages[top] / eta)
    psi = np.zeros(len(advantages))
    psi[top] = weights / weights.sum()
    return -(psi * logprobs).sum(), eta * epsilon + eta * math.log(weights.mean()), psi


@pytest.mark.parametrize("lengths", [LENGTHS, [3, 1, 2], [1], [5, 4]])  # an odd number and an even
@pytest.mark.parametrize("eta", [0.05, 1.0, 7.0])
def test_bvmpo_is_the_loop(lengths, eta):
    b = make_batch(6, lengths)
    n, tokens = tokens_of(b)
    advantages = np.array([n["advantages"][i, t] for i, t, _ in tokens])
    policy, temperature, _ = np_vmpo(np.array([lp for *_, lp in tokens]), advantages, eta, 0.1)
    kl = 0.0
    for i, t, _ in tokens:
        p, q = np_log_softmax(n["anchor"][i, t]), np_log_softmax(n["logits"][i, t])
        kl += (np.exp(p) * (p - q)).sum() / len(tokens)  # behaviour first
    log_eta = torch.tensor(eta, dtype=torch.float64).log()
    close(evaluate("bvmpo", b, log_eta=log_eta).item(),
          len(tokens) * (policy + temperature + 0.3 * kl))


def test_kl_divergence():
    b = make_batch(7)
    p_logits, q_logits = b["logits"], b["anchor"]
    kl = losses.kl_divergence(p_logits, q_logits)
    assert kl.shape == (len(LENGTHS), max(LENGTHS)) and (kl > 0).all()
    for i, t in np.ndindex(*kl.shape):
        p, q = np_log_softmax(p_logits[i, t].numpy()), np_log_softmax(q_logits[i, t].numpy())
        close(kl[i, t].item(), sum(math.exp(a) * (a - b) for a, b in zip(p, q)))
    close(losses.kl_divergence(p_logits, p_logits).numpy(), 0)
    close(losses.kl_divergence(p_logits, p_logits + 3).numpy(), 0)  # the same distribution


# ------------------------------------------------------------------------------------------------
# Special cases

def logprobs_and(seed):
    b = make_batch(seed)
    logprobs = b["logits"].log_softmax(-1).gather(-1, b["targets"][..., None])[..., 0]
    return leaf(logprobs), b


@pytest.mark.parametrize("reward, constant", [("p", 60.0), ("s", 6.0)])  # p_MLE = 1, K + 1 terms
def test_gold_with_weights_one_and_constant_reward_is_scaled_bc(reward, constant):
    logprobs, b = logprobs_and(8)
    got = losses.gold(logprobs, b["frozen"], torch.zeros_like(b["mle"]), b["mask"], reward,
                      min_weight=1.0)
    close(got.item(), constant * losses.bc(b["logits"], b["targets"]).item())


def test_oac_with_advantages_0_or_1_is_filtered_bc():
    logprobs, b = logprobs_and(9)
    keep = torch.tensor([True, False, True, True, False, False])
    got = losses.oac(logprobs, keep.double()[:, None].expand_as(logprobs), b["mask"])
    close(got.item(), losses.bc(b["logits"][keep], b["targets"][keep]).item())


@pytest.mark.parametrize("loss", ["oac", "ppo"])
def test_equal_rewards_with_their_mean_as_baseline_give_no_gradient(loss):
    logprobs, b = logprobs_and(10)
    reward = torch.full((len(LENGTHS), 1), 0.75, dtype=torch.float64)
    advantages = (reward - reward.mean()).expand_as(logprobs)
    if loss == "oac":
        value = losses.oac(logprobs, advantages, b["mask"])
    else:
        value = losses.ppo(logprobs, b["old"], advantages, torch.zeros_like(logprobs), b["mask"])
    value.backward()
    assert value == 0 and (logprobs.grad == 0).all()


def test_ppo_at_ratio_one_has_the_gradient_of_oac():
    logprobs, b = logprobs_and(11)
    zero = torch.zeros_like(logprobs)
    ppo = losses.ppo(logprobs, logprobs.detach(), b["advantages"], zero, b["mask"])
    oac = losses.oac(logprobs, b["advantages"], b["mask"])
    got, expected = (torch.autograd.grad(x, logprobs)[0] for x in (ppo, oac))
    assert expected.abs().max() > 0
    close(got.numpy(), expected.numpy())


@pytest.mark.parametrize("ratio, advantage, blocked", [
    (1.3, 1.0, True), (0.7, -1.0, True),  # further out would be the good direction: stop
    (1.3, -1.0, False), (0.7, 1.0, False),  # a mistake to be undone: go
    (1.1, 1.0, False), (0.9, 1.0, False), (1.1, -1.0, False), (0.9, -1.0, False),
])
def test_ppo_clipping_blocks_the_right_side_only(ratio, advantage, blocked):
    one = torch.ones(1, 1, dtype=torch.float64)
    logprobs = leaf(one * (math.log(ratio) - 2))
    losses.ppo(logprobs, one * -2, one * advantage, 0 * one, one, clip=0.2).backward()
    close(logprobs.grad.item(), 0.0 if blocked else -ratio * advantage)


def test_vmpo_only_the_top_half_learns_and_psi_sums_to_one():
    logprobs, b = logprobs_and(12)
    eta = torch.tensor(0.5, dtype=torch.float64)
    losses.vmpo(logprobs, b["advantages"], b["mask"], eta.log()).backward()
    real = b["mask"].bool()
    advantages, psi = b["advantages"][real].numpy(), -logprobs.grad[real].numpy()
    assert (logprobs.grad[~real] == 0).all()
    assert (psi > 0).sum() == math.ceil(len(psi) / 2)
    assert (psi[advantages < np.median(advantages)] == 0).all()
    close(psi.sum(), 1.0)
    close(psi, np_vmpo(np.zeros(len(psi)), advantages, 0.5, 0.1)[2])


def test_vmpo_on_equal_advantages_takes_half_of_them_evenly():
    logprobs = leaf(torch.zeros(2, 4, dtype=torch.float64))
    log_eta = torch.tensor(0.0, dtype=torch.float64)
    losses.vmpo(logprobs, torch.ones(2, 4).double(), torch.ones(2, 4), log_eta).backward()
    assert sorted(logprobs.grad.flatten().tolist()) == [-0.25] * 4 + [0.0] * 4


def eta_slope(b, log_eta, epsilon=0.1, logprobs=None):
    """d loss / d log η as autograd sees it."""
    log_eta = leaf(torch.as_tensor(log_eta, dtype=torch.float64))
    logprobs = torch.zeros_like(b["advantages"]) if logprobs is None else logprobs
    value = losses.vmpo(logprobs, b["advantages"], b["mask"], log_eta, epsilon)
    return torch.autograd.grad(value, log_eta)[0].item()


@pytest.mark.parametrize("eta", [0.2, 1.0, 3.0])
def test_vmpo_temperature_gradient_by_finite_differences(eta):
    b = make_batch(13)
    flat, h = b["advantages"][b["mask"].bool()].numpy(), 1e-5
    L_eta = lambda x: np_vmpo(0 * flat, flat, x, 0.1)[1]
    slope = (L_eta(eta + h) - L_eta(eta - h)) / (2 * h)  # d L_η / d η
    close(eta_slope(b, math.log(eta)) / eta, slope, 1e-8)  # d/dη = (d/d log η) / η


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.5])
def test_vmpo_best_temperature_meets_the_kl_constraint(epsilon):
    """d L_η / d η = ε - KL(ψ ‖ uniform on D̃): at the optimum ψ is just ε from uniform."""
    b = make_batch(14)
    low, high = -6.0, 6.0  # bisect log η for slope 0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if eta_slope(b, middle, epsilon) < 0 else (low, middle)
    flat = b["advantages"][b["mask"].bool()].numpy()
    psi = np_vmpo(0 * flat, flat, math.exp(low), epsilon)[2]
    psi = psi[psi > 0]
    close((psi * np.log(psi * len(psi))).sum(), epsilon, 1e-6)


def test_vmpo_policy_loss_gives_eta_no_gradient():
    logprobs, b = logprobs_and(15)
    close(eta_slope(b, -0.4, logprobs=logprobs), eta_slope(b, -0.4))


def test_bvmpo_kl_weight_enters_once_per_token():
    logprobs, b = logprobs_and(16)
    kl = leaf(torch.rand(logprobs.shape, generator=torch.Generator().manual_seed(0)).double())
    log_eta = torch.tensor(0.0, dtype=torch.float64)
    losses.bvmpo(logprobs, b["advantages"], kl, b["mask"], log_eta, kl_weight=0.3).backward()
    close(kl.grad.numpy(), 0.3 * b["mask"].numpy())


def test_anneal():
    assert losses.anneal(0.0) == 1.0 and losses.anneal(-1.0) == 1.0
    assert losses.anneal(1.0) == pytest.approx(1e-5) == losses.anneal(2.0)
    assert losses.anneal(0.5) == pytest.approx(math.sqrt(1e-5))
    assert losses.anneal(0.25, start=16.0, end=1.0) == pytest.approx(8.0)
    values = [losses.anneal(k / 10) for k in range(11)]
    assert values == sorted(values, reverse=True)


# ------------------------------------------------------------------------------------------------
# Gradients

@pytest.mark.parametrize("name", ALL)
def test_gradcheck(name):
    b = make_batch(20, lengths=[2, 1, 3])
    assert torch.autograd.gradcheck(lambda x: evaluate(name, b, x), leaf(b["logits"]))


def test_gradcheck_of_eta():
    b = make_batch(21, lengths=[2, 1, 4])
    zero = torch.zeros_like(b["mask"])  # no L_π, for ψ stops the gradient there
    loss = lambda log_eta: losses.bvmpo(zero, b["advantages"], zero, b["mask"], log_eta, 0.3)
    assert torch.autograd.gradcheck(loss, leaf(torch.tensor(-0.4, dtype=torch.float64)))


def test_gradcheck_of_kl_in_both_arguments():
    b = make_batch(22, lengths=[2, 1])
    inputs = leaf(b["logits"]), leaf(b["anchor"])
    assert torch.autograd.gradcheck(losses.kl_divergence, inputs)


@pytest.mark.parametrize("name", ["gold", "oac", "ppo", "bvmpo"])
def test_callers_contract_leaves_the_policy_alone_with_a_gradient(name):
    """Frozen log-probs from the policy's own parameters, a value network: neither is trained, and
    the policy's gradient is -(a constant) on each token, with nothing through that constant."""
    logprobs, b = logprobs_and(23)
    value = torch.nn.Linear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        advantages = b["advantages"] - value(b["mask"][..., None])[..., 0]
        frozen, mle = logprobs * 1.0, logprobs + 0.1 * b["advantages"].clamp(max=0)
    mask, zero, log_eta = b["mask"], torch.zeros_like(logprobs), torch.zeros(()).double()
    assert not any(x.requires_grad for x in (advantages, frozen, mle))
    if name == "gold":
        losses.gold(logprobs, frozen, mle, mask, steps=0).backward()
        expected = frozen.exp().clamp(0.2, 1) * (mle + 10).clamp(min=0.1) * mask
    elif name == "bvmpo":
        losses.bvmpo(logprobs, advantages, zero, mask, log_eta, 1.0).backward()
        real, expected = mask.bool(), torch.zeros_like(mask)
        psi = np_vmpo(0, advantages[real].numpy(), 1.0, 0.1)[2]
        expected[real] = torch.from_numpy(psi) * mask.sum()
    else:
        args = (logprobs, advantages, mask)
        if name == "ppo":
            args = (logprobs, frozen, advantages, zero, mask)
        getattr(losses, name)(*args).backward()
        expected = advantages * mask
    close(logprobs.grad.numpy(), -expected.numpy())
    assert all(p.grad is None for p in value.parameters())


# ------------------------------------------------------------------------------------------------
# Padding, micro-batches

@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [50.0, 1e6])
def test_garbage_on_padding_changes_nothing(name, size):
    b = make_batch(30)
    value, grad = value_and_grad(name, b)
    pad = b["mask"] == 0
    g = torch.Generator().manual_seed(31)
    for key in ("logits", "advantages", "old", "frozen", "mle", "anchor"):
        noise = size * torch.randn(b[key].shape, generator=g, dtype=torch.float64)
        b[key] = torch.where(pad if b[key].dim() == 2 else pad[..., None], noise, b[key])
    got_value, got_grad = value_and_grad(name, b)
    close(got_value, value)
    close(got_grad.numpy(), grad.numpy())
    assert (got_grad[pad] == 0).all()


def rows(b, index):
    """Some rows of a batch, cut to the longest of them, as a micro-batch would be."""
    T = int(b["mask"][index].sum(1).max())
    return {k: v[index, :T] for k, v in b.items()}


@pytest.mark.parametrize("name", SUMS)
def test_micro_batches_add_up_to_the_batch(name):
    b = make_batch(32)
    value, grad = value_and_grad(name, b)
    total, pieces = 0.0, torch.zeros_like(grad)
    for index in ([4, 1], [0], [5, 2, 3]):
        part, part_grad = value_and_grad(name, rows(b, index))
        total += part
        pieces[index, : part_grad.size(1)] = part_grad
    close(total, value)
    close(pieces.numpy(), grad.numpy())


def test_bvmpo_looks_at_its_batch_as_a_whole():
    b = make_batch(33)
    order = [3, 0, 5, 1, 4, 2]
    value, grad = value_and_grad("bvmpo", b)
    shuffled, shuffled_grad = value_and_grad("bvmpo", rows(b, order))
    close(shuffled, value)
    close(shuffled_grad.numpy(), grad[order].numpy())
    parts = sum(value_and_grad("bvmpo", rows(b, i))[0] for i in ([0, 1, 2], [3, 4, 5]))
    assert abs(parts - value) > 1e-3


# ------------------------------------------------------------------------------------------------
# The score function against exact enumeration

@pytest.mark.parametrize("loss", ["oac", "ppo"])
@pytest.mark.parametrize("baseline", ["none", "value", "arbitrary"])
@pytest.mark.parametrize("ragged", [False, True])  # True: token 2 ends a sequence, as eos does
def test_expected_gradient_is_the_gradient_of_expected_reward(loss, baseline, ragged):
    """Three tokens, two positions, free logits: E[Σ_t A_t ∇ log π(y_t | y_<t)] = ∇ E[R]."""
    g = torch.Generator().manual_seed(40)
    first = torch.randn(3, generator=g, dtype=torch.float64).requires_grad_()  # log π(y_1) + c
    second = torch.randn(3, 3, generator=g, dtype=torch.float64).requires_grad_()  # given y_1
    pairs = list(itertools.product(range(3), repeat=2))
    if ragged:
        pairs = [(a, b) for a, b in pairs if a != 2 or b == 0]  # (2, padding)
    y = torch.tensor(pairs)
    mask = torch.ones(len(y), 2, dtype=torch.float64)
    if ragged:
        mask[y[:, 0] == 2, 1] = 0
    reward = torch.rand(len(y), generator=g, dtype=torch.float64)

    logprobs = torch.stack([first.log_softmax(-1)[y[:, 0]],
                            second.log_softmax(-1)[y[:, 0], y[:, 1]]], 1)  # (sequences, 2)
    p = (logprobs * mask).sum(1).exp()
    close(p.sum().item(), 1.0)
    exact = torch.autograd.grad((p * reward).sum(), (first, second), retain_graph=True)

    p = p.detach()
    V_2 = torch.stack([(p * reward)[y[:, 0] == a].sum() / p[y[:, 0] == a].sum() for a in range(3)])
    state = {"none": torch.zeros(len(y), 2), "value": torch.stack([(p * reward).sum() + 0 * p,
             V_2[y[:, 0]]], 1), "arbitrary": torch.stack([4 + 0 * p, 1.0 - 3 * y[:, 0]], 1)}
    advantages = p[:, None] * (reward[:, None] - state[baseline])  # weighted by probability
    if loss == "oac":
        value = losses.oac(logprobs, advantages, mask)
    else:
        value = losses.ppo(logprobs, logprobs.detach(), advantages, 0 * mask, mask)
    for got, expected in zip(torch.autograd.grad(value, (first, second)), exact):
        close(-got.numpy(), expected.numpy())


# ------------------------------------------------------------------------------------------------
# The losses as Improve uses them

MODULES = losses.LOSSES | {"ppo": losses.PPO}


def small_policy(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(Config(12, 8, 2, 1, 1, 16, 0.1, 10)).eval()


SOURCES = [np.append(np.arange(3, 4 + k), EOS) for k in range(5)]
PAIRS = Pairs.of([0, 1, 2, 3, 4, 4], [[5, 6, EOS], [EOS], [7, 3, 4, 9, EOS], [4, EOS], [8, 8, 8],
                                      [11, 3, EOS]], reward=np.linspace(0, 1, 6))
PAIRS.logprobs[:] = np.random.default_rng(0).normal(-2, 0.5, len(PAIRS.tokens))
HP = Training(updates=8, batch_tokens=20, lr=1e-2, warmup=0, evaluate_every=100)


def module(name, policy=None, **settings):
    """A loss of a small policy, its references being others; they stay in training mode."""
    value = ValueModel.from_policy(small_policy(3))
    torch.nn.init.normal_(value.head.weight, generator=torch.Generator().manual_seed(0))
    reference = ReferenceModels(small_policy(1).train(), small_policy(2).train(), value.train())
    return MODULES[name](rest.Settings(**settings), policy or small_policy(0), reference)


def called(loss, update=0):
    """The loss of all pairs, its policy's logits, and the batch."""
    batch = collate(PAIRS, SOURCES, np.arange(len(PAIRS)))
    logits = loss.policy[0](batch.source, shift_right(batch.tokens))
    return loss(logits, batch, update, 8), logits, batch


def as_function(name, loss, frozen, logits, batch, progress):
    """The same by the function of that name, from what the other networks say of the batch."""
    settings, mask = loss.settings, batch.mask
    bc, behaviour, value = (net.eval() for net in vars(loss.reference).values())
    given = batch.source, shift_right(batch.tokens)
    logprobs, frozen_logprobs, mle_logprobs = (
        token_logprobs(net, batch.source, batch.tokens) for net in (loss.policy[0], frozen, bc))
    advantages = batch.reward - value(batch.source, batch.tokens).sigmoid()
    if name == "bc":
        return losses.bc(logits, batch.tokens, settings.label_smoothing)
    if name == "gold":
        return losses.gold(logprobs, frozen_logprobs, mle_logprobs, mask, settings.gold_reward)
    if name == "oac":
        return losses.oac(logprobs, advantages, mask)
    if name == "bvmpo":
        kl = losses.kl_divergence(behaviour(*given), logits)
        return losses.bvmpo(logprobs, advantages, kl, mask, torch.zeros(()),
                            losses.anneal(progress), settings.bvmpo_epsilon)
    kl = losses.kl_divergence(logits, bc(*given))
    return losses.ppo(logprobs, batch.old_logprobs, batch.reward, kl, mask,
                      kl_weight=settings.ppo_kl)


@pytest.mark.parametrize("name, settings", [
    ("bc", {}), ("bc", {"label_smoothing": 0.2}), ("gold", {}), ("gold", {"gold_reward": "s"}),
    ("oac", {}), ("bvmpo", {}), ("bvmpo", {"bvmpo_epsilon": 0.3}), ("ppo", {"ppo_kl": 0.3})])
@pytest.mark.parametrize("update", [0, 6])
def test_a_module_is_the_function_of_what_the_references_say(name, settings, update):
    loss = module(name, **settings)
    policy = loss.policy[0]
    with torch.no_grad():
        policy.embedding.weight *= 1.5
    # the policy that GOLD knew last; by default it takes its copy at every hundredth update
    frozen = copy.deepcopy(policy) if update == 0 else small_policy(0)
    got, logits, batch = called(loss, update)
    expected = as_function(name, loss, frozen.requires_grad_(False), logits, batch, update / 8)
    assert got.shape == () and got.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(x, list(policy.parameters()), retain_graph=True)
                 for x in (got, expected)]
    assert any(g.abs().max() > 1e-3 for g in gradients[0])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_the_references_are_no_part_of_a_loss(name):
    """Neither trained nor saved, nor is the policy; and no gradient reaches them."""
    loss = module(name)
    kept = {"gold": {f"frozen.{k}" for k in small_policy(0).state_dict()}, "bvmpo": {"log_eta"}}
    assert set(loss.state_dict()) == kept.get(name, set())
    trained = [k for k, p in loss.named_parameters() if p.requires_grad]
    assert trained == (["log_eta"] if name == "bvmpo" else [])
    networks = vars(loss.reference).values()
    others = {p.data_ptr() for net in (*networks, loss.policy[0]) for p in net.parameters()}
    assert not others & {p.data_ptr() for p in loss.parameters()}
    called(loss)[0].backward()
    assert all(p.grad is None for net in networks for p in net.parameters())


def test_golds_copy_is_renewed_every_gold_sync_updates():
    """With a state of its own, and not trained."""
    loss, seen = module("gold", gold_sync=3), []
    policy = loss.policy[0]
    for update in range(7):
        with torch.no_grad():
            policy.embedding.weight += 1
        called(loss, update)
        between = policy.embedding.weight - loss.frozen.embedding.weight
        seen.append(between.mean().item())
    assert seen == pytest.approx([0, 1, 2, 0, 1, 2, 0], abs=1e-5)
    other = module("gold", gold_sync=3)
    other.load_state_dict(loss.state_dict())
    with torch.no_grad():
        policy.embedding.weight += 1  # the copies are not the policy
    assert torch.equal(other.frozen.embedding.weight, loss.frozen.embedding.weight)
    assert (policy.embedding.weight - loss.frozen.embedding.weight).mean() > 0.9


@pytest.mark.parametrize("name", ["gold", "bvmpo"])
def test_what_a_loss_keeps_is_trained_and_saved_with_the_policy(name, tmp_path, save_always):
    """Killed after its fifth update, a training goes on with the same copy, the same η."""
    path = tmp_path / "checkpoint.pt"

    def train(killed=False, checkpoint=None):
        policy = small_policy(0)
        loss = module(name, policy, gold_sync=3)
        calls, forward = itertools.count(), loss.forward

        def counted(*args):
            if killed and next(calls) == 5:
                raise KeyboardInterrupt
            return forward(*args)

        loss.forward = counted
        rest.improve(policy, PAIRS, SOURCES, loss.settings, HP, 1, loss, checkpoint=checkpoint)
        return policy.state_dict(), loss.state_dict()

    whole = train()
    with pytest.raises(KeyboardInterrupt):
        train(killed=True, checkpoint=Checkpoint(path))
    for found, expected in zip(train(checkpoint=Checkpoint(path)), whole):
        assert all(torch.equal(found[k], x) for k, x in expected.items())
    kept = torch.load(path, weights_only=True)["content"]["content"]["loss"]
    assert set(kept) == set(whole[1])
    if name == "bvmpo":
        assert kept["log_eta"].item() == whole[1]["log_eta"].item() != 0


def test_the_names_offered_are_losses_and_functions():
    for name, loss in MODULES.items():
        assert issubclass(loss, losses.Loss) and callable(getattr(losses, name))
    assert [name for name in MODULES if MODULES[name].needs_value] == ["bvmpo", "oac"]
