"""text.py: BPE against a naive merge loop, strict files, downloads from a server on 127.0.0.1."""

import gzip
import hashlib
import json
import random
import re
import threading
import warnings
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tiktoken

import infra.text
from infra.errors import UserError
from infra.text import (SPLIT, Tokenizer, decode_lines, read_lines, read_parallel, read_ratings,
                        read_test_sets)

TEXT = [  # enough repetition for a few hundred merges
    "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    "Two young, white males are outside near many bushes.",
    "Ein kleines Mädchen klettert in ein Spielhaus aus Holz, 2 3 44 555.",
    "A little girl climbing into a wooden playhouse; aaaa aaaaa banana bandana.",
    "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster!",
    "日本語の日本語と日本 👩‍👩‍👧 👩‍👩‍👦 e\u0301a\u0301 שלום שלום\r\n\t\t  \u2028\u2028",
] * 2

HARD = [
    "", " ", "  ", "   a", "a   ", "\n\n a\r\nb", "\t x\x0by\x0cz", "\x00\x01 \x00a\x7f", "don't",
    "a_b", "<|endoftext|>", "x=3.14e-10;", "№5 ½ ٣ ५",
    "\u00a0nbsp\u2003em\u3000wide", "a\u2028b\u2029c\x85d", "\ufeffBOM",
    "e\u0301 \u0301 \u200d\u200b", "👩‍👩‍👧🏽 🇩🇪🇬🇧", "مرحبا بالعالم", "\u202eRTL\u202c", "漢字、かな。",
    "\U0010ffff\ue000",
    "[\\]^`{|}~@!\"#$%&'()*+,-./:;<=>?", "ﬁ İıſK ß ẞ", "Ωmega µm", "a\ud7ffb\uffffc",
]


def random_strings(n, seed=0):
    """n strings that mix plain words, single bytes, and code points from everywhere."""
    rng = random.Random(seed)
    alphabet = [chr(c) for c in range(256)] + list("👩\u200d\u0301ש\u2028\u3000語日ßäü  aaabn")
    code_point = lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
    words = " ".join(TEXT).split(" ")
    draw = [lambda: rng.choice(alphabet), code_point, lambda: " " + rng.choice(words)]
    return ["".join(rng.choice(draw)() for _ in range(rng.randrange(40))) for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT, vocab_size=3 + 256 + 150)


# ------------------------------------------------------------------------------------------------
# Tokenizer

def naive_encode(text, ranks):
    """BPE as it is defined: join the neighbours of lowest rank, leftmost first, to the end."""
    out = []
    for piece in re.findall(SPLIT, text):
        parts = [bytes([b]) for b in piece.encode()]
        while True:
            pairs = [(ranks.get(a + b, 10**9), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
            if not pairs or min(pairs)[0] == 10**9:
                break
            i = min(pairs)[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        out += [ranks[part] + 3 for part in parts]
    return out


def naive_train(lines, n_merges):
    """The same merges by counting every pair anew each time."""
    pieces = Counter(p for line in lines for p in re.findall(SPLIT, line))
    words = [([bytes([b]) for b in p.encode()], n) for p, n in pieces.items()]
    ids = {bytes([b]): b for b in range(256)}
    while len(ids) < 256 + n_merges:
        count = Counter()
        for word, n in words:
            for pair in zip(word, word[1:]):
                count[pair] += n
        best = min(count, key=lambda p: (-count[p], ids[p[0]], ids[p[1]]))
        ids[best[0] + best[1]] = len(ids)
        for word, _ in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [word[i] + word[i + 1]]
                i += 1
    return ids


def test_split_covers_every_character_and_is_the_same_in_both_engines():
    every = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # re warns of classes that other engines read differently
        re.purge()
        pattern = re.compile(SPLIT)
    for text in HARD + random_strings(500) + [every]:
        pieces = pattern.findall(text)
        assert "".join(pieces) == text
        # tiktoken shows no pieces, but returns a piece that is a token as one id. So make a token
        # of every piece, and of up to four neighbours, which shows where it did not cut.
        ranks = {bytes([b]): b for b in range(256)}
        for n in range(1, 5):
            for i in range(len(pieces) - n + 1):
                ranks.setdefault("".join(pieces[i:i + n]).encode(), len(ranks))
        rust = tiktoken.Encoding("t", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
        assert rust.encode_ordinary(text) == [ranks[piece.encode()] for piece in pieces]


def test_split_keeps_classes_apart():
    assert re.findall(SPLIT, "Der Mann, 42\u00a0Jahre (alt)!\n  ja") == [
        "Der", " Mann", ",", " 42", "\u00a0Jahre", " (", "alt", ")!", "\n  ", "ja"]


def test_training_equals_naive_training(tokenizer):
    assert list(tokenizer.ranks.items()) == list(naive_train(TEXT, 150).items())
    assert tokenizer.vocab_size == 3 + 256 + 150


def test_no_merge_is_learned_from_a_piece_without_end():
    assert infra.text.train_bpe(TEXT + ["ab" * 10**6], 300) == infra.text.train_bpe(TEXT, 300)


def test_training_does_not_depend_on_order_and_stops_early():
    full = infra.text.train_bpe(TEXT, 10**6)
    assert 256 + 150 < len(full) < 256 + 1000
    assert infra.text.train_bpe(TEXT[::-1], 10**6) == full
    assert list(infra.text.train_bpe(TEXT, 40)) == list(full)[:296]
    # "abc" and " abc" give ab and abc; " abc" itself occurs once
    assert len(infra.text.train_bpe(["abc abc"], 5)) == 256 + 2
    assert len(infra.text.train_bpe([], 5)) == 256


def test_vocabulary_too_small():
    with pytest.raises(UserError, match="258 is too small"):
        Tokenizer.train(TEXT, 258)
    assert Tokenizer.train(TEXT, 259).encode("aä") == [3 + 97, 3 + 0xC3, 3 + 0xA4]


def test_encode_equals_naive_encode(tokenizer):
    for text in TEXT + HARD + random_strings(1000, seed=1):
        assert tokenizer.encode(text) == naive_encode(text, tokenizer.ranks)
    assert len(tokenizer.encode(TEXT[0])) < len(TEXT[0]) * 0.6  # it does merge


def test_every_token_encodes_to_itself(tokenizer):
    for token, rank in tokenizer.ranks.items():
        if token.decode(errors="ignore").encode() == token:  # not half a character
            assert tokenizer.encode(token.decode()) == [rank + 3]


def test_round_trip(tokenizer):
    texts = TEXT + HARD + random_strings(1000, seed=2) + ["x" * 20000, " " * 20000]
    batch = list(map(tokenizer.encode, texts))
    assert batch == [tokenizer.encode(text) for text in texts]
    assert [tokenizer.decode(ids) for ids in batch] == texts
    assert 3 <= min(map(min, filter(None, batch)))
    assert max(map(max, filter(None, batch))) < tokenizer.vocab_size


def test_decode_of_special_and_broken_ids(tokenizer):
    ids = tokenizer.encode("größer")
    assert tokenizer.decode([infra.text.BOS, *ids, infra.text.EOS, infra.text.PAD]) == "größer"
    assert tokenizer.decode([3 + ord("a"), 3 + 0xC3, infra.text.EOS]) == "a\ufffd"
    assert tokenizer.decode([]) == ""
    with pytest.raises(KeyError):
        tokenizer.decode([tokenizer.vocab_size])


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    tokenizer.save(path)
    again = Tokenizer.load(path)
    assert list(again.ranks.items()) == list(tokenizer.ranks.items())
    assert list(map(again.encode, TEXT)) == list(map(tokenizer.encode, TEXT))
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]  # nothing left beside
    with pytest.raises(UserError, match="cannot be written"):
        tokenizer.save(tmp_path / "nowhere" / "tokenizer.json")


def test_failed_save_leaves_the_old_file(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(UserError, match="No space left"):
        tokenizer.save(path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


GOOD = {"format": "rest-bpe-1", "split": SPLIT, "merges": ["ab", "abc"]}


@pytest.mark.parametrize("record", [
    "not json", "[]", "3", '"x"', "{}", "[" * 100000,
    *(json.dumps({**GOOD, **change}) for change in [
        {"format": "rest-bpe-0"}, {"split": r"\w+"}, {"merges": 5}, {"merges": [1]},
        {"merges": ["ab", "ab"]}, {"merges": ["a"]}, {"merges": [""]}, {"merges": ["\u20ac"]}]),
])
def test_malformed_tokenizer(record, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(GOOD))
    assert Tokenizer.load(path).encode("abcab") == [3 + 257, 3 + 256]
    path.write_text(record)
    with pytest.raises(UserError, match="not a tokenizer of this program") as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------
# Files

def test_lines_end_at_newline_only(tmp_path):
    path = tmp_path / "a.de"
    path.write_bytes("\ufeffeins\r\nzw\u2028e\x0bi\n\n\rdr\rei\x85\ufeff".encode())
    assert read_lines(path) == ["eins", "zw\u2028e\x0bi", "", "\rdr\rei\x85\ufeff"]
    path.write_bytes(b"a\n\n")
    assert read_lines(str(path)) == ["a", ""]


def test_lines_that_come_in_parts_are_those_of_the_whole():
    """As translate reads them: a byte order mark is one at the very beginning only."""
    parts = [b"\xef\xbb\xbfeins\r\nzw\xc3\xa4i\r", b"\xef\xbb\xbfdrei\n"]
    assert decode_lines(parts[0], "input") == ["eins", "zwäi"]
    assert decode_lines(parts[1], "input", first=2) == ["\ufeffdrei", ""]
    with pytest.raises(UserError, match="^input, line 9: not valid UTF-8; save"):
        decode_lines(b"a\n\xff\n", "input", first=7)


def test_packed_lines(tmp_path):
    (tmp_path / "a.de.gz").write_bytes(gzip.compress("ä\nb\n".encode()))
    assert read_lines(tmp_path / "a.de") == read_lines(tmp_path / "a.de.gz") == ["ä", "b"]
    (tmp_path / "a.de").write_text("plain\n")
    assert read_lines(tmp_path / "a.de") == ["plain"]


@pytest.mark.parametrize("name, content, says", [
    ("a.de", None, "no such file"),
    ("a.de", b"", "empty"),
    ("a.de", b"\xef\xbb\xbf", "empty"),
    ("a.de.gz", b"", "empty"),
    ("a.de.gz", b"plain text\n", "gzip"),
    ("a.de.gz", gzip.compress(b"abc\n" * 999, mtime=0)[:-9], "gzip"),
    ("a.de.gz", gzip.compress(b"abc\n", mtime=0)[:10] + b"\xff" * 12, "gzip"),
    ("a.de", b"a\nb\n\xc3\n", "line 3: not valid UTF-8"),
    ("a.de", "ä".encode("utf-16"), "line 1: not valid UTF-8"),
])
def test_bad_files(name, content, says, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_lines(tmp_path / "a.de")
    assert str(tmp_path / "a.de") in str(error.value) and "\n" not in str(error.value)
    assert ";" in str(error.value)  # what follows is what to do


def test_folder_and_forbidden_file(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="Is a directory"):
        read_lines(tmp_path)

    def forbidden(_):  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(infra.text.Path, "read_bytes", forbidden)
    with pytest.raises(UserError, match="Permission denied"):
        read_lines(tmp_path / "a.de")


def test_parallel(tmp_path):
    (tmp_path / "train.de").write_text("eins\n \nzwei\ndrei\n")
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"one\nx\n\nthree"))
    corpus = read_parallel(tmp_path, "train", "de", "en")
    assert corpus == infra.text.Corpus(["eins", "drei"], ["one", "three"], dropped=2)
    assert read_parallel(str(tmp_path), "train", "en", "de").sources == ["one", "three"]


def test_parallel_mismatch(tmp_path):
    (tmp_path / "val.de").write_text("eins\nzwei\n")
    (tmp_path / "val.en").write_text("one\n")
    with pytest.raises(UserError, match=r"val\.de has 2 lines but .*val\.en has 1;"):
        read_parallel(tmp_path, "val", "de", "en")
    (tmp_path / "val.en").write_text("\n\n")
    with pytest.raises(UserError, match="both sides"):
        read_parallel(tmp_path, "val", "de", "en")
    with pytest.raises(UserError, match=r"val\.fr: no such file"):
        read_parallel(tmp_path, "val", "de", "fr")


def test_parallel_in_one_file(tmp_path):
    (tmp_path / "valid.tsv").write_text("eins\tone\n\tx\ndrei\tthree\n")
    for split in ("val", "valid"):
        corpus = read_parallel(tmp_path, split, "de", "en")
        assert corpus == infra.text.Corpus(["eins", "drei"], ["one", "three"], dropped=1)
    (tmp_path / "dev.de").write_text("zwei\n")
    (tmp_path / "dev.en").write_text("two\n")
    assert read_parallel(tmp_path, "dev", "de", "en").sources == ["zwei"]
    (tmp_path / "valid.tsv").write_text("eins\tone\nzwei two\n")
    with pytest.raises(UserError, match=r"valid\.tsv, line 2: 1 columns, not two"):
        read_parallel(tmp_path, "val", "de", "en")


def test_test_sets(tmp_path):
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"eins\tone\n"))
    for name, text in (("b.de", "zwei\n"), ("b.en", "two\n")):
        (tmp_path / name).write_text(text)
    a, b, c = (str(tmp_path / name) for name in ("a.tsv.gz", "b.de", "b.en"))
    for files in ([a, b, c], [b, c, a]):
        found = read_test_sets(files)
        assert found[a].targets == ["one"] and found[b].targets == ["two"] and len(found) == 2
    assert read_test_sets([]) == {}
    with pytest.raises(UserError, match="where is its translation"):
        read_test_sets([a, b])


# ------------------------------------------------------------------------------------------------
# Ratings

def write_ratings(path, rows, header="system\tscore\tsource\ttarget"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_ratings(tmp_path):
    raw = [-1000.0, *np.linspace(-10, 0, 998), 1000.0]
    rows = [f"x\t{score}\ts {i}\t\"t\" {i}" for i, score in enumerate(raw)]
    path = write_ratings(tmp_path / "r.tsv", rows)
    sources, targets, scores = read_ratings(path)
    assert sources[7] == "s 7" and targets[7] == '"t" 7' and len(sources) == len(targets) == 1000
    assert scores.dtype == np.float32 and scores.shape == (1000,)
    assert scores[0] == 0 and scores[-1] == 1  # outliers are clipped, not stretched to
    assert (scores == 0).sum() == 10 and (scores == 1).sum() == 10
    low, high = np.percentile(raw, [1, 99])
    assert scores[300] == pytest.approx((raw[300] - low) / (high - low), abs=1e-6)
    np.testing.assert_allclose(read_ratings(path, lower_is_better=True)[2], 1 - scores)


def test_ratings_packed(tmp_path):
    path = write_ratings(tmp_path / "r.tsv", ["x\t1\ta\tb", "x\t3\tc\td"])
    (tmp_path / "p.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    sources, targets, scores = read_ratings(tmp_path / "p.tsv")
    assert (sources, targets, scores.tolist()) == (["a", "c"], ["b", "d"], [0, 1])


@pytest.mark.parametrize("row, says", [
    ("x\tnan\ta\tb", "line 3: the score 'nan'"),
    ("x\tinf\ta\tb", "line 3: the score 'inf'"),
    ("x\t\ta\tb", "line 3: the score ''"),
    ("x\tgood\ta\tb", "line 3: the score 'good'"),
    ("x\t1\t \tb", "line 3: the source is blank"),
    ("x\t1\ta\t", "line 3: the target is blank"),
    ("x\t1\ta", "line 3: 3 columns where the header has 4"),
    ("x\t1\ta\tb\tc", "line 3: 5 columns where the header has 4"),
    ("", "line 3: 1 columns"),
])
def test_bad_rating(row, says, tmp_path):
    path = write_ratings(tmp_path / "r.tsv", ["x\t0\ta\tb", row, "x\t2\ta\tb"])
    with pytest.raises(UserError, match=re.escape(f"{path}, {says}")):
        read_ratings(path)


def test_bad_rating_files(tmp_path):
    path = tmp_path / "r.tsv"
    write_ratings(path, ["1\ta\tb"], header="score\tsource\treference")
    with pytest.raises(UserError, match="line 1: 0 columns named target"):
        read_ratings(path)
    write_ratings(path, ["1\t1\ta\tb"], header="score\tscore\tsource\ttarget")
    with pytest.raises(UserError, match="line 1: 2 columns named score"):
        read_ratings(path)
    write_ratings(path, [])
    with pytest.raises(UserError, match="no ratings"):
        read_ratings(path)
    write_ratings(path, ["x\t-2.5\ta\tb"] * 3)
    with pytest.raises(UserError, match="lines 2 to 4: all scores .* are -2.5"):
        read_ratings(path)


# ------------------------------------------------------------------------------------------------
# Download

@pytest.fixture
def server(monkeypatch):
    """A server on 127.0.0.1: .files (path -> bytes), .requests, .url; the table fits its files."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            toy.requests.append(self.path)
            if self.path in toy.redirects:
                self.send_response(302)
                self.send_header("Location", toy.redirects[self.path])
                return self.end_headers()
            if self.path not in toy.files:
                return self.send_error(404)
            body = toy.files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", toy.lengths.get(self.path, len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    toy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    toy.handle_error = lambda *_: None  # that a client hangs up early is what some tests want
    toy.requests, toy.redirects, toy.lengths, toy.files = [], {}, {}, {}
    table = {}
    for name in infra.text.MULTI30K_FILES:
        body = gzip.compress(f"{name}: ein Satz\n".encode() * 50, mtime=0)
        toy.files[f"/raw/{name.replace('test', 'test_2016_flickr')}"] = body
        table[name] = (len(body), hashlib.sha256(body).hexdigest())
    toy.url = f"http://127.0.0.1:{toy.server_port}/raw"
    monkeypatch.setattr(infra.text, "MULTI30K_FILES", table)
    monkeypatch.setenv("no_proxy", "*")
    threading.Thread(target=toy.serve_forever, args=(0.01,), daemon=True).start()
    yield toy
    toy.shutdown()
    toy.server_close()


def test_table_of_names():
    names = {f"{split}.{lang}.gz" for split in ("train", "val", "test") for lang in ("de", "en")}
    files = infra.text.MULTI30K_FILES
    assert set(files) == names
    assert sum(size for size, _ in files.values()) == 1_296_271
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for _, digest in files.values())


def test_download(server, tmp_path, capsys):
    folder = infra.text.download_multi30k(tmp_path / "new" / "cache", server.url)
    assert folder == tmp_path / "new" / "cache" / "multi30k-de-en"
    assert sorted(server.requests) == sorted(server.files)
    assert {p.name for p in folder.iterdir()} == set(infra.text.MULTI30K_FILES)
    assert read_parallel(folder, "test", "de", "en").targets == ["test.en.gz: ein Satz"] * 50
    assert capsys.readouterr().out.count("Elliott et al. 2016") == 1

    server.requests.clear()
    assert infra.text.download_multi30k(tmp_path / "new" / "cache", server.url) == folder
    assert server.requests == [] and capsys.readouterr().out == ""

    (folder / "val.en.gz").write_bytes(b"damaged")
    infra.text.download_multi30k(tmp_path / "new" / "cache", server.url)
    assert server.requests == ["/raw/val.en.gz"]


def make_wrong(server, path):
    body = server.files[path]
    server.files[path] = body[:-1] + bytes([body[-1] ^ 1])


def make_short(server, path):
    server.files[path] = server.files[path][:-5]


def cut_off(server, path):
    server.lengths[path] = len(server.files[path])
    server.files[path] = server.files[path][:-5]


def make_endless(server, path):
    server.files[path] += b"x" * 10_000_000


def remove(server, path):
    del server.files[path]


def redirect(server, path):
    server.files["/elsewhere"] = server.files[path]
    server.redirects[path] = "/elsewhere"


@pytest.mark.parametrize("spoil, says", [
    (make_wrong, "SHA-256 differs"), (make_short, "length or"), (cut_off, ""),
    (make_endless, "length or"), (remove, "404"), (redirect, "302"),
])
def test_bad_download(spoil, says, server, tmp_path):
    spoil(server, "/raw/train.en.gz")
    with pytest.raises(UserError, match=f"train.en.gz.*{says}.*pass --data DIR"):
        infra.text.download_multi30k(tmp_path, server.url)
    # The good file before it is kept, the bad one never appears, under no name.
    assert [p.name for p in (tmp_path / "multi30k-de-en").iterdir()] == ["train.de.gz"]
    assert "/elsewhere" not in server.requests


def test_download_reads_no_more_than_it_must(server, tmp_path, monkeypatch):
    make_endless(server, "/raw/train.de.gz")
    checked = []
    is_right = infra.text._is_right
    monkeypatch.setattr(infra.text, "_is_right",
                        lambda data, *check: checked.append(len(data)) or is_right(data, *check))
    with pytest.raises(UserError):
        infra.text.download_multi30k(tmp_path, server.url)
    assert checked == [infra.text.MULTI30K_FILES["train.de.gz"][0] + 1]


def test_nobody_answers(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be fetched.*pass --data DIR"):
        infra.text.download_multi30k(tmp_path, server.url)


@pytest.mark.parametrize("url", ["http://example.org/raw", "ftp://127.0.0.1/raw", "file:///etc",
                                 "http://127.0.0.1.example.org/raw", "127.0.0.1/raw"])
def test_only_https(url, tmp_path, monkeypatch):
    monkeypatch.setattr(infra.text, "build_opener", lambda *_: pytest.fail("it connected"))
    with pytest.raises(UserError, match="only https"):
        infra.text.download_multi30k(tmp_path, url)


def test_cache_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot be used as a cache"):
        infra.text.download_multi30k(tmp_path / "cache")
