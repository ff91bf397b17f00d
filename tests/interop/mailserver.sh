#!/bin/bash
# Unpacks a real mail server, Exim, from the machine's own Debian packages into DEST; installs and starts nothing, needs no
# root.
#   mailserver.sh DEST
# With it comes nss_wrapper: Exim wants a user of its own, which is there only where it was installed.
set -euo pipefail
DEST=$1
[ -x "$DEST/usr/sbin/exim4" ] && exit 0
command -v apt-get > /dev/null && command -v dpkg > /dev/null || { echo "mailserver.sh: not a Debian machine" >&2; exit 1; }
state=$(mktemp -d); trap 'rm -rf "$state"' EXIT
mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/dl" "$DEST"
apt=(-o "Dir::State::Lists=$state/lists" -o "Dir::Cache=$state/cache" -o "APT::Sandbox::User=$(id -un)")
apt-get "${apt[@]}" -qq update
cd "$state/dl"
# What of its libraries the machine has not: by the names of the files that an installation would fetch.
names=$(apt-get "${apt[@]}" -qq --print-uris --no-install-recommends install exim4-daemon-light libnss-wrapper \
  | sed -E "s/^'[^']*' ([^_]+)_.*/\1/" | grep -vE '^(exim4-config|exim4-base)$')
# shellcheck disable=SC2086 # one word each
apt-get "${apt[@]}" -qq download $names
for deb in *.deb; do dpkg -x "$deb" "$state/root"; done
chmod u-s "$state/root/usr/sbin/exim4" # of a program that is set-uid, the system ignores where libraries are
cp -r "$state/root/." "$DEST"
