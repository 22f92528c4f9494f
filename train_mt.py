"""ReST on real translation data: the loop of rest.py behind a tokenizer, BLEU and chrF.

    python train_mt.py                                # Multi30k De-En, about an hour on one core
    python train_mt.py --preset smoke                 # half a minute, to see that everything runs
    python train_mt.py --preset gpu --data DIR        # the paper's IWSLT14 size, on one GPU
    python train_mt.py --data DIR --src de --tgt en   # DIR/train.de, train.en, val.*, test.* (.gz)
    python train_mt.py translate --run runs/mt-1 < in.txt > out.txt

By default the reward model learns from ratings made here: chrF++ against the reference, for samples
of the BC policy at several temperatures and for samples damaged on purpose; and for references, as
high as the best of these. It is never shown which reference to compare with, so it can judge new
outputs. --ratings FILE.tsv trains it on human ratings instead, and --reward module:function
replaces it by your own.

Left out: back-translation, ensembling, sub-word regularisation, tagging of languages.
"""

import copy
import importlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import rest
import reward as rm
import storage
from data import Tokenizer, download_multi30k, read_parallel, read_ratings
from methods import METHODS
from model import EOS, Config, Transformer, beam_search
from online import online
from pairs import Pairs
from parallel import by_first, gather, share
from report import Report, best_of_n_table, finish, label, look, verdict
from run import (Parser, Run, RunSettings, choose_device, guarded, parse, setting, valid,
                 what_is_wrong)
from storage import UserError, load_weights
from train import by_length, pad


@dataclass
class Settings(RunSettings, rest.Settings):
    """The program's settings; a preset is another set of defaults."""

    data: str = setting("", "folder with train.*, val.*, test.* (default: download Multi30k)")
    cache: str = setting("data", "where downloads are kept")
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
    bc_updates: int = setting(4500, "most updates of BC", low=1)
    bc_lr: float = setting(2e-3, "peak learning rate of BC", low=0)
    bc_evaluate_every: int = setting(500, "updates of BC between two looks at validation BLEU",
                                     low=1)
    ratings: str = setting("", "tab-separated human ratings: source, target, score")
    lower_is_better: bool = setting(False, "in --ratings, a lower score is a better translation")
    reward: str = setting("", "your own reward, module:function(sources, outputs) -> (n,) on text")
    rated_sources: int = setting(8000, "training sources that ratings are made for", low=1)
    rated_temperatures: tuple[float, ...] = setting((0.5, 0.8, 0.8, 1.0, 1.3), "of the rated "
                                                    "samples, one each", low=0)
    reward_updates: int = setting(2000, "most updates of the reward model", low=1)
    reward_lr: float = setting(3e-3, "peak learning rate of the reward model", low=0)
    reward_body: bool = setting(False, "train the reward model's body too, and not only its head")
    batch_tokens: int = setting(1024, "padded tokens of a training batch", low=1)
    grow_sources: int = setting(10000, "sources of each Grow, drawn at random; 0 is all of D's",
                                low=0)
    updates: int = setting(300, "most updates of an Improve", low=1)
    evaluate_every: int = setting(150, "updates between two looks at the reward on validation",
                                  low=1)
    lr: float = setting(5e-4, "peak learning rate of an Improve, times lr_decay^i", low=0)
    rows: int = setting(512, "outputs drawn at once", low=1)
    beam: int = setting(5, "beam of the BLEU that is reported beside greedy", low=1)
    ppo: bool = setting(True, "run the PPO baseline")
    best_of: int = setting(32, "largest N of best-of-N", low=1)
    limit: int = setting(0, "use only so many training, validation and test pairs; 0 is all", low=0)


PRESETS = {
    "cpu": dict(filter="percentile"),  # chosen on validation: see the README
    "smoke": dict(vocab_size=600, d_model=32, encoder_layers=1, decoder_layers=1, d_ff=64,
                  bc_updates=60, bc_evaluate_every=60, rated_sources=100, reward_updates=30,
                  grow=1, improve=(2,), grow_sources=100, samples=4, updates=20, evaluate_every=20,
                  ppo_batch=64, ppo_samples=128, best_of=4, limit=400, max_len=40, beam=2),
    "gpu": dict(vocab_size=32000, d_model=512, heads=4, encoder_layers=6, decoder_layers=6,
                d_ff=1024, dropout=0.3, max_len=128, batch_tokens=16384, bc_updates=40000,
                bc_lr=7e-4, bc_evaluate_every=2000, rated_sources=40000, reward_updates=8000,
                grow=2, improve=(5, 5), samples=100, grow_sources=0, updates=8000,
                evaluate_every=1000, lr=2e-4, rows=4096, ppo_batch=2048, ppo_group=16,
                precision="bfloat16", compile=True),
}


# ------------------------------------------------------------------------------------------ text


class Codec:
    """Lines to ids and back."""

    def __init__(self, tokenizer, max_len):
        self.tokenizer, self.max_len = tokenizer, max_len

    def too_long(self, line):
        """Whether its ids and eos are more than max_len."""
        return len(self.tokenizer.encode(line)) >= self.max_len

    def ids(self, lines):
        """Ids that end in eos; a line that is too long is cut."""
        return [np.array(self.tokenizer.encode(line)[: self.max_len - 1] + [EOS])
                for line in lines]

    def text(self, ids):
        return self.tokenizer.decode([int(i) for i in ids])

    def lines(self, targets):
        return [self.text(ids) for ids in targets]


class Texts(Codec):
    """A parallel corpus and its tokenizer."""

    def __init__(self, settings, run):
        folder = settings.data or by_first(lambda: download_multi30k(Path(settings.cache)))
        self.corpora = {split: read_parallel(folder, split, settings.src, settings.tgt)
                        for split in ("train", "val", "test")}
        for split, corpus in self.corpora.items():
            if corpus.dropped:
                run.warn(f"{split}: {corpus.dropped} pairs with a blank side are dropped")
            if settings.limit:
                del corpus.sources[settings.limit :], corpus.targets[settings.limit :]
        path, train = run.folder / "tokenizer.json", self["train"]
        by_first(lambda: path.exists() or Tokenizer.train(
            train.sources + train.targets, settings.vocab_size).save(path))
        super().__init__(Tokenizer.load(path), settings.max_len)
        if self.tokenizer.vocab_size < settings.vocab_size:
            run.warn(f"the corpus gives only {self.tokenizer.vocab_size} entries of the "
                     f"{settings.vocab_size} asked for")
        self.look_at_lengths(run)

    def __getitem__(self, split):
        return self.corpora[split]

    def look_at_lengths(self, run):
        """Long training pairs are dropped; sources to be translated are cut, and it is said."""
        train = self["train"]
        pairs = [(x, y) for x, y in zip(train.sources, train.targets)
                 if not (self.too_long(x) or self.too_long(y))]
        if not pairs:
            raise UserError(f"no training pair has fewer than {self.max_len} tokens: --max-len")
        if len(pairs) < len(train.sources):
            run.warn(f"train: {len(train.sources) - len(pairs)} pairs of {self.max_len} tokens or "
                     "more dropped")
        train.sources, train.targets = map(list, zip(*pairs))
        for split in ("val", "test"):
            if cut := sum(map(self.too_long, self[split].sources)):
                run.warn(f"{split}: {cut} sources cut at {self.max_len} tokens")


def sacrebleu():
    """The package, which is needed for BLEU, for chrF, and for the ratings made from chrF."""
    try:
        return importlib.import_module("sacrebleu")
    except ImportError:
        raise UserError('this program needs sacrebleu: pip install -e ".[mt]"') from None


def bleu_chrf(outputs, references):
    """Corpus BLEU and chrF, 0 to 100, and the signatures that say how they were computed."""
    bleu, chrf = sacrebleu().BLEU(), sacrebleu().CHRF()
    return (bleu.corpus_score(outputs, [references]).score,
            chrf.corpus_score(outputs, [references]).score,
            f"BLEU {bleu.get_signature()}, chrF {chrf.get_signature()}")


def beam_lines(policy, texts, sources, beam):
    """Beam-search translations of id sources, in their order."""
    out, device = [None] * len(sources), policy.embedding.weight.device
    cut = by_length(np.array([len(x) for x in sources]), 2048)
    found = [beam_search(policy, pad([sources[i] for i in index], device), beam, texts.max_len)
             .tolist() for index in share(cut)]
    for index, best in zip(cut, gather(found)):
        for i, ids in zip(index, best):
            out[i] = texts.text(ids)
    return out


# --------------------------------------------------------------------------------------- ratings


def made_ratings(bc, texts, split, n, settings):
    """Ratings of n sources by chrF against the reference -> ids of the sources, rated Pairs.

    What is rated: a sample of BC at each temperature, one of them damaged, and the reference.
    chrF++ (character 1- to 6-grams, word 1- and 2-grams; Popović 2017), with precision and recall
    of equal weight: chrF's usual β = 2 counts recall four times, and so forgives saying it twice.
    Against itself the reference would get 1, which no other person's translation gets: it is rated
    like the best of its source's samples.
    """
    rng = np.random.default_rng((settings.seed, 3))
    corpus = texts[split]
    chosen = rng.permutation(len(corpus.sources))[:n]
    sources = texts.ids([corpus.sources[i] for i in chosen])
    references = [corpus.targets[i] for i in chosen]
    outputs = []  # one list of n lines after the other
    for k, temperature in enumerate(settings.rated_temperatures):
        drawn = rest.grow(bc, sources, 1, (settings.seed, 4, k), texts.max_len, temperature,
                          **settings.decoding())
        outputs.append(texts.lines(drawn.targets()))
    good = outputs[len(outputs) // 2]
    outputs.append([damage(y, good[rng.integers(len(good))], rng) for y in good])
    chrf = sacrebleu().CHRF(word_order=2, beta=1)
    ratings = [[chrf.sentence_score(y, [reference]).score / 100
                for y, reference in zip(lines, references)] for lines in outputs]
    outputs.append(references)
    ratings.append(np.max(ratings, axis=0))
    return sources, Pairs.of(np.tile(np.arange(len(sources)), len(outputs)),
                             texts.ids(sum(outputs, [])), reward=np.concatenate(ratings))


def damage(text, other, rng):
    """A translation made worse in one of six ways."""
    words = text.split()
    others = other.split() or words
    n, kind = len(words), rng.integers(6)
    if n == 0:  # nothing to damage
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
    return other  # the translation of something else


def human_ratings(texts, settings, run):
    """--ratings FILE -> ids of the sources, rated Pairs; equal sources are one."""
    rows = list(zip(*read_ratings(settings.ratings, settings.lower_is_better)))
    short = [row for row in rows if not (texts.too_long(row[0]) or texts.too_long(row[1]))]
    if not short:
        raise UserError(f"{settings.ratings}: no pair has fewer than {texts.max_len} tokens on "
                        "both sides: --max-len")
    if len(short) < len(rows):
        run.warn(f"{settings.ratings}: {len(rows) - len(short)} of {len(rows)} pairs have "
                 f"{texts.max_len} tokens or more and are dropped")
    given, targets, scores = zip(*short)
    lines = list(dict.fromkeys(given))
    if len(lines) < 2:
        raise UserError(f"{settings.ratings}: all ratings are of one source; the reward model "
                        "learns from some sources and is judged by others")
    place = {line: i for i, line in enumerate(lines)}
    return texts.ids(lines), Pairs.of([place[x] for x in given], texts.ids(targets), reward=scores)


def split_ratings(sources, rated, seed):
    """Rated pairs to train on, and those of a tenth of the sources (300 at most) to judge by."""
    n = len(sources)
    held_out = np.random.default_rng(seed).permutation(n) < min(max(1, n // 10), 300)
    return rated.select(~held_out[rated.source]), rated.select(held_out[rated.source])


# ----------------------------------------------------------------------------------------- steps


def behaviour_cloning(task, texts, settings, run, device):
    """The policy trained on D alone; the checkpoint with the best greedy BLEU on validation."""
    torch.manual_seed(settings.seed)
    policy = Transformer(valid(Config, texts.tokenizer.vocab_size, settings.d_model, settings.heads,
                               settings.encoder_layers, settings.decoder_layers, settings.d_ff,
                               settings.dropout, settings.max_len)).to(device)

    def validation_bleu():
        greedy = rest.grow(policy, task.eval_sources, 1, (0,), task.max_len, temperature=0,
                           **settings.decoding())
        return bleu_chrf(texts.lines(greedy.targets()), texts["val"].targets)[0]

    def show(event):
        run.log("train", step="bc", **event)
        tqdm.write(f"  BC {event['update']:6d} updates  loss {event['loss']:.3f}  "
              f"validation BLEU {event['score']:.1f}  {event['seconds']:.0f} s")

    hp = settings.training(updates=settings.bc_updates, lr=settings.bc_lr, warmup=400,
                           evaluate_every=settings.bc_evaluate_every, patience=1000)
    task.base = copy.deepcopy(policy), hp

    def make():
        done = rest.improve(policy, task.data, task.sources, settings, hp, settings.seed,
                            evaluate=validation_bleu, log=show, checkpoint=run.checkpoint,
                            title="BC")
        return {"policy": policy.state_dict(), **done}

    load_weights(policy, run.step("bc", make)["policy"])
    return policy.eval()


def train_reward_model(bc, texts, ratings, settings, run):
    """The reward model, trained on ratings, and how good it is on held-out ones.

    ratings: what human_ratings returned, or None: then they are made here.
    """
    model = rm.RewardModel.from_policy(bc)

    def make():
        if ratings:
            sources, rated = ratings
            rated, test = split_ratings(sources, rated, settings.seed)
            if settings.preferences and len(rm.preference_pairs(rated, 0)[0]) == 0:
                raise UserError(f"{settings.ratings}: --preferences needs sources with two outputs "
                                "of different score")
            test_sources = sources
        else:
            sources, rated = made_ratings(bc, texts, "train", settings.rated_sources, settings)
            test_sources, test = made_ratings(bc, texts, "val", 300, settings)
        hp = settings.training(updates=settings.reward_updates, lr=settings.reward_lr, warmup=200,
                               dropout=settings.reward_body)
        model.body.requires_grad_(settings.reward_body)
        rm.train_reward(model, sources, rated, hp, settings.seed, settings.preferences,
                        log=run.logger("reward"), checkpoint=run.checkpoint,
                        title="reward model")
        val, references = (texts.ids(x[:300]) for x in (texts["val"].sources,
                                                        texts["val"].targets))
        samples = rest.grow(bc, val, 1, (settings.seed, 5), texts.max_len, **settings.decoding())
        judged = rm.judge(model.score, test_sources, test)
        judged["reference above a sample"] = rm.reference_above(model.score, val, references,
                                                                samples)
        tests = rm.unit_tests(model.score, val, references)
        run.log("reward_model", judged=judged, unit_tests=tests)
        return {"reward": model.state_dict(), "judged": judged, "unit_tests": tests}

    made = run.step("reward", make)
    load_weights(model, made["reward"])
    print(rm.table(made["judged"], made["unit_tests"]))
    return model.eval()


def own_reward(name, texts):
    """--reward module:function, on text -> a function on ids."""
    module, _, function = name.partition(":")
    sys.path.insert(0, "")
    try:
        own = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--reward {name}: {error}; it is module:function") from None
    except Exception as error:  # of the user's module, at its import
        raise failed(name, error) from error
    if not callable(own):
        raise UserError(f"--reward {name}: not a function; it is module:function")

    def checked(sources, outputs):
        try:
            return rm.check_rewards(own(texts.lines(sources), texts.lines(outputs)), len(outputs))
        except Exception as error:  # the user's function may raise anything
            raise failed(name, error) from error

    return lambda sources, outputs: by_first(lambda: checked(sources, outputs))


def failed(name, error):
    """UserError for what the user's own code has raised; --debug shows where."""
    text = " ".join(str(error).split())
    return UserError(f"--reward {name}: {type(error).__name__}: {text}; --debug shows where")


def metrics(texts, task, settings):
    """BLEU and chrF of the outputs that a row reports, and the same on validation, to choose by."""
    def measure(policy, sampled, greedy):
        validation = rest.grow(policy, task.eval_sources, 1, (0,), task.max_len, temperature=0,
                               **settings.decoding())
        row = {"val_reward": rest.mean_reward(policy, task, settings),
               "val_greedy_reward": float(rest.score(validation, task.eval_sources, task.reward)
                                          .reward.mean())}
        _, row["sampled_chrf"], _ = bleu_chrf(texts.lines(sampled.targets()), texts["test"].targets)
        for prefix, split, sources, outputs in (
                ("", "test", task.test_sources, greedy),
                ("val_", "val", task.eval_sources, validation)):
            references = texts[split].targets
            beam = beam_lines(policy, texts, sources, settings.beam)
            row[prefix + "bleu"], row[prefix + "chrf"], row["signature"] = bleu_chrf(
                texts.lines(outputs.targets()), references)
            row[prefix + "beam_bleu"], row[prefix + "beam_chrf"], _ = bleu_chrf(beam, references)
        return row

    return measure


def best_of_n(name, policy, task, texts, settings):
    """Reward, BLEU and chrF of the best of N samples by reward, for N = 1, 2, 4, ..."""
    counts = [2**k for k in range(settings.best_of.bit_length())]
    for n, chosen in rest.best_of_n(policy, task, settings, counts):
        bleu, chrf, _ = bleu_chrf(texts.lines(chosen.targets()), texts["test"].targets)
        yield {"policy": name, "n": n, "reward": float(chosen.reward.mean()), "bleu": bleu,
               "chrf": chrf}


# --------------------------------------------------------------------------------------- program


def train(argv):
    settings = parse(Settings, argv, __doc__.split("\n")[0], preset=PRESETS,
                     method=METHODS)
    sacrebleu()
    device = choose_device(settings.device)
    run = Run(settings, "mt")
    texts = Texts(settings, run)
    sources, targets = texts.ids(texts["train"].sources), texts.ids(texts["train"].targets)
    if settings.show:
        return look(run, settings, lambda i: texts["train"].sources[i], texts.text)
    task = rest.Task(sources, Pairs.of(range(len(sources)), targets, human=True),
                     texts.ids(texts["val"].sources), texts.ids(texts["test"].sources),
                     settings.max_len)
    print(f"{run.folder}: ReST {settings.src}-{settings.tgt}, {len(sources)} training pairs, "
          f"vocabulary {texts.tokenizer.vocab_size}, seed {settings.seed}, on {device}", flush=True)
    own = own_reward(settings.reward, texts) if settings.reward else None  # a typo ends it here,
    ratings = None  # and so does one in a file of ratings, before hours of BC
    if settings.ratings and not own:
        ratings = human_ratings(texts, settings, run)
    bc = behaviour_cloning(task, texts, settings, run, device)
    model = None if own else train_reward_model(bc, texts, ratings, settings, run)
    task.reward = own or partial(model.score, batch_tokens=settings.batch_tokens)
    task.metrics = metrics(texts, task, settings)
    report = Report(run, ["reward", "greedy_reward", "bleu", "beam_bleu", "chrf", "val_reward",
                          "val_bleu", "entropy", "kl_to_bc", "kept_samples", "kept_data", "samples",
                          "seconds"],
                    lambda policy, row: examples(policy, row, task, texts, settings))
    row, policy = rest.bc_row(bc, task, settings, run), bc
    report.add(row, policy)
    for row, policy, D_g in rest.rest(bc, task, settings, run):
        report.add(row, policy)
    name, last = "ReST", label(row)
    if settings.ppo:
        for ppo_row, ppo_policy in online(bc, task, settings, run):
            report.add(ppo_row, ppo_policy)
        if settings.grow == 0:
            name, last, policy = "PPO", "PPO", ppo_policy
    best = run.step("best-of-n", lambda: {"rows": [
        entry for name, p in (("BC", bc), (name, policy))
        for entry in best_of_n(name, p, task, texts, settings)]})["rows"]
    print(report)
    print(best_of_n_table(best))
    print("\n" + report.rows[0]["signature"])
    print_before_after({"BC": bc, last: policy}, task, texts)
    finish(run, "mt", report.rows, best, policy, model)


def examples(policy, row, task, texts, settings, count=5):
    """Fixed test sentences: source, reference, a greedy output and a sample with their rewards.

    Behind a reward stands whether this Improve's τ would keep the output.
    """
    sources, lines = task.test_sources[:count], []
    seeds = (settings.seed, rest.EXAMPLES)
    outputs = [rest.score(rest.grow(policy, sources, 1, seeds, task.max_len, temperature=t),
                          sources, task.reward) for t in (0, 1)]
    for i in range(len(sources)):
        lines += [f"{'source':11}{texts['test'].sources[i]}",
                  f"{'reference':11}{texts['test'].targets[i]}"]
        lines += [f"{name} {100 * drawn.reward[i]:3.0f} {verdict(drawn.reward[i], row, settings)}"
                  f"{texts.text(drawn.target(i))}"
                  for name, drawn in zip(("greedy", "sample"), outputs)]
    return lines


def print_before_after(policies, task, texts, count=5):
    """The same sentences under several named policies."""
    sources = task.test_sources[:count]
    outputs = {name: beam_lines(policy, texts, sources, 5) for name, policy in policies.items()}
    for i in range(len(sources)):
        print(f"\n{'source':12}{texts['test'].sources[i]}"
              f"\n{'reference':12}{texts['test'].targets[i]}")
        for name, lines in outputs.items():
            print(f"{name:12}{lines[i]}")


def translate(argv):
    """Standard input to standard output, one line out for each line in."""
    parser = Parser(prog="train_mt.py translate", description=translate.__doc__)
    parser.add_argument("--run", required=True, help="folder of a finished run")
    parser.add_argument("--beam", type=int, default=5, help="beam width")
    parser.add_argument("--best-of", type=int, default=0, metavar="N",
                        help="the best of N samples by the reward model, in place of the beam")
    parser.add_argument("--show-scores", action="store_true",
                        help="each output's reward, on standard error")
    parser.add_argument("--device", default="", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    args = parser.parse_args(argv)
    for name, low, high in (("beam", 1, None), ("best_of", 0, None), ("seed", 0, 2**63 - 1)):
        if wrong := what_is_wrong(getattr(args, name), int, low, high):
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be {wrong}")
    folder, device = Path(args.run), choose_device(args.device)
    policy = load(folder / "policy.pt", Transformer, device)
    texts = Codec(Tokenizer.load(folder / "tokenizer.json"), policy.config.max_len)
    if texts.tokenizer.vocab_size != policy.config.vocab_size:
        raise UserError(f"{folder}: tokenizer.json has {texts.tokenizer.vocab_size} entries, "
                        f"policy.pt {policy.config.vocab_size}: they are of different runs")
    if args.beam >= policy.config.vocab_size - EOS:
        raise UserError(f"--beam {args.beam} is wider than the vocabulary")
    judge = None
    if args.best_of or args.show_scores:
        model = load(folder / "reward.pt", rm.RewardModel, device)
        if model.body.config != policy.config:
            raise UserError(f"{folder}: reward.pt and policy.pt are of different runs")
        judge = model.score
    lines = by_first(read_stdin)
    if not lines:
        return
    sources = texts.ids(lines)
    if cut := sum(map(texts.too_long, lines)):
        print(f"warning: {cut} lines were cut at {texts.max_len} tokens", file=sys.stderr)
    if args.best_of:
        drawn = rest.grow(policy, sources, args.best_of, (args.seed,), texts.max_len)
        scores = judge([sources[i] for i in drawn.source], drawn.targets())
        best = scores.reshape(len(sources), args.best_of).argmax(1)
        outputs = drawn.targets(np.arange(len(sources)) * args.best_of + best)
        outputs = texts.lines(outputs)
    else:
        outputs = beam_lines(policy, texts, sources, args.beam)
    outputs = [" ".join(y.split("\n")) if x.strip() else "" for x, y in zip(lines, outputs)]
    if args.show_scores:
        for score in judge(sources, texts.ids(outputs)):
            print(f"{100 * score:.1f}", file=sys.stderr)
    sys.stdout.buffer.write("".join(y + "\n" for y in outputs).encode())


def read_stdin():
    """Lines, counted by line feeds alone; what is not UTF-8 is refused."""
    raw, lines = sys.stdin.buffer.read(), []
    for n, line in enumerate(raw.removesuffix(b"\n").split(b"\n") if raw else [], 1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            raise UserError(f"standard input, line {n}: not UTF-8") from None
    return lines


def load(path, cls, device):
    """A policy or a reward model from what a run saved. Runs no code from the file."""
    if not path.exists():
        raise UserError(f"{path} is missing: --run wants the folder of a finished run, --best-of "
                        "and --show-scores one that trained a reward model")
    content = storage.load(path, device=device)
    try:
        model = cls(Config(**content["config"])).to(device)
        load_weights(model, content["weights"])
    except (UserError, RuntimeError, LookupError, TypeError, ValueError, AttributeError,
            ArithmeticError, MemoryError) as error:
        raise UserError(f"{path}: not a {cls.__name__} of this program "
                        f"({(str(error).splitlines() or [type(error).__name__])[0]})") from None
    return model.eval()


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    translate(argv[1:]) if argv[:1] == ["translate"] else train(argv)


if __name__ == "__main__":
    guarded(main)
