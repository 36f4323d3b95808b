"""The fingerprint of a model's files, by which results say which weights made them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from kontext.weights.encoders import EncoderFiles
from kontext.weights.files import shards_of
from kontext.weights.layout import ModelFiles

SAMPLES_PER_FILE, BYTES_PER_SAMPLE = 64, 65_536  # 4 MiB of samples identify a file; a smaller file is read whole
VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.json", "merges.txt")


def fingerprint(files: ModelFiles) -> str:
    """Fingerprint of a model's weights and vocabularies: "sha256:..." of sizes and samples spread over every file.

    At most 4 MiB of a file are read, so 34 GB take little longer than the tiny model.
    """
    digest = hashlib.sha256()
    whole = (shard for path in (files.transformer, files.autoencoder) for shard in shards_of(path))
    for path in dict.fromkeys((*whole, *_encoder_paths(files.t5), *_encoder_paths(files.clip))):
        _digest_file(digest, path)
    return f"sha256:{digest.hexdigest()}"


def _encoder_paths(encoder: EncoderFiles) -> list[Path]:
    """Files of weights and vocabulary; the encoder's other files do not enter the fingerprint."""
    vocabulary = [encoder.tokenizer / name for name in VOCABULARIES if (encoder.tokenizer / name).is_file()]
    return [*encoder.weights, *vocabulary]


def _digest_file(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        # The first sample holds the start of the header, the last one ends with the file.
        last = max(size - BYTES_PER_SAMPLE, 0)
        for sample in range(SAMPLES_PER_FILE):
            file.seek(last * sample // (SAMPLES_PER_FILE - 1))
            digest.update(file.read(BYTES_PER_SAMPLE))
