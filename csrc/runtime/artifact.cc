#include "artifact.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include "error.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are read in place of a little-endian host");

namespace bitpress {
namespace {

constexpr uint8_t kMagic[8] = {0x89, 'B', 'P', 'K', '\r', '\n', 0x1a, '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kKnownFeatures = kLaterOps;
constexpr uint32_t kMaxSections = 65535;
constexpr size_t kCrcAt = 36;

struct Header {
  uint8_t magic[8];
  uint32_t version, features;
  uint64_t file_bytes, table_offset;
  uint32_t sections, crc;
  uint8_t reserved[24];
};
static_assert(sizeof(Header) == 64);

struct Record {
  uint32_t kind, index;
  uint64_t offset, bytes;
  uint32_t crc, reserved;
};
static_assert(sizeof(Record) == 32);

std::string str(uint64_t n) { return std::to_string(n); }

std::string hex(uint32_t n) {
  char text[12];
  std::snprintf(text, sizeof text, "%08x", n);
  return text;
}

uint64_t aligned(uint64_t size) { return (size + kAlign - 1) / kAlign * kAlign; }

bool all_zero(const uint8_t* begin, const uint8_t* end) {
  return std::all_of(begin, end, [](uint8_t b) { return b == 0; });
}

Header read_header(Bytes file) {
  if (!has_magic(file)) corrupt("BadMagic", "the file does not begin as a .bpk does");
  if (file.size < sizeof(Header))
    corrupt("Truncated", "the file has " + str(file.size) + " bytes, its header alone " + str(sizeof(Header)));
  Header h;
  std::memcpy(&h, file.data, sizeof h);
  if (h.version != kVersion)
    corrupt("UnsupportedVersion", "format version " + str(h.version) + ", this Bitpress reads " + str(kVersion) +
                                      ": use the Bitpress that wrote the file, or compile again");
  if (h.features & ~kKnownFeatures)
    corrupt("UnknownFeature", "the file needs features 0x" + hex(h.features) + ", this Bitpress knows 0x" +
                                  hex(kKnownFeatures) + ": upgrade, or compile again");
  if (h.file_bytes > file.size)
    corrupt("Truncated", "the file has " + str(file.size) + " bytes of " + str(h.file_bytes));
  if (h.file_bytes < file.size)
    corrupt("TrailingBytes", "the file has " + str(file.size) + " bytes and should have " + str(h.file_bytes));
  return h;
}

void check_place(Bytes file, const std::string& label, const Record& r, uint64_t end) {
  if (r.offset % kAlign)
    corrupt("BadAlignment", label + " starts at byte " + str(r.offset) + ", which is no multiple of " + str(kAlign));
  if (r.offset < end)
    corrupt("SectionOverlap", label + " starts at byte " + str(r.offset) + ", the part before it ends at " + str(end));
  if (r.offset != aligned(end))
    corrupt("SectionHole", label + " starts at byte " + str(r.offset) + ", not at " + str(aligned(end)));
  if (r.bytes < 1) corrupt("SizeMismatch", label + " is empty");
  if (r.offset > file.size || r.bytes > file.size - r.offset)
    corrupt("Truncated",
            label + " of " + str(r.bytes) + " bytes at " + str(r.offset) + ", the file has " + str(file.size));
  if (!all_zero(file.data + end, file.data + r.offset))
    corrupt("NonZeroPadding", "bytes " + str(end) + ".." + str(r.offset) + " before " + label + " are not zero");
}

std::vector<Section> read_table(Bytes file, uint32_t count, uint64_t end) {
  std::vector<Section> out;
  out.reserve(count);
  Record before{};
  for (uint32_t i = 0; i < count; ++i) {
    Record r;
    std::memcpy(&r, file.data + sizeof(Header) + i * sizeof(Record), sizeof r);
    const std::string label = "section " + str(i);
    if (r.kind < 1 || r.kind > kLastKind)
      corrupt("UnknownSection", label + " is of kind " + str(r.kind) + ", known are 1.." + str(kLastKind));
    if (r.reserved) corrupt("NonZeroPadding", "reserved bytes of " + label + " are not zero");
    const bool again = r.kind == before.kind;
    const uint32_t expected = again && r.kind == kWeights ? before.index + 1 : 0;
    if (r.kind < before.kind || (again && r.kind != kWeights) || r.index != expected)
      corrupt("SectionOrder", label + " is (" + str(r.kind) + ", " + str(r.index) + ") after (" + str(before.kind) +
                                  ", " + str(before.index) + ")");
    check_place(file, label, r, end);
    out.push_back({r.kind, r.index, {file.data + r.offset, static_cast<size_t>(r.bytes)}});
    before = r;
    end = r.offset + r.bytes;
  }
  if (end != file.size) corrupt("TrailingBytes", "the last section ends at byte " + str(end) + " of " + str(file.size));
  return out;
}

void check_present(const std::vector<Section>& sections) {
  auto has = [&](uint32_t kind) {
    return std::any_of(sections.begin(), sections.end(), [&](const Section& s) { return s.kind == kind; });
  };
  for (uint32_t kind : {kProgram, kNames, kBuffers, kSteps, kMeta})
    if (!has(kind)) corrupt("MissingSection", std::string("there is no ") + section_name(kind) + " section");
  if (has(kGoldenInput) != has(kGoldenOutput))
    corrupt("MissingSection", "golden_input and golden_output must come together");
}

}  // namespace

const char* section_name(uint32_t kind) {
  static const char* const names[] = {"",        "program", "names",        "buffers",       "steps",  "constants",
                                      "indices", "weights", "golden_input", "golden_output", "labels", "meta"};
  return names[kind <= kLastKind ? kind : 0];
}

uint32_t crc32(Bytes bytes, uint32_t crc) {
  static const auto table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = (c >> 1) ^ (0xEDB88320u & (0u - (c & 1u)));
      t[i] = c;
    }
    return t;
  }();
  crc = ~crc;
  for (size_t i = 0; i < bytes.size; ++i) crc = (crc >> 8) ^ table[(crc ^ bytes.data[i]) & 0xFF];
  return ~crc;
}

bool has_magic(Bytes file) {
  return file.size == 0 || std::memcmp(file.data, kMagic, std::min(file.size, sizeof kMagic)) == 0;
}

uint32_t features(Bytes file) { return read_header(file).features; }

std::vector<Section> split(Bytes file) {
  const Header h = read_header(file);
  if (h.sections > kMaxSections)
    corrupt("TooLarge", str(h.sections) + " sections, at most " + str(kMaxSections) + " are allowed");
  const uint64_t end = sizeof(Header) + uint64_t{h.sections} * sizeof(Record);
  if (end > file.size)
    corrupt("Truncated", "the section table ends at byte " + str(end) + ", the file has " + str(file.size));
  const uint8_t zeros[4] = {};
  uint32_t crc = crc32({zeros, 4}, crc32({file.data, kCrcAt}));
  crc = crc32({file.data + kCrcAt + 4, end - kCrcAt - 4}, crc);
  if (crc != h.crc) corrupt("BadChecksum", "header and table have CRC " + hex(crc) + ", " + hex(h.crc) + " is stored");
  if (!all_zero(h.reserved, h.reserved + sizeof h.reserved))
    corrupt("NonZeroPadding", "reserved bytes of the header are not zero");
  if (h.table_offset != sizeof(Header))
    corrupt("SectionHole", "section table at byte " + str(h.table_offset) + ", not " + str(sizeof(Header)));
  std::vector<Section> sections = read_table(file, h.sections, end);
  check_present(sections);
  for (size_t i = 0; i < sections.size(); ++i) {
    Record r;
    std::memcpy(&r, file.data + sizeof(Header) + i * sizeof(Record), sizeof r);
    crc = crc32(sections[i].bytes);
    if (crc != r.crc)
      corrupt("BadChecksum", std::string("section ") + section_name(r.kind) + " " + str(r.index) + " has CRC " +
                                 hex(crc) + ", " + hex(r.crc) + " is stored");
  }
  return sections;
}

}  // namespace bitpress
