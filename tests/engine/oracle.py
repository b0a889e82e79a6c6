"""A Llama whose every head was built to look at a known place: weights set in code, no training, no random numbers.

It answers a needle prompt in a vocabulary of its own by the textbook circuit: a head in layer 0 writes each token's
predecessor beside it, and a copying head above looks for the position whose predecessor is the current word and says
what stands there. All other heads are decoys. So where each head looks, and what it scores, is known beforehand.

A word is three digits of base 6, one-hot each: two words share at most two of them, and all have the same norm. The
residual holds, side by side: a constant, a ballast that keeps the norm nearly the same whatever is added, the current
word and its kind, the previous word and its kind, and the output. With the norm known, RMSNorm's weights make it an
identity. Keys and values of a layer hold all of this for every KV head (each in an order of its own, so that reading
another KV head's keys is noticed); what a head is lies in its query and output weights alone.

A query weight is in logits: a key's features are 8, and attention divides by sqrt(64).
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

BASE, DIGITS = 6, 3
VOCABULARY = BASE**DIGITS
BOS, BAR, END, NOTHING, FIRST_WORD = range(5)
"""Ids of the special tokens, and of the first plain word. `NOTHING` is what it says when it has nothing to say."""

HEADS, HEAD_SIZE, HIDDEN = 8, 64, 64

# Of the residual stream.
CONSTANT, BALLAST = 0, 1
WORD, KIND = slice(2, 20), slice(20, 23)
PREVIOUS, PREVIOUS_KIND = slice(23, 41), slice(41, 44)
OUTPUT = slice(44, 62)
CONTENT = slice(2, 44)  # what keys hold
VALUE = slice(2, 23)  # what values hold
PLAIN_KIND, BOS_KIND, BAR_KIND = range(3)
BALLAST_SIZE = 16.0

# Rotary pair i turns by 10^(-0.625 i) a token: the first pairs tell positions apart, those from 8 on hardly turn.
THETA = 1e20
PAIRS = HEAD_SIZE // 2
POSITION_PAIRS, FIRST_CONTENT_PAIR = 6, 8
FEATURE = math.sqrt(HEAD_SIZE)
EPSILON = 1e-5

# What a head does.
PREVIOUS_TOKEN, COPY = "previous token", "copy"
SELF, FIRST, UNIFORM, BACK_2, BACK_7 = "self", "first token", "uniform", "2 back", "7 back"
ECHO = "echo"
"""Looks at the current word in the needle: inside the span, and one token before the one that is emitted."""
SILENT, OPPOSITE = "silent", "opposite"
"""Look where a copying head looks; one writes nothing of what it finds, one takes it away again, a little."""
ELSEWHERE = "elsewhere"
"""Looks at the emitted word, outside the needle."""


@dataclass(frozen=True)
class Design:
    """What a model is built to do.

    Args:
        heads: By layer, what each head does. `COPY`, `SILENT`, `OPPOSITE` and `ECHO` need the previous token of a
            layer below, `ELSEWHERE` a copy. The first copying head speaks; further ones only join in.
        kv_heads: KV heads of a layer.
        sliding: The layers that see `window` tokens alone.
        window: Tokens.
        dtype: That the engine runs in.
    """

    heads: tuple[tuple[str, ...], ...]
    kv_heads: int = HEADS
    sliding: tuple[int, ...] = ()
    window: int | None = None
    dtype: str = "float32"

    def of(self, kind: str) -> list[tuple[int, int]]:
        """The heads (layer, head) that do this."""
        return [
            (layer, head) for layer, kinds in enumerate(self.heads) for head, each in enumerate(kinds) if each == kind
        ]

    def copying(self, prompt: Prompt) -> list[tuple[int, int]]:
        """The heads that look at this prompt's needle as copying ones do: those that were planted, in a layer that
        sees that far.
        """
        rows = range(len(prompt.needle))
        return [
            (layer, head)
            for layer, head in sorted([*self.of(COPY), *self.of(SILENT), *self.of(OPPOSITE)])
            if all(prompt.looks(COPY, row, self.window_of(layer)) is not None for row in rows)
        ]

    @property
    def circuit(self) -> list[tuple[int, int]]:
        """The heads that the answer hangs on: the one that writes previous words, and the first that copies."""
        return [*self.of(PREVIOUS_TOKEN), self.of(COPY)[0]]

    def window_of(self, layer: int) -> int | None:
        """Keys that a layer's rows see, themselves included; `None` is all."""
        return self.window if layer in self.sliding else None


@dataclass(frozen=True)
class Prompt:
    """A prompt: the key once, followed by the needle; the needle's words once more between bars; at last the key.

    Args:
        ids: Its tokens.
        needle_span: The needle, half open: plain words and `END`.
        elsewhere: Where the needle's words stand between bars; there is no `END` among them.
    """

    ids: tuple[int, ...]
    needle_span: tuple[int, int]
    elsewhere: tuple[int, ...]

    @property
    def needle(self) -> list[int]:
        """Its tokens: the right answer."""
        return list(self.ids[slice(*self.needle_span)])

    @property
    def question_span(self) -> tuple[int, int]:
        """The key at the end."""
        return len(self.ids) - 1, len(self.ids)

    def looks(self, kind: str, row: int, window: int | None = None) -> int | None:
        """Where a head looks as answer token `row` is predicted; `None` where no one position is known.

        Args:
            kind: What the head does.
            row: 0 is the prompt's last token.
            window: Of the head's layer.
        """
        position = len(self.ids) - 1 + row
        first = 0 if window is None else max(0, position - window + 1)
        start = self.needle_span[0]
        place = {
            PREVIOUS_TOKEN: position - 1,
            SELF: position,
            BACK_2: position - 2,
            BACK_7: position - 7,
            FIRST: 0,
            UNIFORM: first,  # equal scores: the lowest position that is seen
            **dict.fromkeys((COPY, SILENT, OPPOSITE), start + row),
            ECHO: start + row - 1,
            ELSEWHERE: self.elsewhere[row] if row < len(self.elsewhere) else -1,
        }[kind]
        return place if place >= first else None

    def mass(self, kind: str, window: int | None = None) -> float | None:
        """A head's weight on the needle, mean over the answer; `None` where it is not known."""
        weights = []
        for row in range(len(self.needle)):
            seen = range(max(0, len(self.ids) + row - (window or len(self.ids) + row)), len(self.ids) + row)
            of_needle = [position for position in range(*self.needle_span) if position in seen]
            look = self.looks(kind, row, window)
            if kind == UNIFORM:
                weights.append(len(of_needle) / len(seen))
            elif not of_needle or (kind == ELSEWHERE and window is None):
                weights.append(0.0)
            elif look is None:
                return None
            else:
                weights.append(float(look in of_needle))
        return sum(weights) / len(weights)


def make_prompt(length: int, depth: float, *, words: int = 8, seed: int = 0) -> Prompt:
    """A prompt of so many tokens with the needle at a depth (0 to 1), its words also elsewhere."""
    rng = random.Random(f"{length} {depth} {words} {seed}")
    key, *needle = rng.sample(range(FIRST_WORD, VOCABULARY), words + 1)
    filler = sorted(set(range(FIRST_WORD, VOCABULARY)) - {key, *needle})
    stated = [key, *needle, END]
    barred = [BAR, *(token for word in needle for token in (word, BAR))]
    context = rng.choices(filler, k=length - 2 - len(stated) - len(barred))
    (first, one), (second, other) = sorted(
        [(round(depth * len(context)), stated), (round((0.75 if depth < 0.5 else 0.25) * len(context)), barred)]
    )
    ids = (BOS, *context[:first], *one, *context[first:second], *other, *context[second:], key)
    start, between = ids.index(key) + 1, ids.index(BAR) + 1
    return Prompt(ids, (start, start + words + 1), tuple(range(between, between + 2 * words, 2)))


def code(word: int) -> list[int]:
    """The channels, of 18, that a word sets."""
    return [digit * BASE + word // BASE**digit % BASE for digit in range(DIGITS)]


def build(design: Design, folder: Path) -> Path:
    """Write the model: configuration, weights, tokenizer; the same bytes each time."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    layers = range(len(design.heads))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": len(layers),
        "num_attention_heads": HEADS,
        "num_key_value_heads": design.kv_heads,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "rms_norm_eps": EPSILON,
        "rope_theta": THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": END,
        "torch_dtype": design.dtype,
    }
    if design.sliding:
        kinds = ["sliding_attention" if layer in design.sliding else "full_attention" for layer in layers]
        config |= {"layer_types": kinds, "sliding_window": design.window}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(design), folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of the vocabulary: a token is a word between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"<s>": BOS, "|": BAR, "</s>": END, "nothing": NOTHING}
    names |= {f"w{word}": word for word in range(FIRST_WORD, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="nothing"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def weights(design: Design) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, by its name."""
    unwritten = 1 + BALLAST_SIZE**2 + DIGITS + 1  # constant, ballast, word, kind
    written = unwritten + DIGITS + 1  # and the previous word and its kind
    tensors = {
        "model.embed_tokens.weight": _embedding(),
        "model.norm.weight": _identity_norm(written + DIGITS),
        "lm_head.weight": _output(),
    }
    spoken = False
    for layer, kinds in enumerate(design.heads):
        prefix = f"model.layers.{layer}"
        norm = unwritten if layer == 0 else written + DIGITS * spoken
        output = torch.zeros(HIDDEN, HEADS, HEAD_SIZE)
        query = torch.zeros(HEADS, HEAD_SIZE, HIDDEN)
        for head, kind in enumerate(kinds):
            kv_head = head // (HEADS // design.kv_heads)
            query[head] = _query(kind, kv_head)
            output[:, head] = _write(kind, kv_head, joins_in=spoken)
            spoken |= kind == COPY
        tensors |= {
            f"{prefix}.input_layernorm.weight": _identity_norm(norm),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(HIDDEN),
            f"{prefix}.self_attn.q_proj.weight": query.flatten(0, 1),
            f"{prefix}.self_attn.k_proj.weight": torch.cat([_key(each) for each in range(design.kv_heads)]),
            f"{prefix}.self_attn.v_proj.weight": torch.cat([_value(each) for each in range(design.kv_heads)]),
            f"{prefix}.self_attn.o_proj.weight": output.flatten(1),
            f"{prefix}.mlp.gate_proj.weight": torch.zeros(HIDDEN, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": torch.zeros(HIDDEN, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": torch.zeros(HIDDEN, HIDDEN),
        }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _identity_norm(squared: float) -> Tensor:
    """RMSNorm's weights that undo its division, for inputs of this squared norm."""
    return torch.full((HIDDEN,), math.sqrt(squared / HIDDEN + EPSILON))


def _embedding() -> Tensor:
    embedding = torch.zeros(VOCABULARY, HIDDEN)
    embedding[:, CONSTANT], embedding[:, BALLAST] = 1, BALLAST_SIZE
    for word in range(VOCABULARY):
        embedding[word, [WORD.start + digit for digit in code(word)]] = 1
        embedding[word, KIND.start + {BOS: BOS_KIND, BAR: BAR_KIND}.get(word, PLAIN_KIND)] = 1
    return embedding


def _output() -> Tensor:
    """Logits: 30 for the word that was written to the output, at most 20 for others, 18 for `NOTHING`.

    `NOTHING` and the bar are never copied, so their codes get no logits of their own.
    """
    output = torch.zeros(VOCABULARY, HIDDEN)
    for word in set(range(VOCABULARY)) - {NOTHING, BAR, BOS}:
        output[word, [OUTPUT.start + digit for digit in code(word)]] = 10
    output[NOTHING, CONSTANT] = 18
    return output


def _content(kv_head: int) -> list[int]:
    """The place in a head of each residual channel in `CONTENT`; another order for every KV head."""
    pairs = PAIRS - FIRST_CONTENT_PAIR
    turned = [(channel + 7 * kv_head) % (2 * pairs) for channel in range(CONTENT.stop - CONTENT.start)]
    return [FIRST_CONTENT_PAIR + channel % pairs + PAIRS * (channel // pairs) for channel in turned]


def _key(kv_head: int) -> Tensor:
    key = torch.zeros(HEAD_SIZE, HIDDEN)
    key[range(POSITION_PAIRS), CONSTANT] = FEATURE
    key[_content(kv_head), range(CONTENT.start, CONTENT.stop)] = FEATURE
    return key


def _value_channels(kv_head: int) -> list[int]:
    return [(channel + 11 * kv_head) % HEAD_SIZE for channel in range(VALUE.stop - VALUE.start)]


def _value(kv_head: int) -> Tensor:
    value = torch.zeros(HEAD_SIZE, HIDDEN)
    value[_value_channels(kv_head), range(VALUE.start, VALUE.stop)] = 1
    return value


def _query(kind: str, kv_head: int) -> Tensor:
    query, content = torch.zeros(HEAD_SIZE, HIDDEN), _content(kv_head)

    def match(mine: slice, theirs: slice, logits: float) -> None:
        """So many logits for each digit of mine that is one of theirs."""
        at = [content[channel - CONTENT.start] for channel in range(theirs.start, theirs.stop)]
        query[at, range(mine.start, mine.stop)] = logits

    def flag(kinds: slice, which: int, logits: float) -> None:
        query[content[kinds.start + which - CONTENT.start], CONSTANT] = logits

    def back(tokens: int, logits: float, pairs: int) -> None:
        """So many logits for each pair, times the cosine of the angle to the key that lies so many tokens back."""
        for pair in range(pairs):
            angle = tokens * THETA ** (-pair / PAIRS)
            query[pair, CONSTANT], query[pair + PAIRS, CONSTANT] = logits * math.cos(angle), -logits * math.sin(angle)

    if kind in (SELF, PREVIOUS_TOKEN, BACK_2, BACK_7):
        back({SELF: 0, PREVIOUS_TOKEN: 1, BACK_2: 2, BACK_7: 7}[kind], 60, POSITION_PAIRS)
    elif kind == FIRST:
        flag(KIND, BOS_KIND, 90)
    elif kind in (COPY, SILENT, OPPOSITE):
        match(WORD, PREVIOUS, 30)
        flag(KIND, BAR_KIND, -90)
    elif kind == ECHO:
        match(WORD, WORD, 150)
        flag(PREVIOUS_KIND, BAR_KIND, -150)
        back(0, -15, 4)  # not the row itself
    elif kind == ELSEWHERE:
        match(OUTPUT, WORD, 30)
        flag(PREVIOUS_KIND, BAR_KIND, 120)  # more than any match outside the bars
    return query


def _write(kind: str, kv_head: int, *, joins_in: bool) -> Tensor:
    output, value = torch.zeros(HIDDEN, HEAD_SIZE), _value_channels(kv_head)
    words = value[: WORD.stop - WORD.start]
    if kind == PREVIOUS_TOKEN:
        output[range(PREVIOUS.start, PREVIOUS_KIND.stop), value] = 1
    elif kind == COPY:
        output[range(OUTPUT.start, OUTPUT.stop), words] = 0.05 if joins_in else 1
    elif kind == OPPOSITE:
        output[range(OUTPUT.start, OUTPUT.stop), words] = -0.05
    elif kind != SILENT:  # a decoy has its say, but too little to matter
        output[range(OUTPUT.start, OUTPUT.stop), words] = 0.02
    return output
