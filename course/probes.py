"""Small batches that several exercises look at, in float64: all random, from fixed seeds."""

import torch
from torch.autograd import grad

from infra.batches import Batch
from model import EOS, PAD

V = 9  # vocabulary


def ragged(lengths=(4, 1, 9, 6), seed=0):
    """A batch of outputs of these lengths -> (Batch, logits (B, T, V) of a policy)."""
    generator = torch.Generator().manual_seed(seed)
    B, T = len(lengths), max(lengths)
    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).double()
    tokens = torch.randint(EOS + 1, V, (B, T), generator=generator)
    tokens[torch.arange(B), torch.tensor(lengths) - 1] = EOS
    tokens = tokens.where(mask > 0, PAD)
    logits = normal((B, T, V), generator)
    old = chosen(logits + 0.4 * normal((B, T, V), generator), tokens) * mask
    reward = torch.rand(B, 1, generator=generator, dtype=torch.float64)
    return Batch(tokens, tokens, mask, reward, old), logits


def normal(shape, seed):
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def chosen(logits, tokens):
    """The log-probabilities of the tokens: (B, T, V), (B, T) -> (B, T). On padding too, where they
    mean nothing: a loss has to leave them out."""
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def with_gradient(loss, *inputs):
    """loss(*inputs), and its gradient with respect to each of the inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    if not torch.is_tensor(value):
        return {"the loss": value}
    grads = grad(value.sum(), leaves, allow_unused=True)
    return {"the loss": value} | {f"the gradient of input {k + 1}": torch.zeros(()) if g is None
                                  else g for k, g in enumerate(grads)}
