#!/usr/bin/env bash
# Build classify with the headers and libraries from MindSpore Lite's wheel: build.sh [LITE [OUTPUT]]
#   LITE is a Python that has MindSpore Lite, or the folder mindspore_lite of an unpacked wheel, such as a board's.
# Build pixels, which shows the preprocessing and needs no MindSpore Lite: build.sh --pixels [OUTPUT]
# For a board, CXX names its compiler; CXXFLAGS and LDFLAGS are options for it.
set -euo pipefail
here="$(dirname "$0")"
compiler="${CXX:-g++}"
read -ra flags <<<"${CXXFLAGS:-} ${LDFLAGS:-}"
# The packages of Debian and Ubuntu, and a header of each.
for need in libstb-dev:stb/stb_image.h nlohmann-json3-dev:nlohmann/json.hpp libexif-dev:libexif/exif-data.h; do
  if ! echo "#include <${need#*:}>" | "$compiler" "${flags[@]}" -std=c++17 -E -x c++ - >/dev/null 2>&1; then
    echo "error: ${need#*:} was not found by $compiler; on Debian or Ubuntu, run: apt install ${need%:*}" >&2
    exit 2
  fi
done
if [ "${1:-}" = --pixels ]; then
  exec "$compiler" -std=c++17 -O2 "$here/pixels.cpp" "$here/preprocess.cpp" -o "${2:-pixels}" "${flags[@]}" -lexif
fi
lite="${1:-$("$here/../../tools/setup_lite.sh" --folder)/bin/python}"
output="${2:-classify}"
if [ ! -d "$lite" ]; then
  lite=$("$lite" -c 'import importlib.util; print(importlib.util.find_spec("mindspore_lite").submodule_search_locations[0])')
fi
# The wheel's libraries use the C++ ABI from before GCC 5. They also depend on each other, hence the linker options.
"$compiler" -std=c++17 -O2 -D_GLIBCXX_USE_CXX11_ABI=0 -I"$lite" "$here/classify.cpp" "$here/preprocess.cpp" -o "$output" \
  "${flags[@]}" -L"$lite/lib" -Wl,-rpath,"$lite/lib" -Wl,--disable-new-dtags -Wl,--allow-shlib-undefined \
  -lmindspore-extendrt_python -lmindspore_core -l:libmindspore_glog.so.0 -lexif
