# %% [markdown]
"""
# ReST in an hour

Reinforced Self-Training, from a cloned policy to a reward model that is deceived. The task is
small enough for one core of a laptop: all cells together take a minute or two. Everything is
drawn from seeds, so you should see the same story; the last digits differ between machines.

Each section asks what you expect before you run its code. Write the answer down first: to be
wrong is where you learn. Rewards and scores are shown in points of 100.

Needed: `pip install -e ".[all,course]"` in the repository. The code uses its modules, `rest.py`
first of all.
"""

# %%
from dataclasses import replace
from itertools import islice

import matplotlib.pyplot as plt
import numpy as np
import torch

import train_toy
from infra.pairs import Pairs, score
from infra.sampling import sample_outputs
from model import EOS, Config, Transformer

# %%
from rest import Task, above, behaviour_cloning, best_of_n, online, rest, select
from reward import RewardModel, train_reward

SEED = 0
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
torch.set_num_threads(1)  # networks this small gain little from more
settings = train_toy.Settings(seed=SEED, **train_toy.PRESETS["quick"] | dict(
    bc_updates=800, reward_updates=250, updates=80, evaluate_every=40,
    thresholds=(0.6, 0.75, 0.9, 0.95)))

# %% [markdown]
"""
## 1. The task: an invented language

A *source* x is a row of invented words. Its translation replaces each word by a lexicon; an
*adjective* changes places with the word that follows it, and takes the ending (-n or none) that
the word before it asks for. So there is one right translation, and an *oracle* can score any
output y: the share of its words that are right and in their place. Real tasks have no oracle;
here it stands in for human judges, and nothing is trained on it.

Below, adjectives stand in capitals, and a star marks each wrong word of a human translator.

> Before you run this: what kinds of mistakes would you make, if you had learned such a language?
"""

# %%
language, rng = train_toy.Language(settings), np.random.default_rng(SEED)
sources, rated_sources, eval_sources, test_sources = (
    language.sources(n, rng) for n in (3000, 600, 300, 600))
human = [language.demonstrate(x, rng) for x in sources]  # a translation of each training source

# %%
def show_source(x):
    """Its adjectives in capitals, and below it the right translation."""
    words = zip(language.text(x).split(), language.is_adjective[x[:-1] - language.first_source])
    print(f"\n{'source':8}", *(word.upper() if adjective else word for word, adjective in words))
    show("right", x, language.answer(x))

def show(name, x, y):
    """An output, with a star at each word that is wrong."""
    words = zip(language.text(y).split(), language.right(x, y))
    print(f"{name:8}", *(word + ("" if right else "*") for word, right in words))

# %%
for x, y in zip(sources[:3], human):
    show_source(x)
    show("human", x, y)

# %% [markdown]
"""
The human translations are the data set D. Some of their mistakes are slips, at random, but most are
*habits*: a wrong word that people say for a certain right one, often more often than the right one.

> Before you run this: how many points does the oracle give to these people, and to a perfect copy
> of them?
"""

# %%
for word in np.flatnonzero(language.habit_rate)[:4]:
    said, right = (language.names[ids[word]] for ids in (language.habit, language.lexicon))
    print(f"people say {said} for {right} in {language.habit_rate[word]:.0%} of the cases")

# %%
def oracle(sources, outputs):
    return 100 * language.oracle(sources, outputs).mean()

def habits(sources, outputs):
    """Of the words that people have a habit for: how many of 100 came out as the habit."""
    return 100 * np.mean([said == language.habit[word] for x, y in zip(sources, outputs)
                          for word, said in zip(language.reordered(x), y)
                          if language.habit_rate[word] > 0])

print(f"human: oracle {oracle(sources, human):.1f}, habits {habits(sources, human):.1f}")

# %% [markdown]
"""
## 2. Behaviour cloning

A *policy* π(y|x) is a model that writes y word by word. *Behaviour cloning* (BC) trains it to
give the human translations a high probability: supervised learning on D, and nothing else.

A trained policy can be used in two ways. *Sampling* draws each word from its probabilities;
*greedy* decoding takes the likeliest word each time.

> Before you run this: greedy decoding removes the slips that people make at random. Does it
> remove the habits too?
"""

# %%
task = Task(sources, Pairs.of(range(len(sources)), human, human=True), eval_sources, test_sources,
            max_len=language.max_len)
torch.manual_seed(SEED)
policy = Transformer(Config(language.vocab_size, d_model=64, n_heads=2, n_encoder_layers=1,
                            n_decoder_layers=1, d_ff=128, dropout=0.1, max_len=language.positions))
hp = settings.training(updates=settings.bc_updates, lr=settings.bc_lr, warmup=100)
bc = behaviour_cloning(policy, task, settings, hp)

# %%
sampled, greedy = (
    sample_outputs(bc, test_sources, 1, SEED, task.max_len, temperature=temperature).targets()
    for temperature in (1.0, 0.0))
for name, outputs in (("sampled", sampled), ("greedy", greedy)):
    print(f"BC {name}: oracle {oracle(test_sources, outputs):.1f}, "
          f"habits {habits(test_sources, outputs):.1f}")
assert habits(test_sources, greedy) > habits(test_sources, sampled)

# %% [markdown]
"""
It makes them worse. Where a habit is more frequent than the right word, the likeliest word is the
habit, always. No way of decoding a clone can undo that: something has to say which of its outputs
are good.
"""

# %% [markdown]
"""
## 3. Ratings and a reward model

*Raters* score outputs from 0 to 6, with noise of about one point. They rate samples of BC, at
several *temperatures* (above 1 a sample is wilder, below 1 tamer), so that good and bad ones are
among them. From the ratings a *reward model* R(x, y) in [0, 1] is trained. It is all that ReST
will see.
"""

# %%
def ratings(policy, index, seed):
    """What raters say of the policy's samples for these of the rated sources -> Pairs."""
    drawn = Pairs.join([sample_outputs(policy, [rated_sources[i] for i in index], 1, (seed, k),
                                       task.max_len, temperature)
                        for k, temperature in enumerate((0.6, 0.8, 1.0, 1.3))])
    drawn.source = np.asarray(index, np.int32)[drawn.source]
    shown = [rated_sources[i] for i in drawn.source], drawn.targets()
    drawn.reward[:] = language.rate(*shown, noise=1.0, rng=np.random.default_rng(seed))
    return drawn

# %%
def reward_model(rated):
    model = RewardModel.from_policy(bc)  # begins with what BC knows of both languages
    hp = settings.training(updates=settings.reward_updates, lr=settings.reward_lr, warmup=50)
    train_reward(model, rated_sources, rated, hp, SEED)
    return model.eval()

rated = ratings(bc, range(600), SEED)
model = reward_model(rated)
task.reward = model.score  # (sources, outputs) -> rewards in [0, 1]

# %% [markdown]
"""
How does one judge a reward model? A filter will have to choose between outputs of one source. So
take pairs of samples of one source, and count how many it orders as the oracle does; guessing
gets half of them. Then look at its rewards of outputs that were made good or bad on purpose, the
*unit tests* of a reward model.

> Before you run this: a rating is off by a point of six. Will the model order more than three
> pairs of four right, though its teachers are that noisy?
"""

# %%
def ordered_right(model):
    """Of pairs of samples of one held-out source, how many of 100 it orders as the oracle does."""
    drawn = sample_outputs(bc, eval_sources, 4, SEED, task.max_len)
    both = [eval_sources[i] for i in drawn.source], drawn.targets()
    # each sample beside the next one of its source
    truth, said = (np.diff(f(*both).reshape(-1, 4)) for f in (language.oracle, model.score))
    return 100 * np.mean((truth > 0) == (said > 0), where=truth != 0)

print(f"{len(rated)} ratings; ordered right: {ordered_right(model):.1f} of 100 pairs")
assert ordered_right(model) > 75

# %%
answers = [language.answer(x) for x in test_sources]
shuffled = [np.append(rng.permutation(y[:-1]), EOS) for y in answers]
tests = {"the right translation": answers, "a sample of BC": sampled, "right, shuffled": shuffled}
given = {name: 100 * model.score(test_sources, outputs).mean() for name, outputs in tests.items()}
for name, reward in given.items():
    print(f"{name:22} {reward:.1f}")
assert given["the right translation"] > given["a sample of BC"] > given["right, shuffled"]

# %% [markdown]
"""
The noise of the raters averages out over many ratings. The model is not exact, as a right
translation gets less than 100 points; but it puts good above bad, and that is what a filter needs.
"""

# %% [markdown]
"""
## 4. One Grow

Algorithm 1 of the paper has two nested loops. The outer one is *Grow*: sample outputs of the
current policy for all training sources, add D, and score every pair once. The result is D_g. The
first two statements below are what `rest.grow` does.

> Before you run this: whose rewards are spread wider, the samples' or D's? Where in the picture
> are the pairs that could teach the policy something?
"""

# %%
samples = sample_outputs(bc, task.sources, settings.samples, ("my grow", SEED), task.max_len,
                         temperature=0.8)
D_g = score(Pairs.join([samples, task.data]), task.sources, task.reward)
drawn, data = 100 * D_g.reward[~D_g.human], 100 * D_g.reward[D_g.human]
best = drawn.reshape(-1, settings.samples).max(1)  # the samples of a source stand together
print(f"{len(drawn)} samples, mean reward {drawn.mean():.1f}; {len(data)} of D, {data.mean():.1f}")
print(f"mean of the best of {settings.samples} samples of each source: {best.mean():.1f}")
assert abs(drawn.mean() - data.mean()) < 6 and best.mean() > max(drawn.mean(), data.mean()) + 3

# %%
plt.figure(figsize=(6, 2.6))
bins = np.linspace(0, 100, 41)
plt.hist(drawn, bins, density=True, color=BLUE, alpha=0.4, label="samples of BC")
plt.hist(data, bins, density=True, histtype="step", color=GREY, lw=1.6, label="D, human")
plt.xlabel("reward")
plt.yticks([])
plt.legend(frameon=False)
plt.show()

# %% [markdown]
"""
The two are alike: the policy is a copy of the people. But it can be asked more than once, and the
best of a few samples is better than the mean of either. That gap is what the next step feeds on.
"""

# %% [markdown]
"""
## 5. What the threshold keeps

The inner loop is *Improve*. It keeps the pairs of D_g whose reward lies above a threshold τ, the
paper's filter F(x, y; τ) = 1[R(x, y) > τ], and trains on those alone. Each further Improve has a
higher τ; here it is a *quantile* of the rewards of D_g, the value that a given share of them lies
below. The first must lie above the mean reward, so that what is kept is better than the policy.

> Before you run this: the filter does not know who wrote a pair. As τ rises, will the oracle's
> mean of what is kept rise with it? Will human pairs be left at the end?
"""

# %%
of_truth = language.oracle([sources[i] for i in D_g.source], D_g.targets())
kept_truth = []
for i in (0, 1, 2, 3, 4):  # 0: no filter yet
    kept, tau = select(D_g, settings, i)
    kept_truth.append(100 * of_truth[kept].mean())
    line = f"τ {100 * tau:.1f}" if i else "no τ  "
    print(f"Improve {i}: {line}   kept: {kept.sum():5} pairs, {kept[~D_g.human].mean():4.0%} of "
          f"samples, {kept[D_g.human].mean():4.0%} of D; oracle {kept_truth[-1]:.1f}")
assert (np.diff(kept_truth) > 0).all() and kept[D_g.human].any()
assert select(D_g, settings, 1)[1] > D_g.reward.mean()  # the first τ

# %%
kept, tau = select(D_g, settings, 2)
of_source = [np.flatnonzero(D_g.source == k) for k in range(len(sources))]
# a source with two kept pairs, all of whose rewards are different
k = next(k for k, index in enumerate(of_source)
         if kept[index].sum() == 2 and len(set(D_g.reward[index])) == len(index))
show_source(sources[k])
for i in sorted(of_source[k], key=lambda i: -D_g.reward[i]):
    print(f"{'kept' if kept[i] else 'dropped':8}{100 * D_g.reward[i]:5.1f}", end="  ")
    show("human" if D_g.human[i] else "sample", sources[k], D_g.target(i))

# %% [markdown]
"""
Why > and not ≥? Think of a reward that is a check, 1 for a right answer and 0 for a wrong one, on
a hard task.

> Before you run this: where does the quantile lie when most answers are wrong, and what would ≥
> keep?
"""

# %%
checked = np.array([0, 0, 0, 0, 0, 0, 1, 1])
tau = np.quantile(checked, 0.5)
strict, inclusive = above(checked, tau), above(checked, tau, inclusive=True)
print(f"τ = {tau:.0f}; > keeps {strict.sum()} of {len(checked)}, ≥ keeps {inclusive.sum()}")
assert strict.sum() == checked.sum() and inclusive.all()

# %% [markdown]
"""
## 6. Improve

Each Improve goes on from the policy before it, with a lower learning rate, and stops when the
reward on held-out sources no longer rises. `rest` runs Algorithm 1 and hands out the policy after
each Improve; (1,0) is the first Grow with no filter at all, BC on all of D_g. The function below
measures a policy on test sources that nothing is chosen by. *Entropy* says how unsure the policy
is, in nats a token: high means that its samples differ, 0 that they are all the same.

> Before you run this: the policy sees only rewards. What happens to the oracle, to the habits, to
> the entropy? Is (1,0) better than BC?
"""

# %%
def measure(policy, judge=model):
    """Of one sample for each test source; the reward is the judge's."""
    drawn = sample_outputs(policy, test_sources, 1, ("measure", SEED), task.max_len)
    outputs = drawn.targets()
    return {"reward": 100 * judge.score(test_sources, outputs).mean(),
            "oracle": oracle(test_sources, outputs), "habits": habits(test_sources, outputs),
            "entropy": -drawn.logprobs.mean()}

def tell(name, measured):
    digits = {"entropy": 2, "KL to BC": 2}
    print(f"{name:11}", *(f"{key} {x:.{digits.get(key, 1)}f} " for key, x in measured.items()))

# %%
path = {"BC": measure(bc)}
tell("BC", path["BC"])
steps = rest(bc, task, settings)  # a generator: nothing has been done yet
for row, policy, D_g in islice(steps, 5):  # I = 0 to 4 of the first Grow
    name = f"ReST ({row['grow']},{row['improve']})"
    path[name] = measure(policy)
    tell(name, path[name])

# %%
def follow(key):
    return np.array([measured[key] for measured in path.values()])

improves = slice(1, None)  # from (1,0) on
assert (np.diff(follow("reward")[improves]) > 0).all()
assert (np.diff(follow("oracle")[improves]) > 0).all()
of_bc, unfiltered, filtered, *_ = follow("reward")
assert unfiltered - of_bc < filtered - unfiltered
assert follow("habits")[-1] < follow("habits")[0] - 10
assert follow("entropy")[-1] < follow("entropy")[0]

# %% [markdown]
"""
Each Improve raises the reward, and the oracle, which no training saw, rises with it: the habits
go. (1,0) gains little: samples without a selection hold hardly anything that the policy does not
know. Its entropy falls all the same, as the samples were drawn at a temperature below 1.

The entropy keeps falling, and that has a price. A policy that is sure of itself offers the next
Grow fewer different samples to choose from.
"""

# %% [markdown]
"""
## 7. Again: a second Grow

The D_g of the first Grow is used up: its best few pairs have been learned. A second Grow draws
anew, from the better policy. The generator goes on where it stopped.

> Before you run this: the quantiles are the same as before. Is τ? Will the second Grow find as
> many outputs that were not drawn before?
"""

# %%
first_tau, found, last = 100 * select(D_g, settings, 1)[1], row["distinct_samples"], name
for row, policy, D_g in steps:
    name = f"ReST ({row['grow']},{row['improve']})"
    path[name] = measure(policy)
    tell(name, path[name] | {"τ": 100 * row["threshold"]})
second_tau = 100 * select(D_g, settings, 1)[1]
found = found, row["distinct_samples"] - found
print(f"τ of the first Improve: {first_tau:.1f} in Grow 1, {second_tau:.1f} in Grow 2")
print(f"new outputs: {found[0]} in Grow 1, {found[1]} in Grow 2, of as many samples")
assert second_tau > first_tau and found[1] < found[0]
assert path[name]["reward"] > path[last]["reward"]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
for key, colour in (("reward", BLUE), ("oracle", ORANGE), ("habits", GREY)):
    left.plot(follow(key), marker="o", ms=4, color=colour, label=key)
right.plot(follow("entropy"), marker="o", ms=4, color=BLUE)
for ax, title in ((left, "points of 100"), (right, "entropy, nats a token")):
    ax.set_title(title, fontsize=10)
    ax.set_xticks(range(len(path)), [name.removeprefix("ReST ") for name in path], fontsize=8)
left.legend(frameon=False, fontsize=8)
plt.show()

# %%
x = test_sources[np.argmin(language.oracle(test_sources, greedy))]  # BC's worst
show_source(x)
for name, which in (("BC", bc), ("ReST", policy)):
    show(name, x, sample_outputs(which, [x], 1, 0, task.max_len, temperature=0).target(0))

# %% [markdown]
"""
## 8. Best of N

There is a simpler way to use a reward model: draw N samples, and take the best by reward. It needs
no training, but costs N samples at every use. ReST pays once, in training.

> Before you run this: how many samples of BC does it take to equal one of ReST's? Does choosing
> among samples still help after ReST?
"""

# %%
counts, curves = (1, 2, 4, 8, 16), {}
print(f"{'best of N':13}", *(f"{n:6}" for n in counts))
for name, which in (("BC", bc), ("ReST", policy)):
    chosen = [best for n, best in best_of_n(which, task, settings, counts)]
    curves[name] = [100 * best.reward.mean() for best in chosen]
    truth = [oracle([test_sources[i] for i in best.source], best.targets()) for best in chosen]
    for what, values in (("reward", curves[name]), ("oracle", truth)):
        print(f"{name + ', ' + what:13}", *(f"{x:6.1f}" for x in values))
assert curves["ReST"][0] > curves["BC"][2] and curves["ReST"][-1] > curves["ReST"][0]

# %%
plt.figure(figsize=(5, 2.6))
for name, colour in (("BC", GREY), ("ReST", BLUE)):
    plt.plot(counts, curves[name], marker="o", color=colour, label=name)
plt.xscale("log", base=2)
plt.xticks(counts, counts)
plt.xlabel("N, samples to choose from")
plt.ylabel("reward of the best")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
"""
## 9. Online RL

ReST draws a large D_g twice, and trains on each for long. *Online* reinforcement learning draws a
few hundred samples, makes a few updates, and draws again. The usual method is *PPO* (proximal
policy optimisation): it raises the probability of samples that are better than the others of
their source, lowers that of worse ones, and is held near BC by a *KL* term, a penalty on how far
its probabilities have moved.

> Before you run this: with as many samples as ReST has drawn, which will be ahead? Which has
> drawn from more policies?
"""

# %%
budget = row["samples"]  # what both Grows have drawn
online_settings = replace(settings, ppo_samples=budget)
for ppo_row, ppo in online(bc, task, online_settings):
    print(f"PPO: {ppo_row['samples']} samples in {ppo_row['grow']} rounds, ReST: {budget} in 2")
of_bc, of_rest, of_ppo = measure(bc), measure(policy), measure(ppo)
for which, measured in (("BC", of_bc), ("ReST", of_rest), ("PPO", of_ppo)):
    tell(which, measured)
assert of_ppo["reward"] > of_bc["reward"] + 5 and of_ppo["entropy"] > of_rest["entropy"]

# %% [markdown]
"""
Both are far above BC. Which is ahead depends on the number of rounds, the weight of the KL and the
learning rate, which the paper does not give for PPO; `docs/claims.md` says what was measured. PPO
keeps more entropy: for one thing, it draws at temperature 1, and ReST at 0.8. What ReST has ahead
is simplicity: its samples are drawn in one go, and D_g lies there to be looked at.
"""

# %% [markdown]
"""
## 10. What goes wrong

A reward model is right near what its raters have seen. A policy that is pushed to raise it leaves
that region, and finds outputs that only the model likes: *over-optimisation*, or reward hacking.
To see it, train a reward model on the ratings of twenty sources alone, and let PPO follow it
without the KL. The reward model of section 3, which this policy is not trained on, is a second
judge; and the *KL to BC*, how far the policy has gone, is measured though not penalised.

> Before you run this: what will the few ratings' reward do, and what the oracle? Which of the
> columns could you see in a real task, which has no oracle?
"""

# %%
few = rated.select(rated.source < 20)
poor = reward_model(few)
print(f"{len(few)} ratings; ordered right: {ordered_right(poor):.1f} of 100 pairs, "
      f"with all {len(rated)} ratings {ordered_right(model):.1f}")
assert ordered_right(poor) < ordered_right(model) - 5
poor_task = replace(task, reward=poor.score)
free = replace(settings, ppo_samples=20000, ppo_rows=5, ppo_kl=0.0)

# %%
def judged(policy):
    seen = measure(policy, poor)
    return {"reward": seen["reward"], "second judge": measure(policy)["reward"],
            "oracle": seen["oracle"]}

way = [judged(bc) | {"KL to BC": 0.0}]
for hacked_row, hacked in online(bc, poor_task, free):
    way.append(judged(hacked) | {"KL to BC": hacked_row["kl_to_bc"]})
for k, measured in enumerate(way):
    tell(f"{k} of 5", measured)

# %%
before, *_, after = way
assert (np.diff([w["reward"] for w in way]) > 0).all()
assert after["reward"] > before["reward"] + 10 and after["KL to BC"] > 0.5
assert after["second judge"] - before["second judge"] < (after["reward"] - before["reward"]) / 2
assert after["oracle"] < before["oracle"]

# %%
plt.figure(figsize=(5, 2.6))
for key, colour in (("reward", BLUE), ("second judge", GREY), ("oracle", ORANGE)):
    plt.plot([w["KL to BC"] for w in way], [w[key] for w in way], marker="o", ms=4, color=colour,
             label=key)
plt.xlabel("KL to BC, nats a token")
plt.legend(frameon=False)
plt.show()

# %%
for x in test_sources[:2]:
    show_source(x)
    for name, which in (("BC", bc), ("astray", hacked)):
        show(name, x, sample_outputs(which, [x], 1, 0, task.max_len, temperature=0).target(0))

# %% [markdown]
"""
The reward keeps rising, and in the end the oracle is below that of BC. Without an oracle you can
still see it: the KL is large, and a second judge does not follow. People would not either, if you
asked them; and to read some outputs, as above, costs nothing.

What helps? A KL term, which keeps the policy where the model was trained. ReST with the same few
ratings: it learns only from what it drew near BC, in two Grows, with D among it. And more ratings,
from which a better model comes.

> Before you run this: with which of the three will the oracle end above BC's? Does a good reward
> model need a KL too?
"""

# %%
ends = {"BC": of_bc["oracle"], "few ratings, no KL": after["oracle"]}
for which, where, weight in (("few ratings, KL", poor_task, settings.ppo_kl),
                             ("all ratings, no KL", task, 0.0)):
    for _, other in online(bc, where, replace(free, ppo_rows=1, ppo_kl=weight)):
        ends[which] = measure(other)["oracle"]
for _, other, _ in rest(bc, poor_task, settings):
    ends["few ratings, ReST"] = measure(other)["oracle"]
ends["all ratings, KL"] = of_ppo["oracle"]  # section 9's, which drew somewhat more
for which, truth in ends.items():
    print(f"{which:20} oracle {truth:.1f}")

# %%
assert all(ends[which] > ends["few ratings, no KL"] + 5 for which in (
    "few ratings, KL", "few ratings, ReST", "all ratings, no KL"))
assert ends["all ratings, KL"] > ends["all ratings, no KL"]

# %% [markdown]
"""
None of them lets the model see where it was wrong. A *refresh* does: rate some outputs of the
policy that went astray, as few as before, and train the model anew on both.

> Before you run this: what will the new model say of that policy, beside BC?
"""

# %%
renewed = reward_model(Pairs.join([few, ratings(hacked, range(20, 40), SEED + 1)]))
gains = []
for name, which in (("few ratings", poor), ("refreshed", renewed)):
    first, last = (measure(policy, which)["reward"] for policy in (bc, hacked))
    gains.append(last - first)
    print(f"{name:12} BC {first:.1f}, the policy that went astray {last:.1f}")
assert gains[1] < gains[0] * 2 / 3

# %% [markdown]
"""
Much of the gain was imagined. `python train_toy.py --refresh` does the like before each Grow: a
share of the ratings is kept for outputs of the newer policy.
"""

# %% [markdown]
"""
## What next

To read in `rest.py`, in this order:

- the filters, `above` and `quantile`, and `select`: what section 5 did;
- `grow` and `improve`: the training loop is twenty lines;
- `rest`, the two loops of Algorithm 1, beside the pseudo-code at the top of the file;
- `online`: the same loop with many small Grows, no D and no filter.

Then do the exercises, in which you write these functions yourself: `python -m course` lists them.
After this notebook begin with `bc-loss`, `filters` and `algorithm-1`; `ppo` and `reward-hacking`
go on from sections 9 and 10, and `own-task` takes the loop to a task of yours.
"""
