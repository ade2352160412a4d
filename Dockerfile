# Two images:
#   sandbox   the computer a model is given: general purpose, nothing task-specific; at most 1.1 GB
#   trainer   this project itself, for a cluster's nodes
#
#   sandboxrl image build                               both arguments below have a default; name a base by digest to pin it
#   sandboxrl image build --base sandboxrl/base:local   from a base made on this machine (launch/base_image.sh)
#
# Python packages are pinned here, whole and exactly; system packages by the release of the base image.
ARG BASE=python:3.11-slim-bookworm
ARG TRAINER_BASE=python:3.11-slim-bookworm

FROM ${BASE} AS system
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        bash bc bzip2 ca-certificates curl diffutils file findutils g++ gawk git grep gzip jq less make nano patch procps \
        python3 python3-pip ripgrep sed sqlite3 tar tree unzip vim-tiny wget xz-utils zip \
    && rm -rf /var/lib/apt/lists/* /usr/share/doc /usr/share/man
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# Wheels beside the Dockerfile, if there are any, are used instead of a package index; they stay in this stage.
FROM system AS packages
COPY Dockerfile wheels* /tmp/wheels/
RUN if ls /tmp/wheels/*.whl >/dev/null 2>&1; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/tmp/wheels; fi \
    && python3 -m pip install --root /packages --no-compile --no-deps \
        contourpy==1.3.3 cycler==0.12.1 fonttools==4.68.0 kiwisolver==1.5.1 matplotlib==3.10.8 mpmath==1.3.0 \
        numpy==2.3.5 packaging==26.3 pillow==13.0.0 pyparsing==3.3.3 python-dateutil==4.0.0 scipy==1.16.3 sympy==1.14.0 \
        tzdata==2026.6 \
    && find /packages -type d -name tests -prune -exec rm -rf {} +

FROM system AS sandbox
COPY --from=packages /packages/ /
RUN python3 -m pip check
ENV MPLBACKEND=Agg
# Nothing lies in /testbed, so a sandbox may put a size-limited memory file system there.
LABEL sandboxrl.workdir=tmpfs
WORKDIR /testbed
CMD ["/bin/bash"]

FROM ${TRAINER_BASE} AS trainer
ARG EXTRA=gpu
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash bubblewrap ca-certificates g++ git iptables make procps util-linux \
    && { python3 -c 'import ensurepip' || apt-get install -y --no-install-recommends python3-dev python3-venv; } \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/sandboxrl
COPY . .
RUN if ls wheels/*.whl >/dev/null 2>&1; then export PIP_FIND_LINKS=$PWD/wheels UV_FIND_LINKS=$PWD/wheels; fi \
    && EXTRA=${EXTRA} launch/setup.sh && rm -rf wheels ~/.cache
ENV PATH=/opt/sandboxrl/.venv/bin:${PATH}
ENTRYPOINT ["sandboxrl"]
CMD ["--help"]
