"""A training step (BC): ours beside JoeyNMT 2.3 and Hugging Face's Marian, and the floor.

    python -m benchmarks.training --data DIR                 # batches of Multi30k, width 128
    python -m benchmarks.training --dense --width 128 256    # all pairs of one length, no padding

Target tokens a second. All sides but the last see the same batches, made before the clock runs;
dropout 0.1 and label smoothing 0.1 are on, the gradient is clipped, Adam makes the step. Dropout
stands in all three where it stands in ours. "As is" is JoeyNMT as its users have it, which drops
attention weights and hidden units too (its step also counts right words); "its batches" is the same
on batches of its own sampler, which does not look for like lengths and so pads much more.
"""

import argparse
import itertools

import numpy as np
import torch
import torch.nn.functional as F

import losses
from benchmarks import floor, peers
from benchmarks.corpus import ids
from benchmarks.grow import sizes
from benchmarks.measure import Table, median, side_by_side, times_faster
from infra.batches import batches, pad
from infra.cli import keep_memory
from infra.trainer import Trainer, Training, compiled
from model import EOS, PAD, Transformer, shift_right

SMOOTHING = 0.1


def ours(config, pairs, compile=False, device="cpu", precision="float32"):
    """A function that makes one update for each of the batches, which lie on the device."""
    torch.manual_seed(0)
    model = Transformer(config).to(device)
    forward = compiled(model, torch.device(device)) if compile else model
    hp = Training(updates=10**6, warmup=10, batch_tokens=1,  # of the trainer's items, one an update
                  precision=precision)
    trainer = Trainer(model, np.ones(len(pairs)), np.array([tokens_in([pair]) for pair in pairs]),
                      hp, seed=0)  # its items are our batches

    def train():
        with trainer:
            for _ in pairs:
                for k, in trainer.next_update():
                    src, tokens = pairs[k]
                    with trainer.autocast():
                        logits = forward(src, shift_right(tokens)).float()
                    trainer.backward(losses.bc(logits, tokens, SMOOTHING))
                trainer.step()

    return train


def marian(config, pairs, compile=False, device="cpu", precision="float32"):
    """The same with Hugging Face's Marian; bfloat16 by autocast, as its own Trainer has it."""
    model = peers.marian(config).to(device).train()
    forward = compiled(model, torch.device(device)) if compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def train():
        for src, tokens in pairs:
            with torch.autocast(src.device.type, torch.bfloat16, precision == "bfloat16"):
                logits = forward(input_ids=src, attention_mask=(src != PAD).long(),
                                 decoder_input_ids=shift_right(tokens), use_cache=False).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(),
                                   ignore_index=PAD, label_smoothing=SMOOTHING)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return train


def joeynmt(config, pairs, as_it_comes=False):
    """Its model, loss and update, as its TrainManager calls them."""
    batch, model = peers.joeynmt(config, SMOOTHING, as_it_comes)
    made = [batch(src, tokens) for src, tokens in pairs]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train():
        for one in made:
            model.train()
            one.sort_by_src_length()
            loss, _, _, correct = model(return_type="loss", **vars(one))
            one.normalize(loss, "tokens").backward()
            correct.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return train


def dense(batch_tokens, count, length=16, vocabulary=4000):
    """Batches of random pairs that all have the same length."""
    rng = torch.Generator().manual_seed(0)
    made = torch.randint(4, vocabulary, (count, 2, batch_tokens // length, length), generator=rng)
    made[..., -1] = EOS
    return [tuple(pair) for pair in made]


def of_corpus(folder, batch_tokens, count):
    """The first batches of Multi30k that BC would train on, and that JoeyNMT would."""
    sources, targets, _ = ids(folder)
    lengths = np.array([max(len(x), len(y)) for x, y in zip(sources, targets)])
    return [[(pad([sources[i] for i in index]), pad([targets[i] for i in index]))
             for index in itertools.islice(chosen, count)]
            for chosen in (batches(lengths, batch_tokens, 0),
                           peers.joeynmt_batches(sources, targets, batch_tokens))]


def tokens_in(pairs):
    return sum(int((tokens != PAD).sum()) for _, tokens in pairs)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[128])
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=10, help="updates of one timing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dense", action="store_true", help="random pairs of one length")
    parser.add_argument("--data", help="folder with train.*; default: download Multi30k")
    args = parser.parse_args(argv)
    keep_memory()
    pairs, theirs = ((dense(args.batch_tokens, args.batches), None) if args.dense
                     else of_corpus(args.data, args.batch_tokens, args.batches))
    table = Table("width", "batches", "tokens/s", "x JoeyNMT", "x as is", "x its batches", "x HF",
                  "of floor")
    for width in args.width:
        config = sizes(width, 128)
        sides = {"ours": ours(config, pairs), "JoeyNMT": joeynmt(config, pairs),
                 "as is": joeynmt(config, pairs, True), "HF": marian(config, pairs),
                 "floor": lambda: floor.training(config, pairs)}
        if theirs:
            sides["its batches"] = joeynmt(config, theirs, True)
        seconds = side_by_side(sides, args.rounds, own=["floor"])
        ratio = {name: times_faster(seconds, "ours", name) for name in list(sides)[1:]}
        if theirs:  # of tokens a second, because these are other batches
            ratio["its batches"] *= tokens_in(pairs) / tokens_in(theirs)
        table.add(width, "dense" if args.dense else "Multi30k",
                  tokens_in(pairs) / median(seconds["ours"]), ratio["JoeyNMT"], ratio["as is"],
                  ratio.get("its batches"), ratio["HF"], ratio["floor"])
    table.end()


if __name__ == "__main__":
    main()
