// The page: photos and the camera go in; the five most probable classes come out.

const facts = JSON.parse(document.getElementById("facts").textContent);
const part = (id) => document.getElementById(id);
const channels = facts.shape[3];
const SHOWN = 5; // classes
const SIDE = 480; // largest side of a picture in the list, in pixels
const SPEAKING = 2000; // milliseconds between two announcements of what the camera sees

const TEXTS = {
  en: {
    name: "English",
    loading: "Loading the network …",
    inputs: "Photos and camera",
    choose: "Choose photos",
    drop: "or drop them anywhere on this page",
    take: "Take a photo",
    start: "Start the camera",
    stop: "Stop the camera",
    flip: "Other camera",
    clear: "Remove all results",
    camera: "Camera",
    results: "Results",
    privacy: "Your photos stay on this device. The page computes everything itself and connects to nothing.",
    unsure: "Not sure",
    reason: (share) => `No class reaches ${share}.`,
    time: (network, pixels) => `${network} ms per image, and ${pixels} ms to prepare the pixels`,
    summary: (network, classes) => `${network}, ${classes} classes`,
    facts: (top1, images, runtime, made) => `Top-1 ${top1} on ${images} test images. ${runtime}; made by ${made}.`,
    wrong: (name) => `${name}: is not an image that this browser can read; choose a JPEG, PNG or WebP file.`,
    secure: "This browser gives the camera only to pages from disk, from localhost or with https. Choose a photo instead.",
    refused: "The camera was refused. Allow it in the settings of the browser, or choose a photo instead.",
    missing: "No camera was found. Choose a photo instead.",
    broken: (message) => `The network cannot run in this browser: ${message}`,
    picture: (name) => `Photo: ${name}`,
    seen: "The pixels that the network sees",
  },
  zh: {
    name: "中文",
    loading: "正在加载网络……",
    inputs: "照片和摄像头",
    choose: "选择照片",
    drop: "或将照片拖放到页面任意位置",
    take: "拍照",
    start: "打开摄像头",
    stop: "关闭摄像头",
    flip: "切换摄像头",
    clear: "清除所有结果",
    camera: "摄像头",
    results: "结果",
    privacy: "照片不会离开此设备。所有计算都在页面内完成，不连接任何网络。",
    unsure: "不确定",
    reason: (share) => `没有类别达到 ${share}。`,
    time: (network, pixels) => `每张图像 ${network} 毫秒，像素预处理另需 ${pixels} 毫秒`,
    summary: (network, classes) => `${network}，${classes} 个类别`,
    facts: (top1, images, runtime, made) => `在 ${images} 张测试图像上 top-1 准确率为 ${top1}。${runtime}；由 ${made} 生成。`,
    wrong: (name) => `${name}：浏览器无法将此文件读取为图像；请选择 JPEG、PNG 或 WebP 文件。`,
    secure: "浏览器只允许本地文件、localhost 或 https 页面使用摄像头。请改为选择照片。",
    refused: "摄像头权限被拒绝。请在浏览器设置中允许，或改为选择照片。",
    missing: "未找到摄像头。请改为选择照片。",
    broken: (message) => `网络无法在此浏览器中运行：${message}`,
    picture: (name) => `照片：${name}`,
    seen: "网络实际看到的像素",
  },
};

let language = navigator.language.startsWith("zh") ? "zh" : "en";
let session;
let camera = null; // the camera's MediaStream while it runs
let facing = "environment";
const redraw = []; // functions that write a result again after the language has changed

// --- Language ---

function translate() {
  const texts = TEXTS[language];
  document.documentElement.lang = language;
  const other = language === "en" ? "zh" : "en";
  part("language").textContent = TEXTS[other].name;
  part("language").lang = other;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = texts[element.dataset.text];
  part("summary").textContent = texts.summary(facts.network, facts.classes.length);
  part("facts-line").textContent = texts.facts(percent(facts.top1, 2), facts.images, facts.runtime, facts.made_by);
  for (const draw of redraw) draw();
}

function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits)} %`;
}

// --- The network ---

// Return the bytes in a script element: base64 of gzip.
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(part(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  part(id).remove(); // frees the memory
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  ort.env.wasm.numThreads = 1; // more threads need headers that only a server can send
  ort.env.wasm.wasmBinary = await unpacked("wasm");
  session = await ort.InferenceSession.create(await unpacked("network"), { executionProviders: ["wasm"] });
  await run(new Uint8Array(facts.shape.reduce((a, b) => a * b))); // the first run is slower
}

// Return the probabilities of pixels, a Float32Array in the order of the classes.
async function run(pixels) {
  const outputs = await session.run({ [facts.input]: new ort.Tensor("uint8", pixels, facts.shape) });
  return outputs[session.outputNames[0]].data;
}

// Return {pixels, best, network, preparation}: the five most probable classes as [{name, probability}], and the
// milliseconds of the network and of the pixels. `source` is upright and has the given size in pixels.
async function classify(source, width, height) {
  const began = performance.now();
  const pixels = preprocess(source, width, height, facts.preprocessing, channels);
  const prepared = performance.now();
  const probabilities = await run(pixels);
  const ended = performance.now();
  const best = Array.from(probabilities, (probability, i) => ({ name: facts.classes[i], probability }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, SHOWN);
  return { pixels, best, network: ended - prepared, preparation: prepared - began };
}

function headline(best) {
  const isSure = facts.threshold === null || best[0].probability >= facts.threshold;
  return isSure ? best[0].name : TEXTS[language].unsure;
}

// --- What is shown ---

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Fill `target` with a result: headline, five bars and the time. `name` is the file's name.
function show(target, found, name = "") {
  const texts = TEXTS[language];
  const isSure = headline(found.best) === found.best[0].name;
  const rows = found.best.map(({ name: label, probability }) => {
    const bar = element("b");
    bar.style.width = percent(probability).replace(" ", "");
    const line = element("i", {}, bar);
    line.setAttribute("aria-hidden", "true");
    return element("li", {}, element("span", { textContent: label }),
      element("data", { value: probability, textContent: percent(probability) }), line);
  });
  target.replaceChildren(
    element("h3", { textContent: headline(found.best), className: isSure ? "" : "unsure" }),
    element("p", { textContent: [name, isSure ? "" : texts.reason(percent(facts.threshold))].filter(Boolean).join(" · ") }),
    element("ol", {}, ...rows),
    element("p", { className: "time", textContent: texts.time(found.network.toFixed(1), found.preparation.toFixed(1)) }),
  );
}

function say(found, name = "") {
  const { name: label, probability } = found.best[0];
  const sure = headline(found.best);
  part("spoken").textContent = [name, sure, sure === label ? percent(probability, 0) : ""].filter(Boolean).join(", ");
}

// Return a canvas with the pixels that the network saw.
function seen(pixels) {
  const size = facts.preprocessing.image_size;
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++)
    for (let c = 0; c < 4; c++) image.data[4 * i + c] = c === 3 ? 255 : pixels[channels * i + (channels === 3 ? c : 0)];
  const canvas = element("canvas", { width: size, height: size, className: "seen" });
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.setAttribute("role", "img");
  return canvas;
}

// Put a card behind the card `previous` of the same choice of files, or else before all cards.
function put(card, previous = null) {
  if (previous?.isConnected) previous.after(card);
  else part("results").prepend(card);
  part("clear").hidden = false;
}

// Return a card with a line about what went wrong; `text` finds the line in the texts of a language.
function problem(text) {
  const line = element("p");
  const card = element("article", { className: "card problem" }, line);
  const draw = () => (line.textContent = text(TEXTS[language]));
  draw();
  redraw.push(draw);
  card.setAttribute("role", "alert");
  return card;
}

// --- Photos ---

async function takeFiles(files) {
  let previous = null;
  for (const file of files) {
    const card = await takeFile(file);
    put(card, previous);
    previous = card;
    await new Promise((done) => setTimeout(done)); // lets the browser show the result
  }
}

// Return the card of a file: the photo with its five most probable classes, or what is wrong with the file.
async function takeFile(file) {
  let bitmap;
  try {
    // The pixels as the file has them: an embedded colour profile changes nothing. The orientation is followed.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    if (file.type !== "image/jpeg") bitmap = await opaque(bitmap); // a JPEG has no transparency
  } catch {
    return problem((texts) => texts.wrong(file.name));
  }
  const found = await classify(bitmap, bitmap.width, bitmap.height);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const photo = element("canvas", { width, height, className: "photo" });
  photo.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  photo.setAttribute("role", "img");
  bitmap.close();
  const pixels = seen(found.pixels);
  const result = element("div", { className: "result" });
  const draw = () => {
    photo.setAttribute("aria-label", TEXTS[language].picture(file.name));
    pixels.setAttribute("aria-label", TEXTS[language].seen);
    show(result, found, file.name);
  };
  draw();
  redraw.push(draw);
  say(found, file.name);
  return element("article", { className: "card" }, element("div", { className: "picture" }, photo, pixels), result);
}

// --- Camera ---

async function startCamera() {
  if (!navigator.mediaDevices) {
    put(problem((texts) => texts.secure));
    return;
  }
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: { ideal: facing } } });
  } catch (error) {
    put(problem((texts) => (error.name === "NotAllowedError" ? texts.refused : texts.missing)));
    return;
  }
  const video = part("video");
  video.srcObject = camera;
  await video.play();
  part("camera").hidden = false;
  part("start").dataset.text = "stop";
  const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
  part("flip").hidden = cameras.length < 2;
  translate();
  watch(camera);
}

function stopCamera() {
  for (const track of camera.getTracks()) track.stop();
  camera = null;
  part("camera").hidden = true;
  part("live").replaceChildren();
  part("flip").hidden = true;
  part("start").dataset.text = "start";
  translate();
}

// Classify the frames of a stream, one after the other, until it is stopped.
async function watch(stream) {
  const video = part("video");
  let spoken = -Infinity;
  while (camera === stream) {
    await new Promise((done) => requestAnimationFrame(done));
    if (camera !== stream || video.videoWidth === 0) continue;
    const found = await classify(video, video.videoWidth, video.videoHeight);
    show(part("live"), found);
    if (performance.now() - spoken > SPEAKING) {
      say(found);
      spoken = performance.now();
    }
  }
}

// --- Start ---

function listen() {
  for (const id of ["files", "photo"])
    part(id).addEventListener("change", async (event) => {
      const files = [...event.target.files];
      event.target.value = ""; // so that the same file can be chosen again
      await takeFiles(files);
    });
  part("start").addEventListener("click", () => (camera ? stopCamera() : startCamera()));
  part("flip").addEventListener("click", () => {
    facing = facing === "user" ? "environment" : "user";
    stopCamera();
    startCamera();
  });
  part("clear").addEventListener("click", () => {
    part("results").replaceChildren();
    redraw.length = 0;
    part("clear").hidden = true;
    part("files").focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && camera) stopCamera();
  });
  for (const kind of ["dragover", "dragleave", "drop"])
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dragging", kind === "dragover");
      if (kind === "drop") takeFiles([...event.dataTransfer.files]);
    });
}

part("language").addEventListener("click", () => {
  language = language === "en" ? "zh" : "en";
  translate();
});
part("frame").style.width = percent(facts.preprocessing.crop_fraction).replace(" ", "");
translate();
try {
  await load();
  listen();
  part("state").hidden = true;
  part("inputs").hidden = false;
} catch (error) {
  part("state").classList.add("problem");
  part("state").removeAttribute("data-text");
  part("state").textContent = TEXTS[language].broken(error.message);
}
