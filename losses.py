"""What Improve minimises: BC, GOLD, BVMPO and OAC; and PPO, for the online baseline.

Each loss is a pure function of tensors. All that must carry no gradient (advantages, frozen or
behaviour log-probabilities) comes in as an input that was computed without one. Each returns a
*sum over the tokens* of its batch: the caller divides by the tokens of the whole optimiser step, so
that a step made of several ragged micro-batches has exactly the gradient of one big batch. BVMPO
alone looks at its batch as a whole (a median and a softmax), and so is not such a sum.

Letters: B pairs, T target length, V vocabulary; mask (B, T) is 1 on real target tokens, eos
included, and 0 on padding; logprobs (B, T) is log π_θ(y_t | y_<t, x). A trajectory has its only
reward at the end, so with γ = 1 the return G_t = R(x, y) is the same at every position t.
"""

import math

import torch
import torch.nn.functional as F

PAD = 0
LOSSES = {
    "bc": "behaviour cloning: negative log-likelihood of what the filter keeps",
    "gold": "generation by off-policy learning from demonstrations (Pang & He 2021)",
    "bvmpo": "V-MPO with the behaviour policy's value and an annealed KL to that policy",
    "oac": "offline actor-critic with the behaviour policy's value (Mathieu et al. 2021)",
}


def bc(logits, targets, label_smoothing=0.0):
    """Behaviour cloning, the paper's L_NLL:  -Σ_t log π_θ(y_t | y_<t, x).

    logits (B, T, V), targets (B, T) with 0 as padding -> sum over the tokens, a scalar. With label
    smoothing ε the target is (1 - ε) on y_t plus ε spread evenly over the vocabulary.
    """
    logprobs = logits.log_softmax(-1)
    loss = -logprobs.gather(-1, targets[..., None])[..., 0]  # (B, T)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss - label_smoothing * logprobs.mean(-1)
    return (loss * (targets != PAD)).sum()


def gold(logprobs, frozen_logprobs, mle_logprobs, mask, reward="p", steps=5, gamma=1.0,
         min_weight=0.2, min_reward=0.1, offset=10.0):
    """GOLD (Pang & He 2021, arXiv:2009.07839), an off-policy policy gradient on demonstrations:

        -Σ_t clamp(π̃(y_t), u, 1) · Q_t · log π_θ(y_t),    Q_t = Σ_{k=0..K} γ^k max(c, r_{t+k})

    π̃ is a frozen copy of the policy (per-token importance weight, u = min_weight); r comes from
    p_MLE, the BC policy: r = p_MLE for GOLD-s (reward="s"), a sum of probabilities, or
    r = log p_MLE + offset for GOLD-p (reward="p"), a product of them. c = min_reward. Positions
    past the end count as probability 1. K = steps = 5 as in the ReST paper.

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

    The behaviour policy is the one that grew D_g, and the advantages are taken against its value.
    kl (B, T) is `kl_divergence` at each position; λ multiplies its mean over the tokens. The whole
    is multiplied by the number of tokens, so that the caller treats it like the other losses.
    """
    n_tokens = mask.sum()
    kl_term = kl_weight * (kl * mask).sum()
    return vmpo(logprobs, advantages, mask, log_eta, epsilon) * n_tokens + kl_term


def anneal(progress, start=1.0, end=1e-5):
    """BVMPO's λ: geometric from `start` at progress 0 to `end` at progress 1."""
    return start * (end / start) ** min(max(progress, 0.0), 1.0)


def ppo(logprobs, old_logprobs, advantages, kl, mask, clip=0.2, kl_weight=0.0):
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7) with a KL penalty:

        -Σ_t min(ρ_t A_t, clamp(ρ_t, 1-ε, 1+ε) A_t) + β KL(π_θ ‖ π_BC)_t,   ρ_t = π_θ / π_old

    ε = clip, β = kl_weight. All (B, T); kl is `kl_divergence` of the policy from the BC policy.
    """
    ratio = ((logprobs - old_logprobs) * mask).exp()  # 1 on padding
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -((surrogate - kl_weight * kl) * mask).sum()


def kl_divergence(p_logits, q_logits):
    """KL(p ‖ q) over the vocabulary at each position: logits (B, T, V) -> (B, T), in nats."""
    p, q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
