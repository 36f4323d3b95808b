# The worker: takes jobs, edits them on the GPU. CUDA comes with torch's wheel, the driver from the host.
#
#   docker build -f deploy/containers/worker.Dockerfile -t kontext-worker .
#   docker run --gpus all --read-only --tmpfs /tmp -v kontext-cache:/var/cache/kontext -v /models:/models:ro \
#       -e DG_BROKER_URL=redis://redis:6379/0 -e DG_FLUX_KONTEXT_MODEL=/models/kontext kontext-worker
#
# Once for each kind of GPU, so that workers with the volume kontext-cache are ready sooner (docs/operations.md):
# the same line with `worker prepare` at its end.
#
# Without CUDA, some gigabytes smaller: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG BASE=python:3.12-slim-bookworm

# What changes seldom: the pinned packages. Weights are never in an image.
FROM ${BASE} AS packages
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY tools/requirements tools/requirements
# With an index of its own for torch, that index must win over PyPI for torch alone: torch goes first, from there only.
RUN python3 -m venv /opt/kontext \
    && python3 tools/requirements worker > requirements.txt \
    && { [ -z "$TORCH_INDEX" ] || /opt/kontext/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" \
        "$(grep ^torch== constraints.txt)"; } \
    && /opt/kontext/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt

FROM ${BASE} AS wheel
WORKDIR /src
COPY . .
RUN python3 -m venv /build && /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# torch.compile writes C and Triton builds its launcher when the model warms up. A BASE with Debian's own Python needs
# its headers too: --build-arg COMPILER="gcc libc6-dev python3-dev"
ARG COMPILER="gcc libc6-dev"
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="kontext-worker" \
    org.opencontainers.image.description="FLUX.1 Kontext edits from a queue: the GPU worker" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
# The newest patch of the release that BASE fixes is what an image should have, so no version is named; COMPILER is a list.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install -y --no-install-recommends $COMPILER \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /var/cache/kontext --shell /usr/sbin/nologin kontext \
    && install -d -o kontext -g kontext /var/cache/kontext
COPY --from=packages /opt/kontext /opt/kontext
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /opt/kontext/bin/pip install --no-cache-dir --no-deps /wheels/*.whl
ENV PATH=/opt/kontext/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/cache/kontext \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/kontext/inductor \
    TRITON_CACHE_DIR=/var/cache/kontext/triton \
    DG_PREPARED_DIR=/var/cache/kontext/prepared \
    DG_LORA_CACHE_DIR=/var/cache/kontext/loras \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /var/cache/kontext
# The model may load for minutes: a worker that loads is live.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["worker", "health", "--live"]
CMD ["worker", "run"]
