// A step bound to a kernel row: private weight layout, padded constants, and how its work is cut into items.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../gemm/contract.h"
#include "../kernels/dispatch.h"
#include "memory.h"
#include "program.h"

namespace bitpress {

constexpr size_t kSpareRows = 16;  // constants behind the last row that a vector may read

// Codes [depth] of one row of packed fields.
std::vector<uint8_t> codes_of(const Step& step, uint32_t row);

// Steps between rests, `delay` at most, for which no lane of int16 is left: its sums lie between those of its positive
// and of its negative weights, times the largest byte of an activation, `top`. `weights`: [steps][lanes][4]. Each
// pair's sum alone must fit.
uint32_t delay_at_hand(const int8_t* weights, uint32_t steps, uint32_t lanes, int32_t top, uint32_t delay);

// Where a step's buffers lie for the images at hand; `residual` may be null.
struct Place {
  const uint8_t* data;
  const uint8_t* residual;
  uint8_t* output;
  size_t images;
  bool lines = false;  // convolutions that Bound::link has linked hand each other bit planes; each runs whole then
};

// Rounded windows of a convolution, one group: see gemm::Conv.
struct Windows {
  bool image = false;  // depthwise8 reads the image itself, whose borders it knows
  bool flat = false;   // output pixels of all images form one line, and each window is one contiguous run
  bool copy = false;   // through scratch memory, where borders are written and levels shifted or widened
  uint32_t element = 1;
  uint8_t zero = 0;       // byte of level 0 in scratch memory
  uint32_t channels = 0;  // of the group
  uint32_t taps = 0, run = 0, valid = 0;
  std::vector<uint32_t> offsets;
  size_t row_bytes = 0;   // of the (bordered) input
  uint32_t band = 0;      // output rows (flat: pixels) of one pass through scratch memory
  size_t band_bytes = 0;  // of the input of one pass
  size_t scratch = 0;     // bytes of that memory
};

// Planes of an activation there: kernels know 1, 2 and 4.
uint32_t planes_of_slices(const Encoding& act);

// A convolution by bit slices: see gemm::Conv.
struct Slices {
  uint32_t chunk = 0, chunks = 0;  // columns of channels in one; how many
  bool shifted = false;
  uint32_t vector = 0, columns = 1, pitch = 0, vectors = 0, tall = 0;
  size_t line = 0;
  size_t next_line = 0;         // of the step that reads this one's lines, 0: none
  uint32_t next_top = 0;        // its border
  bool linked = false;          // reads lines
  double digits_of_weight = 0;  // on average
  uint32_t levels = 0, digits = 1, stored_bits = 0;
  bool odd = false;
  std::vector<uint32_t> starts, thresholds, falling;  // of one group after another
};

// A convolution by Winograd's tiles: see gemm::Conv.
struct WinogradTiles {
  uint32_t run = 0, strip = 0;
  uint8_t lift = 0;
  std::vector<int32_t> bias;  // [groups][4][padded rows], and more
};

class Bound {
 public:
  // Lays everything out; `step.fields` is not read again. Error(kUnsupported) where no row fits.
  Bound(const Step& step, const Program& program, const Choice& choice);

  const Row& row() const { return *row_; }
  const std::string& why() const { return why_; }
  size_t scratch_bytes() const { return scratch_; }
  size_t weight_bytes() const {
    return weights_.size() + tables_.size() + sizeof(uint32_t) * (slices_.starts.size() + slices_.thresholds.size());
  }
  // Lets `from` leave bit planes for `to`, which alone reads what it writes, where both are cut alike.
  static void link(Bound& from, Bound& to);

  // Rough number of operations, to tell whether threads are worth waking.
  double work(size_t images) const;

  // The work on `images` images falls into items(images) parts that may run in any order and at the same time; or, for
  // matrix products, into blocks() parts, each for all items.
  size_t items(size_t images) const;
  uint32_t blocks() const { return blocks_; }
  void run(const Place& place, size_t begin, size_t end, uint8_t* scratch) const {
    run(place, begin, end, 0, blocks_, scratch);
  }
  void run(const Place& place, size_t begin, size_t end, uint32_t block_begin, uint32_t block_end,
           uint8_t* scratch) const;

 private:
  void bind_epilogue(const Step& step, uint32_t per_group);
  void bind_convolution(const Step& step);
  void bind_lut(const Step& step, const Split& split);
  void bind_fields(const Step& step);
  void bind_slices(const Step& step);
  void plan_slices(const Step& step);
  void bind_winograd(const Step& step);
  void bind_thresholds(const Step& step, int64_t most);
  void bind_depthwise(const Step& step);
  bool slides() const;
  void bind_gather(const Step& step);
  void bind_rises(const Step& step);
  void find_scale(float m);
  void bind_lookup(const Step& step);
  void plan_windows(bool channels_chosen);
  void plan_bands(size_t weight_bytes);
  gemm::Output output(const Place& place) const;
  void copy_band(const uint8_t* image, uint32_t group, int64_t row, uint32_t rows, uint8_t* to) const;
  void copy_line(const uint8_t* from, size_t elements, uint8_t* to) const;
  void run_convolution(const Place&, size_t begin, size_t end, uint32_t block_begin, uint32_t block_end,
                       uint8_t* scratch) const;
  uint32_t blocks_at_once(size_t rows) const;
  void run_line(const Place&, size_t begin, size_t end, gemm::Conv conv, uint8_t* scratch) const;
  void run_depthwise(const Place&, size_t begin, size_t end, uint8_t* scratch) const;
  void run_pool(const Place&, size_t begin, size_t end, uint8_t* scratch) const;
  void run_gather(const Place&, size_t begin, size_t end) const;
  void run_lookup(const Place&, size_t begin, size_t end) const;
  void run_product(const Place&, size_t begin, size_t end, uint8_t* scratch) const;
  void run_values(const Place&, size_t begin, size_t end) const;

  Step step_;
  Buffer in_, out_;
  Encoding residual_;
  uint64_t residual_elements_ = 0;
  const Row* row_ = nullptr;
  std::string why_;
  Memory weights_, tables_;
  std::vector<float> m_, b_;
  std::vector<int32_t> bias_, coeffs_;
  uint32_t padded_rows_ = 0;  // of one group's constants
  uint32_t blocks_ = 1;       // of one group
  size_t block_bytes_ = 0, group_bytes_ = 0;
  int32_t shift_ = 0, factor_ = 0;
  bool small_ = false;  // Output::small
  uint32_t delay_ = 0, words_ = 0;
  Windows windows_;
  Slices slices_;
  WinogradTiles winograd_;
  std::vector<gemm::GatherRun> runs_;
  std::vector<int8_t> rises_;  // of a requantize step: see gemm::Requantize
  uint8_t base_ = 0;
  uint16_t scale_ = 0, up_ = 0, down_ = 0;
  size_t scratch_ = 0;
};

}  // namespace bitpress
