// Classify an image with ncnn: classify_ncnn MODEL.param IMAGE [THREADS]
//
// `export.py --format ncnn` writes MODEL.param, the weights MODEL.bin, and MODEL.param.json, which has the class names and
// says how the image, JPEG or PNG, must be preprocessed.

#include <ncnn/net.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../lite_cpp/preprocess.h"

void classify(const std::string &path, const std::string &image_path, int threads) {
  const Description description = read_description(path + ".json");
  ncnn::Net net;
  net.opt.num_threads = threads;
  // float32 arithmetic, as the export was verified. ncnn's default on ARM is float16, which is faster.
  net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = false;
  const std::string weights = path.substr(0, path.rfind('.')) + ".bin";
  if (net.load_param(path.c_str()) != 0) throw std::runtime_error(path + ": ncnn cannot load it");
  if (net.load_model(weights.c_str()) != 0) throw std::runtime_error(weights + ": ncnn cannot load it");

  const Image image = preprocess(read_image(image_path), description);
  const int kind = image.channels == 3 ? ncnn::Mat::PIXEL_RGB : ncnn::Mat::PIXEL_GRAY;
  ncnn::Mat input = ncnn::Mat::from_pixels(image.pixels.data(), kind, image.width, image.height);
  if (!description.normalises) {
    std::vector<float> mean, scale;
    for (float value : description.mean) mean.push_back(255 * value);
    for (float value : description.std) scale.push_back(1 / (255 * value));
    input.substract_mean_normalize(mean.data(), scale.data());
  }
  ncnn::Extractor extractor = net.create_extractor();
  extractor.input(net.input_names()[0], input);
  ncnn::Mat output;
  if (extractor.extract(net.output_names()[0], output) != 0) throw std::runtime_error(path + ": ncnn cannot run it");

  std::vector<float> scores(static_cast<float *>(output), static_cast<float *>(output) + output.w);
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

int main(int count, char **arguments) {
  try {
    if (count < 3) throw std::runtime_error("usage: classify_ncnn MODEL.param IMAGE [THREADS]");
    classify(arguments[1], arguments[2], count > 3 ? std::atoi(arguments[3]) : 1);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
