#!/bin/bash
# Unpacks real metrics servers from Debian's packages into DEST; installs and starts nothing, needs no root.
#   servers.sh DEST
# Leaves DEST/usr/bin/prometheus (2.53; Debian's build receives no OTLP, only remote write), and victoria-metrics and
# vmagent (1.112) beside it. Uses the machine's own Debian mirror with the suite changed to trixie, in a private apt state, so
# that the system's is untouched.
set -euo pipefail
DEST=$1
[ -x "$DEST/usr/bin/prometheus" ] && [ -x "$DEST/usr/bin/victoria-metrics" ] && exit 0
command -v apt-get > /dev/null && command -v dpkg > /dev/null || { echo "servers.sh: not a Debian machine" >&2; exit 1; }
state=$(mktemp -d); trap 'rm -rf "$state"' EXIT
mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/dl" "$DEST"
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null | grep -vE '^ *#' \
  | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' ') || true
[ -n "$mirror" ] || { echo "servers.sh: no Debian mirror is configured on this machine" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > "$state/sources.list"
apt=(-o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::Lists=$state/lists"
  -o "Dir::Cache=$state/cache" -o "APT::Sandbox::User=$(id -un)")
apt-get "${apt[@]}" -qq update
cd "$state/dl"
apt-get "${apt[@]}" -qq download prometheus victoria-metrics
for deb in *.deb; do dpkg -x "$deb" "$DEST"; done
