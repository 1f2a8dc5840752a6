/* conform LIST: runs many models after one another. A line of LIST is MODEL.bpk IMAGES.raw COUNT OUTPUTS.raw, names
   without blanks; float32 numbers go from one file into the other. Two threads, so that work is shared out too. */
#include <stdio.h>
#include <stdlib.h>

#include "bitpress/bitpress.h"

static int one(const char* path, const char* images, size_t count, const char* outputs) {
  bitpress_model* model;
  bitpress_session* session;
  if (bitpress_load(path, &model) != BITPRESS_OK) return 1;
  if (bitpress_session_new(model, &session) != BITPRESS_OK || bitpress_set_threads(session, 2) != BITPRESS_OK) return 1;
  const bitpress_tensor in = bitpress_input(model), out = bitpress_output(model);
  const size_t values = count * in.channels * in.height * in.width, made = count * out.channels * out.height * out.width;
  float *x = malloc(values * sizeof *x), *y = malloc(made * sizeof *y);
  FILE *from = fopen(images, "rb"), *to = fopen(outputs, "wb");
  if (!x || !y || !from || !to || fread(x, sizeof *x, values, from) != values) return 1;
  if (bitpress_run(session, x, count, y) != BITPRESS_OK) return 1;
  if (fwrite(y, sizeof *y, made, to) != made || fclose(to) != 0) return 1;
  fclose(from);
  free(x);
  free(y);
  bitpress_session_free(session);
  bitpress_model_free(model);
  return 0;
}

int main(int argc, char** argv) {
  char model[512], images[512], outputs[512];
  unsigned long count;
  FILE* list = argc == 2 ? fopen(argv[1], "r") : NULL;
  if (!list) return 2;
  while (fscanf(list, "%511s %511s %lu %511s", model, images, &count, outputs) == 4)
    if (one(model, images, count, outputs) != 0) {
      fprintf(stderr, "conform: %s: %s\n", model, bitpress_last_error());
      return 1;
    }
  fclose(list);
  return 0;
}
