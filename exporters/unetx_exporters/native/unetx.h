/* unetx: segments chest radiographs with a bundle that `unetx-opt build` made, without Python.
 *
 * The library loads ONNX Runtime by the path that the host gives, runs the bundle's onnxruntime-cpu engine, and
 * makes the same mask as the Python package, bit for bit, from the same pixels with the same ONNX Runtime version and
 * number of threads.
 *
 * Border rules
 *   Every function returns a unetx_status; unetx_last_message() says what went wrong, in English, for the calling
 *   thread. No exception leaves the library, nothing that it allocates is freed by the host, and nothing that the host
 *   allocates is freed by the library. All text is UTF-8 and ends with a zero byte, paths included, on Windows too.
 *   Structures begin with their own size, which the host sets, so that later versions can add fields.
 *   Rows and columns count from the top left pixel.
 *
 * Threads
 *   unetx_segment may be called from several threads at once on one segmenter. unetx_close may not overlap with any
 *   other call on the same segmenter. ONNX Runtime stays loaded until the process ends.
 *
 * What is checked
 *   manifest.json against manifest.sha256, and the engine's bytes against the manifest; the bytes that were hashed are
 *   the bytes that run. Signatures are not checked, nor files that are not used: `unetx-opt verify` does both.
 */
#ifndef UNETX_H
#define UNETX_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#  if defined(UNETX_BUILDING)
#    define UNETX_API __declspec(dllexport)
#  else
#    define UNETX_API __declspec(dllimport)
#  endif
#  define UNETX_CALL __cdecl
#else
#  define UNETX_API __attribute__((visibility("default")))
#  define UNETX_CALL
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when a host that was compiled before would not work any more. */
#define UNETX_ABI_VERSION 1u

typedef int32_t unetx_status;
enum {
    UNETX_OK = 0,
    UNETX_BAD_ARGUMENT = 1, /* a null pointer, a wrong structure size, a buffer that is too small */
    UNETX_BAD_IMAGE = 2,    /* the image cannot be segmented */
    UNETX_BAD_BUNDLE = 3,   /* missing, altered, malformed, or in need of something that this library lacks */
    UNETX_BAD_ENGINE = 4,   /* ONNX Runtime cannot be loaded, or fails */
    UNETX_NO_MEMORY = 5
};

enum { UNETX_MONOCHROME1 = 1, UNETX_MONOCHROME2 = 2 };

/* A loaded engine. */
typedef struct unetx_segmenter unetx_segmenter;

/* One grey image as stored, without a lookup table. */
typedef struct unetx_image {
    uint32_t struct_size;     /* sizeof(unetx_image) */
    uint32_t height;          /* 16 to 16384 pixels */
    uint32_t width;           /* 16 to 16384 pixels */
    uint32_t bits_allocated;  /* 8 or 16; 16 in the byte order of the machine */
    uint32_t bits_stored;     /* 1 to bits_allocated; 0 means all of them. Values beyond them are clipped to their range */
    uint32_t is_signed;       /* 0, or 1 for two's complement */
    uint32_t photometric;     /* UNETX_MONOCHROME2: larger is brighter. UNETX_MONOCHROME1: mirrored within the range
                                 of the stored bits first, as the Python package does with DICOM */
    uint32_t reserved;        /* 0 */
    const void *pixels;       /* first row; no alignment needed */
    uint64_t pixels_size;     /* bytes that may be read from `pixels` */
    uint64_t row_stride;      /* bytes from the start of a row to that of the next one, at least those of a row */
    double row_spacing_mm;    /* between the centres of two rows; both 0 where unknown, then pixels count as square */
    double column_spacing_mm; /* between the centres of two columns */
} unetx_image;

/* Where the mask goes: one byte per pixel of the image, the index of its label. */
typedef struct unetx_mask {
    uint32_t struct_size; /* sizeof(unetx_mask) */
    uint32_t reserved;    /* 0 */
    uint8_t *labels;      /* first row; bytes between rows are left alone */
    uint64_t labels_size; /* bytes that may be written from `labels` on */
    uint64_t row_stride;  /* bytes, at least the width of the image */
} unetx_mask;

/* Milliseconds of one call. */
typedef struct unetx_timings {
    uint32_t struct_size; /* sizeof(unetx_timings), set by the host */
    uint32_t reserved;
    double prepare_ms;
    double infer_ms;
    double restore_ms;
    double total_ms;
} unetx_timings;

/* Version of this interface in the loaded library; compare with UNETX_ABI_VERSION. */
UNETX_API uint32_t UNETX_CALL unetx_abi_version(void);

/* What went wrong in the last call of this thread that failed; "" before. Valid until the thread's next call. */
UNETX_API const char *UNETX_CALL unetx_last_message(void);

/* Open a bundle directory.
 *
 * bundle_directory   Path of the bundle; an archive (.unetx) has to be unpacked before.
 * onnxruntime_path   Absolute path of libonnxruntime.so or onnxruntime.dll, version 1.21 or later.
 * threads            CPU threads of one inference; 0 for one per core.
 * segmenter          Set on success, to NULL otherwise.
 */
UNETX_API unetx_status UNETX_CALL unetx_open(const char *bundle_directory, const char *onnxruntime_path,
                                             uint32_t threads, unetx_segmenter **segmenter);

/* Number of labels, 2 to 64. Label 0 is the background. */
UNETX_API unetx_status UNETX_CALL unetx_labels(const unetx_segmenter *segmenter, uint32_t *count);

/* Copy a label's name, at most 401 bytes with its zero byte. Where `capacity` is too small nothing is copied. */
UNETX_API unetx_status UNETX_CALL unetx_label_name(const unetx_segmenter *segmenter, uint32_t index, char *name,
                                                   uint64_t capacity);

/* Segment one image. `timings` may be NULL. On failure the mask's bytes are unchanged. */
UNETX_API unetx_status UNETX_CALL unetx_segment(unetx_segmenter *segmenter, const unetx_image *image,
                                                const unetx_mask *mask, unetx_timings *timings);

/* Free the engine. NULL is allowed. */
UNETX_API void UNETX_CALL unetx_close(unetx_segmenter *segmenter);

#ifdef __cplusplus
}
#endif

#endif
