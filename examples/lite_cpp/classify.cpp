// Classify an image with MindSpore Lite: classify MODEL.ms IMAGE.ppm [THREADS]
//
// `export.py --format ms` writes the model, for batches of one image, and MODEL.ms.json, which has the class names.
// The image is a binary PPM (RGB) or PGM (gray) file. ImageMagick converts to it: `convert photo.jpg photo.ppm`.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "include/api/context.h"
#include "include/api/model.h"

struct Image {
  int height, width, channels;
  std::vector<uint8_t> pixels;  // row by row, with the channels of a pixel side by side
};

Image read_pnm(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int width = 0, height = 0, greatest = 0;
  file >> magic >> width >> height >> greatest;
  file.get();
  if (!file || (magic != "P5" && magic != "P6") || width < 1 || height < 1 || greatest != 255)
    throw std::runtime_error(path + ": is not a binary PPM or PGM image with 8 bits and without comments");
  Image image{height, width, magic == "P6" ? 3 : 1, {}};
  image.pixels.resize(size_t(height) * width * image.channels);
  if (!file.read(reinterpret_cast<char *>(image.pixels.data()), image.pixels.size()))
    throw std::runtime_error(path + ": is truncated");
  return image;
}

// Crop a square from the centre, whose side is `fraction` of the short side. Resize it to `size` x `size`, bilinearly.
std::vector<uint8_t> centre(const Image &image, int size, int channels, float fraction) {
  if (image.channels != channels)
    throw std::runtime_error("image: wrong number of channels (found " + std::to_string(image.channels) +
                             ", expected " + std::to_string(channels) + ")");
  const float side = std::min(image.height, image.width) * fraction, step = side / size;
  const float top = (image.height - side) / 2, left = (image.width - side) / 2;
  auto at = [&](int y, int x, int c) {
    y = std::clamp(y, 0, image.height - 1), x = std::clamp(x, 0, image.width - 1);
    return float(image.pixels[(size_t(y) * image.width + x) * channels + c]);
  };
  std::vector<uint8_t> crop;
  for (int row = 0; row < size; row++)
    for (int column = 0; column < size; column++)
      for (int c = 0; c < channels; c++) {
        const float y = std::max(0.f, top + (row + 0.5f) * step - 0.5f);
        const float x = std::max(0.f, left + (column + 0.5f) * step - 0.5f);
        const int y0 = int(y), x0 = int(x);
        const float dy = y - y0, dx = x - x0;
        const float upper = at(y0, x0, c) * (1 - dx) + at(y0, x0 + 1, c) * dx;
        const float lower = at(y0 + 1, x0, c) * (1 - dx) + at(y0 + 1, x0 + 1, c) * dx;
        crop.push_back(uint8_t(upper * (1 - dy) + lower * dy + 0.5f));
      }
  return crop;
}

// Return the class names from the description. Names with quotation marks are not supported.
std::vector<std::string> class_names(const std::string &json) {
  std::vector<std::string> names;
  const size_t begin = json.find("\"classes\": [") + 11, end = json.find(']', begin);
  for (size_t open = json.find('"', begin); open < end; open = json.find('"', open)) {
    const size_t close = json.find('"', open + 1);
    names.push_back(json.substr(open + 1, close - open - 1));
    open = close + 1;
  }
  return names;
}

// Return the number at `key` in the description.
float number(const std::string &json, const std::string &key) {
  return std::stof(json.substr(json.find("\"" + key + "\": ") + key.size() + 4));
}

void classify(const std::string &path, const std::string &image_path, int threads) {
  std::ifstream file(path + ".json");
  std::stringstream json;
  json << file.rdbuf();
  if (!file) throw std::runtime_error(path + ".json: cannot be read; export.py writes it beside the model");
  auto context = std::make_shared<mindspore::Context>();
  context->SetThreadNum(threads);
  context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
  mindspore::Model model;
  if (!model.Build(path, mindspore::kMindIR_Lite, context).IsOk())
    throw std::runtime_error(path + ": MindSpore Lite cannot load it");
  auto inputs = model.GetInputs();
  const auto shape = inputs[0].Shape();  // 1, height, width, channels
  if (inputs[0].DataType() != mindspore::DataType::kNumberTypeUInt8 || shape[0] != 1)
    throw std::runtime_error(path + ": must take one image; export it with --input image --batch 1");
  const auto pixels = centre(read_pnm(image_path), int(shape[1]), int(shape[3]), number(json.str(), "crop_fraction"));
  std::copy(pixels.begin(), pixels.end(), static_cast<uint8_t *>(inputs[0].MutableData()));
  std::vector<mindspore::MSTensor> outputs;
  if (!model.Predict(inputs, &outputs).IsOk()) throw std::runtime_error(path + ": MindSpore Lite cannot run it");

  const auto *scores = static_cast<const float *>(outputs[0].MutableData());
  const auto names = class_names(json.str());
  std::vector<int> order(outputs[0].ElementNum());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  for (size_t i = 0; i < std::min<size_t>(5, order.size()); i++)
    std::printf("%.6f  %s\n", scores[order[i]], names.at(order[i]).c_str());
}

int main(int count, char **arguments) {
  try {
    if (count < 3) throw std::runtime_error("usage: classify MODEL.ms IMAGE.ppm [THREADS]");
    classify(arguments[1], arguments[2], count > 3 ? std::atoi(arguments[3]) : 1);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
