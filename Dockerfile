# One image for every role: shard building, training, Ray head, Ray worker. It holds no data.
#
#   docker build -t boostlu .
#   docker run --rm --init --shm-size 4g -v "$PWD/out:/home/boostlu/out" boostlu --help
#
# GPUs need only a driver and the NVIDIA container toolkit on the host (docker run --gpus all): torch's wheels bring
# the CUDA libraries, which are most of the image's size.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# What to install, apart from the rest of pyproject.toml: a change of lint rules must not install gigabytes again.
FROM ${BASE_IMAGE} AS requirements
COPY pyproject.toml /
RUN python3 -c "import tomllib; p = tomllib.load(open('/pyproject.toml', 'rb'))['project']; x = p['optional-dependencies']; \
                print(*p['dependencies'], *x['timm'], *x['s3'], sep='\n')" > /requirements.txt

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="boostlu" \
      org.opencontainers.image.description="Training of multi-label image classifiers on partial labels" \
      org.opencontainers.image.licenses="Apache-2.0"

# With RAY_AUTH_MODE, `ray start` refuses to listen without a token (RAY_AUTH_TOKEN, or a file: RAY_AUTH_TOKEN_PATH).
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0

RUN groupadd --gid 1000 boostlu && useradd --uid 1000 --gid 1000 --create-home boostlu
WORKDIR /opt/boostlu

# The dependencies: gigabytes that change only with these two lists.
COPY --from=requirements /requirements.txt ./
COPY constraints.txt ./
RUN python3 -m venv /opt/venv \
 && pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r requirements.txt

# `ray up` copies files into a running container with it.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends rsync && rm -rf /var/lib/apt/lists/*

# The code: a layer of kilobytes.
COPY pyproject.toml README.md LICENSE ./
COPY sharding sharding
COPY trainer trainer
COPY cluster cluster
COPY configs configs
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps .

USER 1000:1000
WORKDIR /home/boostlu
COPY configs configs

# A Ray node is healthy while it reaches its cluster; any other container while the program starts.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s \
    CMD if [ -e /tmp/ray/ray_current_cluster ]; then ray health-check; else boostlu --help > /dev/null; fi

ENTRYPOINT ["boostlu"]
CMD ["--help"]
