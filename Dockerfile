# The image: only Debian's Python, the locked packages and this project. It has no shell and no package manager.
# It needs BuildKit or buildah. docs/container.md says how to build and run it.
#
#   docker build -t imdsproxy:0.1.0 .                               the proxy
#   docker build -t imdsproxy-redirect:0.1.0 --target redirect .    the container that redirects calls of IMDS to it
#   docker build -t imdsproxy-emulator:0.1.0 --target emulator --build-arg LOCK=emulator .          an emulated IMDS

ARG BASE=debian:12.12-slim

FROM ${BASE} AS build
ARG SOURCE_DATE_EPOCH=0
# run, kubernetes for a proxy that watches the pods of its node, or emulator for an emulator that signs.
ARG LOCK=run
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore PYTHONHASHSEED=0

# The packages that Python, the wheels and nft load at run time; the tests load every library of the image. Left out
# are curses, dbm, NIS, readline and SQLite with their libraries, and what only developers need.
COPY container/unpack /
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends binutils python3-venv \
    && /unpack /image base-files libc6 gcc-12-base libgcc-s1 libcrypt1 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 \
        liblzma5 libuuid1 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib \
    && /unpack /nftables nftables libnftables1 libnftnl11 libmnl0 libgmp10 libjansson4 libxtables12 libedit2 libbsd0 \
        libmd0 libtinfo6 \
    && cd /image/usr/lib/python3.11/lib-dynload \
    && rm _curses* _dbm.* _sqlite3.* nis.* readline.* _ctypes_test.* _test* _xxtestfuzz.* xxlimited* \
    && rm -r ../pydoc_data ../test

# pip is installed elsewhere, so that it is never in the environment that it fills. Its configuration (an index, a
# proxy, a certificate) can be passed as the secret pip.conf. The lock is complete: nothing is resolved, nothing is built.
COPY requirements/${LOCK}.txt /project/requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3.11 -m venv /tools \
    && python3.11 -m venv --without-pip /opt/imdsproxy \
    && /tools/bin/pip --python /opt/imdsproxy/bin/python install --require-hashes --no-deps --only-binary :all: \
        -r /project/requirements/${LOCK}.txt

# Compiled here, because nothing can be written later. Never compared with the sources, because those cannot change.
COPY pyproject.toml README.md LICENSE /project/
COPY imdsproxy /project/imdsproxy
COPY container /project/container
RUN pip="/tools/bin/pip --python /opt/imdsproxy/bin/python" \
    && $pip install --no-index --no-deps --no-build-isolation /project \
    && $pip uninstall -y flit-core \
    && $pip check \
    && find /opt/imdsproxy/bin -type f ! -name imdsproxy ! -name uvicorn -delete \
    && find /opt/imdsproxy/lib \( -name '*.pxd' -o -name '*.pyx' -o -name '*.pxi' \) -delete \
    && find /opt/imdsproxy/lib -name '*.so' -exec strip --strip-unneeded {} + \
    && rmdir -p --ignore-fail-on-non-empty /opt/imdsproxy/include/python3.11 \
    && mv /opt/imdsproxy /image/opt/ \
    && cp /project/container/health.py /image/opt/imdsproxy/ \
    && cp -r /project/container/etc /image/ \
    && python3.11 -m compileall -q --invalidation-mode unchecked-hash -s /image -p / \
        /image/usr/lib/python3.11 /image/opt/imdsproxy/lib \
    && mkdir -p /volumes/imdsproxy \
    && find /image /nftables /volumes -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

FROM scratch AS files
ARG VERSION=0.1.0
ARG REVISION=
ARG SOURCE=
ARG CREATED=1970-01-01T00:00:00Z
ARG BASE
LABEL org.opencontainers.image.title="imdsproxy" \
    org.opencontainers.image.description="A transparent local caching proxy for the Azure Instance Metadata Service" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.base.name="${BASE}"
COPY --from=build /image /
# A new volume that is mounted here gets the same owner.
COPY --from=build --chown=65532:65532 /volumes /run
ENV PATH=/opt/imdsproxy/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1

FROM files AS redirect
LABEL org.opencontainers.image.title="imdsproxy redirect"
COPY --from=build /nftables/usr /usr
COPY --from=build /nftables/var /var
USER 0:0
ENTRYPOINT ["/opt/imdsproxy/bin/imdsproxy", "redirect", "--load"]
CMD ["--uid=65532"]

FROM files AS emulator
LABEL org.opencontainers.image.title="imdsproxy emulator" \
    org.opencontainers.image.description="An emulation of the Azure Instance Metadata Service, for development and tests"
USER 65532:65532
EXPOSE 80
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s \
    CMD ["/usr/bin/python3.11", "-IS", "/opt/imdsproxy/health.py", "127.0.0.1:80"]
ENTRYPOINT ["/opt/imdsproxy/bin/imdsproxy", "emulator", "--host=0.0.0.0", "--port=80"]
CMD []

FROM files
USER 65532:65532
EXPOSE 8254 8256
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s \
    CMD ["/usr/bin/python3.11", "-IS", "/opt/imdsproxy/health.py"]
ENTRYPOINT ["/opt/imdsproxy/bin/imdsproxy"]
CMD ["serve"]
