// Whether the magnitude of every entry of a list of tensors is at most a limit. See __init__.py beside it.
//
// Without its sign bit, a floating-point number is larger as an integer where it is larger, and a NaN is larger than
// infinity.

#include <algorithm>
#include <cstdint>

#include <omp.h>

struct Vector {
  const void* data;
  int64_t size, bytes;  // elements, and the bytes of one: 2, 4 or 8
  uint64_t limit;       // its bits
};

constexpr int64_t BLOCK = 1 << 18;  // long enough for memory to be fetched ahead

template <class T>
bool within(const Vector& v, int64_t begin, int64_t end) {
  constexpr T magnitude = static_cast<T>(~(uint64_t{1} << (8 * sizeof(T) - 1)));
  const T limit = static_cast<T>(v.limit), *x = static_cast<const T*>(v.data) + begin;
  const int64_t size = end - begin, quarter = size / 4;  // a core reads four streams faster than one
  T largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < quarter; ++i) {
    const T a = std::max<T>(x[i] & magnitude, x[i + quarter] & magnitude);
    const T b = std::max<T>(x[i + 2 * quarter] & magnitude, x[i + 3 * quarter] & magnitude);
    largest = std::max<T>(largest, std::max<T>(a, b));
  }
  for (int64_t i = 4 * quarter; i < size; ++i) largest = std::max<T>(largest, x[i] & magnitude);
  return largest <= limit;
}

// Every thread takes its part of each tensor. From the end to the beginning of everything: what the step that follows
// reads first is then still in the cache.
extern "C" int64_t all_within(const Vector* vectors, int64_t count, int64_t threads) {
  int64_t good = 1;
#pragma omp parallel num_threads(threads) reduction(& : good)
  for (const Vector* v = vectors + count; v-- > vectors;) {
    const int64_t from = v->size * omp_get_thread_num() / omp_get_num_threads();
    const int64_t to = v->size * (omp_get_thread_num() + 1) / omp_get_num_threads();
    for (int64_t end = to; end > from; end -= BLOCK) {
      const int64_t begin = std::max(from, end - BLOCK);
      good &= v->bytes == 2   ? within<uint16_t>(*v, begin, end)
              : v->bytes == 4 ? within<uint32_t>(*v, begin, end)
                              : within<uint64_t>(*v, begin, end);
    }
  }
  return good;
}
