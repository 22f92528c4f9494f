"""A parallel corpus as ids, and how translations are measured and shown, for train_mt.py.

    texts = Texts(settings, run)                       # reads, trains or loads the tokenizer
    ids = texts.ids(texts["train"].sources); lines = texts.lines(ids)
    row = quality(lines, references, bleu_of(settings))         # BLEU, chrF, TER, ...
"""

import importlib
from pathlib import Path

import numpy as np

from infra.batches import bucket_by_length, pad
from infra.beam import beam_search
from infra.errors import UserError
from infra.pairs import score
from infra.processes import all_gather, on_main, shard
from infra.run import hash_of
from infra.sampling import sample_outputs
from infra.text import (Tokenizer, download_multi30k, find_parallel, read_parallel,
                        read_test_sets)
from model import EOS


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
    """A parallel corpus and its tokenizer. `texts["val"]` is a split, or what --test names.

    tests: the names of all test sets, "test" first.
    """

    def __init__(self, settings, run):
        folder = settings.data or on_main(lambda: download_multi30k(Path(settings.cache)))
        languages = settings.src, settings.tgt
        splits = ["train", "val"] + ["test"] * bool(find_parallel(folder, "test", *languages))
        self.corpora = {split: read_parallel(folder, split, *languages) for split in splits}
        self.corpora |= read_test_sets(settings.test)
        for name, corpus in self.corpora.items():
            if corpus.dropped:
                run.warn(f"{name}: {corpus.dropped} pairs with a blank side are dropped")
            if settings.limit:
                del corpus.sources[settings.limit :], corpus.targets[settings.limit :]
        if "test" not in splits:
            self.corpora["test"] = self["val"]
            run.warn(f"{folder} has no test set: what is reported is of validation, by which "
                     "checkpoints are chosen")
        self.tests = ["test", *(name for name in self.corpora if name not in (*splits, "test"))]
        run.bind(**{split: hash_of(self[split].sources, self[split].targets)
                    for split in ("train", "val", "test")})
        path, train = run.folder / "tokenizer.json", self["train"]
        on_main(lambda: path.exists() or Tokenizer.train(
            train.sources + train.targets, settings.vocab_size).save(path))
        super().__init__(Tokenizer.load(path), settings.max_len)
        if self.tokenizer.vocab_size < settings.vocab_size:
            run.warn(f"the corpus gives only {self.tokenizer.vocab_size} entries of the "
                     f"{settings.vocab_size} asked for")
        self.check_lengths(run)

    def __getitem__(self, split):
        return self.corpora[split]

    def check_lengths(self, run):
        """Long training pairs are dropped; test sources are cut, with a warning."""
        train = self["train"]
        pairs = [(x, y) for x, y in zip(train.sources, train.targets)
                 if not (self.too_long(x) or self.too_long(y))]
        if not pairs:
            raise UserError(f"no training pair has fewer than {self.max_len} tokens: --max-len")
        if len(pairs) < len(train.sources):
            run.warn(f"train: {len(train.sources) - len(pairs)} pairs of {self.max_len} tokens or "
                     "more dropped")
        train.sources, train.targets = map(list, zip(*pairs))
        for name in ("val", *self.tests):
            if cut := sum(map(self.too_long, self[name].sources)):
                run.warn(f"{name}: {cut} sources cut at {self.max_len} tokens")


def sacrebleu():
    """The package, which is needed for BLEU, for chrF, and for the ratings made from chrF."""
    try:
        return importlib.import_module("sacrebleu")
    except ImportError:
        raise UserError('this program needs sacrebleu: pip install -e ".[mt]"') from None


def bleu_of(settings):
    """BLEU with the tokenizer of --bleu-tokenize, or the one that the target language needs."""
    package, chosen = sacrebleu(), settings.bleu_tokenize
    try:
        bleu = package.BLEU(**{"tokenize": chosen} if chosen else {"trg_lang": settings.tgt})
        bleu.corpus_score(["a"], [["a"]])  # some tokenizers are only loaded now
        return bleu
    except Exception as error:  # a tokenizer that is not installed raises what it likes
        flag = f"--bleu-tokenize {chosen}" if chosen else f"--tgt {settings.tgt}"
        raise UserError(f"no BLEU for {flag}: {' '.join(str(error).split())}; another "
                        "--bleu-tokenize, char for instance, may do without") from None


def bleu_chrf(outputs, references, bleu):
    """Corpus BLEU and chrF, in points of 100, and the signatures that say how they were computed.
    """
    chrf = sacrebleu().CHRF()
    return {"bleu": bleu.corpus_score(outputs, [references]).score,
            "chrf": chrf.corpus_score(outputs, [references]).score,
            "signature": f"BLEU {bleu.get_signature()}, chrF {chrf.get_signature()}"}


def sentence_chrf(outputs, references):
    """chrF++ (character 1- to 6-grams, word 1- and 2-grams; Popović 2017) of n lines -> (n,) in
    [0, 1], with precision and recall of equal weight: chrF's usual β = 2 counts recall four times,
    and so forgives saying it twice."""
    metric = sacrebleu().CHRF(word_order=2, beta=1)
    return np.array([metric.sentence_score(y, [reference]).score / 100
                     for y, reference in zip(outputs, references)])


def quality(outputs, references, bleu):
    """n translations (lines) measured against n references -> a part of a row.

    BLEU and chrF; TER, the edits that would make the reference of an output, in % of its words;
    length, the outputs' words / the references'; repetition, the share of an output's 4-grams that
    it has had before (Welleck et al. 2020), in %.
    """
    ter = sacrebleu().TER()
    measured = bleu_chrf(outputs, references, bleu)
    grams = [list(zip(*(words[k:] for k in range(4)))) for words in map(str.split, outputs)]
    repeated = sum(len(g) - len(set(g)) for g in grams) / max(1, sum(map(len, grams)))
    return measured | {
        "ter": ter.corpus_score(outputs, [references]).score,
        "length": sum(len(y.split()) for y in outputs) / sum(len(y.split()) for y in references),
        "repetition": 100 * repeated,
        "signature": f"{measured['signature']}, TER {ter.get_signature()}"}


def against_references(texts, corpus, bleu, beam, policy, sampled, greedy):
    """`quality` of a policy's greedy outputs for a corpus, as a row; and BLEU and chrF of its
    samples and of its beam search, as "sampled_bleu", "beam_bleu" and so on.

    sampled, greedy: Pairs.
    """
    row = quality(texts.lines(greedy.targets()), corpus.targets, bleu)
    for kind, lines in (("sampled", texts.lines(sampled.targets())),
                        ("beam", beam_lines(policy, texts, texts.ids(corpus.sources), beam))):
        found = bleu_chrf(lines, corpus.targets, bleu)
        row |= {f"{kind}_{key}": found[key] for key in ("bleu", "chrf")}
    return row


def beam_lines(policy, texts, sources, beam):
    """Beam-search translations of id sources, in their order."""
    return [found[0] for found in beam_hypotheses(policy, texts, sources, beam)]


def beam_hypotheses(policy, texts, sources, beam, n_best=1, length_penalty=1.0):
    """For each of the id sources its n_best translations by beam search, the best first."""
    out, device = [None] * len(sources), policy.embedding.weight.device
    cut = bucket_by_length(np.array([len(x) for x in sources]), 2048)
    found = [beam_search(policy, pad([sources[i] for i in index], device), beam, texts.max_len,
                         length_penalty, n_best).tolist() for index in shard(cut)]
    for index, hypotheses in zip(cut, all_gather(found)):
        for i, best in zip(index, hypotheses):
            out[i] = texts.lines(best)
    return out


# ------------------------------------------------------------------------------------- examples


def example_heads(texts, count=5):
    """Fixed test sentences with their reference, for `Report` -> lines of text for each."""
    return [[f"{'source':12}{source}", f"{'reference':12}{reference}"] for source, reference in
            zip(texts["test"].sources[:count], texts["test"].targets[:count])]


def example_lines(policy, task, texts, count=5):
    """The reward and text of a policy's greedy outputs for these sentences -> a line for each."""
    sources = task.test_sources[:count]
    drawn = score(sample_outputs(policy, sources, 1, 0, task.max_len, temperature=0), sources,
                  task.reward)
    return [f"{100 * reward:3.0f} {texts.text(y)}"
            for reward, y in zip(drawn.reward, drawn.targets())]


def before_and_after(policies, task, texts, count=5):
    """Lines: the same sentences under several named policies, by beam search."""
    sources, lines = task.test_sources[:count], []
    outputs = {name: beam_lines(policy, texts, sources, 5) for name, policy in policies.items()}
    for i in range(len(sources)):
        lines += ["", f"{'source':12}{texts['test'].sources[i]}",
                  f"{'reference':12}{texts['test'].targets[i]}"]
        lines += [f"{name:12}{translations[i]}" for name, translations in outputs.items()]
    return lines
