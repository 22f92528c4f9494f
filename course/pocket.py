"""ReST in one file that imports torch alone: the algorithm to paste on a slide, or to type in.

    python course/pocket.py          # under half a minute on one core

A source is a row of digits; its translation, each digit's letter, the last one first. People write
it down with a habit: they mistake some digits more often than not. A policy is cloned from them
(BC), and then improved by Algorithm 1 of arXiv:2308.08998: Grow samples outputs and scores them,
Improve trains on what scores above a threshold τ, which rises. The reward here is a noisy rater's;
the project around this file has a learned one, held-out sources that say when an Improve has to
stop, and what else one needs.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_num_threads(1)
LENGTH, DIGITS, BOS = 8, 10, 20  # ids: 0-9 digits, 10-19 letters, 20 begins an output
LEXICON = 10 + torch.randperm(DIGITS)  # digit -> letter
HABIT = LEXICON.roll(1)  # what people write by mistake ...
HABIT_RATE = torch.where(torch.arange(DIGITS) < 5, 0.7, 0.1)  # ... how often, for each digit


def sources(n):
    return torch.randint(0, DIGITS, (n, LENGTH))  # (n, L)


def demonstrate(x):
    """What people write: the letters, by habit some of them wrong, the last one first."""
    by_habit = torch.rand(x.shape) < HABIT_RATE[x]
    return torch.where(by_habit, HABIT[x], LEXICON[x]).flip(1)


def right(x, y):
    """The share of letters that are right, (n,): all is judged by it, nothing trained on it."""
    return (y == LEXICON[x].flip(1)).float().mean(1)


def reward(x, y):
    """R(x, y), (n,): what is right, with a rater's noise."""
    return right(x, y) + 0.1 * torch.randn(len(x))


# --------------------------------------------------------------------------------------- the policy


class Policy(nn.Module):
    """π(y|x): a decoder-only transformer that reads x, then writes y letter by letter."""

    def __init__(self, width=48, heads=4):
        super().__init__()
        self.embedding = nn.Embedding(BOS + 1, width)
        self.position = nn.Parameter(0.1 * torch.randn(2 * LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True,
                                           norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, BOS)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(2 * LENGTH))

    def forward(self, x, y):
        """x (B, L), y (B, T) with T <= L -> log π(· | x, y_<t) for each t, (B, T, V)."""
        start = torch.full_like(x[:, :1], BOS)
        seen = torch.cat([x, start, y[:, :-1]], 1)  # to write y_t one sees x and y_<t
        T = seen.size(1)
        hidden = self.body(self.embedding(seen) + self.position[:T], self.mask[:T, :T])
        return self.head(hidden[:, LENGTH:]).log_softmax(-1)

    @torch.no_grad()
    def sample(self, x, temperature=1.0):
        """One output for each source, (B, L)."""
        y = x.new_zeros(len(x), 0)
        for _ in range(LENGTH):
            room = y.new_zeros(len(x), 1)  # for the letter to come, which forward does not look at
            logprobs = self(x, torch.cat([y, room], 1))[:, -1]
            probs = (logprobs / temperature).softmax(-1)
            y = torch.cat([y, torch.multinomial(probs, 1)], 1)
        return y


def bc_loss(policy, x, y):
    """Behaviour cloning: -log π(y|x), the mean over letters."""
    return F.nll_loss(policy(x, y).flatten(0, 1), y.flatten())


def train(policy, x, y, updates, lr, batch=128):
    """Minimise the loss on pairs (x, y)."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr)
    for k in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - k / updates)
        pick = torch.randint(0, len(x), (batch,))
        loss = bc_loss(policy, x[pick], y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# -------------------------------------------------------------------------------------- Algorithm 1


def grow(policy, x, y, samples=4, temperature=0.8):
    """D_g: samples of the policy for each source, joined with the human pairs, all scored once."""
    many = x.repeat(samples, 1)
    xs, ys = torch.cat([many, x]), torch.cat([policy.sample(many, temperature), y])
    return xs, ys, reward(xs, ys)


def rest(policy, x, y, report, G=2, quantiles=(0.5, 0.7, 0.85)):
    """for g: Grow; for i: Improve on the pairs whose reward is above τ_i, which rises."""
    for g in range(1, G + 1):
        xs, ys, r = grow(policy, x, y)
        for i in range(g > 1, len(quantiles) + 1):  # the first Grow begins with I = 0: no filter
            tau = r.quantile(quantiles[i - 1]) if i else -torch.inf
            kept = r > tau
            train(policy, xs[kept], ys[kept], updates=50, lr=1e-3 * 0.8**i)
            report(f"ReST ({g},{i})", policy, f"kept {100 * kept.float().mean():3.0f} %")


def main():
    x, test = sources(1200), sources(500)
    y = demonstrate(x)
    rows = []

    def report(name, policy, note=""):
        sampled, greedy = (right(test, policy.sample(test, t)).mean().item() for t in (1.0, 1e-4))
        rows.append((name, sampled, greedy))
        print(f"{name:12}{100 * sampled:8.1f}{100 * greedy:8.1f}   {note}")

    print(f"{'% right':12}{'sampled':>8}{'greedy':>8}")
    print(f"{'people':12}{100 * right(x, y).mean():8.1f}")
    policy = Policy()
    train(policy, x, y, updates=400, lr=3e-3)
    report("BC", policy)
    rest(policy, x, y, report)
    return rows


if __name__ == "__main__":
    main()
