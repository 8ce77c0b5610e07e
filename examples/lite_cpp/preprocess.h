// Read an image file and compute the pixels that the network sees, as PATH.json, the description of export.py, says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Image {
  int height, width, channels;
  std::vector<uint8_t> pixels;  // row by row, with the channels of a pixel side by side
};

struct Description {
  int image_size, channels;
  double crop_fraction;
  bool bicubic, antialias, rounds_crop_down;
  bool is_logits;                    // the file outputs logits, not probabilities
  double threshold;                  // below this probability, the answer is not sure; 0: not calibrated
  std::vector<std::string> classes;  // in the order of the outputs
  bool normalises;                   // the file normalises the pixels itself
  std::vector<float> mean, std;      // per channel, of pixels scaled to 0..1
};

// All functions throw std::runtime_error; the message names the file.

// Return the description in the JSON file at `path`.
Description read_description(const std::string &path);

// Return the image file at `path`, JPEG or PNG, as RGB, turned upright as its EXIF orientation says.
Image read_image(const std::string &path);

// Return the pixels of an upright RGB image that the network sees: image_size x image_size, RGB or gray.
Image preprocess(const Image &image, const Description &description);
