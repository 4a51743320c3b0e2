#!/bin/bash
# Make the base images of HyperCode: hypercode/python:3.11 (with the packages of requirements.txt), hypercode/postgres:15
# and, for the edge in front of them, hypercode/haproxy:2.6.
#
#   images/base-images.sh          from Debian packages, no image hub needed; wants root, mmdebstrap, busybox-static, pip
#   HUB=1 images/base-images.sh    from python:3.11-slim, postgres:15 and haproxy:2.6 of the image hub
#
# Idempotent: an image that was made from the same inputs is kept. PYTHON names the interpreter whose pip is used.
set -euo pipefail
cd "$(dirname "$0")/.."

python_image=hypercode/python:3.11
postgres_image=hypercode/postgres:15
haproxy_image=hypercode/haproxy:2.6
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}

main() {
    # one at a time: two of them would make the same image twice
    exec 9>"${TMPDIR:-/tmp}/hypercode-images-$(id -u).lock"
    flock 9
    if [ "${HUB:-0}" = 1 ]; then
        python_from_hub
        postgres_from_hub
        haproxy_from_hub
        return
    fi
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    unless_made "$python_image" python_from_debian images/base-images.sh requirements.txt "$certificates"
    unless_made "$postgres_image" postgres_from_debian images/base-images.sh images/postgres-entrypoint.sh
    unless_made "$haproxy_image" haproxy_from_debian images/base-images.sh
}

# unless_made IMAGE MAKE INPUT...: call MAKE with the inputs' hash, which it keeps as a label of the image
unless_made() {
    local image=$1 make=$2 inputs
    shift 2
    inputs=$(cat "$@" | sha256sum | cut -d' ' -f1)
    if [ "$(docker image inspect --format '{{index .Config.Labels "hypercode.inputs"}}' "$image" 2>/dev/null)" = "$inputs" ]; then
        echo "$image is up to date"
    else
        "$make" "$inputs"
        echo "$image made"
    fi
}

# variant=extract unpacks packages and runs none of their scripts: what those would write, we write ourselves.
python_from_debian() {
    local root=$work/python
    mmdebstrap --quiet --variant=extract --include=python3-minimal,libpython3.11-stdlib,libssl3 bookworm "$root"
    ln -s python3.11 "$root/usr/bin/python"
    install -D -m644 "$certificates" "$root/etc/ssl/certs/ca-certificates.crt"
    printf 'root:x:0:0:root:/root:/bin/sh\nhypercode:x:10001:10001::/:/bin/sh\n' > "$root/etc/passwd"
    printf 'root:x:0:\nhypercode:x:10001:\n' > "$root/etc/group"
    mkdir -p "$root/tmp" && chmod 1777 "$root/tmp"
    "${PYTHON:-python3}" -m pip install --quiet --require-hashes --only-binary=:all: --python-version 3.11 \
        --target "$root/usr/local/lib/python3.11/dist-packages" -r requirements.txt
    prune "$root"
    tar -C "$root" -c . | docker import -c "LABEL hypercode.inputs=$1" \
        -c 'ENV PATH=/usr/local/bin:/usr/bin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt LANG=C.UTF-8' \
        - "$python_image" > /dev/null
}

postgres_from_debian() {
    local root=$work/postgres
    mmdebstrap --quiet --variant=extract --include=postgresql-15,libc-bin,dash,busybox-static,tzdata bookworm "$root"
    chroot "$root" /bin/busybox --install /bin
    ln -sf dash "$root/bin/sh"
    printf 'root:x:0:0:root:/root:/bin/sh\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\n' > "$root/etc/passwd"
    printf 'root:x:0:\npostgres:x:70:\n' > "$root/etc/group"
    mkdir -p "$root"/tmp "$root"/var/lib/postgresql/data "$root"/run/postgresql
    ln -sfn ../run "$root/var/run"  # Debian's Postgres has its socket in /var/run/postgresql
    chmod 1777 "$root/tmp"
    chown -R 70:70 "$root"/var/lib/postgresql "$root"/run/postgresql
    install -D -m755 images/postgres-entrypoint.sh "$root/usr/local/bin/postgres-entrypoint.sh"
    rm -rf "$root"/usr/share/perl* "$root"/usr/lib/postgresql/15/lib/{bitcode,llvmjit*} \
        "$root"/usr/lib/x86_64-linux-gnu/libLLVM* "$root"/usr/lib/llvm*
    prune "$root"
    tar -C "$root" -c . | docker import -c "LABEL hypercode.inputs=$1" \
        -c 'ENV PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin:/usr/sbin:/sbin PGDATA=/var/lib/postgresql/data/cluster' \
        -c 'USER postgres' -c 'VOLUME /var/lib/postgresql/data' \
        -c 'ENTRYPOINT ["/usr/local/bin/postgres-entrypoint.sh"]' -c 'CMD ["postgres"]' - "$postgres_image" > /dev/null
}

# It begins as root, to make its socket, and becomes uid 99 where its configuration says so: the number of the image hub.
haproxy_from_debian() {
    local root=$work/haproxy
    mmdebstrap --quiet --variant=extract --include=haproxy bookworm "$root"
    printf 'root:x:0:0:root:/root:/bin/sh\nhaproxy:x:99:99::/var/lib/haproxy:/bin/sh\n' > "$root/etc/passwd"
    printf 'root:x:0:\nhaproxy:x:99:\n' > "$root/etc/group"
    mkdir -p "$root"/tmp "$root"/run "$root"/var/lib/haproxy
    chmod 1777 "$root/tmp"
    # what the package's scripts would need, setuid programs among it: nothing here runs anything but HAProxy
    find "$root" \( -path '*/bin/*' -o -path '*/sbin/*' \) ! -type d ! -name haproxy -delete
    rm -rf "$root"/usr/share/perl* "$root"/usr/lib/*/perl* "$root"/usr/lib/*/libperl* "$root"/var/lib/dpkg
    prune "$root"
    tar -C "$root" -c . | docker import -c "LABEL hypercode.inputs=$1" -c 'ENV PATH=/usr/sbin' \
        -c 'ENTRYPOINT ["haproxy"]' - "$haproxy_image" > /dev/null
}

prune() {
    rm -rf "$1"/usr/share/{doc,man,locale,info} "$1"/var/cache "$1"/var/lib/apt
}

python_from_hub() {
    docker build --quiet --tag "$python_image" --file - . <<'DOCKERFILE'
FROM python:3.11-slim
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --require-hashes -r /tmp/requirements.txt
DOCKERFILE
}

postgres_from_hub() {
    docker pull --quiet postgres:15
    docker tag postgres:15 "$postgres_image"
}

# The hub's own begins as uid 99 and stops only when every connection has ended.
haproxy_from_hub() {
    docker build --quiet --tag "$haproxy_image" - <<'DOCKERFILE'
FROM haproxy:2.6
USER root
ENTRYPOINT ["haproxy"]
STOPSIGNAL SIGTERM
DOCKERFILE
}

main
