#!/usr/bin/env bash
# Build classify_ncnn: build.sh NCNN [OUTPUT]; NCNN is the folder where ncnn is installed, with include/ncnn and lib.
# The image libraries are those of examples/lite_cpp: apt install libstb-dev nlohmann-json3-dev libexif-dev
set -euo pipefail
here="$(dirname "$0")"
ncnn="${1:?the folder where ncnn is installed is missing: build.sh NCNN [OUTPUT]}"
if [ ! -f "$ncnn/include/ncnn/net.h" ]; then
  echo "error: $ncnn: has no include/ncnn/net.h; expected the folder where ncnn is installed" >&2
  exit 2
fi
"${CXX:-g++}" -std=c++17 -O2 -I"$ncnn/include" "$here/classify.cpp" "$here/../lite_cpp/preprocess.cpp" -o "${2:-classify_ncnn}" \
  -L"$ncnn/lib" -Wl,-rpath,"$ncnn/lib" -lncnn -lexif -fopenmp -lpthread
