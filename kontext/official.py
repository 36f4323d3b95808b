"""The same edits through the code that Black Forest Labs published, for people who want exactly that, and to compare.

The code lies in third_party/flux1, a git submodule that a plain clone leaves empty; nothing but this module needs it.
Text encoding, preparation, both networks, noise, schedule, sampling and decoding are theirs. Ours are finding and
checking the weights, the checks of a request, `ImageOptions`, and making 8 bits of what was decoded;
docs/official-engine.md tells what that means for the result.
"""

# mypy: disable-error-code="no-any-return"
# The official code lies outside this package's types.

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from kontext.config import ModelConfig, Resolution
from kontext.device import choose_device
from kontext.errors import CheckpointError, RequestError
from kontext.images import ImageOptions
from kontext.networks import Networks, assemble
from kontext.offload.memory import Memory, Resident, memory_for
from kontext.offload.needs import Workload
from kontext.offload.workload import (
    autoencoder_stages,
    block_inputs,
    text_stages,
    whole_blocks_stage,
    working,
)
from kontext.options import EngineOptions
from kontext.pipeline import Encoded, Kontext
from kontext.request import EditRequest, OnStep
from kontext.sizes import SizePlan, plan_sizes
from kontext.step_cache import CachedSteps
from kontext.text import TextEncoder
from kontext.weights.checkpoint import build_on_meta
from kontext.weights.fingerprint import fingerprint
from kontext.weights.layout import ModelFiles, find_model
from kontext.weights.reading import Convert, OnProgress, Reader, convert_now
from kontext.weights.values import AT_ONCE, Values

OURS_ALONE = frozenset(
    {
        "seam_dtype",
        "cache_bytes",
        "compile",
        "attention",
        "precision",
        "kernels",
        "lora_bytes",
        "step_cache",
        "prepared",
    }
)
"""Fields of `EngineOptions` for which the official code has no choice."""

SUBMODULE = "third_party/flux1"
CHECKOUT = Path(__file__).parent.parent


def load(
    model: str | Path | None = None,
    options: EngineOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
    **changes: Any,
) -> OfficialKontext:
    """Load a Kontext model into the official code; arguments and errors are those of `kontext.load`.

    Args:
        options: those of `OURS_ALONE` do nothing here.
        changes: fields of `EngineOptions` that differ from `options`.
    Raises:
        CheckpointError: also when the official code is not there.
        RequestError: also when an option of `OURS_ALONE` is named.
    """
    if misplaced := sorted(OURS_ALONE & changes.keys()):
        raise RequestError(f"{', '.join(misplaced)}: not for the official engine; load the native one, or leave it out")
    options = replace(options or EngineOptions(), **changes)
    chosen = choose_device(options.device)
    files = find_model(model)
    code = import_official(files.config.preferred_resolutions)
    reader = Reader(chosen, on_progress)
    loaded = OfficialKontext(
        code,
        load_networks(code, files, options.dtype or torch.bfloat16, reader.convert),
        replace(files.config, most_pixels=options.most_pixels or files.config.most_pixels),
        fingerprint=fingerprint(files),
        memory=Resident(chosen),
        max_sequence_length=options.max_sequence_length or files.config.max_sequence_length,
        image_options=options.image_options,
        values=reader,
    )
    workload = official_workload(loaded)
    loaded.memory = memory_for(workload, chosen, options.offload, options.vram_budget_bytes)
    loaded.memory.hold(workload, reader)
    with reader.reading():
        return loaded


def find_source(checkout: Path = CHECKOUT) -> Path:
    """The folder of the official package `flux`.

    Raises:
        CheckpointError: it is not there.
    """
    source = checkout / SUBMODULE / "src"
    if not (source / "flux" / "model.py").is_file():
        raise CheckpointError(
            f"{SUBMODULE} is empty: run git submodule update --init {SUBMODULE} in {checkout}, or use the native engine"
        )
    return source


@dataclass(frozen=True)
class OfficialCode:
    """The modules of the official package that an edit needs."""

    math: ModuleType
    layers: ModuleType
    model: ModuleType
    autoencoder: ModuleType
    conditioner: ModuleType
    sampling: ModuleType


def import_official(preferred_resolutions: Sequence[Resolution]) -> OfficialCode:
    """Import the official code; sys.path and sys.modules are left as they were.

    Args:
        preferred_resolutions: of the model. The official code holds one list for all models, so every call of this
            function makes modules of its own.
    Raises:
        CheckpointError: the code is not there.
    """
    with _only_official_flux(find_source(), _stand_ins(preferred_resolutions)):
        return OfficialCode(
            math=importlib.import_module("flux.math"),
            layers=importlib.import_module("flux.modules.layers"),
            model=importlib.import_module("flux.model"),
            autoencoder=importlib.import_module("flux.modules.autoencoder"),
            conditioner=importlib.import_module("flux.modules.conditioner"),
            sampling=importlib.import_module("flux.sampling"),
        )


def _stand_ins(preferred_resolutions: Sequence[Resolution]) -> dict[str, ModuleType]:
    """Two modules that flux.sampling imports for names only.

    They would want OpenCV and a watermarking package, and one of them makes a folder where the process stands. Of all
    that an edit uses nothing but the list of resolutions.
    """
    util, image_embedders = ModuleType("flux.util"), ModuleType("flux.modules.image_embedders")
    vars(util)["PREFERED_KONTEXT_RESOLUTIONS"] = list(preferred_resolutions)
    for encoder in ("CannyImageEncoder", "DepthImageEncoder", "ReduxImageEncoder"):
        vars(image_embedders)[encoder] = object  # named in annotations
    return {module.__name__: module for module in (util, image_embedders)}


@contextmanager
def _only_official_flux(source: Path, stand_ins: dict[str, ModuleType]) -> Iterator[None]:
    """Within the context `flux` is the official package, whatever else may bear that name."""
    before = _take_flux_modules()
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(source))
    try:
        yield
    finally:
        sys.path.remove(str(source))
        _take_flux_modules()
        sys.modules.update(before)


def _take_flux_modules() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == "flux"]
    return {name: sys.modules.pop(name) for name in names}


def load_networks(
    code: OfficialCode, files: ModelFiles, dtype: torch.dtype, convert: Convert = convert_now
) -> Networks:
    """Map all weights into host memory: the autoencoder in float32, everything else in dtype."""
    flux, ae = code.model, code.autoencoder
    transformer = build_on_meta(lambda: flux.Flux(flux.FluxParams(**asdict(files.config.transformer))))
    autoencoder = build_on_meta(lambda: ae.AutoEncoder(ae.AutoEncoderParams(**asdict(files.config.autoencoder))))
    return assemble(transformer, autoencoder, files, dtype, convert)


class OfficialKontext(Kontext):
    """A model whose every stage runs in the official code; requests, memory and pictures are handled as for ours."""

    name = "official"

    def __init__(
        self,
        code: OfficialCode,
        networks: Networks,
        config: ModelConfig,
        *,
        fingerprint: str,
        memory: Memory,
        max_sequence_length: int,
        image_options: ImageOptions,
        values: Values = AT_ONCE,
    ) -> None:
        self.code = code
        super().__init__(
            networks,
            config,
            fingerprint=fingerprint,
            memory=memory,
            seam_dtype=torch.bfloat16,  # written into the official code
            max_sequence_length=max_sequence_length,
            image_options=image_options,
            approximations=networks.approximations,
            values=values,
        )
        self._t5 = _embedder(code, networks.t5, max_sequence_length)
        self._clip = _embedder(code, networks.clip, config.clip_max_length)

    def encode(self, request: EditRequest, plan: SizePlan | None = None) -> Encoded:
        if request.loras:
            raise RequestError("loras: the official engine has no LoRA layers; leave them out or use the native one")
        plan = plan or plan_sizes(request, self.config)
        txt, pooled = self._encode_prompt(request.prompt)
        with self.memory.on_device(self.networks.autoencoder.encoder):
            prepared = [self._prepare(index, txt, pooled, request, plan) for index in range(len(request.images))]
        for index, (inputs, _, _) in enumerate(prepared):
            inputs["img_cond_seq_ids"][..., 0] = 1 + index  # theirs takes one image and writes 1
        _, height, width = prepared[0]
        return Encoded(
            txt=txt,
            pooled=pooled,
            references=torch.cat([inputs["img_cond_seq"] for inputs, _, _ in prepared], dim=1).to(self.dtype),
            reference_ids=torch.cat([inputs["img_cond_seq_ids"] for inputs, _, _ in prepared], dim=1),
            size=(width, height),
        )

    def sample(
        self,
        encoded: Encoded,
        request: EditRequest,
        on_step: OnStep | None = None,
        cached: CachedSteps | None = None,
    ) -> Tensor:
        """Go from noise to latents as ours does.

        Their loop runs a whole schedule without reporting. Its only state between two steps are the latents, so it is
        called once per step: the same arithmetic, and a place to report and to stop. It computes all steps.
        """
        sampling, (width, height) = self.code.sampling, encoded.size
        noise = sampling.get_noise(1, height, width, self.memory.device, torch.bfloat16, request.seed).to(self.dtype)
        inputs = sampling.prepare(lambda _: encoded.txt, lambda _: encoded.pooled, noise, request.prompt)
        inputs |= {"img_cond_seq": encoded.references, "img_cond_seq_ids": encoded.reference_ids}
        tokens = inputs.pop("img")
        times = sampling.get_schedule(request.num_inference_steps, tokens.shape[1])
        after_step = self._after_step(on_step)
        with self.memory.on_device(self.networks.transformer):
            for step, interval in enumerate(pairwise(times)):
                tokens = sampling.denoise(
                    self.networks.transformer, tokens, **inputs, timesteps=interval, guidance=request.guidance_scale
                )
                after_step(step + 1, request.num_inference_steps)
        return sampling.unpack(tokens.float(), height, width)

    def _encode_prompt(self, prompt: str) -> tuple[Tensor, Tensor]:
        with self.memory.on_device(self.networks.t5):
            txt = self._t5([prompt])
        with self.memory.on_device(self.networks.clip):
            pooled = self._clip([prompt])
        return self._across_seam(txt), self._across_seam(pooled)

    def _prepare(
        self, index: int, txt: Tensor, pooled: Tensor, request: EditRequest, plan: SizePlan
    ) -> tuple[dict[str, Tensor], int, int]:
        """One reference in the official way: its tokens, their positions, and the target's (height, width) from it.

        Their code chooses among the preferred resolutions. For a size of our own it gets a list of this one.
        """
        placement, is_theirs = plan.references[index], request.size_mode == "reference"
        chosen_among = list(self.config.preferred_resolutions) if is_theirs else [placement.size]
        vars(self.code.sampling)["PREFERED_KONTEXT_RESOLUTIONS"] = chosen_among
        width, height = (request.width, request.height) if is_theirs else plan.sampled
        return self.code.sampling.prepare_kontext(
            t5=lambda _: txt,  # encoded already, and the same for every picture
            clip=lambda _: pooled,
            prompt=request.prompt,
            ae=self.networks.autoencoder,
            img_cond_path=_as_file(placement.prepare(request.images[index])),
            seed=request.seed,
            device=self.memory.device,
            target_width=width,
            target_height=height,
        )


def official_workload(model: OfficialKontext) -> Workload:
    """The workload of the official networks."""
    networks = model.networks
    return Workload(
        networks=tuple(networks),
        stages=[
            *text_stages(networks.t5, networks.clip),
            *autoencoder_stages(networks.autoencoder),
            whole_blocks_stage(networks.transformer),
        ],
        working=working(model.config, model.max_sequence_length, model.dtype.itemsize, is_compiled=False)[:1],
        prepare_block=partial(_prepare_block, model),
    )


def _prepare_block(model: OfficialKontext) -> Callable[[], object]:
    img, txt, (adjustment, *_), _ = block_inputs(
        model.config, model.max_sequence_length, model.memory.device, model.dtype
    )
    transformer: Any = model.networks.transformer
    ids = img.new_zeros(1, txt.shape[1] + img.shape[1], 3, dtype=torch.float32)
    inputs = {"img": img, "txt": txt, "vec": adjustment.gate[:, 0], "pe": transformer.pe_embedder(ids)}
    return torch.inference_mode()(partial(transformer.double_blocks[0], **inputs))


def _embedder(code: OfficialCode, encoder: TextEncoder, max_length: int) -> nn.Module:
    """The official embedder round a loaded encoder.

    Its constructor is passed over: it takes hub ids, knows CLIP by an id that starts with "openai", and wants tokenizer
    and weights in one folder, where the model's own repository has two.
    """
    embedder: nn.Module = code.conditioner.HFEmbedder.__new__(code.conditioner.HFEmbedder)
    nn.Module.__init__(embedder)
    vars(embedder).update(tokenizer=encoder.tokenizer, max_length=max_length, output_key=encoder.output)
    embedder.add_module("hf_module", encoder.network)
    return embedder


def _as_file(image: Image.Image) -> io.BytesIO:
    """A picture in the simplest lossless format, for code that opens files."""
    file = io.BytesIO()
    image.save(file, "PPM")
    file.seek(0)
    return file
