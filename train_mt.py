"""ReST on real translation data: the loop of rest.py behind a tokenizer, BLEU and chrF.

    python train_mt.py                                # Multi30k De-En, 45 minutes on one core
    python train_mt.py --preset small                 # the same, smaller: eleven minutes
    python train_mt.py --preset smoke                 # half a minute, to see that everything runs
    python train_mt.py --preset gpu --data DIR        # the paper's IWSLT14 size, on one GPU
    python train_mt.py --data DIR --src de --tgt en   # DIR/train.de, train.en, val.*, test.* (.gz)
    python train_mt.py translate --run runs/mt-1 < in.txt > out.txt
    python train_mt.py evaluate --run runs/mt-1 --test new.de new.en

By default the reward model learns from ratings made here: chrF++ against the reference, for samples
of the BC policy at several temperatures and for samples corrupted on purpose; references are rated
as high as the best of these. It never sees the reference, so it can score new outputs. --ratings
FILE.tsv trains it on human ratings instead, and --reward FILE.py:function replaces it by your own.

Left out: back-translation, ensembling, sub-word regularisation, tagging of languages.
"""

import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

import rest
import reward as rm
from infra.cli import choose_device, run_cli
from infra.corpus import (Texts, against_references, before_and_after, bleu_chrf, bleu_of,
                          example_heads, example_lines, sentence_chrf)
from infra.errors import UserError, as_user_error
from infra.evaluate import evaluate, table_of
from infra.measures import bc_row, best_of_n_step, mean_reward
from infra.own_reward import own_reward
from infra.pairs import Pairs, score
from infra.relatives import METHODS
from infra.report import Report, finish, label, look
from infra.reward_metrics import judge, table
from infra.run import Run, hash_of
from infra.sampling import sample_outputs
from infra.seeds import seed_of, stream
from infra.settings import RunSettings, parse, setting
from infra.storage import load_weights
from infra.text import read_ratings
from infra.translate import translate
from model import EOS, Config, Transformer


@dataclass
class Settings(rest.Settings, RunSettings):
    """Translation: data, sizes, BC, ratings, reward model"""

    # free: may differ when a run is resumed; of files, the content may not.
    data: str = setting("", "folder with train.de and train.en, or train.tsv; val.* (or valid.*, "
                        "dev.*); test.*, if you like (default: download Multi30k)", free=True)
    test: tuple[str, ...] = setting((), "further test sets: files two by two, sources and "
                                    "references, or one that ends in .tsv", free=True)
    cache: str = setting("data", "where downloads are kept", free=True)
    src: str = setting("de", "ending of the source files")
    tgt: str = setting("en", "ending of the target files")
    vocab_size: int = setting(4000, "BPE vocabulary, shared by both languages", low=259)
    max_len: int = setting(64, "longest sentence in tokens; longer training pairs are dropped",
                           low=2)
    d_model: int = setting(128, "width of the transformers", low=1)
    heads: int = setting(4, "attention heads", low=1)
    encoder_layers: int = setting(3, "encoder layers", low=1)
    decoder_layers: int = setting(3, "decoder layers", low=1)
    d_ff: int = setting(512, "hidden width of the feed-forward blocks", low=1)
    dropout: float = setting(0.2, "dropout", low=0, high=0.9)
    bc_updates: int = setting(4500, "updates of BC", low=1)
    bc_lr: float = setting(2e-3, "peak learning rate of BC", low=0)
    bc_evaluate_every: int = setting(500, "updates of BC between two evaluations of the "
                                     "validation BLEU", low=1)
    ratings: tuple[str, ...] = setting((), "tab-separated human ratings: source, target, score; a "
                                       "second file, of up to 10 000, to judge by (default: a "
                                       "tenth of the first's sources)",
                                       free=True)
    lower_is_better: bool = setting(False, "in --ratings, a lower score is a better translation")
    reward: str = setting("", "your own reward, FILE.py:function or module:function, which maps "
                          "(sources, outputs), lists of strings, to n numbers in [0, 1]")
    rated_sources: int = setting(8000, "training sources that ratings are made for", low=1)
    rated_temperatures: tuple[float, ...] = setting((0.5, 0.8, 0.8, 1.0, 1.3), "of the rated "
                                                    "samples, one each", low=0)
    reward_updates: int = setting(2000, "updates of the reward model", low=1)
    reward_lr: float = setting(3e-3, "peak learning rate of the reward model", low=0)
    reward_body: bool = setting(False, "train the reward model's body too, and not only its head")
    batch_tokens: int = setting(1024, "padded tokens of a training batch", low=1)
    grow_sources: int = setting(10000, "sources of each Grow, drawn at random; 0 is all of D's",
                                low=0)
    evaluate_every: int = setting(150, "updates between two evaluations of the reward on "
                                  "validation", low=1)
    sample_batch_size: int = setting(512, "outputs sampled at once", low=1)
    bleu_tokenize: str = setting("", "sacrebleu's tokenizer for BLEU (default: the target "
                                 "language's, zh and ja-mecab among them, else 13a)")
    beam: int = setting(5, "beam of the BLEU that is reported beside greedy", low=1, free=True)
    ppo: bool = setting(False, "run the PPO baseline too, a third more time")
    best_of: int = setting(32, "largest N of best-of-N", low=1, free=True)
    limit: int = setting(0, "use only so many training, validation and test pairs; 0 is all", low=0)


PRESETS = {
    "cpu": dict(filter="percentile"),  # chosen on validation: docs/translation.md
    "small": dict(filter="percentile", vocab_size=2000, d_model=64, heads=2, encoder_layers=2,
                  decoder_layers=2, d_ff=256, bc_updates=3000, bc_lr=4e-3, bc_evaluate_every=1500,
                  dropout=0.1, rated_sources=4000, reward_updates=1000, grow_sources=5000,
                  updates=150, evaluate_every=75, best_of=16),
    "smoke": dict(vocab_size=600, d_model=32, encoder_layers=1, decoder_layers=1, d_ff=64,
                  bc_updates=60, bc_evaluate_every=60, rated_sources=100, reward_updates=30,
                  grow=1, improve=(2,), grow_sources=100, samples=4, updates=20, evaluate_every=20,
                  ppo=True, ppo_batch=64, ppo_samples=128, best_of=4, limit=400, max_len=40,
                  beam=2),
    # one threshold for all sources, as in the paper
    "gpu": dict(vocab_size=32000, d_model=512, heads=4, encoder_layers=6, decoder_layers=6,
                d_ff=1024, dropout=0.3, max_len=128, batch_tokens=16384, bc_updates=40000,
                bc_lr=7e-4, bc_evaluate_every=2000, rated_sources=40000, reward_updates=8000,
                grow=2, improve=(5, 5), samples=100, grow_sources=0, updates=8000,
                evaluate_every=1000, lr=2e-4, sample_batch_size=4096, ppo_batch=2048, ppo_group=16,
                precision="bfloat16", compile=True),
}


# --------------------------------------------------------------------------------------- ratings

JUDGED = 10_000  # ratings of a second file that are used: to judge n takes memory in n²


def made_ratings(bc, texts, split, n, settings):
    """Ratings of n sources by chrF against the reference -> ids of the sources, rated Pairs.

    What is rated: a sample of BC at each temperature, one of them corrupted, and the reference.
    Against itself the reference would get 1, which no other person's translation gets: it is rated
    like the best of its source's samples.
    """
    rng = stream("ratings", settings.seed)
    corpus = texts[split]
    chosen = rng.permutation(len(corpus.sources))[:n]
    given, references = ([side[i] for i in chosen] for side in (corpus.sources, corpus.targets))
    sources = texts.ids(given)
    outputs = []  # one list of n lines after the other
    for k, temperature in enumerate(settings.rated_temperatures):
        drawn = sample_outputs(bc, sources, 1, ("ratings", settings.seed, k), texts.max_len,
                               temperature, **settings.decoding())
        outputs.append(texts.lines(drawn.targets()))
    good = outputs[len(outputs) // 2]  # those of the middle temperature
    outputs.append([corrupt(y, good[rng.integers(len(good))], x, rng)
                    for x, y in zip(given, good)])
    ratings = [sentence_chrf(lines, references) for lines in outputs]
    outputs.append(references)
    ratings.append(np.max(ratings, axis=0))
    return sources, Pairs.of(np.tile(np.arange(len(sources)), len(outputs)),
                             texts.ids(sum(outputs, [])), reward=np.concatenate(ratings))


def corrupt(text, other, source, rng):
    """A translation made worse in one of nine ways. other: of another source."""
    words = text.split()
    others = other.split() or words
    n, kind = len(words), rng.integers(9)
    if n == 0:  # nothing to corrupt
        return other
    if kind == 0:  # some words gone
        return " ".join(w for w in words if rng.random() > 0.3)
    if kind == 1:  # two halves changed places
        cut = int(rng.integers(1, max(2, n)))
        return " ".join(words[cut:] + words[:cut])
    if kind == 2:  # shuffled
        return " ".join(words[i] for i in rng.permutation(n))
    if kind == 3:  # said twice, or in part
        return " ".join(words + words[int(rng.integers(n)) :])
    if kind == 4:  # some words from elsewhere
        return " ".join(str(rng.choice(others)) if rng.random() < 0.3 else w for w in words)
    if kind == 5:  # cut off
        return " ".join(words[: int(rng.integers(n))])
    return ["", source, other][kind - 6]  # empty; not translated; a translation of something else


def ratings_of(file, texts, settings, run):
    """A file of --ratings -> ids of the sources, rated Pairs; equal sources are one."""
    rows = list(zip(*read_ratings(file, settings.lower_is_better)))
    short = [row for row in rows if not (texts.too_long(row[0]) or texts.too_long(row[1]))]
    if not short:
        raise UserError(f"{file}: no pair has fewer than {texts.max_len} tokens on both sides: "
                        "--max-len")
    if len(short) < len(rows):
        run.warn(f"{file}: {len(rows) - len(short)} of {len(rows)} pairs have {texts.max_len} "
                 "tokens or more and are dropped")
    given, targets, scores = zip(*short)
    lines = list(dict.fromkeys(given))
    place = {line: i for i, line in enumerate(lines)}
    return texts.ids(lines), Pairs.of([place[x] for x in given], texts.ids(targets), reward=scores)


def human_ratings(texts, settings, run):
    """--ratings -> twice (ids of the sources, rated Pairs): to train on, and to judge by."""
    first, *more = [ratings_of(file, texts, settings, run) for file in settings.ratings]
    if len(more) > 1:
        raise UserError("--ratings takes one file, or two: to train on and to judge by")
    if more:
        sources, rated = more[0]
        if len(rated) > JUDGED:
            run.warn(f"{settings.ratings[1]}: only the first {JUDGED} of {len(rated)} pairs judge")
        return first, (sources, rated.select(np.arange(len(rated)) < JUDGED))
    sources, rated = first
    if len(sources) < 2:
        raise UserError(f"{settings.ratings[0]}: all ratings are of one source; the reward model "
                        "learns from some sources and is judged by others")
    train, test = split_ratings(sources, rated, settings.seed)
    return (sources, train), (sources, test)


def split_ratings(sources, rated, seed):
    """Rated pairs to train on, and those of a tenth of the sources (300 at most) to judge by."""
    n = len(sources)
    held_out = stream("held-out ratings", seed).permutation(n) < min(max(1, n // 10), 300)
    return rated.select(~held_out[rated.source]), rated.select(held_out[rated.source])


# ----------------------------------------------------------------------------------------- steps


def greedy_outputs(policy, sources, settings):
    """The likeliest token each time, for each source -> Pairs."""
    return sample_outputs(policy, sources, 1, 0, settings.max_len, temperature=0,
                          **settings.decoding())


def behaviour_cloning(task, texts, settings, run, device):
    """The policy trained on D alone; the checkpoint with the best greedy BLEU on validation."""
    torch.manual_seed(seed_of("weights", settings.seed))
    policy = Transformer(as_user_error(
        Config, texts.tokenizer.vocab_size, settings.d_model, settings.heads,
        settings.encoder_layers, settings.decoder_layers, settings.d_ff, settings.dropout,
        settings.max_len)).to(device)
    bleu = bleu_of(settings)

    def validation_bleu(policy):
        lines = texts.lines(greedy_outputs(policy, task.eval_sources, settings).targets())
        return bleu.corpus_score(lines, [texts["val"].targets]).score

    def log(event):
        run.log("train", step="bc", **event)
        if "score" in event:
            tqdm.write(f"  BC {event['update']:6d} updates  loss {event['loss']:.3f}  "
                       f"validation BLEU {event['score']:.1f}  {event['seconds']:.0f} s")

    hp = settings.training(updates=settings.bc_updates, lr=settings.bc_lr, warmup=400,
                           evaluate_every=settings.bc_evaluate_every, patience=1000)  # to the end
    return rest.behaviour_cloning(policy, task, settings, hp, run, validation_bleu, log=log)


def train_reward_model(bc, texts, ratings, settings, run):
    """The reward model, trained on ratings, and how good it is on held-out ones.

    ratings: what human_ratings returned, or None: then they are made here.
    """
    model = rm.RewardModel.from_policy(bc)
    saved = run.begin("reward")
    if saved is None:
        (sources, rated), (test_sources, test) = ratings or (
            made_ratings(bc, texts, "train", settings.rated_sources, settings),
            made_ratings(bc, texts, "val", 300, settings))
        hp = settings.training(updates=settings.reward_updates, lr=settings.reward_lr, warmup=200,
                               dropout=settings.reward_body)
        model.body.requires_grad_(settings.reward_body)
        rm.train_reward(model, sources, rated, hp, seed_of("reward", settings.seed),
                        settings.preferences, log=run.logger("reward"), checkpoint=run.checkpoint,
                        title="reward model")
        val, references = (texts.ids(x[:300]) for x in (texts["val"].sources,
                                                        texts["val"].targets))
        samples = sample_outputs(bc, val, 1, ("reward test", settings.seed), texts.max_len,
                                 **settings.decoding())
        judged = judge(model.score, test_sources, test, val, references, samples, run)
        saved = run.end({"reward": model.state_dict(), **judged})
    load_weights(model, saved["reward"])
    print(table(saved["measures"], saved["unit_tests"]))
    return model.eval()


def metrics(texts, task, settings):
    """-> what a row reports beside the reward: on test how close to the references the outputs are;
    on validation BLEU, chrF and reward, to choose settings by."""
    bleu = bleu_of(settings)

    def measure(policy, sampled, greedy):
        validation = score(greedy_outputs(policy, task.eval_sources, settings), task.eval_sources,
                           task.reward)
        row = {"val_reward": mean_reward(policy, task, settings),
               "val_greedy_reward": float(validation.reward.mean())}
        found = bleu_chrf(texts.lines(validation.targets()), texts["val"].targets, bleu)
        row |= {"val_bleu": found["bleu"], "val_chrf": found["chrf"]}
        return row | against_references(texts, texts["test"], bleu, settings.beam, policy, sampled,
                                        greedy)

    return measure


def best_of_n(name, policy, task, texts, settings, counts):
    """Reward, BLEU and chrF of the best of N samples by reward, N in counts -> entries."""
    bleu = bleu_of(settings)
    for n, best in rest.best_of_n(policy, task, settings, counts):
        found = bleu_chrf(texts.lines(best.targets()), texts["test"].targets, bleu)
        yield {"policy": name, "n": n, "reward": float(best.reward.mean()), "bleu": found["bleu"],
               "chrf": found["chrf"]}


@dataclass
class Translation:
    """A run's texts, and what comes before Algorithm 1."""

    texts: Texts
    task: rest.Task
    bc: Transformer
    reward_model: rm.RewardModel = None  # None where --reward is


def reward_or_ratings(sources, targets, texts, settings, run):
    """What --reward or --ratings gives -> (own reward, ratings), of which one at least is None."""
    own = ratings = None
    if settings.reward:
        own = own_reward(settings.reward, texts)
        own(sources[:8], targets[:8])
    elif settings.ratings:
        ratings = human_ratings(texts, settings, run)
        if settings.preferences and len(rm.preference_pairs(ratings[0][1], 0)[0]) == 0:
            raise UserError(f"{settings.ratings[0]}: --preferences needs sources with two outputs "
                            "of different score")
    # a run cannot be resumed with other ratings
    run.bind(ratings=hash_of(*(part for x, rated in ratings or () for part in (
        *x, *vars(rated).values()))))
    return own, ratings


def prepare(settings, run, device):
    """The texts, D, the BC policy and the reward -> Translation."""
    texts = Texts(settings, run)
    sources, targets = texts.ids(texts["train"].sources), texts.ids(texts["train"].targets)
    task = rest.Task(sources, Pairs.of(range(len(sources)), targets, human=True),
                     texts.ids(texts["val"].sources), texts.ids(texts["test"].sources),
                     settings.max_len)
    print(f"{run.folder}: ReST {settings.src}-{settings.tgt}, {len(sources)} training pairs, "
          f"vocabulary {texts.tokenizer.vocab_size}, seed {settings.seed}, on {device}", flush=True)
    # What the user gave is tried now, and not after hours of BC.
    if settings.beam >= texts.tokenizer.vocab_size - EOS:
        raise UserError(f"--beam {settings.beam} is wider than the vocabulary")
    own, ratings = reward_or_ratings(sources, targets, texts, settings, run)
    bc = behaviour_cloning(task, texts, settings, run, device)
    model = None if own else train_reward_model(bc, texts, ratings, settings, run)
    task.reward = own or partial(model.score, batch_tokens=settings.batch_tokens)
    task.metrics = metrics(texts, task, settings)
    return Translation(texts, task, bc, model)


# --------------------------------------------------------------------------------------- program


FIRST = ("data", "src", "tgt", "grow", "improve", "samples", "filter", "loss", "ppo", "reward",
         "ratings", "seed", "out", "resume", "show")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["translate"]:
        return translate(argv[1:])
    if argv[:1] == ["evaluate"]:
        return evaluate(argv[1:], Settings())
    settings = parse(Settings, argv, __doc__.split("\n")[0], FIRST, preset=PRESETS,
                     method=METHODS)
    bleu_of(settings)  # is everything there that the end will need?
    device = choose_device(settings.device)
    with Run(settings, "mt") as run:
        if settings.show:
            texts = Texts(settings, run)
            look(run, settings, rest.select, lambda i: texts["train"].sources[i], texts.text)
        else:
            train(settings, run, device)


def train(settings, run, device):
    mt = prepare(settings, run, device)
    texts, task, bc = mt.texts, mt.task, mt.bc
    report = Report(run, ["reward", "sampled_chrf", "greedy_reward", "bleu", "ter", "beam_bleu",
                          "length", "repetition", "val_bleu", "entropy", "kl_to_bc",
                          "kept_samples", "kept_data", "seconds"],
                    example_heads(texts), lambda policy: example_lines(policy, task, texts))
    row, policy = bc_row(bc, task, settings, run), bc
    report.add(row, policy)
    for row, policy, D_g in rest.rest(bc, task, settings, run):
        report.add(row, policy)
    name, last = row["name"], label(row)
    if settings.ppo:
        for ppo_row, ppo_policy in rest.online(bc, task, settings, run):
            report.add(ppo_row, ppo_policy)
        if settings.grow == 0:
            name, last, policy = "PPO", "PPO", ppo_policy
    best = best_of_n_step(run, settings, lambda counts: [
        entry for which, network in {"BC": bc, name: policy}.items()
        for entry in best_of_n(which, network, task, texts, settings, counts)])
    policies = {"BC": bc, last: policy}
    more = [table_of(test, texts[test], policies, texts, task.reward, settings)
            for test in texts.tests[1:]]
    more += ["", row["signature"], *before_and_after(policies, task, texts)]
    finish(run, "mt", report, best, policy, mt.reward_model, lambda i: texts["train"].sources[i],
           texts.text, "\n".join(more))


if __name__ == "__main__":
    run_cli(main)
