"""The libraries to compare with, at the sizes of a model.Config, with random weights.

    pip install -e ".[bench]"          # transformers, ctranslate2, joeynmt
"""

import tempfile

import torch

from model import BOS, EOS, PAD, Transformer

UNK = 3  # the peers want an unknown token; here it is an id like any other


class NeverEnding(Transformer):
    """A policy that cannot say eos: all its samples have the full length."""

    def logits(self, hidden):
        logits = super().logits(hidden)
        logits[..., EOS] = -1e9
        return logits


def marian(config):
    """Hugging Face's MarianMTModel: layer norms behind each block, otherwise the same."""
    from transformers import MarianConfig, MarianMTModel
    torch.manual_seed(0)
    return MarianMTModel(MarianConfig(**sizes(config), forced_eos_token_id=None,
                                      share_encoder_decoder_embeddings=True)).eval()


def same_policy(policy):
    """The very weights of a policy in Hugging Face's M2M100, whose norms stand in front as well."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration
    config, D = policy.config, policy.config.d_model
    model = M2M100ForConditionalGeneration(M2M100Config(
        **sizes(config), encoder_layerdrop=0.0, decoder_layerdrop=0.0))
    model.model.shared.weight.data.copy_(policy.embedding.weight)
    for ours, theirs in ((policy.encoder, model.model.encoder),
                         (policy.decoder, model.model.decoder)):
        # their first position is number 1, because that of pad, id 0, comes before
        theirs.embed_positions.weights = torch.cat([torch.zeros(1, D), policy.positions])
        for a, b in zip(ours, theirs.layers):
            copy_attention(a.self_attention, b.self_attn)
            norms = [b.self_attn_layer_norm, b.final_layer_norm]
            if hasattr(a, "cross_attention"):
                copy_attention(a.cross_attention, b.encoder_attn)
                norms.insert(1, b.encoder_attn_layer_norm)
            copy((a.feed_forward[0], b.fc1), (a.feed_forward[2], b.fc2), *zip(a.norms, norms))
    copy((policy.encoder_norm, model.model.encoder.layer_norm),
         (policy.decoder_norm, model.model.decoder.layer_norm))
    return model.eval()


def copy(*pairs):
    for ours, theirs in pairs:
        theirs.weight.data.copy_(ours.weight)
        theirs.bias.data.copy_(ours.bias)


def copy_attention(ours, theirs):
    copy((ours.query, theirs.q_proj), (ours.out, theirs.out_proj))
    for theirs, weight, bias in zip((theirs.k_proj, theirs.v_proj), ours.key_value.weight.chunk(2),
                                    ours.key_value.bias.chunk(2)):
        theirs.weight.data.copy_(weight)
        theirs.bias.data.copy_(bias)


def sizes(config):
    """A model.Config in the words of Hugging Face."""
    return dict(vocab_size=config.vocab_size, d_model=config.d_model,
                encoder_layers=config.n_encoder_layers, decoder_layers=config.n_decoder_layers,
                encoder_attention_heads=config.n_heads, decoder_attention_heads=config.n_heads,
                encoder_ffn_dim=config.d_ff, decoder_ffn_dim=config.d_ff, dropout=config.dropout,
                attention_dropout=0.0, activation_dropout=0.0, activation_function="relu",
                max_position_embeddings=config.max_len, scale_embedding=True, pad_token_id=PAD,
                bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=BOS)


def generate(model, src, n_samples, length, forced, **how):
    """Hugging Face's samples at temperature 1; forced: eos is forbidden up to the full length.

    how: more arguments of its generate, cache_implementation="static" for instance.
    """
    with torch.inference_mode():
        return model.generate(src, attention_mask=(src != PAD).long(), do_sample=True, top_k=0,
                              num_return_sequences=n_samples, max_new_tokens=length,
                              min_new_tokens=length if forced else None, **how)


class CTranslate:
    """The weights of a Hugging Face model in CTranslate2, as "float32", "int8" or "float16"."""

    def __init__(self, model, compute_type):
        import ctranslate2
        from ctranslate2.converters.transformers import BartLoader, M2M100Loader
        pre_norm = type(model).__name__.startswith("M2M100")
        loader = M2M100Loader() if pre_norm else BartLoader()
        model.config.normalize_before, model.config.normalize_embedding = pre_norm, False
        spec = loader.get_model_spec(model)
        if pre_norm:
            for side in (spec.encoder, spec.decoder):
                side.position_encodings.encodings = model.model.encoder.embed_positions.weights[1:]
        names = {PAD: "<pad>", BOS: "<s>", EOS: "</s>", UNK: "<unk>"}
        self.names = [names.get(i, str(i)) for i in range(model.config.vocab_size)]
        self.ids = {name: i for i, name in enumerate(self.names)}
        loader.set_vocabulary(spec, self.names)
        spec.config.bos_token = spec.config.decoder_start_token = "<s>"
        spec.config.eos_token, spec.config.unk_token = "</s>", "<unk>"
        spec.validate()
        with tempfile.TemporaryDirectory() as folder:
            spec.save(folder)
            self.translator = ctranslate2.Translator(
                folder, compute_type=compute_type, inter_threads=1,
                intra_threads=torch.get_num_threads())

    def generate(self, src, n_samples, length, forced):
        """Lists of ids, without eos, n_samples for each source after the other."""
        sources = [[self.names[i] for i in row if i != PAD] for row in src.tolist()]
        found = self.translator.translate_batch(
            sources, beam_size=1, num_hypotheses=n_samples, sampling_topk=0,
            min_decoding_length=length if forced else 0, max_decoding_length=length)
        return [[self.ids[token] for token in hypothesis]
                for one in found for hypothesis in one.hypotheses]


def joeynmt(config, label_smoothing, as_it_comes=False):
    """JoeyNMT's transformer, and a function (src, tokens) -> its Batch of our ids.

    as_it_comes: it drops attention weights and hidden units of the feed-forward blocks as well.
    """
    from types import SimpleNamespace

    from joeynmt.batch import Batch
    from joeynmt.model import build_model
    from joeynmt.vocabulary import Vocabulary
    special = {"unk": 0, "pad": 1, "bos": 2, "eos": 3, "sep": None}
    names = {f"{name}_token": name and f"<{name}>" for name in special} | {"sep_token": None}
    vocabulary = Vocabulary([str(i) for i in range(4, config.vocab_size)], SimpleNamespace(
        **names, **{f"{name}_id": i for name, i in special.items()}, lang_tags=[]))
    side = dict(type="transformer", num_heads=config.n_heads, hidden_size=config.d_model,
                ff_size=config.d_ff, dropout=config.dropout, layer_norm="pre",
                embeddings=dict(embedding_dim=config.d_model, scale=True, dropout=config.dropout))
    model = build_model(dict(
        encoder=dict(side, num_layers=config.n_encoder_layers),
        decoder=dict(side, num_layers=config.n_decoder_layers), tied_embeddings=True,
        tied_softmax=True, initializer="xavier_uniform", embed_initializer="xavier_uniform"),
        vocabulary, vocabulary)
    model.loss_function = ("crossentropy", label_smoothing)
    for module in () if as_it_comes else model.modules():
        if type(module).__name__ == "MultiHeadedAttention":
            module.dropout.p = 0.0
        if type(module).__name__ == "PositionwiseFeedForward":
            module.pwff_layer[2].p = 0.0
    theirs = torch.arange(config.vocab_size)
    theirs[[PAD, BOS, EOS, UNK]] = torch.tensor([special[k] for k in ("pad", "bos", "eos", "unk")])

    def batch(src, tokens):
        begin = torch.full((len(src), 1), special["bos"])
        return Batch(theirs[src], (src != PAD).sum(1), None, torch.cat([begin, theirs[tokens]], 1),
                     None, torch.arange(len(src)), torch.device("cpu"), special["pad"],
                     special["eos"])

    return batch, model


def joeynmt_batches(sources, targets, batch_tokens):
    """Lists of indices as JoeyNMT's own sampler makes them; the ids end in eos."""
    from joeynmt.datasets import TokenBatchSampler
    from torch.utils.data import RandomSampler
    data = [(None, x[:-1], y[:-1]) for x, y in zip(sources, targets)]  # it counts eos itself
    order = RandomSampler(data, generator=torch.Generator().manual_seed(0))
    return iter(TokenBatchSampler(order, batch_tokens, drop_last=False, seed=0))
