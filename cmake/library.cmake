# libbitpress (shared and static), the tool bitpress-run, and what installs them.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# Versions stand once: in bitpress/_version.py and in the header.
file(STRINGS bitpress/_version.py line REGEX "__version__")
string(REGEX REPLACE ".*\"([0-9.]+)\".*" "\\1" BITPRESS_VERSION "${line}")
file(STRINGS csrc/include/bitpress/bitpress.h line REGEX "#define BITPRESS_ABI_VERSION")
string(REGEX REPLACE ".* ([0-9]+)$" "\\1" BITPRESS_ABI "${line}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS bitpress/_version.py csrc/include/bitpress/bitpress.h)

# What hands work out is made small: -O3 multiplies the text of messages. What touches every value stays as it is.
set_source_files_properties(
  csrc/runtime/artifact.cc csrc/runtime/program.cc csrc/runtime/check.cc csrc/runtime/session.cc
  csrc/runtime/thread_pool.cc csrc/kernels/dispatch.cc csrc/capi.cc csrc/tools/bitpress_run.cc csrc/tools/arguments.cc csrc/tools/npy.cc csrc/tools/report.cc csrc/tools/kernel_bench.cc
  PROPERTIES COMPILE_OPTIONS "-Os;-ffunction-sections")
set_source_files_properties(
  csrc/runtime/memory.cc csrc/runtime/bound.cc csrc/runtime/bound_winograd.cc csrc/runtime/model.cc csrc/bench/peaks.cc
  PROPERTIES COMPILE_OPTIONS "-O2;-ffunction-sections")

# Compilers take minutes over vector code in which every operation is watched: there, only addresses and races are. The
# generic kernels, from the same templates, are watched for all.
if(BITPRESS_SANITIZE)
  file(GLOB vectors csrc/kernels/isa_*.cc)
  list(FILTER vectors EXCLUDE REGEX isa_generic)
  set_source_files_properties(${vectors} PROPERTIES COMPILE_OPTIONS "-O1;-g0;-fno-sanitize=undefined")
endif()

add_library(bitpress_capi OBJECT csrc/capi.cc)
target_include_directories(bitpress_capi PRIVATE csrc csrc/include)
target_compile_definitions(bitpress_capi PRIVATE BITPRESS_VERSION="${BITPRESS_VERSION}")
target_link_libraries(bitpress_capi PRIVATE bitpress_flags)

set(map ${CMAKE_CURRENT_SOURCE_DIR}/cmake/bitpress.map)
add_library(bitpress SHARED $<TARGET_OBJECTS:bitpress_capi>)
set_target_properties(bitpress PROPERTIES VERSION ${BITPRESS_VERSION} SOVERSION ${BITPRESS_ABI} LINK_DEPENDS ${map})
target_link_libraries(bitpress PRIVATE bitpress_runtime bitpress_flags)
target_link_options(bitpress PRIVATE -Wl,--version-script=${map} -Wl,--gc-sections)
if(NOT BITPRESS_SANITIZE)
  target_link_options(bitpress PRIVATE -Wl,--no-undefined)
endif()

add_library(bitpress_static STATIC
  $<TARGET_OBJECTS:bitpress_capi> $<TARGET_OBJECTS:bitpress_runtime> ${isa_objects})
set_target_properties(bitpress_static PROPERTIES OUTPUT_NAME bitpress EXPORT_NAME static)
target_link_libraries(bitpress_static PUBLIC Threads::Threads)

foreach(library bitpress bitpress_static)
  target_include_directories(${library} INTERFACE
    $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/csrc/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endforeach()

# The tool stands alone: it is carried to a device as one file. Where the C library cannot be linked statically, the C++
# one is.
add_executable(bitpress-run csrc/tools/bitpress_run.cc csrc/tools/arguments.cc csrc/tools/npy.cc csrc/tools/report.cc
  csrc/tools/kernel_bench.cc)
target_compile_definitions(bitpress-run PRIVATE BITPRESS_VERSION="${BITPRESS_VERSION}")
target_link_libraries(bitpress-run PRIVATE bitpress_runtime bitpress_flags)
if(NOT BITPRESS_SANITIZE)
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_LINK_OPTIONS -static)
  check_cxx_source_compiles("#include <string>\nint main(int n, char**) { return int(std::to_string(n).size()); }"
    BITPRESS_STATIC_LINK)
  unset(CMAKE_REQUIRED_LINK_OPTIONS)
  if(BITPRESS_STATIC_LINK)
    target_link_options(bitpress-run PRIVATE -static)
  else()
    target_link_options(bitpress-run PRIVATE -static-libstdc++ -static-libgcc)
  endif()
  # Code and constants share pages: apart, they would fill up two more of each.
  target_link_options(bitpress-run PRIVATE -Wl,--gc-sections -Wl,-z,noseparate-code -s)
endif()

if(BITPRESS_EXAMPLES)
  enable_language(C)
  add_executable(example_c csrc/examples/classify.c)
  set_target_properties(example_c PROPERTIES C_STANDARD 99 C_EXTENSIONS OFF)
  target_compile_options(example_c PRIVATE -Wall -Wextra -Werror -pedantic)
  target_link_libraries(example_c PRIVATE bitpress)
  add_executable(example_cc csrc/examples/classify.cc)
  target_link_libraries(example_cc PRIVATE bitpress bitpress_flags)
endif()

# Fuzz targets: with a main of our own, or with -DBITPRESS_FUZZ=libfuzzer and clang, with that of libFuzzer.
if(BITPRESS_FUZZ)
  foreach(name bpk npy)
    add_executable(fuzz_${name} EXCLUDE_FROM_ALL csrc/fuzz/fuzz_${name}.cc)
    target_link_libraries(fuzz_${name} PRIVATE bitpress_runtime bitpress_flags)
    if(BITPRESS_FUZZ STREQUAL libfuzzer)
      target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
      target_compile_definitions(fuzz_${name} PRIVATE BITPRESS_LIBFUZZER)
    else()
      target_sources(fuzz_${name} PRIVATE csrc/fuzz/driver.cc)
    endif()
  endforeach()
  target_sources(fuzz_npy PRIVATE csrc/tools/npy.cc)
endif()

set(config ${CMAKE_CURRENT_BINARY_DIR}/cmake)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/bitpress)
configure_package_config_file(cmake/bitpress-config.cmake.in ${config}/bitpress-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${config}/bitpress-config-version.cmake VERSION ${BITPRESS_VERSION}
  COMPATIBILITY SameMinorVersion)
file(RELATIVE_PATH up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)  # the prefix may be moved
configure_file(cmake/bitpress.pc.in ${config}/bitpress.pc @ONLY)
install(TARGETS bitpress bitpress_static bitpress-run EXPORT bitpress-targets)
install(EXPORT bitpress-targets NAMESPACE bitpress:: DESTINATION ${package_dir})
install(FILES ${config}/bitpress-config.cmake ${config}/bitpress-config-version.cmake DESTINATION ${package_dir})
install(FILES ${config}/bitpress.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(DIRECTORY csrc/include/bitpress DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
