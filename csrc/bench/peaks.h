// What this host can do at most, measured: the roofs that `bench` holds the kernels against.
#pragma once

#include <cstddef>
#include <string>

namespace bitpress::bench {

// Highest rate of the innermost instructions of a kernel family, one thread, operands in registers.
// family "i8dot": multiply-accumulates per second of bytes, or where no instruction multiplies them exactly, of int16;
// "i8dot16": of bytes so small that their sums fit int16; "lut": of 2-bit values. family "bitserial": products of
// single bits per second; a multiply-accumulate of w x a bits takes w * a of them. family "bitsliced": bits of pixels
// added per second; a multiply-accumulate takes a for each digit of its weight that is not 0. `isa`: a name of isa.def.
// The best of several short windows that take about `seconds` in all; 0 where the host lacks the instructions or the
// family has no row for that ISA.
double peak_rate(const std::string& family, const std::string& isa, double seconds);

// The same per cycle, by the clock as it is right behind each window; the median of the windows.
double peak_per_cycle(const std::string& family, const std::string& isa, double seconds);

// Cycles per second of this core as it is now, from additions that wait for each other for less than a microsecond: a
// CPU lowers its clock under wide loads and multiplications, and raises it again a few microseconds after them.
double clock_rate();

// Bytes per second of reading a block of `bytes` again and again, one thread; the best of several windows.
// The block's size decides which cache answers. 0 for less than 4096 bytes; std::bad_alloc without memory for it.
double read_rate(std::size_t bytes, double seconds);

}  // namespace bitpress::bench
