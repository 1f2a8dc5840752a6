/* Classifies images from C: classify X.bpk IMAGES.raw [THREADS]

   IMAGES.raw holds float32 images, normalised, NCHW, one after another. For each image the largest output is printed,
   by its number and value; then all of the outputs' bits can be compared with those of any other host. */
#include <stdio.h>
#include <stdlib.h>

#include "bitpress/bitpress.h"

static int fail(bitpress_status status) {
  fprintf(stderr, "classify: %s\n", bitpress_last_error());
  return (int)status;
}

static size_t largest(const float* y, size_t n) {
  size_t best = 0;
  for (size_t i = 1; i < n; ++i)
    if (y[i] > y[best]) best = i;
  return best;
}

static int classify(bitpress_session* session, bitpress_tensor in, bitpress_tensor out, FILE* file) {
  const size_t in_size = in.channels * in.height * in.width, out_size = out.channels * out.height * out.width;
  float *x = malloc(in_size * sizeof *x), *y = malloc(out_size * sizeof *y);
  bitpress_status status = BITPRESS_OK;
  for (size_t image = 0; x && y && fread(x, sizeof *x, in_size, file) == in_size; ++image) {
    status = bitpress_run(session, x, 1, y);
    if (status != BITPRESS_OK) break;
    const size_t best = largest(y, out_size);
    printf("image %zu: class %zu, %.9g\n", image, best, (double)y[best]);
  }
  free(x);
  free(y);
  return status == BITPRESS_OK ? 0 : fail(status);
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: classify X.bpk IMAGES.raw [THREADS]\n");
    return BITPRESS_USAGE;
  }
  if (bitpress_abi_version() != BITPRESS_ABI_VERSION) {
    fprintf(stderr, "classify: built for ABI %d, the library has %d\n", BITPRESS_ABI_VERSION, bitpress_abi_version());
    return BITPRESS_ENVIRONMENT;
  }
  bitpress_model* model = NULL;
  bitpress_session* session = NULL;
  bitpress_status status = bitpress_load(argv[1], &model);
  if (status != BITPRESS_OK) return fail(status);
  status = bitpress_session_new(model, &session);
  if (status == BITPRESS_OK && argc > 3) status = bitpress_set_threads(session, atoi(argv[3]));
  FILE* file = fopen(argv[2], "rb");
  int code = BITPRESS_USAGE;
  if (status != BITPRESS_OK)
    code = fail(status);
  else if (!file)
    perror(argv[2]);
  else
    code = classify(session, bitpress_input(model), bitpress_output(model), file);
  if (file) fclose(file);
  bitpress_session_free(session);
  bitpress_model_free(model);
  return code;
}
