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

from dataclasses import dataclass

import numpy as np
import torch

import rest
import reward as rm
from model import EOS, Config, Transformer
from run import Run, RunSettings, choose_device, guarded, parse, setting, valid
from online import online
from report import Report, best_of_n_table, finish, label, look, verdict
from train import Pairs

WORDS, HABITS, ADJECTIVES = 32, 10, 8  # of the language
HABIT_RATE, NOISE_RATE = 0.55, 0.07  # how often a habit, a random word, spoils a demonstration
MAX_LEN = 16


@dataclass
class Settings(RunSettings, rest.Settings):
    """The demo's settings."""

    demonstrations: int = setting(4000, "human pairs D", low=1)
    rated_sources: int = setting(3000, "sources whose outputs are rated", low=1)
    rated_temperatures: tuple[float, ...] = setting((0.8, 1.0, 1.5, 2.0), "sampling temperatures "
                                                    "of the rated outputs of each", low=0)
    rating_noise: float = setting(0.7, "standard deviation of a rating, on the scale of 0 to 6",
                                  low=0)
    updates: int = setting(150, "most updates of an Improve", low=1)
    evaluate_every: int = setting(75, "updates between two looks at the reward on D_eval", low=1)
    lr: float = setting(1e-3, "peak learning rate of an Improve, times lr_decay^i", low=0)
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
    best_of: int = setting(64, "largest N of best-of-N", low=1)


# ------------------------------------------------------------------------------------ the language


class Language:
    """An invented pair of languages. Ids: 0-2 special, then the source words, then the target's."""

    def __init__(self, seed):
        rng = np.random.default_rng((seed, 1))
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


def main(argv=None):
    settings = parse(Settings, argv, __doc__.split("\n")[0])
    run = Run(settings, "toy")
    device = choose_device(settings.device)
    language = Language(settings.seed)
    print(f"{run.folder}: ReST on an invented language, seed {settings.seed}, on {device}")
    rng = np.random.default_rng((settings.seed, 2))
    sources = language.sources(settings.demonstrations, rng)
    demonstrations = [language.demonstrate(x, rng) for x in sources]
    rated_sources = language.sources(settings.rated_sources, rng)
    held_out = language.sources(settings.eval_sources, rng)
    task = rest.Task(sources, Pairs.of(range(len(sources)), demonstrations, human=True), held_out,
                     language.sources(settings.test_sources, rng), MAX_LEN)
    if settings.show:
        return look(run, settings, lambda i: language.text(sources[i]), language.text)
    print(f"D: {len(sources)} demonstrations, oracle "
          f"{100 * language.oracle(sources, demonstrations).mean():.1f}")

    bc = behaviour_cloning(task, language, settings, run, device)
    model = train_reward_model(bc, rated_sources, held_out, language, settings, run)
    task.reward = model.score
    task.metrics = lambda policy, sampled, greedy: {
        "oracle": float(language.oracle(task.test_sources, sampled.targets()).mean()),
        "greedy_oracle": float(language.oracle(task.test_sources, greedy.targets()).mean())}

    last = settings.improve[settings.grow - 1]
    report = Report(run, ["reward", "greedy_reward", "oracle", "greedy_oracle", "entropy",
                          "kl_to_bc", "kept_samples", "kept_data", "samples", "distinct_samples",
                          "seconds"], lambda policy, row: examples(policy, row, task, language,
                                                            settings))
    report.add(rest.bc_row(bc, task, settings, run), bc, show=True)
    for row, policy, D_g in rest.rest(bc, task, settings, run):
        report.add(row, policy, show=row["grow"] == settings.grow and row["improve"] == last)
    if settings.ppo:
        report.add(*online(bc, task, settings, run))
    best = run.step("best-of-n", lambda: {"rows": [
        entry for name, p in (("BC", bc), ("ReST", policy))
        for entry in best_of_n(name, p, task, language, settings)]})["rows"]
    print(report)
    print(best_of_n_table(best))
    finish(run, "toy", report.rows, best, policy, model)


def examples(policy, row, task, language, settings, count=3):
    """Fixed test sources, their translation, a greedy output and a sample, with their scores.

    Behind the scores stands what this Improve's filter would do with the output.
    """
    lines = [f"{label(row):12}reward  oracle"]
    for i, x in enumerate(task.test_sources[:count]):
        lines.append(f"{'source':36}{language.text(x)}")
        right = Pairs.of([0], [language.translate(x)])
        greedy, sampled = (rest.grow(policy, [x], 1, (i,), MAX_LEN, temperature=t) for t in (0, 1))
        for name, y in (("right", right), ("greedy", greedy), ("sample", sampled)):
            reward = rest.score(y, [x], task.reward).reward[0]
            oracle = language.oracle([x], y.targets())[0]
            lines.append(f"{name:12}{100 * reward:6.0f}{100 * oracle:8.0f}  "
                         f"{verdict(reward, row, settings):8}{language.text(y.target(0))}")
    return lines


def best_of_n(name, policy, task, language, settings):
    """Reward and oracle of the best of N samples by reward, for N = 1, 2, 4, ..."""
    counts = [2**k for k in range(settings.best_of.bit_length())]
    for n, chosen in rest.best_of_n(policy, task, settings, counts):
        oracle = language.oracle([task.test_sources[i] for i in chosen.source], chosen.targets())
        yield {"policy": name, "n": n, "reward": float(chosen.reward.mean()),
               "oracle": float(oracle.mean())}


def behaviour_cloning(task, language, settings, run, device):
    """The policy trained on D alone."""
    torch.manual_seed(settings.seed)
    policy = Transformer(valid(Config, language.vocab_size, settings.d_model, 4, settings.layers,
                               settings.layers, 4 * settings.d_model, settings.dropout, MAX_LEN))
    policy.to(device)

    def make():
        hp = settings.training(updates=settings.bc_updates, lr=settings.bc_lr, warmup=100)
        done = rest.improve(policy, task.data, task.sources, settings, hp, settings.seed,
                            log=run.logger("bc"), checkpoint=run.checkpoint, title="BC")
        return {"policy": policy.state_dict(), **done}

    policy.load_state_dict(run.step("bc", make)["policy"])
    print(f"BC: {run.seconds('bc'):.0f} s")
    return policy.eval()


def train_reward_model(bc, rated_sources, held_out, language, settings, run):
    """A reward model from noisy ratings of BC's samples, and how good it is."""
    def make():
        rng = np.random.default_rng((settings.seed, 3))
        rated = rated_samples(bc, rated_sources, language, settings, rng,
                              settings.rated_temperatures)
        hp = settings.training(updates=settings.reward_updates, lr=settings.reward_lr, warmup=50)
        model = rm.RewardModel.from_policy(bc)
        rm.train_reward(model, rated_sources, rated, hp, settings.seed,
                        preferences=settings.preferences, log=run.logger("reward"),
                        checkpoint=run.checkpoint, title="reward model")
        test = rated_samples(bc, held_out, language, settings, rng, 4 * [1.0])
        exact = language.oracle([held_out[i] for i in test.source], test.targets())
        test.reward[:] = exact  # judged by the truth, trained on noisy ratings
        references = [language.translate(x) for x in held_out]
        judged = rm.judge(model.score, held_out, test)
        judged["reference above a sample"] = rm.reference_above(model.score, held_out, references,
                                                                test.select(exact < 1))
        tests = rm.unit_tests(model.score, held_out, references)
        run.log("reward_model", judged=judged, unit_tests=tests)
        return {"reward": model.state_dict(), "judged": judged, "unit_tests": tests}

    model = rm.RewardModel.from_policy(bc)
    made = run.step("reward", make)
    model.load_state_dict(made["reward"])
    print(rm.table(made["judged"], made["unit_tests"]))
    return model.eval()


def rated_samples(bc, sources, language, settings, rng, temperatures):
    """BC's samples, one at each temperature, with a rater's scores."""
    parts = [rest.grow(bc, sources, 1, (settings.seed, int(rng.integers(2**31))), MAX_LEN,
                       temperature=t) for t in temperatures]
    drawn = Pairs.join(parts)
    drawn.reward[:] = rate(language, [sources[i] for i in drawn.source], drawn.targets(),
                           settings.rating_noise, rng)
    return drawn


if __name__ == "__main__":
    guarded(main)
