"""A model folder to begin from: a plan's sizes, new vocabularies, weights drawn at random."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from kontext.autoencoder import Autoencoder
from kontext.config import ModelConfig
from kontext.transformer import Transformer
from training.data.vocabulary import T5_PIECES, sentences, write_clip_vocabulary, write_t5_vocabulary
from training.export import AUTOENCODER, CLIP, T5, TRANSFORMER, WEIGHTS, export_weights, write_config
from training.plans import CLIP_WIDTH, T5_WIDTH

T5_CONFIG = T5Config(
    vocab_size=T5_PIECES,
    d_model=T5_WIDTH,
    d_kv=32,
    d_ff=256,
    num_layers=4,
    num_heads=4,
    feed_forward_proj="gated-gelu",
    dropout_rate=0.0,
    is_encoder_decoder=False,
    use_cache=False,
)


def clip_config(entries: int) -> CLIPTextConfig:
    """CLIP for a vocabulary of so many entries; its last two are the marks of begin and end."""
    return CLIPTextConfig(
        vocab_size=entries,
        hidden_size=CLIP_WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=CLIP_WIDTH,
        bos_token_id=entries - 2,
        eos_token_id=entries - 1,
        pad_token_id=entries - 1,
    )


def write_beginning(folder: Path, config: ModelConfig, sentence_count: int, seed: int = 0) -> None:
    """Write a model folder that can be loaded, and knows nothing; its vocabularies come from so many sentences."""
    texts = sentences(seed, sentence_count)
    for name in (T5, CLIP):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_t5_vocabulary(folder / T5, texts)
    clip = clip_config(write_clip_vocabulary(folder / CLIP, texts))
    T5_CONFIG.save_pretrained(folder / T5)
    clip.save_pretrained(folder / CLIP)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        export_weights(T5EncoderModel(T5_CONFIG), folder / T5 / WEIGHTS, torch.float32)
        export_weights(CLIPTextModel(clip), folder / CLIP / WEIGHTS, torch.float32)
        export_weights(_quiet(Transformer(config.transformer)), folder / TRANSFORMER, torch.bfloat16)
        export_weights(Autoencoder(config.autoencoder), folder / AUTOENCODER, torch.bfloat16)
    write_config(config, folder / "config.json")


def _quiet(transformer: Transformer) -> Transformer:
    """Small weights in the blocks; branches that begin shut, as in DiT (Peebles and Xie 2022, adaLN-zero)."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            nn.init.zeros_(module.bias)
            if name.endswith(".lin") or "adaLN" in name or name == "final_layer.linear":
                nn.init.normal_(module.weight, std=0.002)
    return transformer
