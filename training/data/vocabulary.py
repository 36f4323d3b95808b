"""Vocabularies from the grammar's own sentences: SentencePiece for T5, byte-level BPE for CLIP."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from training.data.edits import EDITS, draw_edit

T5_PIECES = 320  # at most; as many rows has the encoder
CLIP_ENTRIES = 994  # at most
END_OF_WORD = "</w>"
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # what CLIP takes for a word
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"


def sentences(seed: int, count: int) -> list[str]:
    """Sentences that ask for edits, of every kind equally often."""
    rng = Random(seed)
    return [draw_edit(EDITS[i % len(EDITS)], rng).prompt(rng) for i in range(count)]


def write_t5_vocabulary(folder: Path, texts: list[str]) -> None:
    """`spiece.model`: a unigram vocabulary in which <pad>, </s> and <unk> have the ids that T5 gives them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=T5_PIECES,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        required_chars="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"-()",
        num_threads=1,
        hard_vocab_limit=False,  # these sentences fill fewer
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write(folder / "special_tokens_map.json", special)
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", **special, "extra_ids": 0, "additional_special_tokens": [], "legacy": True},
    )


def write_clip_vocabulary(folder: Path, texts: list[str]) -> int:
    """`vocab.json` and `merges.txt` in the form of CLIP: bytes, bytes that end a word, merges, the two marks.

    Returns:
        The number of entries; the last two are the marks of begin and end.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [byte + END_OF_WORD for byte in alphabet]
    specials = [START_OF_TEXT, END_OF_TEXT]
    merges = _merges(texts, alphabet, CLIP_ENTRIES - len(alphabet) - len(endings) - len(specials))
    entries = [*alphabet, *endings, *("".join(merge) for merge in merges), *specials]
    _write(folder / "vocab.json", {entry: i for i, entry in enumerate(entries)})
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START_OF_TEXT, **dict.fromkeys(("eos_token", "pad_token", "unk_token"), END_OF_TEXT)}
    _write(folder / "special_tokens_map.json", special)
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **special, "model_max_length": 77})
    return len(entries)


def _merges(texts: list[str], alphabet: list[str], count: int) -> list[tuple[str, str]]:
    """Up to `count` pairs of pieces that follow each other often, in order."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORD), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + count,  # more than enough: it has only the endings that the texts have
        initial_alphabet=alphabet,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"][:count]]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
