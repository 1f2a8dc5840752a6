// Checksums of a damaged .bpk made right again, so that a fuzzer gets past them.
#pragma once

#include <cstdint>
#include <cstring>

#include "runtime/artifact.h"

namespace bitpress {

// Length and checksums as the container wants them, so far as there is a table: header of 64 bytes, records of 32.
inline void seal(uint8_t* data, size_t size) {
  if (size < 64 || std::memcmp(data + 1, "BPK", 3) != 0) return;
  uint32_t sections;
  const uint64_t bytes = size;
  std::memcpy(&sections, data + 32, 4);
  std::memcpy(data + 16, &bytes, 8);
  if (sections > (size - 64) / 32) return;
  for (size_t i = 0; i < sections; ++i) {
    uint64_t place[2];
    std::memcpy(place, data + 64 + 32 * i + 8, 16);
    if (place[0] > size || place[1] > size - place[0]) continue;
    const uint32_t crc = crc32({data + place[0], static_cast<size_t>(place[1])});
    std::memcpy(data + 64 + 32 * i + 24, &crc, 4);
  }
  std::memset(data + 36, 0, 4);
  const uint32_t crc = crc32({data, 64 + 32 * size_t{sections}});
  std::memcpy(data + 36, &crc, 4);
}

}  // namespace bitpress
