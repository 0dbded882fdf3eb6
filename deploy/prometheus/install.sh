#!/bin/sh
# Installs prometheus and promtool where they are absent: Debian's package as root, or says how.
set -eu
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "prometheus is missing: as root run  apt-get install prometheus  or take it from" >&2
    echo "https://prometheus.io/download and put prometheus and promtool into a folder of \$PATH" >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null
# Debian starts a server of its own on port 9090, which nobody asked for.
if command -v systemctl >/dev/null; then
    systemctl disable --quiet --now prometheus 2>/dev/null || true
fi
