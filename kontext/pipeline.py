"""The model as a whole: pictures and an instruction in, the edited picture out."""

# mypy: disable-error-code="no-any-return"
# Calling an nn.Module is Any to the type checker; the annotations of `forward` say what it is.

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from kontext import banded, sampling
from kontext.attention_kernels import using_backend
from kontext.autoencoder import Autoencoder
from kontext.cache import TensorCache, image_key, prompt_key
from kontext.choices import DEFAULT_LORA_BYTES
from kontext.config import PIXELS_PER_LATENT, ModelConfig, Resolution
from kontext.device import synchronize
from kontext.images import ImageOptions, image_to_tensor, refuse_one_colour, tensor_to_image, to_rgb
from kontext.lora.adapters import AdapterCache, Adapters, make_adapters
from kontext.matmul import using_products
from kontext.networks import Networks
from kontext.offload.memory import Memory, spared
from kontext.prepared.manifest import Choices
from kontext.prepared.preparation import Preparation
from kontext.progress import report_steps
from kontext.request import Edited, EditRequest, Lora, OnStep, SizeMode, random_seed
from kontext.sizes import SizePlan, plan_sizes
from kontext.step_cache import CachedSteps, StepCache
from kontext.weights.values import AT_ONCE, Values

Images = Image.Image | Sequence[Image.Image]


@dataclass(frozen=True)
class Encoded:
    """A request after the encoders: everything that sampling starts from, apart from noise."""

    txt: Tensor  # T5's vectors, (1, max_sequence_length, width)
    pooled: Tensor  # CLIP's vector, (1, width)
    references: Tensor  # tokens of all input pictures, one after the other, (1, tokens, 64)
    reference_ids: Tensor  # their positions, (1, tokens, 3)
    size: Resolution  # of the target in pixels
    adapters: Adapters | None = None  # LoRA layers of the request


class Kontext:
    """A loaded model that edits pictures, one at a time."""

    name = "native"

    def __init__(
        self,
        networks: Networks,
        config: ModelConfig,
        *,
        fingerprint: str,
        memory: Memory,
        seam_dtype: torch.dtype,
        max_sequence_length: int,
        image_options: ImageOptions,
        cache_bytes: int = 0,
        attention: str = "default",
        products: str = "default",
        approximations: tuple[str, ...] = (),
        lora_bytes: int = DEFAULT_LORA_BYTES,
        values: Values = AT_ONCE,
        step_cache: StepCache | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        """As `load` makes it. The weights stay where they are; an edit needs them where `place` brings them."""
        self.networks = networks
        self.config = config
        self.model_name = config.name
        self.fingerprint = fingerprint
        self.dtype = next(networks.transformer.parameters()).dtype
        self.seam_dtype = seam_dtype
        self.max_sequence_length = max_sequence_length
        self.image_options = image_options
        self.cache = TensorCache(cache_bytes)
        self.adapters = AdapterCache(lora_bytes)
        self.attention = attention
        self.products = products
        self.approximations = approximations
        self.memory = memory
        self.values = values
        self.step_cache = step_cache
        self.preparation = preparation or Preparation()

    @torch.inference_mode()
    def run(self, request: EditRequest, on_step: OnStep | None = None) -> Edited:
        """Edit as requested and report how it went.

        Args:
            on_step: called with (steps done, total) after each step. What it raises ends the edit and is passed on; the
                model stays usable.
        """
        timings: dict[str, float] = {}
        plan = plan_sizes(request, self.config)
        with self._timed(timings, "encode"):
            encoded = self.encode(request, plan)
        cached = self.cached_steps(request)
        with self._timed(timings, "sample"):
            latents = self.sample(encoded, request, on_step, cached)
        with self._timed(timings, "decode"):
            image = tensor_to_image(self.decode(latents))
        refuse_one_colour(image, request.images)
        image = plan.finish(image, is_exact=self.image_options.crop_to_asked_size)
        warnings = (*self._warnings(request.prompt), *plan.warnings)
        return Edited(image, request.seed, timings, warnings, cached.computed if cached else None)

    def encode(self, request: EditRequest, plan: SizePlan | None = None) -> Encoded:
        """Take a request through T5, CLIP and the autoencoder's encoder, and read its LoRAs.

        Args:
            plan: other sizes than `plan_sizes` gives.
        """
        plan = plan or plan_sizes(request, self.config)
        adapters = self._adapters(request.loras)  # first, since a file that cannot be used is found out here
        txt, pooled = self.cache.recall(
            prompt_key(request.prompt), self.memory.device, lambda: self._encode_prompt(request.prompt)
        )
        placed = zip(request.images, plan.references, strict=True)
        references = [self._reference(placement.prepare(image), placement.size) for image, placement in placed]
        return Encoded(
            txt=txt,
            pooled=pooled,
            references=torch.cat(references, dim=1),
            reference_ids=reference_ids([placement.size for placement in plan.references]).to(self.memory.device),
            size=plan.sampled,
            adapters=adapters,
        )

    def cached_steps(self, request: EditRequest) -> CachedSteps | None:
        """Which steps of a request are computed, decided as it runs; None for all."""
        return CachedSteps(self.step_cache, request.num_inference_steps) if self.step_cache else None

    def sample(
        self,
        encoded: Encoded,
        request: EditRequest,
        on_step: OnStep | None = None,
        cached: CachedSteps | None = None,
    ) -> Tensor:
        """Go from noise to the latents of the edited picture, float32, (1, 16, 2 * rows, 2 * columns).

        Args:
            cached: from `cached_steps`, to skip steps; None computes all.
        """
        noise = sampling.pack_latents(sampling.starting_noise(*encoded.size, request.seed))
        noise = noise.to(self.memory.device, self.dtype)
        target_tokens = noise.shape[1]
        target_ids = sampling.position_ids(0, *sampling.token_grid(*encoded.size)).to(self.memory.device)
        transformer = self.networks.transformer

        times = sampling.time_schedule(request.num_inference_steps, target_tokens)

        def velocity(latents: Tensor, step: int) -> Tensor:
            return transformer(latents, step, conditioning, cached)

        with self._at_work(transformer), using_backend(self.attention):
            conditioning = transformer.condition(
                encoded.txt,
                encoded.pooled,
                guidance=noise.new_full((1,), request.guidance_scale),
                timesteps=torch.tensor(times[:-1]).unsqueeze(1).to(noise),
                img_ids=torch.cat((target_ids, encoded.reference_ids), dim=1),
                references=encoded.references,
                adapters=encoded.adapters,
            )
            tokens = sampling.integrate(velocity, noise, times, self._after_step(on_step))
        return sampling.unpack_latents(tokens.float(), *encoded.size)

    def decode(self, latents: Tensor) -> Tensor:
        """The picture of latents, about -1 to 1, (1, 3, height, width).

        As in the reference the decoder's weights are float32 and only this stage runs under autocast.
        """
        autocast = torch.autocast(self.memory.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)
        autoencoder = self.networks.autoencoder
        with self._at_work(autoencoder.decoder), autocast:
            if self._needs_bands(latents.shape[2:].numel() * PIXELS_PER_LATENT**2):
                return autoencoder.decode(latents, partial(banded.decode, autoencoder.decoder))
            return autoencoder.decode(latents)

    def edit(
        self,
        images: Images,
        prompt: str,
        *,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.5,
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        size_mode: SizeMode = "match",
        aspect_ratio: str | None = None,
        loras: Sequence[Lora] = (),
        on_step: OnStep | None = None,
    ) -> Image.Image:
        """Edit an image as the prompt says.

        Args:
            images: one, or 1 to 4 of which the first sets the size.
            prompt: the instruction.
            seed: of the starting noise; drawn at random when None.
            width, height: pixels of the output. Of two that are None both follow from the preferred resolution for the
                first image, of one that is None its shape decides.
            size_mode, aspect_ratio: how a size is reached, and a shape instead of a size; see `EditRequest`.
            loras: up to 4 LoRA files, as in `[Lora(Path("snow.safetensors"), scale=0.8)]`.
            on_step: as for `run`.
        Raises:
            RequestError: a value cannot work.
        """
        given = (images,) if isinstance(images, Image.Image) else tuple(images)
        request = EditRequest(
            # What is no image stays as it is: the request names it.
            tuple(to_rgb(image, self.image_options) if isinstance(image, Image.Image) else image for image in given),
            prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=random_seed() if seed is None else seed,
            width=width,
            height=height,
            size_mode=size_mode,
            aspect_ratio=aspect_ratio,
            loras=tuple(loras),
        )
        return self.run(request, on_step).image

    def warm_up(self) -> None:
        """Do one edit of one step, so that the first real one does not pay for what happens only once.

        Keeps what was found out so far for later starts, if this one is to prepare.
        """
        image = Image.new("RGB", self.config.preferred_resolutions[0])
        self.run(EditRequest((image,), "warm up", num_inference_steps=1, seed=0))
        self.preparation.keep(Choices(self.attention, self.products))

    @contextmanager
    def spare_memory(self) -> Iterator[None]:
        """Within the context as little as possible is on the device, for an edit that did not fit; see `spared`."""
        usual = self.memory
        self.adapters.clear()
        try:
            with spared(usual, self.values) as self.memory:
                yield
        finally:
            self.memory = usual
            self.adapters.clear()

    @property
    def device(self) -> str:
        """Device of the model, for example "cuda"."""
        return str(self.memory.device)

    def _adapters(self, loras: Sequence[Lora]) -> Adapters | None:
        """LoRA layers for the transformer; None for no LoRA."""
        if not loras:
            return None
        transformer, device, home = self.networks.transformer, self.memory.device, self.memory.home_of_adapters
        return self.adapters.recall(loras, lambda: make_adapters(transformer, loras, self.dtype, device, home))

    @contextmanager
    def _at_work(self, network: nn.Module) -> Iterator[None]:
        with self.memory.on_device(network), using_products(self.products):
            yield

    def _encode_prompt(self, prompt: str) -> tuple[Tensor, Tensor]:
        with self._at_work(self.networks.t5):
            txt = self.networks.t5(prompt, self.max_sequence_length)
        with self._at_work(self.networks.clip):
            pooled = self.networks.clip(prompt, self.config.clip_max_length)
        return self._across_seam(txt), self._across_seam(pooled)

    def _reference(self, image: Image.Image, size: Resolution) -> Tensor:
        """Tokens of an RGB image brought to a size."""
        key = image_key(image, size)
        (tokens,) = self.cache.recall(key, self.memory.device, lambda: (self.encode_reference(image, size),))
        return tokens

    def encode_reference(self, image: Image.Image, size: Resolution) -> Tensor:
        """Encode an RGB image at a size: tokens, (1, tokens, 64). Does not use the cache."""
        tensor = image_to_tensor(image, size).to(self.memory.device)
        autoencoder = self.networks.autoencoder
        with self._at_work(autoencoder.encoder):
            if self._needs_bands(size[0] * size[1]):
                latent = autoencoder.encode(tensor, partial(banded.encode, autoencoder.encoder))
            else:
                latent = autoencoder.encode(tensor)
        return sampling.pack_latents(self._across_seam(latent))

    def _needs_bands(self, pixels: int) -> bool:
        """Whether the device has too little memory to take an image through the autoencoder as a whole."""
        autoencoder, room = self.networks.autoencoder, self.memory.room_bytes()
        if room is None or not isinstance(autoencoder, Autoencoder):  # the official code has its own
            return False
        return banded.whole_bytes(self.config.autoencoder, pixels, banded.has_compiled_norms(autoencoder)) > room

    def _across_seam(self, values: Tensor) -> Tensor:
        """Round what one network hands to the next as the reference does, then give it the transformer's dtype."""
        return values.to(self.seam_dtype).to(self.dtype)

    def _after_step(self, on_step: OnStep | None) -> OnStep:
        return report_steps(on_step, self.memory.device) if on_step else lambda done, total: None

    def _warnings(self, prompt: str) -> tuple[str, ...]:
        length = self.networks.t5.token_count(prompt)
        if length <= self.max_sequence_length:
            return ()
        return (f"prompt cut from {length} to {self.max_sequence_length} tokens; its end was not read",)

    @contextmanager
    def _timed(self, timings: dict[str, float], stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        synchronize(self.memory.device)
        timings[stage] = time.perf_counter() - started


def reference_ids(sizes: Sequence[Resolution]) -> Tensor:
    """Positions of the tokens of all references; the first has image index 1."""
    grids = [sampling.position_ids(1 + i, *sampling.token_grid(*size)) for i, size in enumerate(sizes)]
    return torch.cat(grids, dim=1)
