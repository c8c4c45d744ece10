#!/usr/bin/env bash
# Install knowmine from this kit alone:
#
#     ./install.sh [FOLDER] [PYTHON]
#
# FOLDER: new; /opt/knowmine by default. PYTHON: the version that the kit was made for.
# Weights go to $KNOWMINE_CACHE, or to ~/.cache/knowmine of the user who runs this.
set -euo pipefail
folder=$(realpath --no-symlinks "${1:-/opt/knowmine}") python=${2:-python3}
cd "$(dirname "$0")"
cache=${KNOWMINE_CACHE:-$HOME/.cache/knowmine}

echo 'checking the digests'
sha256sum --check --strict --quiet SHA256SUMS

"$python" -m venv "$folder"
# --no-index: everything comes from the kit, whatever pip's settings say.
PIP_CONFIG_FILE=/dev/null "$folder/bin/pip" install --disable-pip-version-check --quiet \
  --no-index --find-links wheels knowmine
mkdir -p "$cache"
cp -r weights/. "$cache/"
"$folder/bin/knowmine-client" --version
echo "installed in $folder, weights in $cache"
