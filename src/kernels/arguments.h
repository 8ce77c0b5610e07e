// The arguments of an operator. They are compared with its signature before it reads or writes memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <string>
#include <type_traits>

namespace {

constexpr int kMismatch = 1;  // what an operator returns if its arguments do not fit

std::string text_of(const int64_t *shape, size_t rank) {
  std::string text = "(";
  for (size_t i = 0; i < rank; i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

// The inputs and outputs as MindSpore passes them: number, ranks, shapes, types.
struct Arguments {
  const char *name;  // of the operator
  int count;
  const int *ranks;
  int64_t **shapes;
  const char **types;

  // A signature such as "NCHW C S -> NCHW" has a word for each argument and a character for each of its dimensions. A
  // digit is the size itself. A letter stands for the same size everywhere. "S" alone is the vector of `settings`
  // numbers; its position is stored in `settings_at`. A star stands before an argument of bytes (uint8); the others are
  // float32. The arrow has no effect.
  bool match(const char *signature, int64_t settings, int *settings_at) const {
    int64_t sizes[128];
    std::fill(sizes, sizes + 128, int64_t{-1});
    int i = 0;
    for (const char *at = signature; *at != '\0';) {
      const bool bytes = *at == '*';
      if (bytes) at++;
      const size_t length = std::strcspn(at, " ");
      const std::string word(at, length);
      at += length + std::strspn(at + length, " ");
      if (word == "->") continue;
      if (i == count) return complain("too few arguments", signature);
      const char *type = bytes ? "uint8" : "float32";
      if (std::strcmp(types[i], type) != 0) return complain("argument " + std::to_string(i) + " is " + types[i], type);
      const int64_t *shape = shapes[i];
      if (word == "S") {
        sizes[static_cast<int>('S')] = settings;
        *settings_at = i;
      }
      bool fits = static_cast<size_t>(ranks[i]) == length;
      for (size_t d = 0; fits && d < length; d++) {
        int64_t &size = sizes[static_cast<int>(word[d])];
        if (word[d] >= '0' && word[d] <= '9') size = word[d] - '0';
        if (size < 0) size = shape[d];
        fits = shape[d] == size;
      }
      if (!fits)
        return complain("argument " + std::to_string(i) + " has the shape " + text_of(shape, ranks[i]), signature);
      i++;
    }
    return i == count || complain("too many arguments", signature);
  }

  // Returns whether argument `i` has this shape.
  bool has_shape(int i, std::initializer_list<int64_t> shape) const {
    if (static_cast<size_t>(ranks[i]) == shape.size() && std::equal(shape.begin(), shape.end(), shapes[i])) return true;
    return complain("argument " + std::to_string(i) + " has the shape " + text_of(shapes[i], ranks[i]),
                    text_of(shape.begin(), shape.size()).c_str());
  }

  // Reports what does not fit; returns false.
  bool complain(const std::string &found, const char *expected) const {
    std::fprintf(stderr, "error: native kernel %s: %s, expected %s\n", name, found.c_str(), expected);
    return false;
  }
};

// Begins the definition of an operator, a function that MindSpore calls. The body gets its `arguments`, which match the
// signature, their `data` and `shapes`, and its `settings`. It returns 0, or kMismatch.
#define OPERATOR(name, Settings, signature)                                                                       \
  static int name##_body(const Arguments &, void **, int64_t **, const Settings &);                               \
  extern "C" int name(int count, void **data, int *ranks, int64_t **shapes, const char **types, void *, void *) { \
    const Arguments arguments{#name, count, ranks, shapes, types};                                                \
    Settings settings{};                                                                                          \
    const int64_t size = std::is_empty<Settings>::value ? 0 : sizeof(Settings) / sizeof(float);                   \
    int at = -1;                                                                                                  \
    if (!arguments.match(signature, size, &at)) return kMismatch;                                                 \
    if (at >= 0) std::memcpy(&settings, data[at], sizeof(Settings));                                              \
    return name##_body(arguments, data, shapes, settings);                                                        \
  }                                                                                                               \
  static int name##_body([[maybe_unused]] const Arguments &arguments, [[maybe_unused]] void **data,               \
                         [[maybe_unused]] int64_t **shapes, [[maybe_unused]] const Settings &settings)

}  // namespace
