"""Write the page that runs a network in a browser, and read the network of a page again.

The page is one HTML file without links: network, runtime and classes are inside. Its content security policy forbids
every connection, and every script but its own two.
"""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Union

import jinja2

from src.deploy.description import Description
from src.deploy.web.ort_web import VERSION, read_ort_web
from src.errors import UserError

HERE = Path(__file__).parent
NETWORK = re.compile(r'<script type="text/plain" id="network">([A-Za-z0-9+/=]*)</script>')


def write_page(description: Description, network: Path, page: Path, title: str, ort_web: Path) -> None:
    """Write the HTML file `page`, which runs the ONNX file `network` that `description` describes.

    `title` is the page's heading. `ort_web` is a folder that `find_ort_web` has checked.
    """
    runtime = read_ort_web(ort_web)
    scripts = [
        runtime.script,
        "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("pixels.js", "page.js")),
    ]
    style = (HERE / "page.css").read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        f"script-src {' '.join(map(allowed, scripts))} 'wasm-unsafe-eval'",
        f"style-src {allowed(style)}",
        "img-src data:",
        "media-src blob: mediastream:",
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("page.html").render(
        title=title,
        policy="; ".join(policy),
        style=style,
        facts=json.dumps(facts_of(description, title)).replace("<", "\\u003c"),
        network=packed(network.read_bytes()),
        wasm=packed(runtime.wasm),
        scripts=scripts,
    )
    page.write_text(text, encoding="utf-8")


def facts_of(description: Description, title: str) -> dict[str, Any]:
    """Return what the page's script must know about the network."""
    verification, settings = description.verification, description.checkpoint.config
    return {
        "title": title,
        "network": f"{settings['model']['name']} {settings['model']['width']}x",
        "classes": description.classes,
        "input": description.input.name,
        "shape": description.input.shape,
        "preprocessing": description.preprocessing.model_dump(),
        "threshold": description.confidence.threshold if description.confidence else None,
        "top1": verification.runtimes[0].top1,
        "images": verification.images,
        "split": verification.split,
        "precision": description.precision,
        "runtime": f"onnxruntime-web {VERSION}",
        "made_by": f"PocketSpore {description.made_by['pocketspore']}",
    }


def allowed(content: str) -> str:
    """Return the source of a content security policy that allows one inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def packed(content: bytes) -> str:
    """Return bytes as the page holds them: compressed by gzip, without a date, and in base64."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def read_network(page: Union[str, Path]) -> bytes:
    """Return the ONNX file in a page; a page without a network is a `UserError`."""
    found = NETWORK.search(Path(page).read_text(encoding="utf-8"))
    if found is None:
        raise UserError(f"{page}: holds no network; expected a page that export.py wrote")
    return gzip.decompress(base64.b64decode(found[1]))
