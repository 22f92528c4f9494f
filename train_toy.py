"""ReST on an invented language pair, start to finish on a CPU.

    python train_toy.py                          # the whole demo; --help lists every setting

A source is 4 to 10 invented words. Its translation replaces each word by a lexicon, and an
adjective changes places with the word that follows it: so each source has one right translation,
and an *oracle* can score any output exactly. The human demonstrations are wrong in a quarter of
their words: some at random, but more because most demonstrators share a habit, a fixed wrong word
for some source words, which no way of decoding a cloned policy can undo. Raters score outputs from
0 to 6, with noise; a reward model learns from them, and ReST sees nothing but that reward model.
The oracle stands in for the paper's human evaluation: reported, never trained on or chosen by.

Left out: everything about real text, which train_mt.py has.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

import rest
import reward as rm
from infra.cli import choose_device, run_cli
from infra.errors import UserError, as_user_error
from infra.measures import bc_row, best_of_n_step
from infra.pairs import Pairs, score
from infra.relatives import METHODS
from infra.report import Report, finish, label, look, verdict
from infra.reward_metrics import evaluate_reward_model, reference_above, table, unit_tests
from infra.run import Run
from infra.sampling import sample_outputs
from infra.seeds import seed_of, stream
from infra.settings import RunSettings, parse, setting
from infra.storage import load_weights
from model import EOS, Config, Transformer

WORDS, HABITS, ADJECTIVES = 32, 10, 8  # of the language
HABIT_RATE, NOISE_RATE = 0.55, 0.07  # how often a habit, a random word, spoils a demonstration
MAX_LEN = 16  # tokens of an output
LONGEST = 24  # that a network can read: the longest translation, said twice


@dataclass
class Settings(rest.Settings, RunSettings):
    """The demo: the invented language, BC, ratings, reward model"""

    task: str = setting("language", "what is to be learned", choices=lambda: TASKS)
    demonstrations: int = setting(4000, "human pairs D", low=1)
    rated_sources: int = setting(3000, "sources whose outputs are rated", low=1)
    rated_temperatures: tuple[float, ...] = setting((0.8, 1.0, 1.5, 2.0), "sampling temperatures "
                                                    "of the rated outputs of each", low=0)
    rating_noise: float = setting(0.7, "standard deviation of a rating, on the scale of 0 to 6",
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
    bc_updates: int = setting(800, "most updates of BC", low=1)
    bc_lr: float = setting(3e-3, "peak learning rate of BC", low=0)
    reward_updates: int = setting(600, "most updates of the reward model", low=1)
    reward_lr: float = setting(2e-3, "peak learning rate of the reward model", low=0)
    eval_sources: int = setting(400, "sources of D_eval", low=2)
    test_sources: int = setting(1000, "test sources", low=1)
    ppo: bool = setting(True, "run the PPO baseline")
    ppo_lr: float = setting(4e-4, "learning rate of PPO", low=0)
    ppo_kl: float = setting(0.03, "weight of PPO's KL to the BC policy", low=0)
    best_of: int = setting(64, "largest N of best-of-N", low=1, free=True)

    def __post_init__(self):
        super().__post_init__()
        if self.refresh and self.rated_sources < self.grow:
            raise UserError(f"--refresh splits --rated-sources {self.rated_sources} over "
                            f"--grow {self.grow} Grows: too few")


# ------------------------------------------------------------------------------------ the language


class Language:
    """An invented pair of languages. Ids: 0-2 special, then the source words, then the target's."""

    def __init__(self, seed):
        rng = stream("language", seed)
        self.first_source, self.first_target = 3, 3 + WORDS
        self.vocab_size = 3 + 2 * WORDS
        self.lexicon = self.first_target + rng.permutation(WORDS)  # source word -> target id
        self.adjective = np.zeros(WORDS, bool)
        self.adjective[rng.choice(WORDS, ADJECTIVES, replace=False)] = True
        self.habit = self.lexicon.copy()  # what demonstrators like to say instead
        for word in rng.choice(WORDS, HABITS, replace=False):
            others = np.delete(np.arange(WORDS), self.lexicon[word] - self.first_target)
            self.habit[word] = self.first_target + rng.choice(others)
        self.names = ["", "", "", *syllables(rng, "ptkmnslr", "aiu"),
                      *syllables(rng, "bdgvzfhj", "eo")]

    def sources(self, n, rng):
        """n random sources, ids that end in eos."""
        return [np.append(self.first_source + rng.integers(0, WORDS, rng.integers(4, 11)), EOS)
                for _ in range(n)]

    def reordered(self, source):
        """The source's words, each adjective behind the word that it stood before."""
        words = list(source[:-1] - self.first_source)
        i = 0
        while i + 1 < len(words):
            if self.adjective[words[i]]:
                words[i], words[i + 1] = words[i + 1], words[i]
                i += 1
            i += 1
        return np.array(words)

    def translate(self, source):
        """The right translation, ending in eos."""
        return np.append(self.lexicon[self.reordered(source)], EOS)

    def demonstrate(self, source, rng):
        """A human's translation: about a quarter of its words wrong, most of them by habit."""
        words = self.reordered(source)
        habit = rng.random(len(words)) < HABIT_RATE
        target = np.where(habit, self.habit[words], self.lexicon[words])
        noise = rng.random(len(words)) < NOISE_RATE
        random = rng.integers(self.first_target, self.vocab_size, len(words))
        return np.append(np.where(noise, random, target), EOS)

    def oracle(self, sources, outputs):
        """(n,): the share of words that are right and in their place, of the longer text's."""
        scores = np.zeros(len(outputs), np.float32)
        for i, (x, y) in enumerate(zip(sources, outputs)):
            right = self.lexicon[self.reordered(x)]
            words = y[:-1] if len(y) and y[-1] == EOS else y
            n = min(len(right), len(words))
            scores[i] = (right[:n] == words[:n]).sum() / max(len(right), len(words))
        return scores

    def text(self, ids):
        return " ".join(self.names[i] for i in ids if i > EOS)


TASKS = {"language": Language}  # for --task


def syllables(rng, consonants, vowels):
    """WORDS different words of two syllables."""
    half = [c + v for c in consonants for v in vowels]
    both = [a + b for a in half for b in half]
    return list(rng.choice(both, WORDS, replace=False))


def rate(language, sources, outputs, noise, rng):
    """A rater's score of each output on the paper's scale of 0 to 6, mapped to [0, 1]."""
    exact = 6 * language.oracle(sources, outputs)
    return np.clip(np.round(exact + noise * rng.standard_normal(len(exact))), 0, 6) / 6


# ------------------------------------------------------------------------------------- the program


@dataclass
class Toy:
    """A seed's problem, and what comes before Algorithm 1."""

    language: Language
    task: rest.Task
    bc: Transformer
    reward_model: rm.RewardModel  # the newest


def prepare(settings, run, device):
    """The language, D, the BC policy and the reward model -> Toy."""
    language = TASKS[settings.task](settings.seed)
    sizes = (settings.demonstrations, settings.rated_sources, settings.eval_sources,
             settings.test_sources)
    sources, rated_sources, held_out, test_sources = (
        language.sources(n, stream("toy sources", settings.seed, k)) for k, n in enumerate(sizes))
    rng = stream("demonstrators", settings.seed)
    demonstrations = [language.demonstrate(x, rng) for x in sources]
    task = rest.Task(sources, Pairs.of(range(len(sources)), demonstrations, human=True), held_out,
                     test_sources, MAX_LEN)
    print(f"D: {len(sources)} demonstrations, oracle "
          f"{100 * language.oracle(sources, demonstrations).mean():.1f}")

    bc = behaviour_cloning(task, language, settings, run, device)
    shares, rated = [np.arange(len(rated_sources))], []
    if settings.refresh and settings.grow > 1:
        shares = np.array_split(shares[0], settings.grow)

    def train_on_ratings(policy, g):
        """Rate outputs of `policy`, and train a reward model on all ratings so far."""
        for index in run.parts(f"rated-{g}", [shares[g - 1]]):
            run.add(rate_samples(policy, rated_sources, index, language, settings, g))
        rated.append(run.pairs(f"rated-{g}"))
        return reward_model(bc, rated_sources, Pairs.join(rated), held_out, language, settings,
                            run, g)

    toy = Toy(language, task, bc, train_on_ratings(bc, 1))
    task.reward = toy.reward_model.score

    def refresh(policy, g):
        toy.reward_model = train_on_ratings(policy, g)
        task.reward = toy.reward_model.score  # for what is measured outside of `rest` too
        return task.reward

    def metrics(policy, sampled, greedy):
        oracle, greedy_oracle = (language.oracle(task.test_sources, x.targets())
                                 for x in (sampled, greedy))
        return {"oracle": float(oracle.mean()), "greedy_oracle": float(greedy_oracle.mean()),
                "reward_error": float(np.sqrt(np.mean((sampled.reward - oracle) ** 2)))}

    task.metrics = metrics
    task.refresh = refresh if settings.refresh else None
    return toy


FIRST = ("grow", "improve", "samples", "filter", "loss", "ppo", "seed", "out", "resume", "show")


def main(argv=None):
    settings = parse(Settings, argv, __doc__.split("\n")[0], FIRST, method=METHODS)
    device = choose_device(settings.device)
    with Run(settings, "toy") as run:
        if settings.show:
            language = TASKS[settings.task](settings.seed)
            sources = language.sources(settings.demonstrations,
                                       stream("toy sources", settings.seed, 0))
            look(run, settings, rest.select, lambda i: language.text(sources[i]), language.text)
        else:
            train(settings, run, device)


def train(settings, run, device):
    print(f"{run.folder}: ReST on an invented language, seed {settings.seed}, on {device}")
    toy = prepare(settings, run, device)
    task, language, bc = toy.task, toy.language, toy.bc
    two_scales = ("(--refresh: each Grow has a reward model of its own, and PPO the last one: "
                  "rewards of different Grows do not compare)")
    report = Report(run, ["reward", "greedy_reward", "oracle", "greedy_oracle", "entropy",
                          "kl_to_bc", "kept_samples", "kept_data", "samples", "distinct_samples",
                          "seconds"],
                    lambda policy, row: examples(policy, row, task, language, settings),
                    two_scales if settings.refresh else "")
    report.add(bc_row(bc, task, settings, run), bc, show=True)
    name, policy = "ReST", bc
    for row, policy, D_g in rest.rest(bc, task, settings, run):
        last = settings.grow, settings.improves(settings.grow)[-1]
        report.add(row, policy, show=(row["grow"], row["improve"]) == last)
    if settings.ppo:
        for row, ppo_policy in rest.online(bc, task, settings, run):
            report.add(row, ppo_policy)
        if settings.grow == 0:
            name, policy = "PPO", ppo_policy
    best = best_of_n_step(run, settings, lambda counts: [
        entry for name, policy in {"BC": bc, name: policy}.items()
        for entry in best_of_n(name, policy, task, language, settings, counts)])
    finish(run, "toy", report, best, policy, toy.reward_model)


def examples(policy, row, task, language, settings, count=3):
    """Fixed test sources, their translation, a greedy output and a sample, with their scores.

    Behind the scores stands what this Improve's filter would do with the output.
    """
    lines = [f"{label(row):12}reward  oracle"]
    for i, x in enumerate(task.test_sources[:count]):
        lines.append(f"{'source':36}{language.text(x)}")
        right = Pairs.of([0], [language.translate(x)])
        greedy, sampled = (sample_outputs(policy, [x], 1, i, MAX_LEN, temperature=t)
                           for t in (0, 1))
        for name, y in (("right", right), ("greedy", greedy), ("sample", sampled)):
            reward = score(y, [x], task.reward).reward[0]
            oracle = language.oracle([x], y.targets())[0]
            lines.append(f"{name:12}{100 * reward:6.0f}{100 * oracle:8.0f}  "
                         f"{verdict(reward, row, settings):8}{language.text(y.target(0))}")
    return lines


def best_of_n(name, policy, task, language, settings, counts):
    """Reward and oracle of the best of N samples by reward, N in counts -> entries."""
    for n, best in rest.best_of_n(policy, task, settings, counts):
        oracle = language.oracle([task.test_sources[i] for i in best.source], best.targets())
        yield {"policy": name, "n": n, "reward": float(best.reward.mean()),
               "oracle": float(oracle.mean())}


def behaviour_cloning(task, language, settings, run, device):
    """The policy trained on D alone."""
    torch.manual_seed(seed_of("weights", settings.seed))
    policy = Transformer(as_user_error(
        Config, language.vocab_size, settings.d_model, 4, settings.layers, settings.layers,
        4 * settings.d_model, settings.dropout, LONGEST)).to(device)
    # patience serves method "base", whose Improves train like BC but are evaluated on D_eval
    hp = settings.training(updates=settings.bc_updates, lr=settings.bc_lr, warmup=100,
                           patience=1000)
    policy = rest.behaviour_cloning(policy, task, settings, hp, run)
    print(f"BC: {run.seconds('bc'):.0f} s")
    return policy


def rate_samples(policy, sources, index, language, settings, g):
    """The policy's samples for the sources at `index`, one at each temperature, as raters see them.

    -> Pairs whose reward is the rating.
    """
    rng = stream("raters", settings.seed, g)
    drawn = samples_at(policy, [sources[i] for i in index], rng, settings.rated_temperatures)
    drawn = replace(drawn, source=index[drawn.source].astype(np.int32))
    drawn.reward[:] = rate(language, [sources[i] for i in drawn.source], drawn.targets(),
                           settings.rating_noise, rng)
    return drawn


def samples_at(policy, sources, rng, temperatures):
    """One sample of each source at each temperature."""
    return Pairs.join([
        sample_outputs(policy, sources, 1, int(rng.integers(2**31)), MAX_LEN, temperature=t)
        for t in temperatures])


def reward_model(bc, rated_sources, rated, held_out, language, settings, run, g):
    """A reward model from noisy ratings, and how good it is on BC's samples of D_eval."""
    name = "reward" if g == 1 else f"reward-{g}"
    model = rm.RewardModel.from_policy(bc)
    saved = run.begin(name)
    if saved is None:
        hp = settings.training(updates=settings.reward_updates, lr=settings.reward_lr, warmup=50)
        rm.train_reward(model, rated_sources, rated, hp, seed_of(name, settings.seed),
                        preferences=settings.preferences, log=run.logger(name),
                        checkpoint=run.checkpoint, title="reward model")
        test = samples_at(bc, held_out, stream("reward test", settings.seed), 4 * [1.0])
        exact = language.oracle([held_out[i] for i in test.source], test.targets())
        test.reward[:] = exact  # measured by the truth, trained on noisy ratings
        references = [language.translate(x) for x in held_out]
        measures = evaluate_reward_model(model.score, held_out, test)
        measures["reference above a sample"] = reference_above(model.score, held_out, references,
                                                               test.select(exact < 1))
        tests = unit_tests(model.score, held_out, references)
        run.log("reward_model", measures=measures, unit_tests=tests)
        saved = run.end({"reward": model.state_dict(), "measures": measures, "unit_tests": tests})
    load_weights(model, saved["reward"])
    print(table(saved["measures"], saved["unit_tests"]))
    return model.eval()


if __name__ == "__main__":
    run_cli(main)
