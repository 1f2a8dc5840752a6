// Declarations of the rows of kernels.def: family_isa(arguments of the family).
#pragma once

#include "../gemm/contract.h"

namespace bitpress::gemm {

#define BITPRESS_ARGS_conv2d Conv
#define BITPRESS_ARGS_depthwise_conv2d Depthwise
#define BITPRESS_ARGS_quantize Quantize
#define BITPRESS_ARGS_requantize Requantize
#define BITPRESS_ARGS_max_pool2d Pool
#define BITPRESS_ARGS_sum_pool2d Pool
#define BITPRESS_ARGS_gather Gather
#define BITPRESS_ARGS_lookup Lookup
#define BITPRESS_ARGS_product Product
#define KERNEL(family, isa, op, w_from, w_to, a_from, a_to, lanes, group, cost) \
  void family##_##isa(const BITPRESS_ARGS_##op&);
#include "../../kernels/kernels.def"
#undef KERNEL

}  // namespace bitpress::gemm
