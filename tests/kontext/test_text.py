"""Token ids and text embeddings against the reference, and what happens to prompts that are too long."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kontext.text import TextEncoder, load_clip, load_t5
from kontext.weights.layout import find_model
from tests.kontext.golden import BFLOAT16, FLOAT32_FROM_FILES, MODEL, read_json, relative_error, tensors

PROMPTS = [entry["text"] for entry in read_json("text/prompts")]


@pytest.fixture(scope="module")
def t5() -> TextEncoder:
    return load_t5(find_model(MODEL).t5, torch.float32)


@pytest.fixture(scope="module")
def clip() -> TextEncoder:
    return load_clip(find_model(MODEL).clip, torch.float32)


@pytest.mark.parametrize("length", [64, 512])
def test_t5_ids_are_the_references(t5: TextEncoder, length: int) -> None:
    ids = torch.cat([t5.token_ids(prompt, length) for prompt in PROMPTS])

    assert torch.equal(ids, tensors("text/token_ids")[f"t5_{length}"].long())


def test_clip_ids_are_the_references(clip: TextEncoder) -> None:
    ids = torch.cat([clip.token_ids(prompt, 77) for prompt in PROMPTS])

    assert torch.equal(ids, tensors("text/token_ids")["clip_77_tokenizers_backend"].long())


def test_t5_vectors_are_the_references(t5: TextEncoder) -> None:
    vectors = torch.cat([t5(prompt, 64) for prompt in PROMPTS])

    assert relative_error(vectors, tensors("text/t5_64")["last_hidden_state"]) < 1e-5
    assert relative_error(t5(PROMPTS[0], 512), tensors("text/t5_512")["plain.last_hidden_state"]) < FLOAT32_FROM_FILES


def test_clip_vectors_are_the_references(clip: TextEncoder) -> None:
    vectors = torch.cat([clip(prompt, 77) for prompt in PROMPTS])

    assert relative_error(vectors, tensors("text/clip_77_tokenizers_backend")["pooler_output"]) < 1e-5


def test_vectors_in_bfloat16_are_the_references() -> None:
    files = find_model(MODEL)
    t5, clip = load_t5(files.t5, torch.bfloat16), load_clip(files.clip, torch.bfloat16)
    same_ids_in_every_tokenizer = [0, 1, 2, 3]

    vectors = torch.cat([t5(prompt, 64) for prompt in PROMPTS])
    pooled = torch.cat([clip(PROMPTS[i], 77) for i in same_ids_in_every_tokenizer])

    assert relative_error(vectors, tensors("text/t5_64")["embedder_bf16_weights"]) < BFLOAT16
    golden = tensors("text/clip_77")["embedder_bf16_weights"][same_ids_in_every_tokenizer]
    assert relative_error(pooled, golden) < BFLOAT16


def test_clip_with_the_published_end_id_pools_at_the_same_place(tmp_path: Path) -> None:
    files = find_model(MODEL)
    prompt = PROMPTS[0]
    expected = load_clip(files.clip, torch.float32)(prompt, 77)

    # The published configuration says 2, which is no end mark of its vocabulary.
    config = (files.clip.config / "config.json").read_text().replace('"eos_token_id": 699', '"eos_token_id": 2')
    (tmp_path / "config.json").write_text(config)
    legacy = type(files.clip)(config=tmp_path, weights=files.clip.weights, tokenizer=files.clip.tokenizer)

    assert '"eos_token_id": 2' in config
    assert torch.equal(load_clip(legacy, torch.float32)(prompt, 77), expected)


def test_length_of_a_prompt_is_counted_before_it_is_cut(t5: TextEncoder) -> None:
    prompt = "Remove the logo " * 50

    assert t5.token_count(prompt) > 64
    assert t5.token_ids(prompt, 64).shape == (1, 64)
    assert t5.token_count("") == 1  # the end mark
