// Show what classify sees, without MindSpore Lite: pixels MODEL.ms.json IMAGE OUTPUT.ppm
//
// OUTPUT receives the pixels after preprocessing as a binary PPM (RGB) or PGM (gray) file, to compare with the golden image
// of `export.py --golden`. The class names are printed, each on a line.

#include <cstdio>
#include <fstream>
#include <stdexcept>

#include "preprocess.h"

void show(const std::string &description_path, const std::string &image_path, const std::string &output) {
  const Description description = read_description(description_path);
  const Image image = preprocess(read_image(image_path), description);
  std::ofstream file(output, std::ios::binary);
  file << (image.channels == 3 ? "P6\n" : "P5\n") << image.width << " " << image.height << "\n255\n";
  file.write(reinterpret_cast<const char *>(image.pixels.data()), std::streamsize(image.pixels.size()));
  file.close();
  if (!file) throw std::runtime_error(output + ": cannot be written");
  for (const std::string &name : description.classes) std::printf("%s\n", name.c_str());
}

int main(int count, char **arguments) {
  try {
    if (count != 4) throw std::runtime_error("usage: pixels MODEL.ms.json IMAGE OUTPUT.ppm");
    show(arguments[1], arguments[2], arguments[3]);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
