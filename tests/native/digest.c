/* digest X.bpk IMAGES.raw COUNT SESSIONS ROUNDS: SHA-256 of the outputs of COUNT float32 images.

   SESSIONS threads run as many sessions of one model, on one and two threads by turns, ROUNDS times each; all must find
   the same bits as the first. The model is given up before they run. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitpress/bitpress.h"

static const uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void block(uint32_t h[8], const uint8_t* p) {
  uint32_t w[64], s[8];
  for (int i = 0; i < 16; ++i)
    w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
  for (int i = 16; i < 64; ++i)
    w[i] = w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
           (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
  memcpy(s, h, sizeof s);
  for (int i = 0; i < 64; ++i) {
    const uint32_t one =
        s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + kRound[i] + w[i];
    const uint32_t two =
        (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
    memmove(s + 1, s, 7 * sizeof *s);
    s[4] += one;
    s[0] = one + two;
  }
  for (int i = 0; i < 8; ++i) h[i] += s[i];
}

static void print_sha256(const void* data, size_t size) {
  uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const uint8_t* p = data;
  uint8_t last[128] = {0};
  size_t done = 0;
  for (; size - done >= 64; done += 64) block(h, p + done);
  const size_t rest = size - done, end = rest < 56 ? 64 : 128;
  memcpy(last, p + done, rest);
  last[rest] = 0x80;
  for (int i = 0; i < 8; ++i) last[end - 1 - (size_t)i] = (uint8_t)((uint64_t)size * 8 >> (8 * i));
  for (size_t at = 0; at < end; at += 64) block(h, last + at);
  for (int i = 0; i < 8; ++i) printf("%08x", (unsigned)h[i]);
  printf("\n");
}

struct work {
  bitpress_session* session;
  const float *x, *want;
  size_t images, bytes;
  int rounds, wrong;
};

static void* repeat(void* given) {
  struct work* w = given;
  float* y = malloc(w->bytes);
  for (int i = 0; y && i < w->rounds; ++i) {
    memset(y, 0xFF, w->bytes);
    if (bitpress_run(w->session, w->x, w->images, y) != BITPRESS_OK || memcmp(y, w->want, w->bytes) != 0) ++w->wrong;
  }
  if (!y) ++w->wrong;
  free(y);
  return NULL;
}

static int fail(void) {
  fprintf(stderr, "digest: %s\n", bitpress_last_error());
  return 1;
}

int main(int argc, char** argv) {
  enum { kMost = 16 };
  bitpress_model* model;
  bitpress_session* first;
  struct work works[kMost];
  pthread_t threads[kMost];
  if (argc != 6 || bitpress_abi_version() != BITPRESS_ABI_VERSION) return 2;
  const size_t images = (size_t)atol(argv[3]);
  const int sessions = atoi(argv[4]);
  if (bitpress_load(argv[1], &model) != BITPRESS_OK) return fail();
  const bitpress_tensor in = bitpress_input(model), out = bitpress_output(model);
  const size_t values = images * in.channels * in.height * in.width;
  const size_t bytes = images * out.channels * out.height * out.width * sizeof(float);
  float *x = malloc(values * sizeof *x), *y = malloc(bytes);
  FILE* file = fopen(argv[2], "rb");
  if (!x || !y || !file || fread(x, sizeof *x, values, file) != values || sessions > kMost) return 2;
  fclose(file);
  if (bitpress_session_new(model, &first) != BITPRESS_OK) return fail();
  if (bitpress_run(first, x, images, y) != BITPRESS_OK) return fail();
  for (int i = 0; i < sessions; ++i) {
    works[i] = (struct work){NULL, x, y, images, bytes, atoi(argv[5]), 0};
    if (bitpress_session_new(model, &works[i].session) != BITPRESS_OK) return fail();
    if (bitpress_set_threads(works[i].session, 1 + i % 2) != BITPRESS_OK) return fail();
  }
  bitpress_model_free(model);
  for (int i = 0; i < sessions; ++i)
    if (pthread_create(&threads[i], NULL, repeat, &works[i]) != 0) return 2;
  int wrong = 0;
  for (int i = 0; i < sessions; ++i) {
    pthread_join(threads[i], NULL);
    wrong += works[i].wrong;
    bitpress_session_free(works[i].session);
  }
  bitpress_session_free(first);
  print_sha256(y, bytes);
  free(x);
  free(y);
  if (wrong) fprintf(stderr, "digest: %d runs differ\n", wrong);
  return wrong != 0;
}
