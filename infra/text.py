r"""Text in, numbers out: parallel corpora, human ratings, and a byte-level BPE tokenizer.

    corpus = read_parallel("data/multi30k", "train", src="de", tgt="en")
    tokenizer = Tokenizer.train(corpus.sources + corpus.targets, vocab_size=4000)
    ids = tokenizer.encode("Zwei Hunde spielen im Schnee.")    # a list of ints, all >= 3
    text = tokenizer.decode(ids)                               # exactly the text again

German and English share one vocabulary, so one embedding table serves both sides of the model.
Merges are learned here, in Python; applying them is left to tiktoken, which does it in Rust.
8000 merges of Multi30k (58 000 lines) take about four seconds on one core.

Files are read strictly. A sentence that silently moves by one line spoils every pair after it, so
anything doubtful ends with a UserError that says which file, which line, and what to do.

Left out on purpose: Unicode normalisation and lower-casing (text comes back as it went in),
streaming (a corpus is a list in memory), sentence alignment, and any data set but Multi30k.
"""

import gzip
import hashlib
import heapq
import json
import math
import os
import re
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

import numpy as np
import tiktoken
from tqdm import tqdm

from model import BOS, EOS, PAD
from infra.errors import UserError
from infra.storage import atomic_write

N_SPECIAL = len((PAD, BOS, EOS))  # ids 0, 1, 2; the 256 bytes follow, then the merges

# ------------------------------------------------------------------------------------------------
# Tokenizer

# What no merge crosses: the borders of words, numbers, punctuation, white space. The first three
# take one space before them along, so that " dog" is one token. Together the four hold every
# character there is. They are spelled out because \w, \s and \p{L} mean different things in
# Python's re, which learns the merges, and in tiktoken's Rust engine, which applies them. All that
# is not ASCII counts as a letter: right for umlauts, good enough for the rest.
SPLIT = (r" ?[A-Za-z\u0080-\U0010ffff]+"
         r"| ?[0-9]+"
         r"| ?[!-/:-@\[-`{-~]+"
         r"|[\x00-\x20\x7f]+")
LONGEST = 1000  # characters: no merge is learned from longer pieces, each of which costs its length


def train_bpe(lines, n_merges):
    """Learn byte-pair merges: again and again, join the most frequent pair of neighbours.

    `lines` are strings. Returns tiktoken's mergeable ranks, a dict from bytes to int: the 256
    single bytes, then the merges in the order in which they were learned. Ties go to the pair
    with the smaller ids, so the result depends on nothing but the text. There are fewer than
    `n_merges` merges if no pair is left that occurs twice; compare `len(ranks) - 256`.
    """
    pieces = Counter(piece for line in lines for piece in re.findall(SPLIT, line)
                     if len(piece) <= LONGEST)
    words, freqs = [list(piece.encode()) for piece in pieces], list(pieces.values())
    tokens = [bytes([byte]) for byte in range(256)]

    count = Counter()  # pair -> occurrences in the corpus
    where = defaultdict(set)  # pair -> words that hold it, or held it once
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            count[pair] += freqs[i]
            where[pair].add(i)

    # One heap entry per pair. A merge only ever lowers the counts of pairs that exist already, so
    # an entry is right or too high: it is corrected when it comes to the top, not before.
    heap = [(-n, pair) for pair, n in count.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < 256 + n_merges:
        n, pair = heapq.heappop(heap)
        if -n > count[pair]:
            heapq.heappush(heap, (-count[pair], pair))
            continue
        if -n < 2:  # a pair that occurs once teaches nothing
            break
        new, created = len(tokens), set()
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        for i in where.pop(pair):
            old, words[i] = words[i], _merge(words[i], pair, new)
            for p in zip(old, old[1:]):
                count[p] -= freqs[i]
            for p in zip(words[i], words[i][1:]):
                count[p] += freqs[i]
                if new in p:
                    where[p].add(i)
                    created.add(p)
        for p in created:
            heapq.heappush(heap, (-count[p], p))
    return {token: rank for rank, token in enumerate(tokens)}


def _merge(word, pair, new):
    """The list of ids `word` with each `pair` replaced by `new`, from left to right."""
    out, i = [], 0
    while i < len(word):
        found = word[i] == pair[0] and i + 1 < len(word) and word[i + 1] == pair[1]
        out.append(new if found else word[i])
        i += 2 if found else 1
    return out


class Tokenizer:
    """Text to ids and back: id = 3 + BPE rank, and 0, 1, 2 are PAD, BOS, EOS.

    `ranks` is what `train_bpe` returns. Any Unicode string can be encoded, whatever the training
    text was, because every byte is a token; and decode(encode(text)) == text.
    """

    def __init__(self, ranks):
        self.ranks = ranks
        self.vocab_size = N_SPECIAL + len(ranks)
        # tiktoken only compares ranks, so it can be given the shifted ones: no loop to add 3.
        self._bpe = tiktoken.Encoding(
            "rest", pat_str=SPLIT, special_tokens={},
            mergeable_ranks={token: N_SPECIAL + rank for token, rank in ranks.items()})

    @classmethod
    def train(cls, lines, vocab_size):
        """Learn a tokenizer of `vocab_size` ids (3 special, 256 bytes, merges) from strings.

        A small corpus may give fewer: see `.vocab_size`. UserError if there is no room for bytes.
        """
        n_merges = vocab_size - N_SPECIAL - 256
        if n_merges < 0:
            raise UserError(f"a vocabulary of {vocab_size} is too small: "
                            f"it needs {N_SPECIAL + 256} ids before the first merge")
        return cls(train_bpe(lines, n_merges))

    def encode(self, text):
        """The ids of a string, all >= 3: no BOS, no EOS, and nothing for an empty string."""
        return self._bpe.encode_ordinary(text)

    def decode(self, ids):
        """The string of a list of ints; PAD, BOS and EOS vanish, wherever they stand.

        A sample may stop in the middle of a character: such bytes become U+FFFD. KeyError for an
        id that is not below `.vocab_size`.
        """
        text = self._bpe.decode_bytes([i for i in ids if i >= N_SPECIAL])
        return text.decode("utf-8", errors="replace")

    def save(self, path):
        """Write the merges as JSON, one character per byte (Latin-1), so that people can read it.

        UserError if it cannot be written; a file that was there stays whole until then.
        """
        merges = [token.decode("latin-1") for token in sorted(self.ranks, key=self.ranks.get)[256:]]
        record = {"format": "rest-bpe-1", "split": SPLIT, "merges": merges}
        atomic_write(path, lambda file: file.write(json.dumps(record, indent=0).encode()))

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. UserError if it is missing, damaged, or of another version."""
        lines = read_lines(path)
        try:
            record = json.loads("\n".join(lines))
            if (record["format"], record["split"]) != ("rest-bpe-1", SPLIT):
                raise ValueError("its format or its splitting rule differs from this program's")
            tokens = [bytes([byte]) for byte in range(256)]
            tokens += [token.encode("latin-1") for token in record["merges"]]
            if len(set(tokens)) < len(tokens) or b"" in tokens:
                raise ValueError("it repeats a token")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: not a tokenizer of this program ({error}); "
                            "train it again, or point to another file") from None
        return cls({token: rank for rank, token in enumerate(tokens)})


# ------------------------------------------------------------------------------------------------
# Files

def read_lines(path):
    r"""The lines of a UTF-8 file `path`, or of `path`.gz, as a list of strings.

    Only "\n" ends a line. str.splitlines would also cut at U+2028, "\x0b" or a lone "\r", on one
    side of a corpus but not on the other, and every pair after it would be a wrong one. The "\r"
    of CRLF and a byte order mark are dropped. UserError if the file cannot be read as that.
    """
    path, data = _read_bytes(Path(path))
    if not data.removeprefix(BOM):
        raise UserError(f"{path}: the file is empty; it should hold one sentence per line")
    return decode_lines(data.removesuffix(b"\n"), path)


BOM = b"\xef\xbb\xbf"


def decode_lines(data, name, first=0):
    """The lines of UTF-8 bytes, without a byte order mark and the CRs of CRLF.

    name, first: for errors, where the bytes come from and how many lines came before.
    """
    data = data.removeprefix(BOM) if first == 0 else data
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first + data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}, line {line}: not valid UTF-8; save the file as UTF-8") from None
    return [line.removesuffix("\r") for line in text.split("\n")]


def _read_bytes(path):
    """(the path that was there, its unpacked bytes): `path` if it exists, or else `path`.gz."""
    for found in (path, Path(f"{path}.gz")):
        try:
            data = found.read_bytes()
            return found, gzip.decompress(data) if found.suffix == ".gz" else data
        except FileNotFoundError:
            continue
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            reason = f"{found}: damaged or not a gzip file ({error}); fetch or pack it again"
        except OSError as error:  # a folder, no permission, a failing disk
            reason = f"{found}: cannot be read ({error.strerror}); give a file that you may read"
        raise UserError(reason)
    raise UserError(f"{path}: no such file, nor with .gz added; check the folder and the name")


@dataclass
class Corpus:
    """Sentence pairs: `targets[i]` translates `sources[i]`; both lists have the same length."""

    sources: list[str]
    targets: list[str]
    dropped: int = 0  # pairs left out because one side was blank


OTHER_NAMES = {"val": ("valid", "dev")}  # of a split


def read_parallel(folder, split, src, tgt):
    """Read a split of a parallel corpus -> Corpus.

    `src` and `tgt` are file endings such as "de" and "en". UserError as for `read_pairs`, or if the
    folder has no such split.
    """
    files = find_parallel(folder, split, src, tgt)
    return read_pairs(files or [Path(folder) / f"{split}.{language}" for language in (src, tgt)])


def find_parallel(folder, split, src, tgt):
    """The files of a split, as `read_pairs` takes them: [split.src, split.tgt], or [split.tsv].

    Each may end in .gz; a validation set may be named valid or dev. [] if there is neither.
    """
    for name in (split, *OTHER_NAMES.get(split, ())):
        for endings in ((src, tgt), ("tsv",)):
            files = [Path(folder) / f"{name}.{ending}" for ending in endings]
            if any(os.path.exists(f"{file}{packed}") for file in files for packed in ("", ".gz")):
                return files
    return []


def read_pairs(files):
    """Sentence pairs of two files, line n beside line n, or of one, tab between the two -> Corpus.

    UserError if a file cannot be read, if the two differ in length, if a line of the one has not
    one tab, or if no pair has text on both sides.
    """
    if len(files) == 1:
        rows = [line.split("\t") for line in read_lines(files[0])]
        wrong = [n for n, row in enumerate(rows, 1) if len(row) != 2]
        if wrong:
            raise UserError(f"{files[0]}, line {wrong[0]}: {len(rows[wrong[0] - 1])} columns, not "
                            "two; each line must be a source, a tab, and its translation")
        sources, targets = zip(*rows)
    else:
        sources, targets = map(read_lines, files)
        if len(sources) != len(targets):
            raise UserError(f"{files[0]} has {len(sources)} lines but {files[1]} has "
                            f"{len(targets)}; line n of one must translate line n of the other")
    kept = [pair for pair in zip(sources, targets) if pair[0].strip() and pair[1].strip()]
    if not kept:
        raise UserError(f"{' and '.join(map(str, files))}: no line has text on both sides")
    return Corpus([s for s, _ in kept], [t for _, t in kept], dropped=len(sources) - len(kept))


def read_test_sets(files):
    """What --test names, files two by two or alone if they end in .tsv -> {name: Corpus}."""
    found, left = {}, list(files)
    while left:
        n = 1 if left[0].removesuffix(".gz").endswith(".tsv") else 2
        if len(left) < n:
            raise UserError(f"--test {left[0]}: where is its translation? Give the files two by "
                            "two, source and reference, or one that ends in .tsv")
        found[left[0]] = read_pairs([Path(file) for file in left[:n]])
        del left[:n]
    return found


def read_ratings(path, lower_is_better=False):
    """Human ratings of translations, for the reward model: (sources, targets, scores).

    The file is tab-separated with a header line that names at least source, target and score;
    there is no quoting, and other columns are ignored. `scores` is a float32 array in [0, 1] with
    1 the best: the 1st percentile of the file goes to 0, the 99th to 1, and what lies outside is
    clipped, because a few ruined sentences would otherwise press all others together. UserError
    with the line number for a row that does not fit.
    """
    header, *lines = (line.split("\t") for line in read_lines(path))
    for name in ("source", "target", "score"):
        if header.count(name) != 1:
            raise UserError(f"{path}, line 1: {header.count(name)} columns named {name}, not one; "
                            "the first line must name the columns, with tabs between them")
    rows = []
    for number, fields in enumerate(lines, start=2):
        try:
            rows.append(_rating(header, fields))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; mend or delete the line") from None
    if not rows:
        raise UserError(f"{path}: a header but no ratings; it should hold one per line")

    sources, targets, scores = zip(*rows)
    low, high = np.percentile(scores, [1, 99])
    if not 0 < high - low < math.inf:
        raise UserError(f"{path}, lines 2 to {len(rows) + 1}: all scores (or all but 2 %) are "
                        f"{low:g}; a reward model has nothing to learn from these")
    scores = ((np.array(scores) - low) / (high - low)).clip(0, 1).astype(np.float32)
    return list(sources), list(targets), 1 - scores if lower_is_better else scores


def _rating(header, fields):
    """(source, target, score) of one row; ValueError says what is wrong with it."""
    if len(fields) != len(header):
        raise ValueError(f"{len(fields)} columns where the header has {len(header)}")
    row = dict(zip(header, fields))
    for name in ("source", "target"):
        if not row[name].strip():
            raise ValueError(f"the {name} is blank")
    try:
        score = float(row["score"])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"the score {row['score']!r} is not a finite number")
    return row["source"], row["target"], score


# ------------------------------------------------------------------------------------------------
# Multi30k

MULTI30K_URL = ("https://raw.githubusercontent.com/multi30k/dataset/"
                "a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw")
MULTI30K_LICENCE = ("Multi30k: German-English captions of Flickr30K images, for non-commercial "
                    "research and education only; please cite Elliott et al. 2016 (W16-3210).")
MULTI30K_FILES = {  # name: bytes and SHA-256 of the packed file; test is test_2016_flickr there
    "train.de.gz": (637044, "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
    "train.en.gz": (568929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
    "val.de.gz": (24681, "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
    "val.en.gz": (21650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
    "test.de.gz": (22890, "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"),
    "test.en.gz": (21077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"),
}


def download_multi30k(cache, base_url=MULTI30K_URL):
    """Fetch Multi30k (1.3 MB) into cache/multi30k-de-en and return that folder, a Path.

    29 000 training, 1 014 validation and 1 000 test pairs (test_2016_flickr), for `read_parallel`.
    A file that is there with the right SHA-256 is not fetched again. UserError if the address is
    not HTTPS, the network fails, or what arrives is not the file that it should be.
    """
    folder = Path(cache) / "multi30k-de-en"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [name for name, check in MULTI30K_FILES.items()
                  if not (folder / name).exists()
                  or not _is_right((folder / name).read_bytes(), *check)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as a cache ({error.strerror}); "
                        "choose another folder, or pass --data DIR") from None
    if wanted:
        print(MULTI30K_LICENCE)
    for name in wanted:
        url = f"{base_url}/{name.replace('test', 'test_2016_flickr')}"
        data = _fetch(url, *MULTI30K_FILES[name])
        atomic_write(folder / name, lambda file: file.write(data))
    return folder


def _is_right(data, size, digest):
    return len(data) == size and hashlib.sha256(data).hexdigest() == digest


class _NoRedirect(HTTPRedirectHandler):
    """Makes a redirect an error: it could lead from HTTPS to anywhere."""

    def redirect_request(self, *args):
        return None


def _fetch(url, size, digest):
    """The bytes behind `url`, if they are `size` many and have the SHA-256 `digest`.

    They stay in memory until that is known: nothing unchecked is unpacked or touches the disk.
    """
    address = urlsplit(url)
    if address.scheme != "https" and (
            address.scheme != "http" or address.hostname not in ("127.0.0.1", "localhost")):
        raise UserError(f"{url}: only https addresses are fetched; give one, or pass --data DIR")
    data, reason = bytearray(), "is not the file it should be (its length or SHA-256 differs)"
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=url.rpartition("/")[2])
    try:
        with bar, build_opener(_NoRedirect).open(url, timeout=30) as response:
            # One byte too many is enough to know that it is the wrong file.
            while chunk := response.read(min(1 << 16, size + 1 - len(data))):
                data += chunk
                bar.update(len(chunk))
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = f"cannot be fetched ({error})"
    if _is_right(data, size, digest):
        return bytes(data)
    raise UserError(f"{url} {reason}; try again later, or fetch the data yourself "
                    "and pass --data DIR")
