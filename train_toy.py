"""ReST on a problem of our own, start to finish on a CPU: an invented language, or sums.

    python train_toy.py                          # the demo: the language; --help lists the settings
    python train_toy.py --preset quick           # the same, small, in half a minute
    python train_toy.py --task sums              # answers that can be checked need no reward model

The language. A source is 8 to 16 invented words. Its translation replaces each word by a lexicon;
an adjective changes places with the word that follows it, and takes the ending that the word before
it asks for. So each source has one right translation, and an *oracle* can score any output exactly.
In the human demonstrations four words of ten are wrong: some at random, but most by habit, a fixed
wrong word for 16 of 24 nouns, which no way of decoding a cloned policy can undo where it is more
frequent than the right one. Raters score outputs from 0 to 6, with noise; a reward model learns
from them, and ReST sees nothing but that reward model. The oracle stands in for the paper's human
evaluation: only the raters see it, through their noise; nothing else is trained on it or chosen by
it.

The sums. A source is 4 to 7 digits, the output is their running total, whose last number is the
answer; people often forget a carry. The reward is 1 for the right answer, and 0 for another.

Left out: everything about real text, which train_mt.py has.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

import rest
import reward as rm
from infra import demo
from infra.cli import choose_device, run_cli
from infra.errors import UserError, as_user_error
from infra.measures import bc_row, best_of_n_step
from infra.pairs import Pairs
from infra.relatives import METHODS
from infra.report import Report, finish, look
from infra.reward_metrics import judge, table
from infra.run import Run
from infra.sampling import sample_outputs
from infra.seeds import seed_of, stream
from infra.settings import RunSettings, parse, setting
from infra.storage import load_weights
from model import EOS, Config, Transformer


@dataclass
class Settings(rest.Settings, RunSettings):
    """The demo: the problem, BC, ratings, reward model"""

    task: str = setting("language", "what is to be learned", choices=lambda: TASKS)
    shortest: int = setting(8, "words of the shortest source", low=1)
    longest: int = setting(16, "words of the longest source", low=1)
    demonstrations: int = setting(4000, "human pairs D", low=1)
    rated_sources: int = setting(500, "sources whose outputs are rated", low=1)
    rated_temperatures: tuple[float, ...] = setting((0.6, 0.8, 1.0, 1.3), "sampling temperatures "
                                                    "of the rated outputs of each", low=0)
    rating_noise: float = setting(1.0, "standard deviation of a rating, on the scale of 0 to 6",
                                  low=0)
    refresh: bool = setting(False, "split the ratings over the Grows: before each, its "
                            "policy's outputs are rated, and the reward model is trained anew on "
                            "all ratings")
    updates: int = setting(150, "most updates of an Improve", low=1)
    evaluate_every: int = setting(75, "updates between two evaluations of the reward on D_eval",
                                  low=1)
    lr: float = setting(4e-3, "peak learning rate of an Improve, times lr_decay^i", low=0)
    batch_tokens: int = setting(1024, "padded tokens of a training batch", low=1)
    d_model: int = setting(64, "width of the transformers", low=1)
    layers: int = setting(1, "encoder layers, and decoder layers", low=1)
    dropout: float = setting(0.1, "dropout", low=0, high=0.9)
    bc_updates: int = setting(1000, "updates of BC", low=1)
    bc_lr: float = setting(6e-3, "peak learning rate of BC", low=0)
    reward_updates: int = setting(300, "updates of the reward model", low=1)
    reward_lr: float = setting(2e-3, "peak learning rate of the reward model", low=0)
    eval_sources: int = setting(400, "sources of D_eval", low=2)
    test_sources: int = setting(600, "test sources", low=1)
    ppo: bool = setting(True, "run the PPO baseline")
    ppo_lr: float = setting(4e-4, "learning rate of PPO", low=0)
    best_of: int = setting(32, "largest N of best-of-N", low=1, free=True)

    def __post_init__(self):
        if self.filter == "auto" and getattr(TASKS.get(self.task), "reward", None):
            self.filter = "threshold"  # of a reward that is 0 or 1
        super().__post_init__()
        if self.refresh and self.rated_sources < self.grow:
            raise UserError(f"--refresh splits --rated-sources {self.rated_sources} over "
                            f"--grow {self.grow} Grows: too few")
        if self.longest < self.shortest:
            raise UserError(f"--longest {self.longest} is below --shortest {self.shortest}")


PRESETS = {"default": {}, "quick": dict(
    shortest=4, longest=8, demonstrations=2000, batch_tokens=512, bc_updates=500, rated_sources=400,
    reward_updates=150, updates=60, evaluate_every=30, eval_sources=200, test_sources=300,
    samples=4, best_of=16)}

# ------------------------------------------------------------------------------------ the problems
#
# A problem is a class with what `Language` has: sizes, sources, demonstrations, the right answer,
# an oracle; and a reward, if it can check an output itself.

WORDS, ADJECTIVES, HABITS = 32, 8, 16  # of the language; habits are of nouns alone
HABIT_RATES = 0.4, 0.95  # each habit has its own rate, at which it takes the right word's place
FORGOTTEN, RANDOM = 0.4, 0.07  # rates at which an ending is forgotten, a word a random one


class Language:
    """An invented pair of languages. Ids: 0-2 special, then the source words, then the target's:
    one for each word, and a second form of each adjective."""

    usual = {}  # defaults of its own
    reward = None  # it has to be learned

    def __init__(self, settings):
        rng = stream("language", settings.seed)
        self.lengths = settings.shortest, settings.longest + 1
        self.max_len = settings.longest + 4  # tokens of an output
        self.positions = 2 * settings.longest + 4  # of a network: room for a translation said twice
        self.first_source, self.first_target = 3, 3 + WORDS
        self.vocab_size = 3 + 2 * WORDS + ADJECTIVES
        self.lexicon = self.first_target + rng.permutation(WORDS)  # source word -> target id
        adjectives = rng.choice(WORDS, ADJECTIVES, replace=False)
        self.is_adjective = np.isin(np.arange(WORDS), adjectives)
        # a target word asks for the first ending or the second of an adjective behind it
        both = np.stack([self.lexicon[adjectives], np.arange(3 + 2 * WORDS, self.vocab_size)])
        self.asks = rng.integers(0, 2, self.vocab_size)
        self.asks[both] = [[0], [1]]
        self.form = np.tile(np.arange(self.vocab_size), (2, 1))  # ending, target id -> target id
        self.form[:, both] = both[:, None]
        nouns = np.flatnonzero(~self.is_adjective)
        self.habit, self.habit_rate = self.lexicon.copy(), np.zeros(WORDS)
        for word in rng.choice(nouns, HABITS, replace=False):
            self.habit[word] = rng.choice(np.setdiff1d(self.lexicon[nouns], self.lexicon[word]))
            self.habit_rate[word] = rng.uniform(*HABIT_RATES)
        self.names = ["", "", "", *syllables(rng, "ptkmnslr", "aiu"),
                      *syllables(rng, "bdgvzfhj", "eo")]
        self.names += [self.names[i] + "n" for i in both[0]]

    def sources(self, n, rng):
        """n random sources, ids that end in eos."""
        return [np.append(self.first_source + rng.integers(0, WORDS, rng.integers(*self.lengths)),
                          EOS) for _ in range(n)]

    def reordered(self, source):
        """The source's words, each adjective behind the word that it stood before."""
        words = list(source[:-1] - self.first_source)
        i = 0
        while i + 1 < len(words):
            if self.is_adjective[words[i]]:
                words[i], words[i + 1] = words[i + 1], words[i]
                i += 1
            i += 1
        return np.array(words)

    def agreeing(self, target, forgotten):
        """Target words, each adjective with the ending that the word before it asks for."""
        target = target.copy()
        for i in range(len(target)):
            ending = 0 if i == 0 or forgotten[i] else self.asks[target[i - 1]]
            target[i] = self.form[ending, target[i]]
        return target

    def answer(self, source):
        """The right translation, ending in eos."""
        words = self.lexicon[self.reordered(source)]
        return np.append(self.agreeing(words, np.zeros(len(words), bool)), EOS)

    def demonstrate(self, source, rng):
        """A human's translation, with habits, random words and forgotten endings."""
        words = self.reordered(source)
        by_habit, at_random, forgotten = rng.random((3, len(words))) < np.stack(
            [self.habit_rate[words], np.full(len(words), RANDOM), np.full(len(words), FORGOTTEN)])
        target = np.where(by_habit, self.habit[words], self.lexicon[words])
        random = rng.integers(self.first_target, self.vocab_size, len(words))
        return np.append(self.agreeing(np.where(at_random, random, target), forgotten), EOS)

    def right(self, source, output):
        """Booleans: which words of an output are right, and in their place.

        An adjective has to agree with the word that the output has before it, right or wrong.
        """
        words, wanted = output[output > EOS], self.lexicon[self.reordered(source)]
        right, n = np.zeros(len(words), bool), min(len(words), len(wanted))
        endings = np.append(0, self.asks[words])[:n]
        right[:n] = self.form[endings, wanted[:n]] == words[:n]
        return right

    def oracle(self, sources, outputs):
        """(n,): the number of words that are right / the length of the longer text."""
        return np.array([self.right(x, y).sum() / max(len(x) - 1, (y > EOS).sum())
                         for x, y in zip(sources, outputs)], np.float32)

    def rate(self, sources, outputs, noise, rng):
        """A rater's score of each output on the paper's scale of 0 to 6, mapped to [0, 1]."""
        exact = 6 * self.oracle(sources, outputs)
        return np.clip(np.round(exact + noise * rng.standard_normal(len(exact))), 0, 6) / 6

    def text(self, ids):
        return " ".join(self.names[i] for i in ids if i > EOS)


def syllables(rng, consonants, vowels):
    """WORDS different words of two syllables."""
    half = [c + v for c in consonants for v in vowels]
    both = [a + b for a in half for b in half]
    return list(rng.choice(both, WORDS, replace=False))


class Sums:
    """Digits 1 to 5 to be added, one after the other. The id of the number k is 3 + k."""

    usual = dict(shortest=4, longest=7, demonstrations=1000, batch_tokens=512, bc_updates=800,
                 grow=3, improve=(1,), unfiltered=False, thresholds=(0.5,),
                 temperature=(1.0,), updates=100, evaluate_every=50, ppo=False)
    forgotten, slip = 0.7, 0.03  # rates at which a carry is forgotten, a total one too high

    def __init__(self, settings):
        self.lengths = settings.shortest, settings.longest + 1
        self.vocab_size = 3 + 6 * settings.longest + 1
        self.max_len, self.positions = settings.longest + 1, settings.longest + 2

    def sources(self, n, rng):
        return [np.append(3 + rng.integers(1, 6, rng.integers(*self.lengths)), EOS)
                for _ in range(n)]

    def answer(self, source):
        return np.append(3 + np.cumsum(source[:-1] - 3), EOS)

    def demonstrate(self, source, rng):
        """A human's running totals: where 4 or 5 is added, a carry is often forgotten."""
        totals = []
        for digit in source[:-1] - 3:
            total = (totals[-1] if totals else 0) + digit
            carried = total % 10 < digit and total >= 10
            total -= 10 * (carried and digit >= 4 and rng.random() < self.forgotten)
            totals.append(total + (rng.random() < self.slip))
        return np.append(3 + np.array(totals), EOS)

    def right(self, source, output):
        """Booleans: which steps add the digit to the total that the output has before it."""
        totals, digits = output[output > EOS] - 3, source[:-1] - 3
        right, n = np.zeros(len(totals), bool), min(len(totals), len(digits))
        right[:n] = np.diff(totals[:n], prepend=0) == digits[:n]
        return right

    def reward(self, sources, outputs):
        """The check: 1 where the last number is the right answer, however it was found."""
        return np.array([y[-2:].tolist() == self.answer(x)[-2:].tolist()
                         for x, y in zip(sources, outputs)], np.float32)

    def oracle(self, sources, outputs):
        """1 where all steps are right too."""
        return np.array([np.array_equal(y, self.answer(x)) for x, y in zip(sources, outputs)],
                        np.float32)

    def text(self, ids):
        return " ".join(str(i - 3) for i in ids if i > EOS)


TASKS = {"language": Language, "sums": Sums}  # for --task

# ------------------------------------------------------------------------- what comes before ReST


@dataclass
class Toy:
    """A seed's problem, and what comes before Algorithm 1."""

    problem: Language
    task: rest.Task
    bc: Transformer = None
    reward_model: rm.RewardModel = None  # the newest; None where outputs are checked


def prepare(settings, run, device):
    """The problem, D, the BC policy and the reward -> Toy."""
    problem = TASKS[settings.task](settings)
    sizes = (settings.demonstrations, settings.rated_sources, settings.eval_sources,
             settings.test_sources)
    sources, rated_sources, held_out, test_sources = (
        problem.sources(n, stream("toy sources", settings.seed, k)) for k, n in enumerate(sizes))
    rng = stream("demonstrators", settings.seed)
    demonstrations = [problem.demonstrate(x, rng) for x in sources]
    task = rest.Task(sources, Pairs.of(range(len(sources)), demonstrations, human=True), held_out,
                     test_sources, problem.max_len, problem.reward)
    print(f"D: {len(sources)} demonstrations, oracle "
          f"{100 * problem.oracle(sources, demonstrations).mean():.1f}")
    toy = Toy(problem, task, train_bc(problem, task, settings, run, device))
    task.metrics = partial(demo.metrics, problem, task, settings)
    if task.reward is None:
        learn_reward(toy, rated_sources, settings, run)
    return toy


def train_bc(problem, task, settings, run, device):
    """The policy trained on D alone."""
    torch.manual_seed(seed_of("weights", settings.seed))
    policy = Transformer(as_user_error(
        Config, problem.vocab_size, settings.d_model, 2, settings.layers, settings.layers,
        2 * settings.d_model, settings.dropout, problem.positions)).to(device)
    # patience serves --start base, whose Improves train like BC but are evaluated on D_eval
    hp = settings.training(updates=settings.bc_updates, lr=settings.bc_lr, warmup=100,
                           patience=1000)
    policy = rest.behaviour_cloning(policy, task, settings, hp, run)
    print(f"BC: {run.seconds('bc'):.0f} s")
    return policy


def learn_reward(toy, rated_sources, settings, run):
    """Ratings of BC's outputs, and a reward model from them; with --refresh also in later Grows."""
    shares, rated = [np.arange(len(rated_sources))], []
    if settings.refresh and settings.grow > 1:
        shares = np.array_split(shares[0], settings.grow)

    def refresh(policy, g):
        """Rate outputs of `policy`, and train a reward model on all ratings so far."""
        for index in run.parts(f"rated-{g}", [shares[g - 1]]):
            run.add(rate_samples(policy, rated_sources, index, toy, settings, g))
        rated.append(run.pairs(f"rated-{g}"))
        toy.reward_model = train_reward_model(toy, rated_sources, Pairs.join(rated), settings, run,
                                              g)
        toy.task.reward = toy.reward_model.score  # for PPO and best-of-N; rest() has a copy
        return toy.task.reward

    refresh(toy.bc, 1)
    toy.task.refresh = refresh if settings.refresh else None


def rate_samples(policy, sources, index, toy, settings, g):
    """The policy's samples for the sources at `index`, one at each temperature, as raters see them.

    -> Pairs whose reward is the rating.
    """
    rng = stream("raters", settings.seed, g)
    drawn = samples_at(policy, [sources[i] for i in index], rng, settings.rated_temperatures,
                       toy.task.max_len)
    drawn = replace(drawn, source=index[drawn.source].astype(np.int32))
    drawn.reward[:] = toy.problem.rate([sources[i] for i in drawn.source], drawn.targets(),
                                       settings.rating_noise, rng)
    return drawn


def samples_at(policy, sources, rng, temperatures, max_len):
    """One sample of each source at each temperature."""
    return Pairs.join([
        sample_outputs(policy, sources, 1, int(rng.integers(2**31)), max_len, temperature=t)
        for t in temperatures])


def train_reward_model(toy, rated_sources, rated, settings, run, g):
    """A reward model from noisy ratings, and how good it is on BC's samples of D_eval."""
    name, task, problem = "reward" if g == 1 else f"reward-{g}", toy.task, toy.problem
    model = rm.RewardModel.from_policy(toy.bc)
    saved = run.begin(name)
    if saved is None:
        hp = settings.training(updates=settings.reward_updates, lr=settings.reward_lr, warmup=50)
        rm.train_reward(model, rated_sources, rated, hp, seed_of(name, settings.seed),
                        preferences=settings.preferences, log=run.logger(name),
                        checkpoint=run.checkpoint, title="reward model")
        held_out = task.eval_sources
        test = samples_at(toy.bc, held_out, stream("reward test", settings.seed), 4 * [1.0],
                          task.max_len)
        exact = problem.oracle([held_out[i] for i in test.source], test.targets())
        test.reward[:] = exact  # measured by the truth, trained on noisy ratings
        answers = [problem.answer(x) for x in held_out]
        judged = judge(model.score, held_out, test, held_out, answers, test.select(exact < 1), run)
        saved = run.end({"reward": model.state_dict(), **judged})
    load_weights(model, saved["reward"])
    print(table(saved["measures"], saved["unit_tests"]))
    return model.eval()


# ------------------------------------------------------------------------------------- the program

FIRST = ("grow", "improve", "samples", "filter", "loss", "ppo", "seed", "out", "resume", "show")
COLUMNS = ("reward", "greedy_reward", "pass_at_8", "oracle", "greedy_oracle", "entropy", "kl_to_bc",
           "kept_samples", "kept_data", "samples", "distinct_samples", "seconds")


def main(argv=None):
    settings = parse(Settings, argv, __doc__.split("\n")[0], FIRST,
                     task={name: problem.usual for name, problem in TASKS.items()},
                     preset=PRESETS, method=METHODS)
    device = choose_device(settings.device)
    with Run(settings, "toy") as run:
        if settings.show:
            problem = TASKS[settings.task](settings)
            sources = problem.sources(settings.demonstrations,
                                      stream("toy sources", settings.seed, 0))
            look(run, settings, rest.select, lambda i: problem.text(sources[i]), problem.text)
        else:
            train(settings, run, device)


def train(settings, run, device):
    print(f"{run.folder}: ReST, task {settings.task}, seed {settings.seed}, on {device}")
    toy = prepare(settings, run, device)
    task, bc = toy.task, toy.bc
    columns = [c for c in COLUMNS if c != "pass_at_8" or toy.problem.reward]
    two_scales = ("(--refresh: each Grow has a reward model of its own, and PPO the last one: "
                  "rewards of different Grows do not compare)") if task.refresh else ""
    report = Report(run, columns, demo.example_heads(toy.problem, task),
                    lambda policy: demo.example_lines(toy.problem, task, policy), two_scales)
    row, policy = bc_row(bc, task, settings, run), bc
    report.add(row, policy)
    for row, policy, D_g in rest.rest(bc, task, settings, run):
        report.add(row, policy)
    name = row["name"]
    if settings.ppo:
        for ppo_row, ppo_policy in rest.online(bc, task, settings, run):
            report.add(ppo_row, ppo_policy)
        if settings.grow == 0:
            name, policy = "PPO", ppo_policy
    best = best_of_n_step(run, settings, lambda counts: [
        entry for which, network in {"BC": bc, name: policy}.items()
        for entry in best_of_n(which, network, toy, settings, counts)])
    finish(run, "toy", report, best, policy, toy.reward_model,
           lambda i: toy.problem.text(task.sources[i]), toy.problem.text)


def best_of_n(name, policy, toy, settings, counts):
    """Reward and oracle of the best of N samples by reward, N in counts -> entries."""
    for n, best in rest.best_of_n(policy, toy.task, settings, counts):
        oracle = toy.problem.oracle([toy.task.test_sources[i] for i in best.source], best.targets())
        yield {"policy": name, "n": n, "reward": float(best.reward.mean()),
               "oracle": float(oracle.mean())}


if __name__ == "__main__":
    run_cli(main)
