"""Make this folder from the full set of reference outputs: `python -m tests.golden.derive FULL_SET`.

The full set is 24 MB. Here the random transformer and autoencoder are rounded to bfloat16, which halves them, and what
depends on them is computed again by the official code in third_party/flux1, for the same inputs. With `--check` nothing
is rounded and nothing is written: the outputs must then be those of the full set, which proves this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
OFFICIAL = HERE.parent.parent / "third_party" / "flux1" / "src"

Tensors = dict[str, Tensor]

FORWARDS = ("b1_cond", "b1_long", "b2", "b2_cond")
PICTURES = ("image_64x48", "image_72x40", "batch2_32x48")
KEPT = {
    "math/rope.safetensors": ("ids", "pe"),
    "math/rope_fullsize.safetensors": ("ids", "pe"),
    "math/timestep_embedding.safetensors": (
        *("t_fp32", "g_fp32", "t_bf16", "g_bf16"),
        *("emb_t_fp32", "emb_g_fp32", "emb_t_bf16", "emb_g_bf16"),
    ),
    "math/attention.safetensors": ("q", "k", "v", "q_rope", "out", "q_rope_bf16", "out_bf16"),
    "schedule/pack_unpack.safetensors": None,
    "text/token_ids.safetensors": ("t5_64", "t5_512", "clip_77_tokenizers_backend"),
    "text/t5_64.safetensors": ("last_hidden_state", "embedder_bf16_weights"),
    "text/t5_512.safetensors": ("plain.last_hidden_state",),
    "text/clip_77_tokenizers_backend.safetensors": None,
    "text/clip_77.safetensors": ("embedder_bf16_weights",),
}
COPIED = (
    *("schedule/schedules.json", "schedule/noise_index.json", "text/prompts.json", "preprocess/preprocess.json"),
    *("models/t5/config.json", "models/t5/model.safetensors", "models/t5/spiece.model"),
    *("models/t5/tokenizer_config.json", "models/t5/special_tokens_map.json"),
    *("models/clip/config.json", "models/clip/model.safetensors", "models/clip/vocab.json", "models/clip/merges.txt"),
    *("models/clip/tokenizer_config.json", "models/clip/special_tokens_map.json"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("full_set", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the full set instead of writing")
    arguments = parser.parse_args()
    official = import_official()
    if arguments.check:
        check(official, arguments.full_set)
    else:
        write(official, arguments.full_set)


def import_official() -> Any:
    """The official sampling module, without the parts of it that want OpenCV, a watermark library and a login."""
    sys.path.insert(0, str(OFFICIAL))
    util: Any = ModuleType("flux.util")
    util.PREFERED_KONTEXT_RESOLUTIONS = []
    embedders: Any = ModuleType("flux.modules.image_embedders")
    embedders.CannyImageEncoder = embedders.DepthImageEncoder = embedders.ReduxImageEncoder = nn.Module
    sys.modules.update({"flux.util": util, "flux.modules.image_embedders": embedders})
    import flux.sampling  # type: ignore[import-not-found]

    return flux.sampling


@torch.inference_mode()
def write(official: Any, full: Path) -> None:
    for name, keys in KEPT.items():
        tensors = load_file(full / name)
        save(HERE / name, {key: tensors[key] for key in keys or tensors})
    for name in COPIED:
        copy(full / name, HERE / name.replace("models/", "model/"))
    for picture in (full / "preprocess" / "images").iterdir():
        copy(picture, HERE / "preprocess" / "images" / picture.name)
    for case in case_folders(full):
        for path in (case / "case.json", *case.glob("input_*.png")):
            copy(path, HERE / "e2e" / case.name / path.name)
    write_model(full)
    weights = rounded_weights(full)
    save(HERE / "flow" / "forward.safetensors", dict(forwards(full, weights["flow"])))
    save(HERE / "ae" / "pictures.safetensors", dict(autoencoded(full, weights["ae"])))
    save(HERE / "e2e" / "edits.safetensors", dict(edits(official, full, weights)))
    write_sums()


@torch.inference_mode()
def check(official: Any, full: Path) -> None:
    """Fail where what is computed from the unrounded weights is not what the full set holds."""
    weights = {name: load_file(full / "models" / name / f"{name}.safetensors") for name in ("flow", "ae")}
    for name, computed in forwards(full, weights["flow"]):
        case, dtype, key = name.split(".", 2)
        stored = load_file(full / "flow" / f"forward_{case}_{'fp32' if dtype == 'in' else dtype}.safetensors")
        compare(name, computed, stored[f"in.{key}" if dtype == "in" else key])
    for name, computed in autoencoded(full, weights["ae"]):
        picture, key = name.split(".", 1)
        compare(name, computed, load_file(full / "ae" / f"{picture}.safetensors")[key])
    for name, computed in edits(official, full, weights):
        case, variant, key = name.split(".")
        compare(name, computed, load_file(full / "e2e" / case / f"{variant}.safetensors")[key])


def compare(name: str, computed: Tensor, stored: Tensor) -> None:
    difference = (computed.double() - stored.double()).norm() / stored.double().norm()
    sys.stdout.write(f"{name}: {difference:.1e}\n")
    # One machine's kernels differ from another's by this much; a mistake costs 10 times more.
    if difference > (2e-2 if "bf16" in name else 1e-3 if stored.dtype == torch.uint8 else 1e-5):
        raise SystemExit(f"{name} is not what the full set holds")


def write_model(full: Path) -> None:
    """A model folder as `kontext.load` finds it, with the rounded weights."""
    for name, weights in rounded_weights(full).items():
        save(HERE / "model" / f"{name}.safetensors", {key: value.bfloat16() for key, value in weights.items()})
    config = {
        "name": "golden",
        "model_type": "flux-kontext",
        "files": {"transformer": "flow.safetensors", "autoencoder": "ae.safetensors", "t5": "t5", "clip": "clip"},
        "transformer": params(full, "flow"),
        "autoencoder": params(full, "ae"),
        "max_sequence_length": 64,
        "preferred_resolutions": [[96, 64], [64, 64], [64, 96]],
    }
    (HERE / "model" / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def rounded_weights(full: Path) -> dict[str, Tensors]:
    return {
        name: {key: value.bfloat16().float() for key, value in load_file(path).items()}
        for name in ("flow", "ae")
        if (path := full / "models" / name / f"{name}.safetensors")
    }


def params(full: Path, name: str) -> dict[str, Any]:
    return json.loads((full / "models" / name / "params.json").read_text())  # type: ignore[no-any-return]


def flow_network(full: Path, weights: Tensors, dtype: torch.dtype) -> nn.Module:
    from flux.model import Flux, FluxParams  # type: ignore[import-not-found]

    network: nn.Module = Flux(FluxParams(**params(full, "flow")))
    network.load_state_dict(weights)
    return network.to(dtype)


def autoencoder_network(full: Path, weights: Tensors) -> Any:
    from flux.modules.autoencoder import AutoEncoder, AutoEncoderParams  # type: ignore[import-not-found]

    network = AutoEncoder(AutoEncoderParams(**params(full, "ae")))
    network.load_state_dict(weights)
    return network


def forwards(full: Path, weights: Tensors) -> Iterator[tuple[str, Tensor]]:
    """`<case>.in.<input>`, `<case>.<dtype>.out`, and for one case in float32 `<case>.fp32.<layer>`."""
    for case in FORWARDS:
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            stored = load_file(full / "flow" / f"forward_{case}_{name}.safetensors")
            inputs = {key.removeprefix("in."): value for key, value in stored.items() if key.startswith("in.")}
            if name == "fp32":
                yield from ((f"{case}.in.{key}", value) for key, value in inputs.items())
            network, seen = flow_network(full, weights, dtype), Tensors()
            watch(network, seen)
            seen["out"] = network(**inputs)
            wanted = seen if (case, name) == ("b1_cond", "fp32") else {"out": seen["out"]}
            yield from ((f"{case}.{name}.{key}", value) for key, value in wanted.items())


def watch(network: nn.Module, seen: Tensors) -> None:
    """Record the outputs of embedders and blocks under the names that the full set gives them."""

    def hook(name: str) -> Callable[..., None]:
        def recorded(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, tuple):
                seen[f"{name}.img"], seen[f"{name}.txt"] = output
            else:
                seen[name] = output

        return recorded

    for name, module in network.named_modules():
        if name in ("img_in", "txt_in", "time_in", "guidance_in", "vector_in") or (
            "blocks." in name and name.count(".") == 1
        ):
            module.register_forward_hook(hook(name))


def autoencoded(full: Path, weights: Tensors) -> Iterator[tuple[str, Tensor]]:
    network = autoencoder_network(full, weights)
    for picture in PICTURES:
        stored = load_file(full / "ae" / f"{picture}.safetensors")
        yield f"{picture}.x", stored["x"]
        yield f"{picture}.latent", network.encode(stored["x"])
        yield f"{picture}.latent_random", stored["latent_random"]
        yield f"{picture}.decoded_random", network.decode(stored["latent_random"])
        with torch.autocast("cpu", torch.bfloat16):
            yield f"{picture}.decoded_random_autocast_bf16", network.decode(stored["latent_random"])


def edits(official: Any, full: Path, weights: dict[str, Tensors]) -> Iterator[tuple[str, Tensor]]:
    """`<case>.<variant>.<what>`: whole edits, from the text embeddings and resized pictures of the full set."""
    autoencoder = autoencoder_network(full, weights["ae"])
    for folder in case_folders(full):
        case = json.loads((folder / "case.json").read_text())
        pictures = load_file(folder / "fp32.safetensors")
        for variant, dtype in (("fp32", torch.float32), ("fp32_pure", torch.float32), ("bf16", torch.bfloat16)):
            text = load_file(folder / f"{variant}.safetensors")
            seam = torch.float32 if variant == "fp32_pure" else torch.bfloat16
            latents = [
                autoencoder.encode(pictures[f"cond_image_u8_{i}"].float().permute(2, 0, 1)[None] / 127.5 - 1.0).to(seam)
                for i in range(len(case["inputs"]))
            ]
            tokens = denoised(official, flow_network(full, weights["flow"], dtype), dtype, case, text, latents)
            latent = official.unpack(tokens.float(), case["returned_height"], case["returned_width"])
            with torch.autocast("cpu", torch.bfloat16, enabled=variant == "bf16"):
                decoded = autoencoder.decode(latent)
            yield f"{folder.name}.{variant}.latent", latent
            if variant != "fp32_pure":
                widened = 127.5 * (decoded.clamp(-1, 1).float() + 1.0)
                yield f"{folder.name}.{variant}.image_u8", rearrange(widened, "b c h w -> b h w c").byte()


def denoised(
    official: Any, network: nn.Module, dtype: torch.dtype, case: dict[str, Any], text: Tensors, latents: list[Tensor]
) -> Tensor:
    width, height = case["returned_width"], case["returned_height"]
    batch = len(text["vec"])
    noise = official.get_noise(1, height, width, torch.device("cpu"), torch.bfloat16, case["seed"])
    img = pack(noise).to(dtype).repeat(batch, 1, 1)
    references = torch.cat([pack(latent) for latent in latents], dim=1).to(dtype).repeat(batch, 1, 1)
    places = [grid(1 + i, latent.shape[2] // 2, latent.shape[3] // 2) for i, latent in enumerate(latents)]
    result: Tensor = official.denoise(
        network,
        img=img,
        img_ids=grid(0, math.ceil(height / 16), math.ceil(width / 16)).repeat(batch, 1, 1),
        txt=text["txt"].to(dtype),
        txt_ids=torch.zeros(batch, text["txt"].shape[1], 3),
        vec=text["vec"].to(dtype),
        timesteps=official.get_schedule(case["num_steps"], img.shape[1]),
        guidance=case["guidance"],
        img_cond_seq=references,
        img_cond_seq_ids=torch.cat(places, dim=1).repeat(batch, 1, 1),
    )
    return result


def pack(latent: Tensor) -> Tensor:
    return rearrange(latent, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=2, pw=2)


def grid(index: int, rows: int, columns: int) -> Tensor:
    return torch.tensor([[[index, row, column] for row in range(rows) for column in range(columns)]]).float()


def case_folders(full: Path) -> list[Path]:
    return sorted(path for path in (full / "e2e").iterdir() if path.is_dir())


def save(path: Path, tensors: Tensors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write_sums() -> None:
    """Checksums in the form that `sha256sum --check` reads."""
    paths = sorted(path for path in HERE.rglob("*") if path.is_file() and path.suffix in DATA_SUFFIXES)
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(HERE)}\n" for path in paths)
    (HERE / "SHA256SUMS").write_text("".join(lines))


DATA_SUFFIXES = (".safetensors", ".json", ".png", ".jpg", ".webp", ".model", ".txt")

if __name__ == "__main__":
    main()
