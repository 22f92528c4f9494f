"""What is checked before a run begins, and the signs that ReST goes wrong without an error.

Each warning is printed once in a run. The limits are rough on purpose: a healthy run stays far from
all of them.
"""

import numpy as np
import torch

from infra.batches import collate
from infra.errors import UserError
from infra.pairs import Pairs, check_rewards, first_of_equal
from infra.run import hash_of
from model import EOS, Config, Transformer, shift_right
from reward import ValueModel

# --------------------------------------------------------------------------------- the settings

TRIED = {}  # filters and losses that work, by id; kept here, so that no other gets that id


def check_algorithm(settings, filters, losses, references):
    """Filter, loss, thresholds and steps make sense; the filter's own thresholds are filled in."""
    check_registered("filter", settings.filter, filters, try_filter)
    check_registered("loss", settings.loss, losses,
                     lambda loss: try_loss(loss, settings, references))
    rule = filters[settings.filter]
    settings.thresholds = settings.thresholds or rule.thresholds
    check_thresholds(settings.thresholds, settings.filter, rule)
    check_steps(settings)


def check_registered(kind, name, table, try_it):
    """UserError for a filter or a loss that is unknown, or does not do what it has to."""
    if name not in table:
        raise UserError(f"--{kind} {name}: must be one of {', '.join(table)}")
    if id(table[name]) in TRIED:
        return
    try:
        try_it(table[name])
    except Exception as error:  # it may be the user's own, and raise anything
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"--{kind} {name} cannot be used: {what}{' '.join(str(error).split())}"
                        ) from error
    TRIED[id(table[name])] = table[name]


def try_filter(rule):
    """A filter, on six pairs of two sources."""
    source, reward = np.repeat([0, 1], 3).astype(np.int32), np.linspace(0, 1, 6, dtype=np.float32)
    kept = np.asarray(rule.keep(source, reward, rule.thresholds[0], False))
    if kept.shape != (6,) or kept.dtype != bool:
        raise UserError(f"it returned {kept.dtype} {kept.shape} for 6 pairs, not 6 booleans")
    if not rule.within_source and np.ndim(rule.tau(source, reward, rule.thresholds[0])) > 0:
        raise UserError("its τ is not one number for all sources: say within_source=True")


def try_loss(loss_class, settings, references):
    """A loss and its gradient, on two outputs of a policy of six words."""
    with torch.random.fork_rng([]):
        policy = Transformer(Config(6, 4, 1, 1, 1, 4, 0.0, 4)).eval()
    value = ValueModel.from_policy(policy) if loss_class.needs_value else None
    loss = loss_class(settings, policy, references(policy, policy, value))
    pairs = Pairs.of([0, 1], [[3, 4, EOS], [5, EOS]], reward=[1.0, 0.0])
    batch = collate(pairs, [np.array([3, EOS])] * 2, [0, 1])
    total = loss(policy(batch.source, shift_right(batch.tokens)), batch, 0, 1)
    if not (torch.is_tensor(total) and total.shape == () and torch.isfinite(total)):
        raise UserError(f"it returned {total!r}, not a finite scalar")
    total.backward()


def check_thresholds(thresholds, name, rule):
    steps = np.diff(thresholds) * (-1 if rule.falling else 1)
    if (steps <= 0).any():
        raise UserError(f"--thresholds {list(thresholds)} must "
                        f"{'fall' if rule.falling else 'rise'}: each Improve has a stricter filter "
                        "than the one before")
    if not all(0 <= value <= rule.highest for value in thresholds):
        raise UserError(f"--thresholds {list(thresholds)}: with --filter {name} they lie between "
                        f"0 and {rule.highest:g}")


def check_steps(settings):
    """Each Grow has an Improve; --stop-after names a step."""
    for name in ("improve", "temperature"):
        if not getattr(settings, name):
            raise UserError(f"--{name} is empty: it needs a number at least")
    for g in range(1, min(settings.grow, len(settings.improve) + 1) + 1):  # the last repeats
        if not settings.improves(g):
            raise UserError(f"--improve {list(settings.improve)}: Grow {g} has no Improve"
                            + ("" if settings.unfiltered or g > 1 else ", nor I = 0"))
    wanted = getattr(settings, "stop_after", "")
    if wanted and wanted not in (names := step_names(settings)):
        raise UserError(f"--stop-after {wanted}: no step is called so; there are "
                        + ", ".join(names))


def step_names(settings):
    """Of a run with these settings; some it may not have, as reward with a reward of one's own."""
    names = ["bc", "rated-1", "reward", "evaluate-bc"]
    for g in range(1, settings.grow + 1):
        names += [f"rated-{g}", f"reward-{g}"] if g > 1 and getattr(settings, "refresh", 0) else []
        names += [f"grow-{g}", f"score-{g}", f"value-{g}"]
        names += [f"improve-{g}-{i}" for i in settings.improves(g)]
    return [*names, *(f"ppo-{k}" for k in range(1, settings.ppo_rows + 1)), "best-of-n"]


# ------------------------------------------------------------------------------------- the data


def check_task(task):
    """UserError, a ValueError, for data that cannot be trained on."""
    for name in ("sources", "eval_sources", "test_sources"):
        sources = getattr(task, name)
        if len(sources) == 0:
            raise UserError(f"{name} is empty")
        for i, x in enumerate(sources):
            if np.ndim(x) != 1 or len(x) == 0 or np.asarray(x).dtype.kind not in "iu":
                raise UserError(f"{name}[{i}] is not a list of ids")
    if len(task.data) == 0:
        raise UserError("data has no pairs")
    low, high = task.data.source.min(), task.data.source.max()
    if low < 0 or high >= len(task.sources):
        raise UserError(f"data has pairs of the sources {low} to {high}, but there are "
                        f"{len(task.sources)}")
    if task.data.lengths.min() == 0:
        raise UserError(f"pair {task.data.lengths.argmin()} of data has an empty target: not even "
                        "eos")


def check_start(bc, task, settings, run, name="reward"):
    """Try the reward on some pairs of D; refuse to go on with a run of another task or reward.

    name: what the run calls the reward; online RL has its own, as Grow may have a new one each.
    """
    if task.reward is None:
        raise UserError("the task has no reward")
    if settings.start == "base" and task.base is None:
        raise UserError("start = base: the task has no base, which is what BC began with")
    some = np.unique(np.linspace(0, len(task.data) - 1, 16).astype(int))
    sources = [task.sources[i] for i in task.data.source[some]]
    rewards = check_rewards(task.reward(sources, task.data.targets(some)), len(some))
    run.bind(bc=hash_of([x.detach().cpu().float().numpy() for x in bc.state_dict().values()]),
             training_sources=hash_of(task.sources), eval_sources=hash_of(task.eval_sources),
             test_sources=hash_of(task.test_sources),
             pairs=hash_of(task.data.source, task.data.tokens, task.data.starts),
             **{name: [round(float(x), 3) for x in rewards]})


# ---------------------------------------------------------------------- signs, as the run goes on


def check_bc(done, run):
    """done: what the training of BC came to."""
    first, best = done["first_score"], done["score"]
    if first is not None and best <= first:
        run.warn(f"BC is not better than before its training: its held-out score was {first:.2f} "
                 f"then, and {best:.2f} at best later")


def log_grow(D_g, samples, select, settings, g, run):
    """One line about a new D_g, which is scored, and a warning where one is due."""
    stats = grow_stats(D_g, samples, run.seconds(f"grow-{g}"))
    run.log("grow", grow=g, **stats)
    if stats["nll"] < 0.05:
        run.warn(f"the policy has collapsed: -log π of its samples is {stats['nll']:.3f} nats "
                 "a token, they hold little that is new", "collapsed")
    if stats["truncated"] > 0.5:
        run.warn(f"{stats['truncated']:.0%} of the samples are cut off at the maximum length",
                 "truncated")
    different = stats["distinct"] * settings.samples
    if settings.samples >= 4 and different < 1.5:
        run.warn(f"of {settings.samples} samples of a source only {different:.1f} are distinct: "
                 "a higher temperature would spread them", "distinct")
    (kept, tau), mean_reward = select(D_g, settings, 1), D_g.reward.mean()
    if tau is not None and tau <= mean_reward and (D_g.reward[kept] <= mean_reward).any():
        # τ_1 > V(π) = E_{D_g}[R] is what makes the next policy's V rise
        run.warn(f"the first threshold {tau:.3f} is not above the mean reward {mean_reward:.3f} of "
                 "D_g")


def grow_stats(D_g, samples, seconds):
    """What one looks at after a Grow that drew `samples` in so many seconds; D_g is scored."""
    ends = samples.tokens[samples.starts[1:] - 1] == EOS
    reward, human = D_g.reward, D_g.human
    return {"reward_samples": float(reward[~human].mean()) if (~human).any() else None,
            "reward_data": float(reward[human].mean()) if human.any() else None,
            "truncated": float(1 - ends.mean()),
            "distinct": float(first_of_equal(samples).mean()),
            # its entropy, if they were drawn at temperature 1; below it, as they mostly are, less
            "nll": float(-samples.logprobs.mean()),
            "tokens_per_second": len(samples.tokens) / max(seconds, 1e-9)}


def check_filter(D_g, kept, row, settings, run):
    """kept (n,): what this Improve trains on."""
    name = f"improve-{row['grow']}-{row['improve']}"
    if not kept.any():
        run.warn(f"{name}: the filter kept nothing, so it is skipped")
    elif row["improve"] and kept.all():
        run.warn(f"{name}: the filter kept everything", "everything")
    elif settings.human_data == "filtered" and D_g.human.any() and row["kept_data"] < 0.001:
        run.warn(f"{name}: the filter kept nothing of D: the policy is on its own now", "no D")


# A measure by the reward and one by reference of the same outputs, each with what makes it points
# of 100: on validation where there is one, else in the invented language, on test.
BOTH = (("val_greedy_reward", 100, "val_chrf", 1), ("reward", 100, "oracle", 100))


def check_reward_hacking(rows, run):
    """Is the last row's reward higher than earlier on its way, and its reference metric lower?"""
    last = rows[-1]
    for reward, times, metric, times_too in BOTH:
        if all(reward in row and metric in row for row in rows):
            for row in [row for row in rows[:-1] if row["name"] in ("BC", last["name"])]:
                up = times * (last[reward] - row[reward])
                down = times_too * (row[metric] - last[metric])
                if up > 1 and down > 1:
                    run.warn(f"{metric} is {down:.1f} points lower than at an earlier row, and "
                             f"{reward} {up:.1f} higher: the policy may have found what the reward "
                             "model does not see", "hacking")
            return
