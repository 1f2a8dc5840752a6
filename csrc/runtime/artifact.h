// The outer shell of a .bpk: header, section table, checksums, padding (docs/format.md 1). Knows no network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitpress {

// Bytes that somebody else owns.
struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;
};

// The number is part of the format.
enum SectionKind : uint32_t {
  kProgram = 1,
  kNames,
  kBuffers,
  kSteps,
  kConstants,
  kIndices,
  kWeights,
  kGoldenInput,
  kGoldenOutput,
  kLabels,
  kMeta,
};
constexpr uint32_t kLastKind = kMeta;
const char* section_name(uint32_t kind);

struct Section {
  uint32_t kind;
  uint32_t index;
  Bytes bytes;
};

constexpr uint64_t kAlign = 64;

// CRC-32 of zlib and PNG, going on from `crc` (0 at the start).
uint32_t crc32(Bytes bytes, uint32_t crc = 0);

// Whether a file begins as a .bpk does, as far as it goes.
bool has_magic(Bytes file);

// Feature bits, and those of a file that `split` has read.
constexpr uint32_t kLaterOps = 1;  // steps that the first readers of version 1 do not know
uint32_t features(Bytes file);

// Sections of a file, in order, as views into it; Error(kCorrupt) if the container breaks any rule.
std::vector<Section> split(Bytes file);

}  // namespace bitpress
