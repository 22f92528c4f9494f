"""One step of decoding with a key-value cache, equal to the whole forward pass."""

import torch

from course.kit import Exercise, Mistake, Wrong
from model import BOS, Cache, Config, Transformer, shift_right

SOURCES = torch.tensor([[4, 5, 6, 2], [7, 2, 0, 0]])  # the second one is padded
TARGETS = torch.tensor([[5, 3, 8, 2], [6, 6, 4, 2], [3, 7, 5, 2], [8, 4, 3, 2]])  # two of each


def decoder():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        policy = Transformer(Config(10, 16, 2, 1, 2, 32, 0.0, 8)).double().eval()
        for parameter in policy.parameters():  # so that no two layer norms are alike
            parameter.data += 0.3 * torch.randn_like(parameter)
    return policy


@torch.no_grad()
def step_by_step(first, last, n=2):
    """The logits of some positions of given outputs, n for each source, one step at a time."""
    policy, targets = decoder(), TARGETS if n == 2 else TARGETS[::2]
    cache, tokens, logits = Cache(policy, SOURCES, n), torch.full((2 * n,), BOS), []
    for t in range(last + 1):
        cache.advance()
        logits.append(policy.step(tokens, cache))
        tokens = targets[:, t]
    whole = policy(SOURCES.repeat_interleave(n, 0), shift_right(targets))
    if torch.is_tensor(logits[0]) and logits[0].shape != whole[:, 0].shape:
        raise Wrong(f"the states that come out give logits of shape {tuple(logits[0].shape)}, not "
                    f"{tuple(whole[:, 0].shape)}: x goes in and out as (R, 1, D)")
    return {f"the logits at position {t}": logits[t] for t in range(first, last + 1)}


EXERCISE = Exercise(
    name="cached-step",
    goal="You can decode without computing anything twice: what DecoderLayer.forward does for a "
         "whole target, for its newest position alone.",
    functions=("model.DecoderLayer.step",),
    stages={
        "the first position, one sample of each source": lambda answer: step_by_step(0, 0, n=1),
        "the first position, two samples of each source": lambda answer: step_by_step(0, 0),
        "the second position, which looks back": lambda answer: step_by_step(1, 1),
        "to the end": lambda answer: step_by_step(2, 3),
    },
    mistakes=(
        Mistake("cache.append(layer_kv, self.self_attention.keys_values(h))",
                "self.self_attention.keys_values(h)",
                "this position sees only itself: its keys and values have to join those before "
                "(cache.append returns all so far)."),
        Mistake("self.self_attention.keys_values(h)))", "self.self_attention.keys_values(x)))",
                "the keys and values are made of x before its layer norm; in forward, of h."),
        Mistake("h = self.norms[0](x)", "h = x",
                "the first layer norm is missing: each block reads the norm of x, and adds to x."),
        Mistake("x = x + self.self_attention(", "x = self.self_attention(",
                "self-attention takes the place of x; it has to be added to it."),
        Mistake("self.cross_attention(h, memory, cache.mask)", "self.cross_attention(h, memory)",
                "cross-attention looks at the padding of short sources: cache.mask says what is "
                "real."),
        Mistake("x = x + cache.ungroup(", "x = cache.ungroup(",
                "cross-attention takes the place of x; it has to be added to it."),
        Mistake("h = cache.group_by_source(self.norms[1](x))",
                "h = cache.group_by_source(x)",
                "the second layer norm is missing, before cross-attention."),
        Mistake("return x + self.feed_forward(self.norms[2](x))",
                "return self.feed_forward(self.norms[2](x))",
                "the feed-forward block takes the place of x; it has to be added to it."),
        Mistake("self.norms[2]", "self.norms[1]",
                "the feed-forward block has a layer norm of its own, the third."),
    ),
    hints=("Begin from DecoderLayer.forward in model.py: the same three blocks, without dropout.",
           "cache.append(layer_kv, [keys, values]) keeps those of this position and returns all.",
           "For cross-attention the rows of a source stand side by side, as positions do: "
           "cache.group_by_source(...) before, cache.ungroup(...) after."),
    minutes=40, difficulty=3, points=4, after=("sample-token",))
