# cxr_hvd in an image: docs/containers.md has the commands, decision 20 the reasons.
#
#   docker build -t cxr_hvd .                          for processors; torch without CUDA
#   docker run --rm cxr_hvd                            help
#   docker run --rm cxr_hvd jobs/demo.sh               two phantom hospitals, two ranks, a table for each
#
# Arguments (--build-arg NAME=VALUE):
#   BASE           Debian 12, Ubuntu 24.04 or newer; pin it by its digest: debian:bookworm-slim@sha256:...
#   BUILD_BASE     where Horovod is compiled: the same system; for GPUs with nvcc of torch's CUDA
#   DEVICE         cpu, or cuda: then nothing of CUDA is left out
#   TORCH_BACKEND  cpu, cu130, ... from pytorch.org; empty: the torch that the package index has
#   USER_ID        of the user inside
#   REVISION       the commit, for a label
ARG BASE=debian:bookworm-slim
ARG BUILD_BASE=${BASE}

# ---------------------------------------------------------------- compile and install; nothing of this stage is shipped
# An environment cannot be moved, so it is made where it will stand.
FROM ${BUILD_BASE} AS build

# Versions are the distribution's, which changes them for security alone; the digest of BASE says which distribution.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        binutils ca-certificates cmake g++ libopenmpi-dev make openmpi-bin openssh-client python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/cxr_hvd
COPY . .

ARG DEVICE=cpu
ARG TORCH_BACKEND=cpu
# With it set, Python's compiled files tell sources by hash and not by time.
ARG SOURCE_DATE_EPOCH=0

# Downloads and Horovod's wheel are kept by the builder, so that a second build compiles nothing.
RUN --mount=type=cache,id=cxr_hvd-uv,target=/root/.cache/uv \
    --mount=type=cache,id=cxr_hvd-horovod,target=/root/.cache/cxr_hvd \
    env UV_LINK_MODE=copy ${TORCH_BACKEND:+"UV_TORCH_BACKEND=$TORCH_BACKEND"} tools/install.sh --no-dev \
    # What only builds need: installers, logs, headers, static libraries, tests of packages.
    && .venv/bin/uv pip uninstall --quiet --python .venv/bin/python pip wheel uv \
    && rm -rf .venv/.cxr_hvd ./*.egg-info \
    && find .venv -depth '(' -name '*.a' -o -name __pycache__ -o -path '*/site-packages/*/tests' \
        -o -path '*/site-packages/*/include' ')' -exec rm -rf {} + \
    # Where the index had only the torch that is built for CUDA: it loads some of CUDA's libraries even without a GPU.
    # Those stay; what no other library names goes, again and again, for what went may have been the only one to name another.
    && if [ "$DEVICE" = cpu ]; then \
        rm -rf .venv/lib/python3*/site-packages/triton .venv/lib/python3*/site-packages/cuda; \
        find .venv -path '*/site-packages/nvidia/*' -name '*.bc' -delete; \
        for _ in 1 2 3 4; do \
            find .venv -name '*.so*' -exec readelf --dynamic {} + >/tmp/needs 2>/dev/null || true; \
            find .venv -path '*/site-packages/nvidia/*' -name '*.so*' >/tmp/libraries; \
            while read -r library; do \
                grep -q "NEEDED.*\[${library##*/}\]" /tmp/needs || rm "$library"; \
            done </tmp/libraries; \
        done; \
    fi \
    && .venv/bin/python -B -c 'import cxr_hvd.training.train, horovod.torch, torchvision.ops' \
    && ln -s /data runs \
    # Compiled once and for all, for the user inside cannot write here. Packages have files for newer Pythons too: no error.
    && { .venv/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash .venv/lib cxr_hvd preprocess || true; }

# ---------------------------------------------------------------- what is shipped
# runs/ of the project is the volume /data.
FROM ${BASE}

# No compiler. sshd is there for the site that another one starts ranks at; nothing starts it by itself. tini hands signals
# on and buries the dead, which a launcher as process 1 does not.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        openmpi-bin openssh-client openssh-server python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /etc/ssh/ssh_host_*

# The user's home is the volume: study files, runs and, between sites, keys. None is in the image.
ARG USER_ID=10001
RUN useradd --uid "$USER_ID" --home-dir /data --no-create-home --shell /bin/bash --password '*' cxr \
    && install -d -o cxr -g cxr -m 0700 /data \
    && install -d -o cxr -g cxr /access

COPY --from=build /opt/cxr_hvd /opt/cxr_hvd

# Ranks may not read each other's memory in a container: without this, Open MPI says so at every start.
ENV PATH=/opt/cxr_hvd/.venv/bin:$PATH \
    OMPI_MCA_btl_vader_single_copy_mechanism=none \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

ARG REVISION=
LABEL org.opencontainers.image.title="cxr_hvd" \
      org.opencontainers.image.description="Train one chest X-ray model at several hospitals without moving an image" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

USER ${USER_ID}
VOLUME /data
WORKDIR /opt/cxr_hvd

# It starts two ranks, twice, which takes some 15 s of two cores: seldom.
HEALTHCHECK --interval=1h --timeout=5m --start-period=1m --retries=2 CMD ["cxr-hvd", "doctor"]

ENTRYPOINT ["tini", "--"]
CMD ["cxr-hvd", "--help"]
