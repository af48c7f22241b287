// One step of ALTO on a list of layers, in place: two passes over each, or one where nothing is adapted to norms.
//
// A layer's norms are known only when all of it has been seen. The first pass moves m, v and b and adds up the squares
// of θ and r; the second computes r again and moves θ. It goes backwards, as the end of the layer is in the cache, by stretches.
// Moments that are stored in fewer bits than they are computed in are left to the second pass, so that r is both times
// that of the moments before rounding. Sums are taken over blocks, and over their sums in order: they do not depend
// on the number of threads.
//
// State in 8 bits (eightbit.py) has a scale for every 256 numbers: these are moved in a buffer, and then written at once.
//
// Of a layer that is cut over ranks, the two passes are two functions, both forwards over all layers, and its squares are
// summed over ranks in between.
//
// Compiled once for each combination of PARAM, GRAD, EXP_AVG, EXP_AVG_SQ and EXPLORE_EMA, the types of the tensors,
// REAL, that of the arithmetic, and EXPLORE, TRUST_RATIO, STOCHASTIC_ROUNDING, CUT and LATE, 0 or 1; SHARE, how many
// numbers share a scale, and MARGIN are eightbit.py's. See __init__.py beside it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include <omp.h>

struct bfloat16 {  // the upper half of a float32
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

template <bool has_sign>
struct eight_bits {  // the number of a fraction
  uint8_t code;
};

using real = REAL;
using word = std::conditional_t<sizeof(real) == sizeof(float), uint32_t, uint64_t>;
using wide = std::conditional_t<sizeof(real) == sizeof(float), double, long double>;  // holds the squares of any

struct Layer {
  PARAM* theta;
  const GRAD* grad;
  EXP_AVG* m;
  EXP_AVG_SQ* v;
  EXPLORE_EMA* b;
  float *m_scales, *v_scales, *b_scales;  // of 8 bits
  int64_t rows, size;               // layers stacked in one parameter, each with norms of its own, and their elements
  double correction2, correction3;  // 1 / (1 - β^k)
  uint64_t seed;                    // of the noise that rounds; see rounding.py
  double* sums;                     // if cut: of the squares of θ and r, of each row
  int64_t start, run, stride;       // where the elements lie in the whole parameter; see places.py

  // What is to be added to the index of an element for its place, and where that changes.
  int64_t offset(int64_t i) const { return start + i / run * (stride - run); }
  int64_t run_end(int64_t i) const { return (i / run + 1) * run; }
};

struct Hyper {
  double scale, beyond, weight1, weight2, weight3;  // of the gradient; 1+α(1-β1); 1-β1, 1-β2, 1-β3
  double eps, weight_decay, lr, trust_eps, low, high;
  double remaining, least, most;  // of θ where decay is decoupled, else 1; the range of the ratio
};

struct Fractions {  // eightbit.tables
  const float *values, *per_step;
  const int32_t* below;
};

constexpr int64_t BLOCK = 4096;        // elements whose squares are added up in one go
constexpr int64_t STRETCH = 32;        // blocks that are walked through forwards, as memory is fetched ahead that way
constexpr int64_t PARALLEL = 1 << 15;  // elements from which a layer is worth more than one thread
constexpr real LEAST = std::numeric_limits<real>::min() / std::numeric_limits<real>::epsilon() * BLOCK;
constexpr int EXP_AVG_SEED = 1, EXP_AVG_SQ_SEED = 2, EXPLORE_EMA_SEED = 3;
constexpr bool EXACT = !LATE && sizeof(EXP_AVG) >= sizeof(real) && sizeof(EXP_AVG_SQ) >= sizeof(real);
constexpr bool NOISE = STOCHASTIC_ROUNDING || sizeof(EXP_AVG) < 4 || sizeof(EXP_AVG_SQ) < 4 ||
                       (EXPLORE && sizeof(EXPLORE_EMA) < 4);  // rounded by where an element lies
constexpr bool EIGHT_BITS = sizeof(EXP_AVG) == 1 || sizeof(EXP_AVG_SQ) == 1 || sizeof(EXPLORE_EMA) == 1;
constexpr int64_t RUN = EIGHT_BITS ? SHARE : BLOCK;  // elements of one loop

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
inline real load(T x) {
  return static_cast<real>(x);
}

inline real load(bfloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

inline real load(float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = (x.bits & 0x7FFFu) << 13;
  const float finite = bits_as<float>(magnitude) * 0x1p112f;  // the exponents count from another zero
  return bits_as<float>(sign | (magnitude < 0x0F800000u ? bits_as<uint32_t>(finite) : magnitude | 0x7F800000u));
}

// 16 random bits for each index: a 32-bit hash, two rounds of multiply and xor-shift.
inline uint32_t noise(int64_t index, uint64_t seed) {
  uint32_t h = static_cast<uint32_t>(index) * 0x9E3779B1u + static_cast<uint32_t>(seed);
  h = (h ^ (h >> 16)) * 0x21F0AAADu;
  h = (h ^ (h >> 15)) * 0x735A2D97u;
  return (h ^ (h >> 15)) & 0xFFFFu;
}

template <bool stochastic, class T>
inline void store(T& to, real x, int64_t, uint64_t) {
  to = static_cast<T>(x);
}

template <bool stochastic>
inline void store(bfloat16& to, real value, int64_t index, uint64_t seed) {
  const float x = static_cast<float>(value);
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = bits + (stochastic ? noise(index, seed) : 0x7FFFu + ((bits >> 16) & 1u));
  to.bits = static_cast<uint16_t>((x != x ? bits | 0x400000u : rounded) >> 16);
}

template <bool stochastic>
inline void store(float16& to, real value, int64_t, uint64_t) {
  const uint32_t bits = bits_as<uint32_t>(static_cast<float>(value)), magnitude = bits & 0x7FFFFFFFu;
  uint32_t rounded = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  if (magnitude < 0x38800000u) rounded = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3F000000u;  // subnormal
  if (magnitude >= 0x47800000u) rounded = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;  // NaN and infinity
  to.bits = static_cast<uint16_t>(rounded | (bits >> 16 & 0x8000u));
}

template <bool has_sign>
void decode(const eight_bits<has_sign>* from, float scale, Fractions of, float* numbers) {
#pragma omp simd
  for (int64_t j = 0; j < RUN; ++j) numbers[j] = of.values[from[j].code] * scale;
}

// As eightbit.write does.
template <bool has_sign>
void encode(const float* numbers, int64_t first, uint64_t seed, Fractions of, eight_bits<has_sign>* to, float* scale) {
  // As integers, magnitudes are in the order of the numbers, and a NaN is the largest; the last bit prefers no sign.
  uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < RUN; ++j) {
    const uint32_t bits = bits_as<uint32_t>(numbers[j]);
    largest = std::max(largest, bits << 1 | ~bits >> 31);
  }
  *scale = bits_as<float>(largest >> 1 | ~largest << 31);
  const float divisor = *scale == 0 ? 1 : *scale;
#pragma omp simd
  for (int64_t j = 0; j < RUN; ++j) {
    const float y = numbers[j] / divisor;
    int32_t code = of.below[(bits_as<int32_t>(y) >> 16) + 0x8000];
    code = std::min(code + (y >= of.values[code + 1]), 254);
    const float steps = (y - of.values[code]) * of.per_step[code];
    const float draw = static_cast<float>(static_cast<int32_t>(noise(first + j, seed) + MARGIN));
    const int32_t lost = has_sign ? 0 : (code == 0) & (y > 0);
    to[j].code = static_cast<uint8_t>(code + ((draw < steps) | lost));
  }
}

// State of a layer, in a loop that begins with open and ends with close, and in 8 bits goes over a run.
template <class T>
struct Buffer {
  T* at;
  uint64_t seed;

  Buffer(T* numbers, float*, uint64_t s, const Fractions*) : at(numbers), seed(s) {}
  void open(int64_t, float*) {}
  real get(int64_t i) const { return load(at[i]); }
  void set(int64_t i, real x, int64_t offset) { store<true>(at[i], x, i + offset, seed); }
  void close(int64_t, int64_t) {}
};

template <bool has_sign>
struct Buffer<eight_bits<has_sign>> {
  eight_bits<has_sign>* codes;
  float* scales;
  uint64_t seed;
  Fractions fractions;
  float* at = nullptr;

  Buffer(eight_bits<has_sign>* c, float* of_runs, uint64_t s, const Fractions* of)
      : codes(c), scales(of_runs), seed(s), fractions(of[has_sign]) {}

  void open(int64_t first, float* numbers) {
    decode(codes + first, scales[first / RUN], fractions, numbers);
    at = numbers - first;
  }

  real get(int64_t i) const { return at[i]; }
  void set(int64_t i, real x, int64_t) { at[i] = static_cast<float>(x); }
  void close(int64_t first, int64_t offset) {
    encode(at + first, first + offset, seed, fractions, codes + first, scales + first / RUN);
  }
};

// start + weight (end - start), as torch.lerp has it: from the end that weighs more, as rounding errors are of its size.
struct Lerp {
  word of_start;  // all bits or none: a select that the compiler cannot take for a branch
  real factor;

  explicit Lerp(double weight) : of_start(weight < 0.5 ? ~word{0} : word{0}), factor(of_start ? weight : weight - 1) {}

  real operator()(real start, real end) const {
    const word nearer = (bits_as<word>(start) & of_start) | (bits_as<word>(end) & ~of_start);
    return bits_as<real>(nearer) + factor * (end - start);
  }
};

// A layer, and the same numbers in the precision of the arithmetic.
struct Step {
  Layer layer;
  Buffer<EXP_AVG> m;
  Buffer<EXP_AVG_SQ> v;
  Buffer<EXPLORE_EMA> b;
  Lerp to_h, to_b, to_m, to_v;
  real scale, eps, weight_decay, remaining, lr, correction2, correction3;
  int64_t offset = 0;

  Step(const Layer& l, const Hyper& k, const Fractions* fractions)
      : layer(l), m(l.m, l.m_scales, l.seed + EXP_AVG_SEED, fractions),
        v(l.v, l.v_scales, l.seed + EXP_AVG_SQ_SEED, fractions),
        b(l.b, l.b_scales, l.seed + EXPLORE_EMA_SEED, fractions), to_h(k.beyond), to_b(k.weight1), to_m(k.weight2),
        to_v(k.weight3), scale(k.scale), eps(k.eps), weight_decay(k.weight_decay), remaining(k.remaining), lr(k.lr),
        correction2(l.correction2), correction3(l.correction3) {}

  // The end of a loop that begins at first, whose elements follow each other in the whole as well.
  int64_t last(int64_t first, int64_t end) const {
    const int64_t last = std::min(first + RUN, end);
    return NOISE ? std::min(last, layer.run_end(first)) : last;
  }

  void open(int64_t first, float (*numbers)[RUN]) {
    if constexpr (NOISE) offset = layer.offset(first);
    m.open(first, numbers[0]);
    v.open(first, numbers[1]);
    b.open(first, numbers[2]);
  }

  void close(int64_t first) {
    m.close(first, offset);
    v.close(first, offset);
    b.close(first, offset);
  }
};

inline real direction(const Step& s, real theta, real m, real v) {
  return m * s.correction2 / (std::sqrt(v * s.correction3) + s.eps) + s.weight_decay * theta;
}

// r of one element, whose m, v and b move, and are written back if so asked.
template <bool keep>
inline real advance(Step& s, real theta, int64_t i) {
  real h = load(s.layer.grad[i]) * s.scale;
  if constexpr (EXPLORE) {
    const real b = s.b.get(i);
    if constexpr (keep) s.b.set(i, s.to_b(b, h), s.offset);
    h = s.to_h(b, h);
  }
  const real m = s.to_m(s.m.get(i), h), v = s.to_v(s.v.get(i), h * h);
  if constexpr (keep) {
    s.m.set(i, m, s.offset);
    s.v.set(i, v, s.offset);
  }
  return direction(s, theta, m, v);
}

// Which of the two products is rounded is not left to the compiler: it chose one in vectors and the other behind the last
// of them, and so by how a layer is cut over ranks.
inline void move(const Step& s, int64_t i, real theta, real rate, real r) {
#if defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
  theta = std::fma(-rate, r, s.remaining * theta);
#else
  theta = s.remaining * theta - rate * r;
#endif
  store<STOCHASTIC_ROUNDING>(s.layer.theta[i], theta, i + s.offset, s.layer.seed);
}

struct Squares {
  wide theta = 0, r = 0;
};

// Whether a sum of squares has lost none that matters by being too large or too small.
inline bool holds(real sum) { return sum >= LEAST && sum <= std::numeric_limits<real>::max(); }

// The sums anew, of numbers whose squares are beyond the type of the arithmetic; the state has moved, where it has.
[[gnu::noinline]] Squares wide_squares(Step s, int64_t begin, int64_t end) {
  wide of_theta = 0, of_r = 0;
#pragma omp simd reduction(+ : of_theta, of_r)
  for (int64_t i = begin; i < end; ++i) {
    const real theta = load(s.layer.theta[i]);
    const wide r = EXACT ? direction(s, theta, s.m.get(i), s.v.get(i)) : advance<false>(s, theta, i);
    of_theta += static_cast<wide>(theta) * theta;
    of_r += r * r;
  }
  return {of_theta, of_r};
}

Squares first_pass(Step s, int64_t begin, int64_t end) {
  Squares sums;
  for (int64_t first = begin, last; first < end; first = last) {
    last = s.last(first, end);
    float numbers[3][RUN];
    s.open(first, numbers);
    real of_theta = 0, of_r = 0;
#pragma omp simd reduction(+ : of_theta, of_r)
    for (int64_t i = first; i < last; ++i) {
      const real theta = load(s.layer.theta[i]), r = advance<EXACT>(s, theta, i);
      of_theta += theta * theta;
      of_r += r * r;
    }
    const Squares found = holds(of_theta) && holds(of_r) ? Squares{of_theta, of_r} : wide_squares(s, first, last);
    sums.theta += found.theta;
    sums.r += found.r;
    if constexpr (EXACT) s.close(first);
  }
  return sums;
}

void only_pass(Step s, real rate, int64_t begin, int64_t end) {
  for (int64_t first = begin, last; first < end; first = last) {
    last = s.last(first, end);
    float numbers[3][RUN];
    s.open(first, numbers);
#pragma omp simd
    for (int64_t i = first; i < last; ++i) {
      const real theta = load(s.layer.theta[i]);
      move(s, i, theta, rate, advance<true>(s, theta, i));
    }
    s.close(first);
  }
}

void second_pass(Step s, real rate, int64_t begin, int64_t end) {
  if constexpr (!EXACT) {
    only_pass(s, rate, begin, end);
  } else {
    for (int64_t first = begin, last; first < end; first = last) {
      last = s.last(first, end);
      if constexpr (NOISE) s.offset = s.layer.offset(first);
#pragma omp simd
      for (int64_t i = first; i < last; ++i) {
        const real theta = load(s.layer.theta[i]);
        move(s, i, theta, rate, direction(s, theta, s.m.get(i), s.v.get(i)));
      }
    }
  }
}

double trust_ratio(const Squares& squares, const Hyper& k) {
  const wide norm = std::sqrt(squares.theta) * std::abs(k.remaining), r = std::sqrt(squares.r);
  const wide phi = std::min<wide>(std::max<wide>(norm, k.low), k.high);
  return phi > 0 && r > 0 ? std::min<wide>(std::max<wide>(phi / (r + k.trust_eps * phi), k.least), k.most) : 1.0;
}

// How rows of a layer are cut into blocks, none of which reaches over two rows.
struct Blocks {
  int64_t size, first, rows;
  int64_t in_row = (size + BLOCK - 1) / BLOCK, count = rows * in_row;

  int64_t begin(int64_t j) const { return (first + j / in_row) * size + j % in_row * BLOCK; }
  int64_t end(int64_t j) const { return std::min(begin(j) + BLOCK, (first + j / in_row + 1) * size); }

  // What learning rate and trust ratio make of a row.
  real rate(int64_t row, const std::vector<Squares>& sums, const Hyper& k) const {
    Squares total;
    for (int64_t j = row * in_row; j < (row + 1) * in_row; ++j) {
      total.theta += sums[j].theta;
      total.r += sums[j].r;
    }
    return k.lr * trust_ratio(total, k);
  }
};

#if !CUT

// How many rows are taken together: one by one, if they are large, so that the second pass finds them in the cache.
int64_t together(const Layer& layer) { return layer.size >= PARALLEL ? 1 : layer.rows; }

// All threads walk through the list. A large layer is shared out among them, and they wait for each other between its
// two passes; a small one is left to one of them.
extern "C" int64_t step(const Layer* layers, int64_t count, const Hyper* hyper, const Fractions* fractions,
                        int64_t threads) {
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, Blocks{layers[i].size, 0, together(layers[i])}.count);
  // Two, in turns: a thread may begin with the next layer while another still adds up the sums of this one.
  std::vector<Squares> shared[2] = {std::vector<Squares>(most), std::vector<Squares>(most)};
#pragma omp parallel num_threads(threads)
  {
    std::vector<Squares> own;
    const int64_t all = omp_get_num_threads(), me = omp_get_thread_num();
    int turn = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Layer& layer = layers[i];
      const Step s(layer, *hyper, fractions);
      const bool large = layer.rows * layer.size >= PARALLEL;
      if (!large && i % all != me) continue;
      for (int64_t first = 0; first < layer.rows; first += together(layer)) {
        const Blocks blocks{layer.size, first, together(layer)};
        const int64_t from = large ? blocks.count * me / all : 0;
        const int64_t to = large ? blocks.count * (me + 1) / all : blocks.count;
        if constexpr (TRUST_RATIO) {
          if (!large) own.resize(std::max<int64_t>(own.size(), blocks.count));
          std::vector<Squares>& sums = large ? shared[turn ^= 1] : own;
          for (int64_t j = from; j < to; ++j) sums[j] = first_pass(s, blocks.begin(j), blocks.end(j));
          if (large) {
#pragma omp barrier
          }
          int64_t row = -1;
          real rate = 0;
          for (int64_t end = to; end > from; end -= STRETCH) {
            for (int64_t j = std::max(from, end - STRETCH); j < end; ++j) {
              if (j / blocks.in_row != row) rate = blocks.rate(row = j / blocks.in_row, sums, *hyper);
              second_pass(s, rate, blocks.begin(j), blocks.end(j));
            }
          }
        } else {
          for (int64_t j = from; j < to; ++j) only_pass(s, s.lr, blocks.begin(j), blocks.end(j));
        }
      }
    }
  }
  return count;
}

#else

// Sums of squares as they are added up over ranks: of doubles, those beyond the range of a square by themselves.
constexpr int64_t PARTS = sizeof(real) == sizeof(float) ? 1 : 3;

void write(wide sum, double* parts) {
  if constexpr (PARTS == 1) {
    parts[0] = sum;
  } else {
    parts[0] = parts[1] = parts[2] = 0;
    if (sum > 0x1p1000L) parts[2] = sum * 0x1p-1100L;
    else if (sum < 0x1p-1000L) parts[0] = sum * 0x1p1100L;
    else parts[1] = sum;
  }
}

wide read(const double* parts) {
  if constexpr (PARTS == 1) return parts[0];
  else return parts[0] * 0x1p-1100L + parts[1] + parts[2] * 0x1p1100L;
}

// Calls visit(layer, its blocks, how many came before, from, to) for what each thread has to do of a layer.
template <class Visit>
void walk(const Layer* layers, int64_t count, int64_t threads, const Visit& visit) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += Blocks{layers[i].size, 0, layers[i].rows}.count;
#pragma omp parallel num_threads(total * BLOCK >= PARALLEL ? threads : 1)
  {
    const int64_t from = total * omp_get_thread_num() / omp_get_num_threads();
    const int64_t to = total * (omp_get_thread_num() + 1) / omp_get_num_threads();
    int64_t before = 0;
    for (int64_t i = 0; i < count && before < to; ++i) {
      const Blocks blocks{layers[i].size, 0, layers[i].rows};
      visit(layers[i], blocks, before, std::max<int64_t>(from - before, 0), std::min(to - before, blocks.count));
      before += blocks.count;
    }
  }
}

// The first half: every row's squares, to layer.sums, and the state moved unless that is left to the second.
extern "C" int64_t begin(const Layer* layers, int64_t count, const Hyper* hyper, const Fractions* fractions,
                         int64_t threads) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += Blocks{layers[i].size, 0, layers[i].rows}.count;
  std::vector<Squares> sums(total);
  walk(layers, count, threads, [&](const Layer& layer, const Blocks& blocks, int64_t before, int64_t from, int64_t to) {
    if (from >= to) return;
    const Step s(layer, *hyper, fractions);
    for (int64_t j = from; j < to; ++j) sums[before + j] = first_pass(s, blocks.begin(j), blocks.end(j));
  });
  const Squares* next = sums.data();
  for (int64_t i = 0; i < count; ++i) {
    const Blocks blocks{layers[i].size, 0, layers[i].rows};
    for (int64_t row = 0; row < blocks.rows; ++row) {
      Squares of_row;
      for (int64_t j = 0; j < blocks.in_row; ++j, ++next) {
        of_row.theta += next->theta;
        of_row.r += next->r;
      }
      write(of_row.theta, layers[i].sums + 2 * PARTS * row);
      write(of_row.r, layers[i].sums + 2 * PARTS * row + PARTS);
    }
  }
  return count;
}

// The second: the layers moved, now that layer.sums are those of all ranks.
extern "C" int64_t finish(const Layer* layers, int64_t count, const Hyper* hyper, const Fractions* fractions,
                          int64_t threads) {
  walk(layers, count, threads, [&](const Layer& layer, const Blocks& blocks, int64_t, int64_t from, int64_t to) {
    if (from >= to) return;
    const Step s(layer, *hyper, fractions);
    int64_t row = -1;
    real rate = 0;
    for (int64_t j = from; j < to; ++j) {
      if (j / blocks.in_row != row) {
        row = j / blocks.in_row;
        const double* sums = layer.sums + 2 * PARTS * row;
        rate = hyper->lr * trust_ratio({read(sums), read(sums + PARTS)}, *hyper);
      }
      second_pass(s, rate, blocks.begin(j), blocks.end(j));
    }
  });
  return count;
}

#endif
