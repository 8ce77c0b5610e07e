// Classify images with MindSpore Lite: classify [--threads N] MODEL.ms IMAGE...
//
// `export.py --format ms` writes the model, for batches of one image, and MODEL.ms.json, which has the class names and
// says how the images, JPEG or PNG, must be preprocessed. With several images, the name of each stands above its classes.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "include/api/context.h"
#include "include/api/model.h"
#include "preprocess.h"

void classify(mindspore::Model &model, const Description &description, const std::string &path,
              const std::string &image_path) {
  auto inputs = model.GetInputs();
  const Image pixels = preprocess(read_image(image_path), description);
  if (inputs[0].DataType() != mindspore::DataType::kNumberTypeUInt8 || inputs[0].DataSize() != pixels.pixels.size())
    throw std::runtime_error(path + ": must take one image; export it with --input image --batch 1");
  std::copy(pixels.pixels.begin(), pixels.pixels.end(), static_cast<uint8_t *>(inputs[0].MutableData()));
  std::vector<mindspore::MSTensor> outputs;
  if (!model.Predict(inputs, &outputs).IsOk()) throw std::runtime_error(path + ": MindSpore Lite cannot run it");

  const auto *values = static_cast<const float *>(outputs[0].MutableData());
  std::vector<float> scores(values, values + outputs[0].ElementNum());
  if (description.is_logits) {
    const float largest = *std::max_element(scores.begin(), scores.end());
    for (float &score : scores) score = std::exp(score - largest);
    const float sum = std::accumulate(scores.begin(), scores.end(), 0.f);
    for (float &score : scores) score /= sum;
  }
  std::vector<int> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  if (scores[order[0]] < description.threshold)
    std::printf("not sure: no probability reaches %.6f\n", description.threshold);
  for (size_t i = 0; i < std::min<size_t>(5, order.size()); i++)
    std::printf("%.6f  %s\n", scores[order[i]], description.classes.at(order[i]).c_str());
}

void classify_all(const std::string &path, const std::vector<std::string> &image_paths, int threads) {
  const Description description = read_description(path + ".json");
  auto context = std::make_shared<mindspore::Context>();
  context->SetThreadNum(threads);
  context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
  mindspore::Model model;
  if (!model.Build(path, mindspore::kMindIR_Lite, context).IsOk())
    throw std::runtime_error(path + ": MindSpore Lite cannot load it");
  for (const std::string &image_path : image_paths) {
    if (image_paths.size() > 1) std::printf("%s\n", image_path.c_str());
    classify(model, description, path, image_path);
  }
}

int main(int count, char **arguments) {
  try {
    std::vector<std::string> names(arguments + 1, arguments + count);
    int threads = 1;
    if (names.size() > 1 && names[0] == "--threads") {
      threads = std::atoi(names[1].c_str());
      names.erase(names.begin(), names.begin() + 2);
    }
    if (names.size() < 2) throw std::runtime_error("usage: classify [--threads N] MODEL.ms IMAGE...");
    classify_all(names[0], {names.begin() + 1, names.end()}, threads);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
