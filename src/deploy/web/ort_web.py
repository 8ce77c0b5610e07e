"""onnxruntime-web, the runtime of the format "web": find it on this machine and check it.

tools/setup_ort_web.py brings it into the cache once. It is not part of this repository.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from src.deploy.description import sha256
from src.errors import UserError
from src.files import cache_folder

VERSION = "1.30.0"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
# SHA-256 of the two files of the npm package that a page needs: its wasm backend in JavaScript and in WebAssembly.
CHECKSUMS = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
HOW_TO_GET = (
    f"run python tools/setup_ort_web.py (needs npm), or name the folder dist of the npm package onnxruntime-web "
    f"{VERSION} with --ort-web"
)
# The last statement of the script gives the parts of its interface to modules that import it: `export{a as Tensor,…};`
EXPORTS = re.compile(r"export\{([^{}]*)\};\s*(?://# sourceMappingURL=\S+\s*)?$")


@dataclass(frozen=True)
class OrtWeb:
    """The files of onnxruntime-web that a page needs."""

    script: str  # JavaScript that sets the global variable `ort`
    wasm: bytes


def cached() -> Path:
    """Return the folder in the user's cache where tools/setup_ort_web.py puts the files."""
    return cache_folder() / f"onnxruntime-web-{VERSION}"


def find_ort_web(named: Optional[str] = None) -> Path:
    """Return the folder with the files of onnxruntime-web, `named` or in the cache.

    A missing file, or a file with another checksum, is a `UserError`.
    """
    folder = cached() if named is None else Path(named)
    source = f"onnxruntime-web: {folder}" if named is None else f"--ort-web {named}"
    for name, expected in CHECKSUMS.items():
        path = folder / name
        if not path.is_file():
            if named is None:
                raise UserError(f"onnxruntime-web was not found; {HOW_TO_GET}")
            raise UserError(f"{source}: has no file {name}; expected the folder dist of onnxruntime-web {VERSION}")
        found = sha256(path)
        if found != expected:
            raise UserError(
                f"{source}: {name} is damaged or of another version (found SHA-256 {found:.12}…, expected "
                f"{expected:.12}…); expected onnxruntime-web {VERSION}"
            )
    return folder


def read_ort_web(folder: Path) -> OrtWeb:
    """Return the files in a folder that `find_ort_web` has checked.

    A page has no other module that could import the script. So its last statement, which exports the interface, becomes
    an assignment to the global variable `ort`.
    """
    script = (folder / SCRIPT).read_text(encoding="utf-8")
    exports = EXPORTS.search(script)
    if exports is None:
        raise UserError(f"{folder / SCRIPT}: has no list of exports at its end; expected onnxruntime-web {VERSION}")
    variables = dict(re.findall(r"([\w$]+) as (\w+)", exports[1]))
    members = ",".join(f"{name}:{variable}" for variable, name in variables.items())
    return OrtWeb(f"{script[: exports.start()]}globalThis.ort={{{members}}};", (folder / WASM).read_bytes())
