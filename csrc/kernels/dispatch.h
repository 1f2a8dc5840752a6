// Which kernel row computes a step on this host, and why. The one list is kernels/kernels.def.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../runtime/program.h"

namespace bitpress {

struct Isa {
  const char* name;
  std::vector<std::string> contains;  // sets whose rows it may also run
  std::string missing;                // features that the host lacks; empty: usable
};

struct Row {
  const char *family, *isa;
  std::string name;  // family_isa
  Op op;
  int w_from, w_to, a_from, a_to;  // bits
  uint32_t lanes, group;
  double cost;
  void (*function)();  // null: its instruction set is not built, see CMakeLists.txt

  // Arguments are of the op's struct in csrc/gemm/contract.h.
  template <class Arguments>
  void run(const Arguments& arguments) const {
    reinterpret_cast<void (*)(const Arguments&)>(function)(arguments);
  }
  bool bitserial() const { return op == Op::kConv2d && group == 32; }
  bool delayed() const;   // sums products in int16
  bool lut() const;       // looks sums of two or three products up
  bool sliced() const;    // adds planes of pixels
  bool packed() const;    // leaves weights in their fields
  bool winograd() const;  // makes four pixels of 3x3 windows at once
  bool flips() const;     // multiplies bytes less 128
  bool tiled() const;     // multiplies tiles of bytes
  bool woven() const;     // weaves rows of 64 channels, of depthwise windows
};

// What the choice depends on. `weight` has no bits where there are none; `rows`, `depth` and `pixels` of one image.
struct Problem {
  Op op;
  Encoding weight, act;
  uint64_t rows = 1, depth = 1, pixels = 1, groups = 1;
  uint64_t tiles = 0;   // of 2x2 outputs, of 3x3 windows one pixel apart without dilation; 0: other windows
  int32_t largest = 0;  // |level| of 8-bit weights at hand; 0: as their encoding has
  uint64_t reach = 1;   // rows of the input that a window spans
  double digits = 0;    // signed powers of two of a weight of at most 4 bits, on average; 0: all codes being as common
  bool by_law = false;  // outputs are more than a few levels, or residuals come in: bit slices must become sums
};
// Levels so few that comparing with where they step is faster than the law.
bool few_levels(const Step& step, const Encoding& out);
Problem problem_of(const Step& step, const Program& program);

// Bytes of weights that stay in the second cache beside what else a layer touches.
constexpr size_t kNear = 512 << 10;

// The largest |level|.
int32_t magnitude(const Encoding& weight);

// How i8dot spells a weight in a signed byte: w = 2^shift * v + factor, |v| <= largest.
struct Split {
  int32_t shift, factor, largest;
};
Split split_weight(const Encoding& weight);
// The same for look-ups; `zero`: some v is 0, because groups may hold activations of no element; levels without a 0 are
// 2 * v + 1 then, half as wide, which pairs want anyway: more of them fit a byte.
Split split_for_lut(const Encoding& weight, bool zero);
// The same for fields that stay packed: unsigned, but of eight bits.
Split split_for_fields(const Encoding& weight);
// The same for slices: levels without a 0 are 2 * v + 1.
Split split_for_slices(const Encoding& weight);
// v as a sum of powers of two and their negatives, as few as can be: [i] is -1, 0 or 1 times 2^i. |v| <= 128.
std::array<int8_t, 9> signed_digits(int32_t v);
// The same for sums of nine weights of at most four bits, which fit a signed byte then.
Split split_for_winograd(const Encoding& weight);
// Level 0 of an activation as i8dot's unsigned byte.
int32_t zero_byte(const Encoding& act);
// Steps of i8dot16 whose sum of products cannot leave int16, whatever the weights; `largest` as in Problem.
int64_t delay_of(const Encoding& weight, const Encoding& act, int32_t largest);

// What BITPRESS_FORCE_ISA and BITPRESS_FORCE_KERNEL allow, read when it is made. Unknown values are Error(kUsage) and
// list the valid ones; what the host lacks is Error(kEnvironment).
class Choice {
 public:
  static Choice from_environment();

  const std::string& isa() const { return isa_; }  // best usable set
  std::string why_unusable(const Row& row) const;  // empty: usable

  struct Verdict {
    const Row* row;
    double cost;      // estimated microseconds; negative: does not fit
    std::string why;  // why it does not fit, or how it was chosen
  };
  std::vector<Verdict> explain(const Problem& problem) const;  // all rows, in the order of the list
  Verdict find(const Problem& problem) const;                  // Error(kUnsupported), with the reasons

 private:
  std::string isa_, cap_, kernel_;
};

const std::vector<Isa>& isas();
const std::vector<Row>& rows();

}  // namespace bitpress
