#!/usr/bin/env bash
# Prepare this x86-64 machine to run programs for 64-bit ARM, for tests/deploy/test_arm.py: system libraries, Python,
# ONNX Runtime, ncnn and MindSpore Lite for aarch64 in one folder. Nothing else on the machine changes. With --folder, the
# script only prints the folder. The emulator and the compiler come from Debian: apt install qemu-user-static
# g++-aarch64-linux-gnu. The first argument names a Python with pip (default: python3).
set -euo pipefail

case "${XDG_CACHE_HOME:-}" in
  /*) cache="$XDG_CACHE_HOME" ;;
  *) cache="$HOME/.cache" ;; # the XDG Base Directory Specification says that a relative folder is ignored
esac
folder="$cache/pocketspore/arm64"
if [ "${1:-}" = --folder ]; then
  echo "$folder"
  exit
fi
for program in qemu-aarch64-static aarch64-linux-gnu-g++ apt-get dpkg-deb; do
  if ! command -v "$program" >/dev/null; then
    echo "error: $program was not found; on Debian, run: apt install qemu-user-static g++-aarch64-linux-gnu" >&2
    exit 2
  fi
done
if [ -x "$folder/python" ]; then
  echo "already prepared: $folder"
  exit 0
fi
python="${1:-python3}"
partial="$folder.partial"
rm -rf "$partial"
mkdir -p "$partial"/{debs,root,apt/lists,apt/cache}

# A package list of its own, because the machine's list has the packages for its own processor only.
apt() {
  apt-get -qq -o Dir::State::Lists="$partial/apt/lists" -o Dir::Cache="$partial/apt/cache" -o APT::Architecture=arm64 \
    -o APT::Architectures=arm64 -o APT::Sandbox::User=root "$@"
}
apt update
(cd "$partial/debs" && apt download libc6 libstdc++6 libgcc-s1 libgomp1 libexif12 libexif-dev libstb-dev nlohmann-json3-dev \
  python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libexpat1 zlib1g libffi8 libbz2-1.0 liblzma5 libssl3)
for package in "$partial"/debs/*.deb; do
  dpkg-deb -x "$package" "$partial/root"
done

# ONNX Runtime 1.23.0 runs under the emulator; 1.32.0 does not.
"$python" -m pip install -q --disable-pip-version-check --no-deps --target "$partial/site" --only-binary :all: \
  --implementation cp --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux_2_24_aarch64 --platform manylinux2014_aarch64 onnxruntime==1.23.0 numpy==1.26.4 ncnn==1.0.20261020
# The wheel of MindSpore Lite that is tagged for any system has the libraries for ARM.
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.7 \
  --platform any --dest "$partial/wheel" mindspore-lite==2.0.0
"$python" -m zipfile -e "$partial"/wheel/*.whl "$partial/lite"

cat >"$partial/python" <<EOF
#!/bin/sh
# Python 3.11 for 64-bit ARM, under the emulator.
PYTHONPATH="$folder/site" exec qemu-aarch64-static -L "$folder/root" "$folder/root/usr/bin/python3.11" "\$@"
EOF
chmod +x "$partial/python"
rm -rf "$partial/debs" "$partial/apt" "$partial/wheel"
rm -rf "$folder"
mv "$partial" "$folder"
"$folder/python" -c 'import platform, sys; sys.exit(platform.machine() != "aarch64")'
echo "ready: $folder"
