"""Bring onnxruntime-web into the user's cache, for export.py --format web: python tools/setup_ort_web.py

The script needs npm and downloads a package of 33 MB once.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

from src.deploy.web.ort_web import CHECKSUMS, VERSION, cached, find_ort_web
from src.errors import ArgumentParser, UserError, run
from src.files import making_folder


def main():
    ArgumentParser(description=__doc__).parse_args()
    folder = cached()
    if folder.exists():
        find_ort_web()
        print(f"onnxruntime-web {VERSION} is already installed: {folder}")
        return
    if shutil.which("npm") is None:
        raise UserError("npm was not found; install it (Debian: apt install npm), or use export.py --ort-web FOLDER")
    package = f"onnxruntime-web@{VERSION}"
    print(f"downloading {package} from npm's registry (33 MB)", flush=True)
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(["npm", "pack", "--silent", package], cwd=work, capture_output=True, text=True)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise UserError(f"npm pack {package}: failed ({lines[-1] if lines else 'it wrote nothing'})")
        (archive,) = Path(work).glob("*.tgz")
        with making_folder(folder) as partial, tarfile.open(archive) as members:
            for name in CHECKSUMS:
                member = members.extractfile(f"package/dist/{name}")
                (partial / name).write_bytes(member.read())
            find_ort_web(str(partial))
    print(f"ready: {folder}")


if __name__ == "__main__":
    run(main)
