"""What "good" means: the reward model R(x, y) in [0, 1], and the value model V(x, y_<t).

Both are the policy's own network with a head of one output, started from a policy's weights (BC's;
for the value, those that grew D_g), which already know how the two languages fit together. The
reward model is reference-free, like the paper's Metric X: it reads a source and an output, and
nothing else. It is trained on ratings (regression) or on preferences within a source
(Bradley-Terry).

    reward = RewardModel.from_policy(bc_policy)
    train_reward(reward, sources, ratings, Training(updates=500), seed=0)
    scores = reward.score(sources, outputs)                        # (n,) in [0, 1]

Anything that maps sources and outputs to n finite numbers in [0, 1] can stand in for `score`. A
Bradley-Terry score is only defined up to an offset per source: it ranks the outputs of one source,
and belongs with the per-source filters, never with one global threshold.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from infra.batches import bucket_by_length, pad
from infra.errors import UserError
from infra.pairs import check_rewards
from infra.processes import all_reduce, shard
from infra.seeds import stream
from infra.trainer import Trainer
from model import PAD, Transformer, eval_mode, shift_right


class PolicyWithHead(nn.Module):
    """A policy's body, with a head that makes one number of its states."""

    def __init__(self, config, head):
        super().__init__()
        self.body, self.head = Transformer(config), head

    @classmethod
    def from_policy(cls, policy):
        with torch.random.fork_rng([]):  # the head does not depend on what was drawn before
            torch.default_generator.manual_seed(0)
            model = cls(policy.config).to(policy.embedding.weight.device)
        model.body.load_state_dict(policy.state_dict())
        return model

    def states(self, src, tokens):
        """The decoder's hidden states s_t, of the prefix (x, y_<t) before each y_t: (B, T, D)."""
        return self.body.decode(shift_right(tokens), *self.body.encode(src))


class RewardModel(PolicyWithHead):
    """R(x, y) = σ(MLP(mean_t [s_t, s_t ⊙ e(y_t), log π(y_t)])): how well each token fits its place.

    e are the body's embeddings, so that s_t ⊙ e(y_t) sums to its logit for y_t, and log π(y_t) is
    that logit against all others. All three are the BC policy's at first: it hands on what it knows
    of both languages, and the ratings teach what it does not.
    """

    def __init__(self, config):
        D = config.d_model
        super().__init__(config, nn.Sequential(nn.Linear(2 * D + 1, D), nn.ReLU(), nn.Linear(D, 1)))

    def forward(self, src, tokens):
        """src (B, S), tokens (B, T) without bos -> logits (B,); R is their sigmoid."""
        states = self.states(src, tokens)
        logits = self.body.logits(states)  # (B, T, V)
        logprobs = logits.gather(-1, tokens[..., None]) - logits.logsumexp(-1, keepdim=True)
        features = torch.cat([states, states * self.body.embedding(tokens), logprobs], dim=-1)
        real = (tokens != PAD)[..., None]
        return self.head((features * real).sum(1) / real.sum(1).clamp(min=1))[:, 0]

    def score(self, sources, outputs, batch_tokens=2048):
        """n sources and n outputs, as ids -> rewards (n,) float32 in [0, 1]."""
        outputs = [ids[: self.body.config.max_len] for ids in outputs]
        scores = np.zeros(len(outputs), np.float32)
        lengths = np.array([max(len(x), len(y)) for x, y in zip(sources, outputs)])
        device = self.body.embedding.weight.device
        with eval_mode(self), torch.inference_mode():
            for index in shard(bucket_by_length(lengths, batch_tokens)):
                src, out = (pad([ids[i] for i in index], device) for ids in (sources, outputs))
                scores[index] = self(src, out).float().sigmoid().cpu()
        all_reduce([torch.from_numpy(scores)])
        return scores


class ValueModel(PolicyWithHead):
    """V(x, y_<t): the return to expect before y_t is chosen."""

    def __init__(self, config):
        super().__init__(config, nn.Linear(config.d_model, 1))

    def forward(self, src, tokens):
        """src (B, S), tokens (B, T) without bos -> logits (B, T); V is their sigmoid."""
        return self.head(self.states(src, tokens))[..., 0]


def rating_loss(logits, ratings):
    """Regression: the cross-entropy to ratings in [0, 1] as soft labels, (n,), (n,) -> the sum.

    Its best answer is the mean rating, like the squared error's, but its gradient does not die
    where a sigmoid is flat.
    """
    return F.binary_cross_entropy_with_logits(logits, ratings, reduction="sum")


def preference_loss(winners, losers):
    """Preferences:  -Σ log σ(r(x, y_w) - r(x, y_l)), Bradley-Terry (Christiano et al. 2017, eq. 1)

    r are logits: (n,) of the outputs that were preferred, (n,) of those that were not.
    """
    return -F.logsigmoid(winners - losers).sum()


def ordered_within_source(source, given, true):
    """The share of pairs of outputs of one source that `given` orders as `true` does; all (n,).

    It is what a filter within a source needs of a reward. Where `given` has a tie, half a pair is
    counted; None if no source has two outputs that differ in truth. Takes memory in n².
    """
    better = (source[:, None] == source) & (true[:, None] > true)  # row better than column
    order = np.sign(given[:, None] - given)[better]
    return float((order + 1).mean() / 2) if len(order) else None


def train_reward(model, sources, rated, hp, seed, preferences=False, **trainer_args):
    """Train on `rated`, Pairs whose reward is the rating in [0, 1].

    By regression, or with preferences=True on preferences between outputs of the same source.
    """
    check_rewards(rated.reward, len(rated), "rating")
    device = model.body.embedding.weight.device
    rating = torch.tensor(rated.reward, device=device)
    winners = losers = np.arange(len(rated))  # of ratings: each pair by itself
    if preferences:
        winners, losers = preference_pairs(rated, seed)
    if len(winners) == 0:
        raise UserError("no source has two outputs of different rating: nothing to prefer")

    def logits(index):
        src = pad([sources[i] for i in rated.source[index]], device)
        return model(src, pad(rated.targets(index), device))

    lengths = rated.padded_lengths(sources)
    lengths = np.maximum(lengths[winners], lengths[losers])
    with Trainer(model, lengths, np.ones(len(winners)), hp, seed, names=rated.source[winners],
                 **trainer_args) as trainer:
        while not trainer.is_done():
            for index in trainer.next_update():
                with trainer.autocast():
                    if preferences:
                        loss_sum = preference_loss(logits(winners[index]), logits(losers[index]))
                    else:
                        loss_sum = rating_loss(logits(index), rating[index])
                trainer.backward(loss_sum)
            trainer.step()
    return trainer.result()


def preference_pairs(rated, seed):
    """Indices (winners, losers): neighbours in a random order of each source's outputs; no ties."""
    order = stream("preferences", seed).permutation(len(rated))
    order = order[np.argsort(rated.source[order], kind="stable")]
    left, right = order[:-1], order[1:]
    same = rated.source[left] == rated.source[right]
    differ = same & (rated.reward[left] != rated.reward[right])
    left, right = left[differ], right[differ]
    wins = rated.reward[left] > rated.reward[right]
    return np.where(wins, left, right), np.where(wins, right, left)


def train_value(model, sources, pairs, hp, seed, **trainer_args):
    """Behaviour value estimation: the Monte-Carlo return of D_g's own pairs, at every token.

    The only reward comes at the end and γ = 1, so the return of each position is R(x, y).
    """
    device = model.body.embedding.weight.device
    reward = torch.tensor(pairs.reward, device=device)
    with Trainer(model, pairs.padded_lengths(sources), pairs.lengths, hp, seed,
                 names=pairs.source, **trainer_args) as trainer:
        while not trainer.is_done():
            for index in trainer.next_update():
                tokens = pad(pairs.targets(index), device)
                with trainer.autocast():
                    values = model(pad([sources[i] for i in pairs.source[index]], device), tokens)
                    returns = reward[index][:, None].expand_as(values)
                    loss = F.binary_cross_entropy_with_logits(values, returns, reduction="none")
                    loss_sum = loss[tokens != PAD].sum()
                trainer.backward(loss_sum)
            trainer.step()
    return trainer.result()
