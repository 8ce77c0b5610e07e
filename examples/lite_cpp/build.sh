#!/usr/bin/env bash
# Build classify with the headers and libraries from MindSpore Lite's wheel: build.sh [PYTHON_WITH_LITE [OUTPUT]]
set -euo pipefail
python="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/pocketspore/lite/bin/python}"
output="${2:-classify}"
lite=$("$python" -c 'import importlib.util; print(importlib.util.find_spec("mindspore_lite").submodule_search_locations[0])')
# The wheel's libraries use the C++ ABI from before GCC 5. They also depend on each other, hence the linker options.
"${CXX:-g++}" -std=c++17 -O2 -D_GLIBCXX_USE_CXX11_ABI=0 -I"$lite" "$(dirname "$0")/classify.cpp" -o "$output" \
  -L"$lite/lib" -Wl,-rpath,"$lite/lib" -Wl,--disable-new-dtags -Wl,--allow-shlib-undefined \
  -lmindspore-extendrt_python -lmindspore_core -l:libmindspore_glog.so.0
