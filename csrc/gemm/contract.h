// What the kernels compute and what they are given. Declarations only: this is all that files compiled for an
// instruction set may share with others (an inline function here would leak AVX-512 code into baseline objects).
//
// The algebra. A level is offset + sum(coeffs[p] * bit[p]) (docs/format.md 2). For row r and output pixel x
//   acc[r, x] = sum over the window of w[r, k] * a[x, k], an exact int32; padding is level 0;
//   out[r, x] = clamp(half_to_even(acc * m[r] + b[r] + residual * m_r)), each float32 operation rounded on its own;
//               no rounding to an integer where floats are stored.
// Seven families compute acc.
//   i8dot      w = 2^shift * v + factor with v a signed byte (or int16), a = byte - zero with an unsigned byte:
//              acc = 2^shift * dot(v, byte) + factor * sum(byte) + bias[r]
//              bias[r] = -zero * (2^shift * sum(v) + factor * K): the border holds `zero` too, so it is one constant.
//              Steps may wrap modulo 2^32; the final sum is proved to fit (AccumulatorOverflow), hence exact.
//   s8dot      i8dot with dot(v, byte - 128): both sides are signed bytes, and bias[r] has 128 * 2^shift * sum(v) more.
//   bitserial  acc = sum over planes p, q of cw[p] * ca[q] * popcount(W_p & A_q) + factor * sum(a) + bias[r], factor
//              being the weights' offset. Activations have none, and zero bits add nothing: K is padded for free.
//   lut        dot(v, byte) of i8dot, for bytes below 4 and at most four v: in twos or threes (the row's group), from a
//              table of all 16 x 16 or 64 x 64 sums of so many products, each with a constant that makes it unsigned;
//              bias[r] takes that back too.
//   winograd   i8dot of 3x3 windows one pixel apart, in 16 products for four pixels: csrc/gemm/winograd.inl.
//   gemv       i8dot for few pixels: weights stay in fields of 1, 2, 4 or 8 bits, w = 2^shift * field + factor with an
//              unsigned field (of eight bits a signed one, as i8dot's).
//   bitsliced  a vector holds one bit of many pixels, a weight is no data but a list: w = v, or w = 2 * v + 1 where no
//              level is 0, v a sum of signed powers of two, and there is a list of elements for each power. Counters
//              are bit planes. To take a byte away is to add 2^a_bits - 1 - byte, so that they are never negative;
//              bias[r] takes that back too. Of 2 * v + 1, the sum of the window is added once for all rows.
//
// Rules for all of them. Kernels are single-threaded, do not allocate, throw, keep anything or call anything but
// memcpy and memset; two calls may run at once if they write different rows or pixels and have scratch memory of their
// own. No argument overlaps what is written. Vectors are read past the end of a run: every input needs kSlack readable
// bytes behind it (their value does not matter). Floating point: the default rounding mode, no flushing of denormals.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitpress::gemm {

constexpr size_t kSlack = 64;       // readable bytes behind any activations, and behind residual and output
constexpr uint32_t kStrip = 16;     // pixels whose bit planes are made at once
constexpr uint32_t kMaxLanes = 16;  // constants of rows are padded with zeros to a multiple of this

// bitsliced: elements that are added together, or half as many; channels of input that become planes, and of output
// that are summed at once; unit of places, in bytes; counters that are held in registers, for 1, 2 or 4 planes, which a
// block leaves as one carry; carries that go up together.
constexpr uint32_t kSliceBlock = 16;
constexpr uint32_t kSliceChannels = 16;
constexpr size_t kSlicePlace = 8;
constexpr uint32_t kSliceCarry[] = {0, 4, 6, 0, 8};
constexpr size_t kSliceTogether = 4;

constexpr uint32_t kWinogradBlocks = 2;  // of channels that share a strip's transformed levels at once, at most

constexpr uint32_t kGemvPixels = 4;  // that share an unpacked weight

constexpr uint32_t kLeastDelay = 4;  // i8dot16 widens every step where Conv::delay is less: no slower, and no rests

enum class Storage : uint8_t { kU8, kI8, kF32 };

// Where rows of pixels go, and by which law. Values are NHWC: row r of pixel x lies at x * channels + channel(r).
struct Output {
  void* data;
  Storage storage;
  Storage residual_storage;
  const void* residual;         // of the output's shape; null: none
  size_t channels;              // distance between pixels, in elements
  const int32_t* out_channels;  // [rows]; null: row r writes channel first_channel + r
  size_t first_channel;
  const float* m;       // [rows, padded]
  const float* b;       // [rows, padded]
  const int32_t* bias;  // [rows, padded], added to the int32 sum; not read for float input
  int32_t shift;        // sum * 2^shift + bias + factor * window sum
  int32_t factor;       // 0: no window sums
  float lo, hi, m_r;    // integers where levels are stored
  bool small;           // no value is above 2^30 before it is bounded
};

// A convolution on one group of channels: `out_rows` x `out_cols` output pixels. The window of output pixel (y, x)
// consists of `taps` runs; run t starts at in + y * row_stride + x * pixel_stride + tap_offsets[t] (bytes).
struct Conv {
  const uint8_t* in;  // bytes, or int16 where the row's group is 2 or 1
  size_t row_stride, pixel_stride;
  const uint32_t* tap_offsets;
  uint32_t taps;
  uint32_t run;    // elements of a run, a multiple of the row's group for i8dot
  uint32_t valid;  // those of them that count; weights of the others are zero
  const void* weights;
  size_t block_stride;              // bytes between blocks of `lanes` rows
  uint32_t rows;                    // M; blocks = ceil(M / lanes)
  uint32_t block_begin, block_end;  // which of them to compute
  uint32_t out_rows, out_cols;
  size_t first_pixel, out_row_pixels;  // index of pixel (0, 0) in the output, and from one row to the next
  // i8dot16, winograd8: steps of `group` elements whose sum fits int16, with the weights at hand; at least 1
  // lut: look-ups whose sum fits uint8, in fours
  uint32_t delay;
  uint32_t strip;  // winograd: tiles of 2x2 outputs at once; `run` channels of each, `valid` for window sums
  uint8_t lift;    // winograd8: what makes transformed levels unsigned, and what takes it back, four times as much:
  const int32_t* tile_bias;  // [4 pixels of a tile][tile_bias_apart], of which `rows` count
  size_t tile_bias_apart;
  const uint8_t* tables;  // lut: [code of a group of activations][code of weights], 2 bits each, first lowest
  // bitserial
  uint32_t w_bits, a_bits, words;  // words of 32 bits of one plane of K = taps * valid elements
  const int32_t* coeffs;           // [w_bits, a_bits]: cw[p] * ca[q]
  uint8_t flip;                    // 0x80 where the bytes are signed levels, for the sum of a window
  // bitsliced: taps are rows of the kernel, tap_offsets the input rows where they begin, `run` columns of channels make
  // a chunk. `above` rows of zeros, then `in_rows` from `in` on, then zeros again, of in_cols columns. `shifted`:
  // columns of the kernel are what column 0 sees, column_bytes pixels to the right each, `left` pixels further left;
  // zeros outside
  uint32_t columns;  // of the kernel
  uint32_t above, in_rows, in_cols, stride_h;
  size_t in_row_bytes, column_bytes;  // from one row, one column of the kernel to the next
  bool shifted;
  uint32_t left;
  uint32_t vector, pitch;  // bytes of a vector, where the row has two sizes; of a row of output pixels there
  uint32_t vectors;        // of a column, at most
  size_t line;             // bytes of a plane of rows `apart` rows apart, see csrc/gemm/bitsliced.inl
  // Lines [channels][a_bits][apart] instead of `in`, and instead of levels in `out` those of the convolution that reads
  // them, which has out_top rows of border; null: none
  const uint8_t* in_lines;
  uint8_t* out_lines;
  uint32_t out_top;
  size_t out_line;
  uint32_t levels;         // planes of a sum
  uint32_t digits;         // most of a weight
  bool odd;                // w = 2 * v + 1
  const uint32_t* starts;  // [chunks][blocks + 1]: where the list of a block begins, in uint16; last: every element
  // Stored levels of `stored_bits` by comparison: masks [rows][2^stored_bits - 1][levels], lowest first, of ascending
  // thresholds; those that a sum reaches are counted, `falling` counts down. 0 bits: by law.
  uint32_t stored_bits;
  const uint32_t* thresholds;
  const uint32_t* falling;  // [rows] mask
  // gemv: kGemvPixels windows, each filled up to whole chunks. bitserial, aligned to 64: kStrip * (K rounded up to 64,
  // and 64 more) bytes, then kStrip * a_bits * (words, made even) words. lut: codes of all bytes from `in` to the last
  // window's, and 64 more. winograd, aligned to 64: a strip, as csrc/gemm/winograd.inl cuts it. bitsliced, aligned to
  // 64: planes of lines, of a chunk's elements, and sums, as csrc/gemm/bitsliced.inl cuts it
  uint8_t* scratch;
  Output out;
};

// weights of i8dot and s8dot rows: [blocks][taps * run / group][lanes][group] of int8 (group 4, 8) or int16 (group 2);
// for the generic row [rows][taps * run] int16; where tiles are multiplied (group 64), as for group 4. Weights of
// bitserial rows: uint32 [blocks][w_bits][words][lanes]. Weights of winograd rows: those of i8dot for each of 16 places
// of a tile, [blocks][16][run / group][lanes][group]. Weights of lut rows: codes of groups [blocks][taps][ceil(valid /
// group)][lanes]; lane 2i is channel i of the block, lane 2i + 1 is channel lanes / 2 + i. Weights of gemv rows:
// [blocks][lanes][chunks] vectors of fields, as csrc/gemm/gemv.inl cuts them; the rest is zero. Lists of bitsliced
// rows, of uint16, one for each digit of each row, chunk by chunk: how many times kSliceBlock elements are added, and
// taken away, then half as many; how many counters above the low ones the digit's can reach; places of elements in the
// chunk. Padded with elements that are nothing there. The row behind the last has one list, of every element.

// Row r reads channel r of `in` (channels already chosen and bordered with zeros) and weights[tap][r].
struct Depthwise {
  const uint8_t* in;  // bytes, u8 or i8
  bool is_signed;
  size_t row_stride, pixel_stride;
  const uint32_t* tap_offsets;
  uint32_t taps, columns;  // of them in a row of the kernel
  uint32_t sliding;  // a window of 3 x 3, its columns column_bytes apart: of how many the next pixel's begins; or 0
  size_t column_bytes;
  // [taps][rows padded to kMaxLanes], the low 16 bits, the high ones zero; where the row's group is 2 or 4, of so many
  // rows of the kernel one, [ceil(taps / columns / group)][columns][rows padded], the first's in the lowest 16 or 8
  // bits. Group 4 takes levels less their least, 128 more than signed ones: bias[r] takes that back
  const int32_t* weights;
  uint32_t rows;
  // depthwise8 where `bordered` is not set: `in` is the image itself, of in_rows x in_cols; the first window begins in
  // row first_row, column -left, either perhaps outside, and rows of a window are row_dilation apart
  bool bordered;
  int32_t first_row, left;
  uint32_t in_rows, in_cols, row_dilation, row_step;
  size_t row_bytes;
  uint32_t out_rows, out_cols;
  size_t first_pixel, out_row_pixels;
  Output out;
};

// `pixels` values of out.channels elements each, from `in` of the same shape. Where `rise_count` is not 0, rises say
// the same as out's constants: the byte stored is `base`, and one more for each of `rises` that the byte is above, less
// 128 if unsigned. Where `scale` is not 0, so does it: of the byte x, 128 more if signed, the byte stored is `base` and
// at most `rise_count` more, ((256 * x * scale / 65536 + up, at most 65535) - down, at least 0) / 256, rounded down.
struct Requantize {
  const void* in;
  Storage storage;
  size_t first_pixel, pixels;
  Output out;
  const int8_t* rises;
  uint32_t rise_count;
  uint8_t base;
  uint16_t scale, up, down;
};

// Floats [channels][plane] (NCHW) of one image -> NHWC; pixels first_pixel.. of the plane.
struct Quantize {
  const float* in;
  size_t plane;  // H * W
  size_t first_pixel, pixels;
  Output out;  // data: of this image; no residual
};

// `pixels` values of channels elements each: levels times those of `gate`, of the same shape or, `one`, of one pixel.
struct Product {
  const void* in;  // of the image, like `gate` and out.data
  const void* gate;
  Storage storage, gate_storage;  // levels both
  bool one;
  uint32_t channels;
  size_t first_pixel, pixels;
  int32_t* sums;  // [channels padded] scratch
  Output out;     // no residual
};

// Byte by byte through a table.
struct Lookup {
  const uint8_t* in;
  void* out;
  const void* table;       // [256] of what is written, by the byte that is read
  uint32_t element_bytes;  // of what is written: 1 or 4
  size_t count;
};

// A pool on one image, rows [row_begin, row_end) of the output. Padding adds nothing and never wins.
struct Pool {
  const void* in;
  Storage storage;
  uint32_t channels, in_h, in_w, out_h, out_w;
  uint32_t kernel_h, kernel_w, stride_h, stride_w, top, left;
  uint32_t row_begin, row_end;
  int32_t* sums;  // [channels padded] scratch of sum_pool2d
  Output out;     // max_pool2d: data and channels only
};

// Neighbouring channels that stay neighbours: out[to .. to + count) = in[from .. from + count), zeros if from is -1.
struct GatherRun {
  int32_t from, to, count;
};

// Of each output pixel (y, x), the runs from input pixel (y * stride_h - top, x * stride_w - left), zeros outside;
// rows [row_begin, row_end) of one image.
struct Gather {
  const void* in;
  void* out;
  uint32_t element_bytes;  // 1 or 4
  const GatherRun* runs;
  uint32_t run_count;
  size_t in_channels, out_channels;
  uint32_t in_h, in_w, out_w;
  uint32_t stride_h, stride_w, top, left;
  uint32_t row_begin, row_end;
};

}  // namespace bitpress::gemm
