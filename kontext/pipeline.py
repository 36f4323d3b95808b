"""The model as a whole: pictures and an instruction in, the edited picture out."""

# mypy: disable-error-code="no-any-return"
# Calling an nn.Module is Any to the type checker; the annotations of `forward` say what it is.

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from kontext import sampling
from kontext.attention_kernels import using_backend
from kontext.cache import TensorCache, image_key, prompt_key
from kontext.config import ModelConfig, Resolution
from kontext.device import synchronize
from kontext.images import ImageOptions, crop_to_size, image_to_tensor, tensor_to_image, to_rgb
from kontext.matmul import using_products
from kontext.networks import Networks
from kontext.offload.memory import Memory, Streamed, Workload
from kontext.offload.pieces import Stage
from kontext.offload.workload import autoencoder_stages, block_inputs, text_stages, transformer_stage, working_bytes
from kontext.progress import report_steps
from kontext.request import EditRequest, edit_request
from kontext.sampling import OnStep
from kontext.weights.reading import Fill, fill_now

Images = Image.Image | Sequence[Image.Image]


@dataclass(frozen=True)
class Edited:
    """An edit's picture and how it came about."""

    image: Image.Image
    seed: int
    timings: dict[str, float]  # seconds of "encode", "sample", "decode"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A request after the encoders: everything that sampling starts from, apart from noise."""

    txt: Tensor  # T5's vectors, (1, max_sequence_length, width)
    pooled: Tensor  # CLIP's vector, (1, width)
    references: Tensor  # tokens of all input pictures, one after the other, (1, tokens, 64)
    reference_ids: Tensor  # their positions, (1, tokens, 3)
    size: Resolution  # of the target in pixels


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
        fill: Fill = fill_now,
    ) -> None:
        """As `load` makes it; a fill that gives weights their values later must have done so before an edit."""
        self.networks = networks
        self.config = config
        self.model_name = config.name
        self.fingerprint = fingerprint
        self.dtype = next(networks.transformer.parameters()).dtype
        self.seam_dtype = seam_dtype
        self.max_sequence_length = max_sequence_length
        self.image_options = image_options
        self.cache = TensorCache(cache_bytes)
        self.attention = attention
        self.products = products
        self.approximations = approximations
        self.memory = memory
        memory.hold(self.workload(), fill)

    @property
    def device(self) -> str:
        """Where the model computes, for example "cuda"."""
        return str(self.memory.device)

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
        on_step: OnStep | None = None,
    ) -> Image.Image:
        """Edit a picture as the prompt says; the arguments are those of `run`."""
        request = edit_request(images, prompt, num_inference_steps, guidance_scale, seed, width, height)
        return self._answer(request, on_step).image

    def run(
        self,
        images: Images,
        prompt: str,
        *,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.5,
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        on_step: OnStep | None = None,
    ) -> Edited:
        """Edit a picture as the prompt says, and tell how it went.

        Args:
            images: one picture, or 1 to 4 of which the first sets the size.
            prompt: the instruction.
            seed: of the starting noise; drawn at random, and recorded, when None.
            width, height: pixels of the output; each one that is None follows from the preferred resolution of the
                first picture.
            on_step: called with (steps done, total) after each step. What it raises ends the edit and is passed on; the
                model stays usable.
        Raises:
            RequestError: a value cannot work.
        """
        request = edit_request(images, prompt, num_inference_steps, guidance_scale, seed, width, height)
        return self._answer(request, on_step)

    def warm_up(self) -> None:
        """Do one edit of one step, so that the first real one does not pay for what happens only once."""
        self.run(Image.new("RGB", self.config.preferred_resolutions[0]), "warm up", num_inference_steps=1, seed=0)

    @torch.inference_mode()
    def compile_ahead(self) -> None:
        """Have everything compiled that will be, without the text encoders and whatever values the weights have.

        Results are thrown away. The cache of prompts and pictures is passed by: it must not remember them.
        """
        size = self.config.preferred_resolutions[0]
        blank = Image.new("RGB", size)
        request = edit_request(blank, "", num_inference_steps=1, guidance_scale=1.0, seed=0, width=None, height=None)
        sizes = self.config.transformer
        references = self._encode_picture(blank, size)
        encoded = Encoded(
            txt=references.new_zeros(1, self.max_sequence_length, sizes.context_in_dim),
            pooled=references.new_zeros(1, sizes.vec_in_dim),
            references=references,
            reference_ids=_reference_ids([size]).to(self.memory.device),
            size=size,
        )
        self.decode(self.sample(encoded, request))

    @contextmanager
    def spare_memory(self) -> Iterator[None]:
        """Within the context as little as possible is on the device: all weights are streamed.

        For an edit that did not fit. Slower by moving all weights to the host, and back at the end.
        """
        usual = self.memory
        usual.release()
        try:
            self.memory = Streamed(usual.device, budget_bytes=None)
            self.memory.hold(self.workload())
            yield
        finally:
            self.memory.release()
            self.memory = usual
            usual.hold(self.workload())

    def workload(self) -> Workload:
        """What there is to be held on the device."""
        return Workload(
            networks=tuple(self.networks),
            stages=self._stages(),
            working_bytes=working_bytes(self.config, self.max_sequence_length, self.dtype.itemsize),
            prepare_block=self._prepare_block,
        )

    def _stages(self) -> list[Stage]:
        networks = self.networks
        return [
            *text_stages(networks.t5, networks.clip),
            *autoencoder_stages(networks.autoencoder),
            transformer_stage(networks.transformer),
        ]

    def _prepare_block(self) -> Callable[[], object]:
        with torch.inference_mode():
            inputs = block_inputs(self.config, self.max_sequence_length, self.memory.device, self.dtype)

        @torch.inference_mode()
        def run() -> object:
            with using_backend(self.attention), using_products(self.products):
                return self.networks.transformer.double_blocks[0](*inputs)

        return run

    @torch.inference_mode()
    def _answer(self, request: EditRequest, on_step: OnStep | None) -> Edited:
        timings: dict[str, float] = {}
        with self._timed(timings, "encode"):
            encoded = self.encode(request)
        with self._timed(timings, "sample"):
            latents = self.sample(encoded, request, on_step)
        with self._timed(timings, "decode"):
            image = tensor_to_image(self.decode(latents))
        if self.image_options.crop_to_asked_size:
            image = crop_to_size(image, encoded.size)
        return Edited(image, request.seed, timings, self._warnings(request.prompt))

    def encode(self, request: EditRequest) -> Encoded:
        """Take a request through T5, CLIP and the autoencoder's encoder."""
        pictures = [to_rgb(picture, self.image_options) for picture in request.pictures]
        sizes = [sampling.preferred_size(*picture.size, self.config.preferred_resolutions) for picture in pictures]
        txt, pooled = self.cache.recall(
            prompt_key(request.prompt), self.memory.device, lambda: self._encode_prompt(request.prompt)
        )
        references = [self._reference(picture, size) for picture, size in zip(pictures, sizes, strict=True)]
        return Encoded(
            txt=txt,
            pooled=pooled,
            references=torch.cat(references, dim=1),
            reference_ids=_reference_ids(sizes).to(self.memory.device),
            size=(request.width or sizes[0][0], request.height or sizes[0][1]),
        )

    def sample(self, encoded: Encoded, request: EditRequest, on_step: OnStep | None = None) -> Tensor:
        """Go from noise to the latents of the edited picture, float32, (1, 16, 2 * rows, 2 * columns)."""
        noise = sampling.pack_latents(sampling.starting_noise(*encoded.size, request.seed))
        noise = noise.to(self.memory.device, self.dtype)
        target_tokens = noise.shape[1]
        target_ids = sampling.position_ids(0, *sampling.token_grid(*encoded.size)).to(self.memory.device)
        transformer = self.networks.transformer

        times = sampling.time_schedule(request.num_inference_steps, target_tokens)

        def velocity(latents: Tensor, step: int) -> Tensor:
            return transformer(latents, step, conditioning)

        with self._at_work(transformer), using_backend(self.attention):
            conditioning = transformer.condition(
                encoded.txt,
                encoded.pooled,
                guidance=noise.new_full((1,), request.guidance_scale),
                timesteps=torch.tensor(times[:-1]).unsqueeze(1).to(noise),
                img_ids=torch.cat((target_ids, encoded.reference_ids), dim=1),
                references=encoded.references,
            )
            tokens = sampling.integrate(velocity, noise, times, self._after_step(on_step))
        return sampling.unpack_latents(tokens.float(), *encoded.size)

    def decode(self, latents: Tensor) -> Tensor:
        """The picture of latents, about -1 to 1, (1, 3, height, width).

        As in the reference the decoder's weights are float32 and only this stage runs under autocast.
        """
        autocast = torch.autocast(self.memory.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)
        with self._at_work(self.networks.autoencoder.decoder), autocast:
            return self.networks.autoencoder.decode(latents)

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

    def _reference(self, picture: Image.Image, size: Resolution) -> Tensor:
        """Tokens of an RGB picture brought to a size."""
        key = image_key(picture, size)
        (tokens,) = self.cache.recall(key, self.memory.device, lambda: (self._encode_picture(picture, size),))
        return tokens

    def _encode_picture(self, picture: Image.Image, size: Resolution) -> Tensor:
        tensor = image_to_tensor(picture, size).to(self.memory.device)
        with self._at_work(self.networks.autoencoder.encoder):
            latent = self.networks.autoencoder.encode(tensor)
        return sampling.pack_latents(self._across_seam(latent))

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


def _reference_ids(sizes: Sequence[Resolution]) -> Tensor:
    """Positions of the tokens of all references; the first has image index 1."""
    grids = [sampling.position_ids(1 + i, *sampling.token_grid(*size)) for i, size in enumerate(sizes)]
    return torch.cat(grids, dim=1)
