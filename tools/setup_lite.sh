#!/usr/bin/env bash
# Install MindSpore Lite in a virtual environment where export.py, eval.py and benchmarks/exported_files.py find it.
# The package registry has MindSpore Lite 2.0.0, which needs Python 3.7. The script looks for Python 3.7 in PATH and in
# pyenv; the first argument names another path. With --folder, the script only prints the folder of the environment.
set -euo pipefail

case "${XDG_CACHE_HOME:-}" in
  /*) cache="$XDG_CACHE_HOME" ;;
  *) cache="$HOME/.cache" ;; # the XDG Base Directory Specification says that a relative folder is ignored
esac
folder="$cache/pocketspore/lite"
if [ "${1:-}" = --folder ]; then
  echo "$folder"
  exit
fi
# The wheel for ARM is tagged for any system, so pip would install it anywhere; Linux on these processors has a wheel.
case "$(uname -sm)" in
  "Linux x86_64" | "Linux aarch64") ;;
  *)
    echo "error: MindSpore Lite 2.0.0 has no wheel for this system (found $(uname -sm), expected Linux on x86_64 or aarch64)" >&2
    exit 2
    ;;
esac
is_37() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 7))' 2>/dev/null; }
python=""
for candidate in "${1:-python3.7}" ${1:-"${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.7.*/bin/python}; do
  if [ -z "$python" ] && is_37 "$candidate"; then
    python="$candidate"
  fi
done
if [ -z "$python" ]; then
  echo "error: no Python 3.7${1:+ at $1}: install it (pyenv install 3.7) or give its path: tools/setup_lite.sh PYTHON" >&2
  exit 2
fi
if [ -x "$folder/bin/python" ] && "$folder/bin/python" -c 'import mindspore_lite' 2>/dev/null; then
  echo "MindSpore Lite is already installed: $folder"
  exit 0
fi
if [ -e "$folder" ] && [ ! -f "$folder/pyvenv.cfg" ]; then
  echo "error: $folder: is not a virtual environment, and is not replaced; move it away" >&2
  exit 2
fi
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/pip" install -q --disable-pip-version-check mindspore-lite==2.0.0 "numpy<1.22"
"$folder/bin/python" -c 'import mindspore_lite as lite; print("MindSpore Lite", lite.__version__)'
echo "ready: $folder"
