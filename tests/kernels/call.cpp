// Calls native kernels without MindSpore, so that a library for another processor can be tested under an emulator:
// call LIBRARY. Each request on stdin is a line with the name of an operator and its number of arguments, then for each
// argument a line with its dimensions and its float32 numbers. The answer on stdout is the numbers of all arguments.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

typedef int Kernel(int, void **, int *, int64_t **, const char **, void *, void *);

int main(int, char **arguments) {
  void *library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  reinterpret_cast<void (*)(int)>(dlsym(library, "set_threads"))(2);
  std::string name, line;
  int count;
  while (std::cin >> name >> count) {
    std::getline(std::cin, line);
    std::vector<std::vector<float>> tensors(count);
    std::vector<std::vector<int64_t>> dimensions(count);
    std::vector<void *> data;
    std::vector<int> ranks;
    std::vector<int64_t *> shapes;
    std::vector<const char *> types(count, "float32");
    for (int i = 0; i < count; i++) {
      std::getline(std::cin, line);
      std::istringstream words(line);
      int64_t size = 1;
      for (int64_t dimension; words >> dimension; size *= dimension) dimensions[i].push_back(dimension);
      tensors[i].resize(size);
      std::cin.read(reinterpret_cast<char *>(tensors[i].data()), size * sizeof(float));
      data.push_back(tensors[i].data());
      ranks.push_back(static_cast<int>(dimensions[i].size()));
      shapes.push_back(dimensions[i].data());
    }
    auto *kernel = reinterpret_cast<Kernel *>(dlsym(library, name.c_str()));
    if (kernel == nullptr || kernel(count, data.data(), ranks.data(), shapes.data(), types.data(), nullptr, nullptr)) {
      std::fprintf(stderr, "%s failed\n", name.c_str());
      return 1;
    }
    for (const auto &tensor : tensors)
      std::cout.write(reinterpret_cast<const char *>(tensor.data()), tensor.size() * sizeof(float));
    std::cout.flush();
  }
}
