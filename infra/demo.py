"""What the demo reports of a policy beside its reward. A problem is a class of train_toy.TASKS."""

import numpy as np

from infra.pairs import score
from infra.sampling import sample_outputs


def metrics(problem, task, settings, policy, sampled, greedy):
    """What a row has beside the reward, on test sources.

    Of samples and greedy outputs: the oracle. Of samples at temperature 0.8: reward and oracle,
    which tell a better policy from one that is only sharper. Early signs of over-optimisation: the
    length of samples, as a share of the right answers', and how many of their pairs of neighbours
    are different. Where outputs are checked, pass_at_8: the share of sources of which one of eight
    samples is right.
    """
    sources = task.test_sources

    def draw(n, name, temperature):
        drawn = sample_outputs(policy, sources, n, (name, settings.seed), task.max_len, temperature,
                               **settings.decoding())
        return score(drawn, sources, task.reward)

    cool = draw(1, "cool", 0.8)
    oracle, greedy_oracle, cool_oracle = (problem.oracle(sources, x.targets())
                                          for x in (sampled, greedy, cool))
    neighbours = [pair for y in sampled.targets() for pair in zip(y[:-1].tolist(), y[1:].tolist())]
    row = {"oracle": oracle.mean(), "greedy_oracle": greedy_oracle.mean(),
           "cool_reward": cool.reward.mean(), "cool_oracle": cool_oracle.mean(),
           "reward_error": np.sqrt(np.mean((sampled.reward - oracle) ** 2)),
           "length": len(sampled.tokens) / sum(len(problem.answer(x)) for x in sources),
           "distinct_2": len(set(neighbours)) / max(1, len(neighbours))}
    if problem.reward:
        row["pass_at_8"] = draw(8, "pass", 1.0).reward.reshape(-1, 8).max(1).mean()
    return {name: float(value) for name, value in row.items()}


def example_heads(problem, task, count=2):
    """Fixed test sources with their right answer, for `Report` -> lines of text for each."""
    return [[f"{'source':12}{'':15}{problem.text(x)}",
             f"{'right':12}reward oracle  {problem.text(problem.answer(x))}"]
            for x in task.test_sources[:count]]


def example_lines(problem, task, policy, count=2):
    """A policy's greedy outputs for these sources, wrong words marked by * -> a line for each."""
    sources = task.test_sources[:count]
    drawn = sample_outputs(policy, sources, 1, 0, task.max_len, temperature=0)
    drawn, lines = score(drawn, sources, task.reward), []
    for x, y, reward in zip(sources, drawn.targets(), drawn.reward):
        words = [word + ("" if right else "*")
                 for word, right in zip(problem.text(y).split(), problem.right(x, y))]
        lines.append(f"{100 * reward:6.0f}{100 * problem.oracle([x], [y])[0]:7.0f}  "
                     + " ".join(words))
    return lines
