# The image of anynode: one static binary, a directory for its data, and a user that is not root. Nothing else is in it:
# no shell, no libc, no certificates.
#
#   docker build -t anynode .                                            compiles, in the official Rust image
#   docker build -t anynode --target prebuilt --build-arg BIN=PATH .     takes a binary that is there; pulls nothing
#
# The order of the stages matters: Docker's classic builder builds every stage that stands above the target, so the
# stage that needs the Rust image stands below the one that must do without.

# An empty directory, made without any program, to be copied with an owner.
FROM scratch AS empty
WORKDIR /empty/data

# What both images share.
FROM scratch AS base
COPY --from=empty --chown=65532:65532 /empty/ /
# By number, since there is no /etc/passwd. Ports below 1024 need no capability inside a container: Docker sets
# net.ipv4.ip_unprivileged_port_start to 0 there (not with --network host).
USER 65532:65532
# A volume mounted here takes over the directory's owner. Mount one to keep the last good table.
ENV ANYNODE_DATA_DIR=/data
ENTRYPOINT ["/anynode"]
CMD ["up"]

FROM base AS prebuilt
# BIN: a path in the build context. It has to be static, as the build stage makes it, or it cannot start here. The
# default serves no one; it only lets the classic builder pass this stage, by any file, on its way to the last one.
ARG BIN=LICENSE
COPY ${BIN} /anynode

FROM rust:1.95 AS build
WORKDIR /src
COPY . .
# glibc, linked statically. Naming the target, even when it is the host, keeps the flag away from build scripts and
# procedural macros, which cannot be static.
RUN host=$(rustc -vV | sed -n 's/^host: //p') \
 && export RUSTFLAGS="-C target-feature=+crt-static" \
 && cargo build --release --locked --bin anynode --target "$host" \
 && cp "target/$host/release/anynode" /anynode

FROM base
COPY --from=build /anynode /anynode
