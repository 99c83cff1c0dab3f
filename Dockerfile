# One image, three roles: docker build --target worker|cuda|monitor.
# docker compose builds and starts what it needs; see docker-compose.yml.
FROM python:3.12-slim AS base
RUN apt-get update && apt-get install --no-install-recommends -y git openssh-client && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home repotune && mkdir /data && chown repotune /data
# A neutral working directory: no folder named `jobs` or `workers` here can be taken for ours.
WORKDIR /data
ENV REPOTUNE_HOME=/data/home REPOTUNE_CACHE=/data/cache REPOTUNE_ARTIFACTS=file:///data/artifacts PYTHONUNBUFFERED=1
COPY . /src

FROM base AS monitor
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[monitor]"
USER repotune
ENTRYPOINT ["repotune"]
CMD ["monitor"]

FROM base AS worker
# PyPI's torch for Linux carries CUDA. For a tenth of the size name PyTorch's index of CPU wheels:
# docker compose build --build-arg TORCH_INDEX=URL cpu-worker
ARG TORCH_INDEX=""
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0; fi \
 && pip install --no-cache-dir --constraint /src/constraints.txt "/src[worker,sftp,s3]"
USER repotune
# The worker checkpoints on SIGTERM; give it the time: stop_grace_period in docker-compose.yml.
ENTRYPOINT ["device-worker"]
CMD ["--device", "cpu"]

FROM base AS cuda
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[cuda,sftp,s3]"
USER repotune
ENTRYPOINT ["device-worker"]
CMD ["--device", "cuda"]
