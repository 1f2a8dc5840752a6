/* libbitpress: runs a compiled network, X.bpk. C99, no dependency but the C library.

   A model is what a file becomes: checked, bound to the kernels of this host, weights laid out for them. It is
   immutable; any number of sessions on any threads share it. The file is read, and mapped only by the function that
   says so: nothing of it is in use after a load. A session is what runs: worker threads and memory for values in
   between. Calls on one session from several threads wait for each other; calls on several sessions run at the same
   time. Results are the same bits for any instruction set, number of threads and batch.

   Functions that can fail return a status, which is the exit code of the command line for the same mistake, and leave a
   sentence in bitpress_last_error(); what they should have made is NULL then. No exception leaves the library.

   The environment is read by a load: BITPRESS_FORCE_ISA and BITPRESS_FORCE_KERNEL, as for the command line.
   docs/native.md tells how to build against it. */
#ifndef BITPRESS_BITPRESS_H
#define BITPRESS_BITPRESS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define BITPRESS_API __attribute__((visibility("default")))
#else
#define BITPRESS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when a program built with an older header would no longer work. */
#define BITPRESS_ABI_VERSION 1

typedef enum bitpress_status {
  BITPRESS_OK = 0,
  BITPRESS_CHECK_FAILED = 1, /* the golden sample came out differently */
  BITPRESS_USAGE = 2,        /* an argument or environment value that makes no sense, a file that cannot be read */
  BITPRESS_UNSUPPORTED = 3,  /* no kernel for a step */
  BITPRESS_CORRUPT = 4,      /* a file that breaks a rule of docs/format.md; the message begins with the rule's name */
  BITPRESS_ENVIRONMENT = 5,  /* the host lacks an instruction set, memory or threads */
  BITPRESS_INTERNAL = 70     /* a mistake of ours */
} bitpress_status;

typedef struct bitpress_model bitpress_model;
typedef struct bitpress_session bitpress_session;

/* What goes in or comes out for one image: channels * height * width values. */
typedef struct bitpress_tensor {
  const char* name; /* lives as long as the model */
  size_t channels, height, width;
} bitpress_tensor;

/* "0.1.0". */
BITPRESS_API const char* bitpress_version(void);
/* BITPRESS_ABI_VERSION of the library at hand: a program compares it with that of the header it was built with. */
BITPRESS_API int bitpress_abi_version(void);

/* Why the last call on this thread that failed did so; "" if none has. Valid until the next call that fails. */
BITPRESS_API const char* bitpress_last_error(void);

/* The model in a file, or in `size` bytes that may be freed afterwards. */
BITPRESS_API bitpress_status bitpress_load(const char* path, bitpress_model** model);
BITPRESS_API bitpress_status bitpress_load_memory(const void* data, size_t size, bitpress_model** model);
/* As bitpress_load, with the file's pages in place of a copy: its size less memory while it loads. THE RISK IS YOURS:
   only for a file that nobody can write meanwhile. If it is shortened, the process dies of SIGBUS; if it is changed
   behind the checks, nothing that docs/security.md promises holds. */
BITPRESS_API bitpress_status bitpress_load_mapped(const char* path, bitpress_model** model);
/* Sessions that were made of it keep what they need. NULL is allowed. */
BITPRESS_API void bitpress_model_free(bitpress_model* model);

/* Of a model that is not NULL. */
BITPRESS_API bitpress_tensor bitpress_input(const bitpress_model* model);
BITPRESS_API bitpress_tensor bitpress_output(const bitpress_model* model);

/* A session on one thread, the caller's. */
BITPRESS_API bitpress_status bitpress_session_new(const bitpress_model* model, bitpress_session** session);
/* No call on it may be under way. NULL is allowed. */
BITPRESS_API void bitpress_session_free(bitpress_session* session);
/* 1 to 256, the caller of run being one of them. */
BITPRESS_API bitpress_status bitpress_set_threads(bitpress_session* session, int threads);

/* `images` float32 images, normalised, NCHW -> float32 [images, channels * height * width of the output].
   BITPRESS_USAGE if an input is NaN or infinite. The two must not overlap. */
BITPRESS_API bitpress_status bitpress_run(bitpress_session* session, const float* input, size_t images, float* output);
/* The same of uint8 images as a file holds them, NHWC, normalised by the model's own mean and standard deviation. */
BITPRESS_API bitpress_status bitpress_run_u8(bitpress_session* session, const uint8_t* input, size_t images,
                                             float* output);

/* Runs the sample inside the file. BITPRESS_CHECK_FAILED unless every value comes out exactly; BITPRESS_USAGE if the
   file holds none. */
BITPRESS_API bitpress_status bitpress_golden_check(bitpress_session* session);

#ifdef __cplusplus
}
#endif

#endif
