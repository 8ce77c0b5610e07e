// From a photo to the pixels that the network sees: the steps of `preprocessing` in the description of export.py.
// `source` is what a canvas can draw, upright: an ImageBitmap, of which the browser has followed the EXIF orientation,
// or a video.

const PRECISION = 22; // bits of the weights behind the point, as in Pillow, so that the pixels are Pillow's
const STRIP = 1 << 20; // source pixels that are read at once: phones limit the size of a canvas

// Return the pixels, a Uint8Array (image_size, image_size, channels) row by row; `channels` is 3 or 1 (gray).
function preprocess(source, width, height, wanted, channels) {
  const size = wanted.image_size;
  const least = Math.min(width, height);
  const short = wanted.short_side ?? roundHalfEven(size / wanted.crop_fraction);
  const columns = tapsOf(width, Math.floor((width * short) / least), size, wanted);
  const rows = tapsOf(height, Math.floor((height * short) / least), size, wanted);
  const { low: left, high: right } = rangeOf(columns);
  const { low: top, high: bottom } = rangeOf(rows);
  const finish = wanted.antialias ? fromFixedPoint : (value) => value;
  const narrow = new Float64Array((bottom - top) * size * 3); // all rows that are needed, with the final columns
  const stripHeight = Math.max(1, Math.floor(STRIP / (right - left)));
  const canvas = new OffscreenCanvas(right - left, Math.min(stripHeight, bottom - top));
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  for (let strip = top; strip < bottom; strip += stripHeight) {
    const count = Math.min(stripHeight, bottom - strip);
    context.drawImage(source, left, strip, right - left, count, 0, 0, right - left, count);
    const { data } = context.getImageData(0, 0, right - left, count);
    for (let row = 0; row < count; row++) {
      for (let column = 0; column < size; column++) {
        const { first, weights } = columns[column];
        const from = (row * (right - left) + first - left) * 4;
        const to = ((strip - top + row) * size + column) * 3;
        for (let channel = 0; channel < 3; channel++) {
          let sum = 0;
          for (let i = 0; i < weights.length; i++) sum += weights[i] * data[from + 4 * i + channel];
          narrow[to + channel] = finish(sum);
        }
      }
    }
  }
  const rgb = new Uint8Array(size * size * 3);
  for (let row = 0; row < size; row++) {
    const { first, weights } = rows[row];
    for (let x = 0; x < size * 3; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * narrow[(first - top + i) * size * 3 + x];
      rgb[row * size * 3 + x] = Math.min(255, Math.max(0, roundHalfEven(finish(sum))));
    }
  }
  return channels === 3 ? rgb : luminance(rgb);
}

// Return an image without transparency: `bitmap` itself, or an image with the colours that transparent pixels hide, as
// Pillow has them. A 2D canvas loses these colours, so WebGL reads them. `bitmap` must not be premultiplied.
async function opaque(bitmap) {
  const { width, height } = bitmap;
  if (!hasTransparency(bitmap)) return bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error("no WebGL for this size");
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  const texture = gl.getParameter(gl.TEXTURE_BINDING_2D);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const image = new ImageData(width, height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(image.data.buffer));
  gl.getExtension("WEBGL_lose_context")?.loseContext(); // browsers allow few contexts at a time
  for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
  return createImageBitmap(image);
}

function hasTransparency(bitmap) {
  const { width, height } = bitmap;
  const stripHeight = Math.max(1, Math.floor(STRIP / width));
  const context = new OffscreenCanvas(width, stripHeight).getContext("2d", { willReadFrequently: true });
  for (let strip = 0; strip < height; strip += stripHeight) {
    const count = Math.min(stripHeight, height - strip);
    context.clearRect(0, 0, width, count);
    context.drawImage(bitmap, 0, strip, width, count, 0, 0, width, count);
    const { data } = context.getImageData(0, 0, width, count);
    for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return true;
  }
  return false;
}

// Return, for each of the `size` pixels in the centre of a side that is resized from `old` to `length` pixels, the
// source pixels that it is made of: {first, weights}.
function tapsOf(old, length, size, wanted) {
  const border = length - size;
  const offset = wanted.crop_rounding === "down" ? Math.floor(border / 2) : roundHalfEven(border / 2);
  const scale = old / length;
  const stretch = wanted.antialias ? Math.max(scale, 1) : 1;
  const support = (wanted.interpolation === "bicubic" ? 2 : 1) * stretch;
  return Array.from({ length: size }, (_, i) => {
    const centre = (offset + i + 0.5) * scale;
    return wanted.antialias
      ? antialiased(centre, support, stretch, old, wanted)
      : neighbours(centre, support, old, wanted);
  });
}

// Pillow's weights: the kernel becomes wider as the image becomes smaller, and pixels outside the image do not count.
function antialiased(centre, support, stretch, old, wanted) {
  const first = Math.max(0, Math.trunc(centre - support + 0.5));
  const last = Math.min(old, Math.trunc(centre + support + 0.5));
  const weights = Array.from({ length: last - first }, (_, i) => kernel((first + i - centre + 0.5) / stretch, wanted));
  const sum = weights.reduce((a, b) => a + b, 0);
  return { first, weights: weights.map((weight) => awayFromZero((weight / sum) * 2 ** PRECISION)) };
}

// OpenCV's weights: two or four neighbours; the pixels of the border stand for the pixels outside the image.
function neighbours(centre, support, old, wanted) {
  const start = Math.floor(centre - 0.5) + 1 - support;
  const first = Math.min(old - 1, Math.max(0, start));
  const last = Math.min(old - 1, start + 2 * support - 1);
  const weights = new Array(Math.max(1, last - first + 1)).fill(0);
  for (let x = start; x < start + 2 * support; x++)
    weights[Math.min(weights.length - 1, Math.max(0, x - first))] += kernel(x + 0.5 - centre, wanted);
  return { first, weights };
}

// Return the weight of a pixel at a `distance` from the centre. The bicubic kernel is Keys': Pillow, with antialiasing,
// has a = -0.5, and OpenCV, without antialiasing, has a = -0.75.
function kernel(distance, wanted) {
  const x = Math.abs(distance);
  if (wanted.interpolation !== "bicubic") return Math.max(0, 1 - x);
  const a = wanted.antialias ? -0.5 : -0.75;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// Return the range of source pixels that all taps use together.
function rangeOf(taps) {
  return {
    low: Math.min(...taps.map((tap) => tap.first)),
    high: Math.max(...taps.map((tap) => tap.first + tap.weights.length)),
  };
}

// Return Pillow's luminance of RGB pixels.
function luminance(rgb) {
  return Uint8Array.from({ length: rgb.length / 3 }, (_, i) => {
    const [red, green, blue] = rgb.subarray(3 * i, 3 * i + 3);
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;
  });
}

function fromFixedPoint(sum) {
  return Math.min(255, Math.max(0, (sum + 2 ** (PRECISION - 1)) >> PRECISION));
}

function awayFromZero(value) {
  return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
}

function roundHalfEven(value) {
  const below = Math.floor(value);
  const part = value - below;
  return part > 0.5 || (part === 0.5 && below % 2 !== 0) ? below + 1 : below;
}
