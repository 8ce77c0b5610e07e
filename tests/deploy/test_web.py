"""The page of --format web in a real Chromium: chosen files, a camera, languages, and no connection.

Pillow and ONNX Runtime compute what the page must show.
"""

import dataclasses
import json
import os
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image
from sklearn.datasets import load_sample_images

from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.deploy.description import read_description
from src.deploy.export import export
from src.deploy.options import Options
from src.deploy.runtimes.runtimes import open_runtime
from src.deploy.web import ort_web
from src.deploy.web.page import read_network
from src.errors import UserError
from src.evaluation.evaluate import softmax
from tests.conftest import ROOT
from tests.deploy.browser import CHROMIUM, Browser
from tests.deploy.conftest import PHOTO_CLASSES, PHOTO_SIZE

# One group, so that all tests are on one worker and share one browser, and the quickstart of some of them.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("quickstart")]
HAS_RUNTIME = (ort_web.cached() / ort_web.WASM).is_file()
needs_runtime = pytest.mark.skipif(
    not HAS_RUNTIME, reason="onnxruntime-web is not in the cache: run python tools/setup_ort_web.py"
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: run apt install chromium")
IMAGES = 50


@pytest.fixture(scope="module")
def page(opened, photo, tmp_path_factory):
    """Export the network as a page, with a golden image; return the path."""
    path = tmp_path_factory.mktemp("page") / "houses.html"
    loader = eval_loader(opened.config, load_samples(opened.config.data, "val", PHOTO_CLASSES), batch_size=1)
    export(opened, loader, "val", path, Options(format="web"), golden=photo(6))
    return path


@pytest.fixture(scope="module")
def expected(page):
    """Return the function `expectation` of the page."""
    return expectation(page)


def expectation(page):
    """Return a function from an image file to the pixels of Pillow and the probabilities of ONNX Runtime."""
    sys.path.insert(0, str(ROOT / "examples" / "onnx_python"))
    try:
        from preprocess import preprocess
    finally:
        sys.path.pop(0)
    description = json.loads(Path(f"{page}.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(read_network(page))

    def compute(file):
        pixels = preprocess(file, description)
        return pixels, session.run(None, {description["input"]["name"]: pixels[None]})[0][0]

    return compute


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    """Start Chromium, whose camera shows one of scikit-learn's photographs, and open the page."""
    folder = tmp_path_factory.mktemp("chromium")
    write_y4m(load_sample_images().images[1][:426], folder / "camera.y4m")
    camera = f"--use-file-for-fake-video-capture={folder / 'camera.y4m'}"
    with Browser(folder / "profile", camera) as opened_browser:
        opened_browser.open(page)
        opened_browser.until("document.getElementById('state').hidden")
        yield opened_browser


def write_y4m(rgb, path):
    """Write a video of one frame: uint8 (H, W, 3) as YUV 4:2:0 of BT.601."""
    y, cb, cr = (np.asarray(part) for part in Image.fromarray(rgb).convert("YCbCr").split())
    height, width = y.shape
    limited = [16 + y * (219 / 255), *(128 + (np.float64(part[::2, ::2]) - 128) * (224 / 255) for part in (cb, cr))]
    header = f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\nFRAME\n".encode()
    path.write_bytes(header + b"".join(np.uint8(part.round()).tobytes() for part in limited))


def choose(browser, *files, size=PHOTO_SIZE):
    """Choose files, and return the results in the order of the files: [(probabilities by class, pixels)]."""
    browser.value("document.getElementById('results').replaceChildren()")
    browser.choose("#files", *files)
    browser.until(f"document.querySelectorAll('article').length === {len(files)}")
    found = browser.value(
        """[...document.querySelectorAll('article')].map(card => {
             const seen = card.querySelector('.seen');
             const pixels = seen?.getContext('2d').getImageData(0, 0, seen.width, seen.height).data;
             const rows = [...card.querySelectorAll('li')];
             return [card.innerText, pixels && [...pixels],
                     Object.fromEntries(rows.map(row => [row.querySelector('span').textContent,
                                                         Number(row.querySelector('data').value)]))];
           })"""
    )
    pixels = [part and np.array(part).reshape(size, size, 4)[..., :3] for _, part, _ in found]
    return [(text, pixels[i], shares) for i, (text, _, shares) in enumerate(found)]


@needs_runtime
@needs_chromium
def test_photos_get_the_probabilities_of_onnx_runtime(browser, expected, photo, tmp_path):
    """All orientations as JPEG and PNG, gray images, and cuts of two photographs in many sizes.

    The cuts are at most twice as high as wide, because Pillow 13 resizes higher images in the other order of the axes,
    with other roundings.
    """
    files = [photo(orientation, suffix) for orientation in range(1, 9) for suffix in (".jpg", ".png")]
    generator = np.random.default_rng(0)
    for i in range(len(files), IMAGES):
        image = Image.fromarray(load_sample_images().images[i % 2])
        width, height = (generator.integers(1, 3) * generator.integers(60, 121, 2)).tolist()
        left, top = generator.integers(0, 640 - width), generator.integers(0, 427 - height)
        image = image.crop((left, top, left + width, top + height)).convert("L" if i % 5 == 0 else "RGB")
        if i % 7 == 0:  # transparency is dropped, and the colours that it hides are seen
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        files.append(tmp_path / f"{i}.png")
        image.save(files[-1])
    shown = choose(browser, *files)
    for file, (text, pixels, shares) in zip(files, shown):
        wanted_pixels, wanted = expected(file)
        np.testing.assert_array_equal(pixels, wanted_pixels, err_msg=file.name)
        assert [shares[name] for name in PHOTO_CLASSES] == pytest.approx(wanted, abs=1e-4), file.name
        assert file.name in text
        assert text.startswith(PHOTO_CLASSES[wanted.argmax()])
        assert re.search(r"\d ms per image", text)
    assert len({round(shares[PHOTO_CLASSES[0]], 3) for _, _, shares in shown}) > 20


@needs_runtime
@needs_chromium
def test_the_golden_image(browser, page):
    golden = json.loads(Path(f"{page}.golden.json").read_text(encoding="utf-8"))
    ((_, pixels, shares),) = choose(browser, page.parent / golden["image"])
    wanted = np.asarray(Image.open(page.parent / golden["pixels"]))
    assert np.abs(pixels - wanted).mean() <= golden["max_pixel_difference"]
    found = [shares[name] for name in PHOTO_CLASSES]
    assert found == pytest.approx(golden["probabilities"], abs=golden["max_probability_difference"])


@needs_runtime
@needs_chromium
def test_a_file_that_is_no_image_is_named(browser, photo, tmp_path):
    wrong = tmp_path / "notes.jpg"
    wrong.write_text("no image")
    first, second = choose(browser, wrong, photo(1))
    assert first[0] == "notes.jpg: is not an image that this browser can read; choose a JPEG, PNG or WebP file."
    assert second[1] is not None
    assert browser.value("document.querySelector('article').getAttribute('role')") == "alert"


@needs_runtime
@needs_chromium
def test_the_camera_is_started_by_keyboard_and_classified(browser, expected, tmp_path):
    browser.value("document.activeElement.blur()")
    reached = []
    for _ in range(4):
        browser.press("Tab", 9)
        reached.append(browser.value("document.activeElement.id"))
    assert reached[:3] == ["language", "files", "start"]
    browser.value("document.getElementById('start').focus()")
    browser.press("Enter", 13, "\r")
    browser.until("document.querySelector('#live li')")
    shares = browser.value(
        "Object.fromEntries([...document.querySelectorAll('#live li')].map(row => [row.querySelector('span')"
        ".textContent, Number(row.querySelector('data').value)]))"
    )
    spoken = browser.value("document.getElementById('spoken').textContent")
    browser.press("Enter", 13, "\r")
    browser.until("document.getElementById('camera').hidden && !document.getElementById('video').srcObject.active")
    Image.fromarray(load_sample_images().images[1][:426]).save(tmp_path / "scene.png")
    _, wanted = expected(tmp_path / "scene.png")
    # A video has half of the colours, and rounds all of them.
    assert [shares[name] for name in PHOTO_CLASSES] == pytest.approx(wanted, abs=0.03)
    assert spoken.startswith(PHOTO_CLASSES[wanted.argmax()])


@needs_runtime
@needs_chromium
def test_the_page_speaks_two_languages_and_names_its_parts(browser, photo):
    choose(browser, photo(1))
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    for role in ("button", "heading", "image", "list"):
        assert role in {found for found, _ in named}
    assert all(name for role, name in named if role in ("button", "heading", "image"))
    assert ("heading", "houses") in named
    assert ("image", f"Photo: {photo(1).name}") in named
    try:
        browser.value("document.getElementById('language').click()")
        assert browser.value("document.documentElement.lang") == "zh"
        texts = "[...document.querySelectorAll('[data-text], .result p')].map(element => element.textContent)"
        chinese = browser.value(texts)
        assert all(re.search("[\u4e00-\u9fff]", text) for text in chinese if text and photo(1).name not in text)
    finally:
        browser.value("document.getElementById('language').click()")
    assert browser.value("document.documentElement.lang") == "en"


@needs_runtime
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_light_and_dark_and_fit_a_narrow_window(browser, photo, scheme):
    """The contrast ratio of WCAG 2.2, success criterion 1.4.3: at least 4.5."""
    choose(browser, photo(1))
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.ask("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=False)
    colours = browser.value(
        """[['h1', 'body'], ['footer', 'body'], ['#drop span', '#drop'], ['.result h3', '.card'],
            ['.result .time', '.card'], ['#start', '#start'], ['#clear', '#clear']].map(([text, ground]) =>
              [[text, 'color'], [ground, 'backgroundColor']].map(([selector, key]) =>
                getComputedStyle(document.querySelector(selector))[key].match(/[0-9.]+/g).slice(0, 3).map(Number)))"""
    )
    for text, ground in colours:
        light, dark = sorted((luminance(text), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
    assert (luminance(colours[0][1]) < 0.2) == (scheme == "dark")
    assert browser.value("document.documentElement.scrollWidth") <= 320


def luminance(colour):
    """Return the relative luminance of an sRGB colour, as WCAG 2.2 defines it."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in np.array(colour) / 255]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@needs_runtime
@needs_chromium
def test_below_the_threshold_the_page_is_not_sure(browser, page, photo, tmp_path):
    text = page.read_text(encoding="utf-8")
    assert text.count('"threshold": null') == 1
    unsure = tmp_path / "unsure.html"
    unsure.write_text(text.replace('"threshold": null', '"threshold": 0.99'), encoding="utf-8")
    browser.open(unsure)
    browser.until("document.getElementById('state').hidden")
    ((shown, _, shares),) = choose(browser, photo(1))
    assert max(shares.values()) < 0.99
    assert shown.startswith("Not sure\n")
    assert "No class reaches 99.0 %." in shown


@pytest.fixture(scope="module")
def int8_page(case, tmp_path_factory):
    """Export the quickstart's network as an int8 page; return the path and the `Description`."""
    path = tmp_path_factory.mktemp("int8") / "digits.html"
    samples = load_samples(case.checkpoint.config.data, "test", case.checkpoint.classes).take(np.arange(200))
    limits = {"max_drop": 10.0, "min_agreement": 90.0}
    return path, dataclasses.replace(case, samples=samples).export(path, precision="int8", **limits)


@needs_runtime
def test_an_int8_page_has_int8_weights_and_calibrated_probabilities(int8_page, case):
    path, description = int8_page
    model = onnx.load_from_string(read_network(path))
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    quantised, plain = ([array for array in arrays if array.dtype == kind and array.ndim > 1] for kind in ("i1", "f4"))
    assert sum(array.size for array in quantised) > 20 * sum(array.size for array in plain)
    assert description.quantization.lose_most
    confidence = description.confidence
    facts = re.search(r'id="facts">(.+?)</script>', path.read_text(encoding="utf-8"))
    assert json.loads(facts[1])["threshold"] == confidence.threshold
    assert {entry.key: entry.value for entry in model.metadata_props}["threshold"] == str(confidence.threshold)
    runtime = open_runtime(path)
    found = np.concatenate([runtime.run(image[None]) for image in case.images])
    calibrated, plain = (np.abs(found - softmax(case.logits / t)).mean() for t in (confidence.temperature, 1.0))
    assert calibrated < min(0.02, plain)


@needs_runtime
@needs_chromium
def test_an_int8_page_gives_the_probabilities_of_onnx_runtime(browser, int8_page, case, tmp_path):
    page, description = int8_page
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file, image in zip(files, case.images):
        Image.fromarray(image[..., 0]).save(file)
    browser.open(page)
    browser.until("document.getElementById('state').hidden")
    compute = expectation(page)
    for file, (text, pixels, shares) in zip(files, choose(browser, *files, size=16)):
        wanted_pixels, wanted = compute(file)
        np.testing.assert_array_equal(pixels, np.repeat(wanted_pixels, 3, axis=2))
        assert len(shares) == 5
        assert list(shares.values()) == pytest.approx([wanted[int(name)] for name in shares], abs=1e-3)
        assert text.startswith("Not sure" if wanted.max() < description.confidence.threshold else str(wanted.argmax()))


@needs_runtime
@needs_chromium
def test_nothing_was_requested_and_nothing_can_be(browser, page):
    """The last test of the browser: it looks at the requests and errors of all tests before."""
    assert [url for url in browser.requests if not url.startswith(("blob:", "data:"))][:1] == [page.as_uri()]
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "blob", "data"}
    assert all(url.endswith(".html") for url in browser.requests if url.startswith("file:"))
    assert browser.problems == []
    blocked = """new Promise(done => {
      document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));
      fetch('https://example.org').catch(() => 0);
    })"""
    assert browser.value(blocked) == "connect-src"


@needs_runtime
def test_the_network_of_a_page_is_the_checkpoints(page, opened, photo, expected):
    import mindspore as ms

    description = read_description(page)
    assert (description.format, description.input.shape) == ("web", [1, PHOTO_SIZE, PHOTO_SIZE, 3])
    pixels, _ = expected(photo(3))
    logits = opened.classifier(ms.Tensor(pixels[None])).asnumpy()
    np.testing.assert_allclose(open_runtime(page).run(pixels[None]), softmax(logits), atol=1e-5)
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", html[: html.index('id="wasm"')])
    assert "<title>houses</title>" in html


def test_wrong_files_of_onnxruntime_web_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--ort-web .+: has no file ort\.wasm\.bundle\.min\.mjs; expected"):
        ort_web.find_ort_web(str(tmp_path))
    for name in ort_web.CHECKSUMS:
        (tmp_path / name).write_text("other")
    with pytest.raises(UserError, match=r"is damaged or of another version \(found SHA-256 d9298a10d1b0…, expected"):
        ort_web.find_ort_web(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"was not found; run python tools/setup_ort_web\.py \(needs npm\), or name"):
        ort_web.find_ort_web()
    empty = tmp_path / "page.html"
    empty.write_text("<html></html>")
    with pytest.raises(UserError, match="holds no network; expected a page that export.py wrote"):
        read_network(empty)


def test_the_tool_leaves_nothing_if_npm_has_another_package(command, tmp_path, monkeypatch):
    cache, programs = tmp_path / "cache", tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("PATH", str(programs))
    done = command("tools/setup_ort_web.py", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "npm was not found; install it (Debian: apt install npm)" in done.stderr
    other = tmp_path / "other"
    other.write_text("other")
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        for name in ort_web.CHECKSUMS:
            archive.add(other, f"package/dist/{name}")
    (programs / "npm").write_text(f"#!/bin/sh\n/bin/cp {tmp_path}/other.tgz onnxruntime-web.tgz\n")
    (programs / "npm").chmod(0o755)
    done = command("tools/setup_ort_web.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "is damaged or of another version" in done.stderr
    assert os.listdir(cache / "pocketspore") == []
