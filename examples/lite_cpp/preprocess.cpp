#include "preprocess.h"

#include <libexif/exif-data.h>
#include <libexif/exif-loader.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#include <stb/stb_image.h>

namespace {

using Bytes = std::vector<uint8_t>;

Bytes read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// Return the content of a PNG's chunk eXIf behind the header that libexif expects, or nothing, because libexif does not
// know PNG.
Bytes exif_of_png(const Bytes &file) {
  size_t position = 8;
  while (position + 12 <= file.size()) {
    const uint8_t *chunk = &file[position];
    const size_t length = size_t(chunk[0]) << 24 | chunk[1] << 16 | chunk[2] << 8 | chunk[3];
    if (length > file.size() - position - 12) break;
    if (std::memcmp(chunk + 4, "eXIf", 4) == 0) {
      Bytes exif = {'E', 'x', 'i', 'f', 0, 0};
      exif.insert(exif.end(), chunk + 8, chunk + 8 + length);
      return exif;
    }
    position += 12 + length;
  }
  return {};
}

// Return the EXIF orientation, 1 to 8; 1 is upright.
int orientation_of(const Bytes &file) {
  const bool is_png = file.size() > 8 && std::memcmp(file.data(), "\x89PNG", 4) == 0;
  std::unique_ptr<ExifData, void (*)(ExifData *)> data(nullptr, exif_data_unref);
  if (is_png) {
    const Bytes exif = exif_of_png(file);
    data.reset(exif_data_new_from_data(exif.data(), unsigned(exif.size())));
  } else {
    // The loader also finds EXIF data that is not in the JPEG's first segment.
    std::unique_ptr<ExifLoader, void (*)(ExifLoader *)> loader(exif_loader_new(), exif_loader_unref);
    Bytes copy = file;
    exif_loader_write(loader.get(), copy.data(), unsigned(copy.size()));
    data.reset(exif_loader_get_data(loader.get()));
  }
  if (!data) return 1;
  const ExifEntry *entry = exif_content_get_entry(data->ifd[EXIF_IFD_0], EXIF_TAG_ORIENTATION);
  if (!entry || entry->format != EXIF_FORMAT_SHORT || entry->size < 2) return 1;
  const int value = exif_get_short(entry->data, exif_data_get_byte_order(data.get()));
  return value >= 1 && value <= 8 ? value : 1;
}

// Return the image turned upright, from one of EXIF's orientations. 5 exchanges rows and columns.
Image upright(const Image &image, int orientation) {
  const bool exchanged = orientation >= 5;
  const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  Image turned{exchanged ? image.width : image.height, exchanged ? image.height : image.width, image.channels, {}};
  turned.pixels.resize(image.pixels.size());
  uint8_t *target = turned.pixels.data();
  for (int row = 0; row < turned.height; row++)
    for (int column = 0; column < turned.width; column++) {
      int y = exchanged ? column : row, x = exchanged ? row : column;
      if (from_bottom) y = image.height - 1 - y;
      if (from_right) x = image.width - 1 - x;
      const uint8_t *source = &image.pixels[(size_t(y) * image.width + x) * image.channels];
      target = std::copy(source, source + image.channels, target);
    }
  return turned;
}

// Return the weight of a pixel at a `distance` from the centre. The bicubic kernel is Keys': Pillow, with antialiasing, has
// a = -0.5, and OpenCV, without antialiasing, has a = -0.75.
double kernel(double distance, const Description &description) {
  const double x = std::abs(distance), a = description.antialias ? -0.5 : -0.75;
  if (!description.bicubic) return std::max(0.0, 1 - x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// Resize every row of an image to `width` pixels. Pillow computes the same: with antialiasing, the kernel becomes wider
// by the factor by which the image becomes smaller.
Image resize_rows(const Image &image, int width, const Description &description) {
  const int channels = image.channels;
  const double scale = double(image.width) / width, stretch = description.antialias ? std::max(scale, 1.0) : 1.0;
  const double support = (description.bicubic ? 2 : 1) * stretch;
  Image resized{image.height, width, channels, Bytes(size_t(image.height) * width * channels)};
  for (int column = 0; column < width; column++) {
    const double centre = (column + 0.5) * scale;
    const int begin = int(std::floor(centre - support)), end = int(std::ceil(centre + support));
    const int first = std::max(0, begin), last = std::min(image.width, end);
    std::vector<double> weights(last - first);
    double sum = 0;
    for (int x = begin; x < end; x++) {
      // With antialiasing, pixels outside the image do not count; without it, the border's pixels stand for them.
      if (description.antialias && (x < first || x >= last)) continue;
      const double weight = kernel((x + 0.5 - centre) / stretch, description);
      weights[std::clamp(x, first, last - 1) - first] += weight;
      sum += weight;
    }
    for (int row = 0; row < image.height; row++)
      for (int c = 0; c < channels; c++) {
        const uint8_t *source = &image.pixels[(size_t(row) * image.width + first) * channels + c];
        double value = 0;
        for (size_t i = 0; i < weights.size(); i++) value += weights[i] * source[i * channels];
        resized.pixels[(size_t(row) * width + column) * channels + c] =
            uint8_t(std::clamp(std::floor(value / sum + 0.5), 0.0, 255.0));
      }
  }
  return resized;
}

Image transposed(const Image &image) { return upright(image, 5); }

}  // namespace

Description read_description(const std::string &path) {
  const Bytes text = read_file(path);
  try {
    const auto json = nlohmann::json::parse(text.begin(), text.end());
    const auto &wanted = json.at("preprocessing");
    // Null, or missing in descriptions from before version 0.2.0, if the probabilities are not calibrated.
    const auto confidence = json.value("confidence", nlohmann::json());
    // Descriptions from before version 0.2.0 do not name the interpolation: it was bilinear, without antialiasing.
    return {wanted.at("image_size"),
            json.at("input").at("colour") == "RGB" ? 3 : 1,
            wanted.at("crop_fraction"),
            wanted.value("interpolation", "bilinear") == "bicubic",
            wanted.value("antialias", false),
            wanted.value("crop_rounding", "down") == "down",
            json.at("output").at("meaning") == "logits",
            confidence.is_null() ? 0.0 : confidence.at("threshold").get<double>(),
            json.at("classes"),
            wanted.at("inside_the_file"),
            wanted.at("mean"),
            wanted.at("std")};
  } catch (const nlohmann::json::parse_error &) {
    throw std::runtime_error(path + ": is not JSON");  // the error's own text may hold any bytes of the file
  } catch (const nlohmann::json::exception &error) {
    throw std::runtime_error(path + ": is not a description of export.py: " + error.what());
  }
}

Image read_image(const std::string &path) {
  const Bytes file = read_file(path);
  Image image{0, 0, 3, {}};
  int channels;
  const std::unique_ptr<stbi_uc, void (*)(void *)> decoded(
      stbi_load_from_memory(file.data(), int(file.size()), &image.width, &image.height, &channels, 3), stbi_image_free);
  if (!decoded) throw std::runtime_error(path + ": is not a JPEG or PNG image: " + stbi_failure_reason());
  image.pixels.assign(decoded.get(), decoded.get() + size_t(image.height) * image.width * 3);
  return upright(image, orientation_of(file));
}

Image preprocess(const Image &image, const Description &description) {
  const int size = description.image_size, least = std::min(image.height, image.width);
  // The short side is rounded to the nearest integer, halves to the even; the long side is rounded down.
  const int64_t side = std::lrint(size / description.crop_fraction);
  const Image narrow = resize_rows(image, int(image.width * side / least), description);
  const Image small = transposed(resize_rows(transposed(narrow), int(image.height * side / least), description));
  auto offset = [&](int length) {
    const int border = length - size;
    return description.rounds_crop_down ? border / 2 : int(std::lrint(border / 2.0));  // lrint: halves to the even
  };
  const int top = offset(small.height), left = offset(small.width);
  Image crop{size, size, description.channels, {}};
  for (int row = top; row < top + size; row++)
    for (int column = left; column < left + size; column++) {
      const uint8_t *rgb = &small.pixels[(size_t(row) * small.width + column) * 3];
      if (description.channels == 3)
        crop.pixels.insert(crop.pixels.end(), rgb, rgb + 3);
      else
        crop.pixels.push_back(uint8_t(std::lrint(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])));
    }
  return crop;
}
