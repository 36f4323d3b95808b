# All that needs no model: the producer's commands, the HTTP door, the callbacks' sender and the exporter of the queue's
# metrics.
#
#   docker build -f deploy/containers/producer.Dockerfile -t kontext-producer .
#   docker run --rm -e DG_BROKER_URL=redis://redis:6379/0 kontext-producer producer status
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS packages
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY tools/requirements tools/requirements
RUN python3 -m venv /opt/kontext \
    && python3 tools/requirements service http s3 > requirements.txt \
    && /opt/kontext/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt

FROM ${BASE} AS wheel
WORKDIR /src
COPY . .
RUN python3 -m venv /build && /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="kontext-producer" \
    org.opencontainers.image.description="FLUX.1 Kontext edits: producer, HTTP door, callbacks and exporter, without torch" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin kontext
COPY --from=packages /opt/kontext /opt/kontext
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /opt/kontext/bin/pip install --no-cache-dir --no-deps /wheels/*.whl
ENV PATH=/opt/kontext/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001
WORKDIR /tmp
# Its daemons are probed over HTTP (DG_METRICS_PORT), as compose.yaml and the manifests do; its commands just end.
HEALTHCHECK NONE
CMD ["producer", "--help"]
