"""What Improve minimises: BC, GOLD, BVMPO and OAC; and PPO, for the online baseline.

First come the losses as pure functions of tensors, then a small module for each, which computes
what the function needs: log-probabilities, values, a frozen copy. `LOSSES` names the modules.

Each loss is a *sum over the tokens* of its batch: the trainer divides by the tokens of the whole
update, so that an update made of several ragged micro-batches has exactly the gradient of one big
batch. BVMPO alone looks at its batch as a whole (a median and a softmax), and so is no such sum.

Letters: B pairs, T target length, V vocabulary; mask (B, T) is 1 on real target tokens, eos
included, and 0 on padding; logprobs (B, T) is log π_θ(y_t | y_<t, x). The only reward comes at the
end, so with γ = 1 the return G_t = R(x, y) is the same at every position t.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from infra.settings import setting
from model import PAD, shift_right


@dataclass
class LossSettings:
    """The losses"""

    label_smoothing: float = setting(0.0, "label smoothing of the BC loss", low=0, high=1)
    gold_reward: str = setting("p", "GOLD's reward: product or sum", choices=("p", "s"))
    gold_sync: int = setting(100, "updates between two copies of GOLD's frozen policy", low=1)
    bvmpo_epsilon: float = setting(0.1, "ε of V-MPO's temperature: the larger, the more the best "
                                   "tokens outweigh the others", low=1e-6)
    value_updates: int = setting(300, "updates of the value model (OAC and BVMPO)", low=1)


@dataclass
class PPOSettings:
    """Online RL by PPO, the baseline"""

    ppo_samples: int = setting(0, "samples drawn in all; 0: as many as one Grow", low=0)
    ppo_batch: int = setting(512, "samples drawn in each round", low=1)
    ppo_group: int = setting(8, "of them for each source; their mean reward is the baseline", low=2)
    ppo_updates: int = setting(4, "updates in each round", low=1)
    ppo_lr: float = setting(2e-4, "learning rate of PPO", low=0)
    ppo_kl: float = setting(0.1, "weight of PPO's KL to the BC policy", low=0)
    ppo_rows: int = setting(1, "rows of the results, evenly spread over the rounds", low=1)


# ------------------------------------------------------------------------------------ the formulas


def bc(logits, targets, label_smoothing=0.0):
    """Behaviour cloning, the paper's L_NLL:  -Σ_t log π_θ(y_t | y_<t, x).

    logits (B, T, V), those at t predict targets[:, t]; targets (B, T) with 0 as padding -> sum over
    the tokens, a scalar. With label smoothing ε the target is (1 - ε) on y_t plus ε spread evenly
    over the vocabulary.
    """
    logprobs = logits.log_softmax(-1)
    loss = -logprobs.gather(-1, targets[..., None])[..., 0]  # (B, T)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss - label_smoothing * logprobs.mean(-1)
    return (loss * (targets != PAD)).sum()


def gold(logprobs, frozen_logprobs, mle_logprobs, mask, reward="p", steps=5, gamma=1.0,
         min_weight=0.2, min_reward=0.1, offset=10.0):
    """GOLD, generation by off-policy learning from demonstrations (Pang & He 2021,
    arXiv:2009.07839), a policy gradient on given outputs:

        -Σ_t clamp(π̃(y_t), u, 1) · Q_t · log π_θ(y_t),    Q_t = Σ_{k=0..K} γ^k max(c, r_{t+k})

    π̃ is a frozen copy of the policy (per-token importance weight, u = min_weight); r comes from
    p_MLE, the BC policy: r = p_MLE for GOLD-s (reward="s"), a sum of probabilities, or
    r = log p_MLE + offset for GOLD-p (reward="p"), a product of them. c = min_reward. K = steps = 5
    as in the ReST paper.

    Positions past the end of a sentence count as probability 1, as the GOLD paper intends. (Its
    authors' code does so only past the longest sentence of the batch, and takes shorter sentences'
    padding for tokens; where all sentences are of one length, both agree to 1e-6.)

    logprobs, frozen_logprobs, mle_logprobs, mask: (B, T). The learned reward enters only through
    the filter that chose these pairs.
    """
    if reward not in ("p", "s"):
        raise ValueError(f'reward = {reward!r}, but GOLD knows "p" (product) and "s" (sum)')
    mle = mle_logprobs * mask  # log 1 = 0 on padding
    r = mle.exp() if reward == "s" else mle + offset
    past_the_end = 1.0 if reward == "s" else offset
    r = F.pad(r.clamp(min=min_reward), (0, steps), value=past_the_end)
    T = logprobs.size(1)
    q = sum(gamma**k * r[:, k : k + T] for k in range(steps + 1))  # reward to go (B, T)
    weight = frozen_logprobs.exp().clamp(min_weight, 1.0)
    return -(weight * q * logprobs * mask).sum()


def oac(logprobs, advantages, mask):
    """Offline actor-critic (Mathieu et al. 2021), without V-trace:  -Σ_t A_t log π_θ(y_t).

    A_t = G_t - V^μ(s_t), where V^μ is the fixed value of the behaviour policy. All (B, T).
    """
    return -(advantages * logprobs * mask).sum()


def vmpo(logprobs, advantages, mask, log_eta, epsilon=0.1):
    """V-MPO's policy and temperature losses (Song et al. 2019, arXiv:1909.12238, eqs. 3 and 4):

        L_π = -Σ_{D̃} ψ log π_θ(y_t),   ψ = softmax_{D̃}(A / η),
        L_η = η ε + η log mean_{D̃} exp(A / η)

    over D̃, the tokens whose advantage is in the top half of the batch. log_eta is a scalar that is
    trained by L_η, so that η stays positive; ψ carries no gradient. logprobs, advantages, mask:
    (B, T) -> the scalar L_π + L_η, already a (weighted) mean.
    """
    real = mask.bool()
    advantages, logprobs = advantages[real], logprobs[real]
    top = advantages.topk((len(advantages) + 1) // 2).indices
    advantages, logprobs = advantages[top], logprobs[top]
    eta = log_eta.exp()
    psi = (advantages / eta.detach()).softmax(0)
    log_mean_exp = (advantages / eta).logsumexp(0) - math.log(len(top))
    return -(psi * logprobs).sum() + eta * epsilon + eta * log_mean_exp


def bvmpo(logprobs, advantages, kl, mask, log_eta, kl_weight, epsilon=0.1):
    """BVMPO:  L_VMPO + λ KL(π_behaviour ‖ π_θ), its λ = kl_weight annealed from 1 to 1e-5.

    V-MPO's own trust region, L_α, is left out: the KL takes its place. λ is annealed anew in each
    Improve. The KL is to the policy that grew D_g; the value is fitted to all of D_g, D included.
    kl (B, T) is `kl_divergence` at each position; λ multiplies its mean over the tokens. The whole
    is multiplied by the number of tokens, so that the trainer treats it like the other losses.
    """
    n_tokens = mask.sum()
    kl_term = kl_weight * (kl * mask).sum()
    return vmpo(logprobs, advantages, mask, log_eta, epsilon) * n_tokens + kl_term


def anneal(progress, start=1.0, end=1e-5):
    """BVMPO's λ: geometric from `start` at progress 0 to `end` at progress 1."""
    return start * (end / start) ** min(max(progress, 0.0), 1.0)


def ppo(logprobs, old_logprobs, advantages, kl, mask, clip=0.2, kl_weight=0.0):
    """PPO, proximal policy optimisation: the clipped surrogate (Schulman et al. 2017,
    arXiv:1707.06347, eq. 7) with a KL penalty:

        -Σ_t [ min(ρ_t A_t, clamp(ρ_t, 1-ε, 1+ε) A_t) - β KL(π_θ ‖ π_BC)_t ],   ρ_t = π_θ / π_old

    ε = clip, β = kl_weight. All (B, T); kl is `kl_divergence` of the policy from the BC policy.
    """
    ratio = ((logprobs - old_logprobs) * mask).exp()  # 1 on padding
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -((surrogate - kl_weight * kl) * mask).sum()


def kl_divergence(p_logits, q_logits):
    """KL(p ‖ q) over the vocabulary at each position: logits (B, T, V) -> (B, T), in nats."""
    p, q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


# ------------------------------------------------------------------ the losses as Improve uses them


@dataclass
class ReferenceModels:
    """The networks that a loss may look at, and does not train."""

    bc: nn.Module = None  # the BC policy: GOLD's p_MLE, PPO's anchor
    behaviour: nn.Module = None  # the policy that grew D_g: BVMPO's anchor
    value: nn.Module = None  # V(x, y_<t), fitted to D_g: OAC, BVMPO


class Loss(nn.Module):
    """loss(logits, batch, update, updates) -> the loss summed over the batch's tokens, a scalar.

    logits (B, T, V) of the policy that is trained, in float32; batch: infra.batches.Batch; the
    number of this update, from 0, and of all. What a loss keeps or trains is its own parameters and
    buffers, which the trainer saves and trains beside the policy's.
    """

    needs_value = False  # whether reference.value is to be trained before

    def __init__(self, settings, policy, reference):
        super().__init__()
        self.settings, self.reference = settings, reference
        self.policy = [policy]  # in a list, since it is no part of the loss


class BC(Loss):
    """behaviour cloning: negative log-likelihood of what the filter keeps"""

    def forward(self, logits, batch, update, updates):
        return bc(logits, batch.tokens, self.settings.label_smoothing)


class GOLD(Loss):
    """generation by off-policy learning from demonstrations"""

    def __init__(self, settings, policy, reference):
        super().__init__(settings, policy, reference)
        self.frozen = copy.deepcopy(policy).requires_grad_(False)  # π̃

    def forward(self, logits, batch, update, updates):
        if update % self.settings.gold_sync == 0:  # π̃ becomes the policy of now
            self.frozen.load_state_dict(self.policy[0].state_dict())
        frozen, mle = (chosen_logprobs(reference_logits(network, batch), batch)
                       for network in (self.frozen, self.reference.bc))
        return gold(chosen_logprobs(logits, batch), frozen, mle, batch.mask,
                    self.settings.gold_reward)


class OAC(Loss):
    """offline actor-critic: the advantage over the value that D_g's own pairs have"""

    needs_value = True

    def forward(self, logits, batch, update, updates):
        advantages = batch.reward - values(self.reference.value, batch)  # A_t = G_t - V(s_t)
        return oac(chosen_logprobs(logits, batch), advantages, batch.mask)


class BVMPO(Loss):
    """V-MPO with the same value, and an annealed KL to the policy that grew D_g"""

    needs_value = True

    def __init__(self, settings, policy, reference):
        super().__init__(settings, policy, reference)
        self.log_eta = nn.Parameter(torch.zeros(()))  # V-MPO's temperature η starts from 1

    def forward(self, logits, batch, update, updates):
        advantages = batch.reward - values(self.reference.value, batch)
        kl = kl_divergence(reference_logits(self.reference.behaviour, batch), logits)
        return bvmpo(chosen_logprobs(logits, batch), advantages, kl, batch.mask, self.log_eta,
                     anneal(update / updates), self.settings.bvmpo_epsilon)


class PPO(Loss):
    """proximal policy optimisation with a KL to BC; the batch's reward is the advantage"""

    def forward(self, logits, batch, update, updates):
        kl = kl_divergence(logits, reference_logits(self.reference.bc, batch))
        return ppo(chosen_logprobs(logits, batch), batch.old_logprobs,
                   batch.reward.expand_as(batch.mask), kl, batch.mask,
                   kl_weight=self.settings.ppo_kl)


LOSSES = {"bc": BC, "gold": GOLD, "bvmpo": BVMPO, "oac": OAC}  # for --loss


def chosen_logprobs(logits, batch):
    """log π(y_t | y_<t, x) of the batch's targets: (B, T, V) -> (B, T)"""
    return logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]


@torch.no_grad()
def reference_logits(network, batch):
    """The logits of a policy that is not trained."""
    return network.eval()(batch.source, shift_right(batch.tokens)).float()  # (B, T, V)


@torch.no_grad()
def values(value_model, batch):
    """V(x, y_<t) before each target token, in [0, 1]: (B, T)"""
    return value_model.eval()(batch.source, batch.tokens).sigmoid()
