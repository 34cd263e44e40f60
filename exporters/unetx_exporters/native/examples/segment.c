/* Segment binary PGM files (8 or 16 bit), each into a PGM of label indices:
 *
 *   segment BUNDLE /path/to/libonnxruntime.so IN.pgm OUT.pgm [IN.pgm OUT.pgm ...]
 */
#include "unetx.h"

#include <stdio.h>
#include <stdlib.h>

static int complain(const char *what)
{
    fprintf(stderr, "segment: %s\n", what);
    return 1;
}

/* Read the pixels into the machine's byte order; the caller frees `image->pixels`. */
static int read_pgm(const char *path, unetx_image *image)
{
    unsigned width, height, top;
    unsigned char *pixels = NULL;
    size_t count = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return 0;
    if (fscanf(file, "P5 %u %u %u", &width, &height, &top) == 3 && fgetc(file) != EOF && width >= 1 && height >= 1 &&
        width <= 16384 && height <= 16384 && top >= 1 && top <= 65535) {
        count = (size_t)width * height * (top > 255 ? 2 : 1);
        pixels = malloc(count);
    }
    if (pixels == NULL || fread(pixels, 1, count, file) != count) {
        fclose(file);
        free(pixels);
        return 0;
    }
    fclose(file);
    for (size_t i = 0; top > 255 && i < count; i += 2) /* the file is big-endian */
        *(uint16_t *)(void *)(pixels + i) = (uint16_t)(pixels[i] << 8 | pixels[i + 1]);
    *image = (unetx_image){.struct_size = sizeof *image, .height = height, .width = width,
                           .bits_allocated = top > 255 ? 16 : 8, .photometric = UNETX_MONOCHROME2, .pixels = pixels,
                           .pixels_size = count, .row_stride = count / height};
    return 1;
}

static int segment_file(unetx_segmenter *segmenter, const char *source, const char *target)
{
    unetx_image image;
    unetx_mask mask = {.struct_size = sizeof mask};
    unetx_timings timings = {.struct_size = sizeof timings};
    FILE *file;
    int failed = 1;
    if (!read_pgm(source, &image))
        return complain("the image cannot be read, expected a binary PGM");
    mask.row_stride = image.width;
    mask.labels_size = (uint64_t)image.width * image.height;
    mask.labels = malloc((size_t)mask.labels_size);
    if (mask.labels == NULL || unetx_segment(segmenter, &image, &mask, &timings) != UNETX_OK) {
        complain(mask.labels == NULL ? "no memory" : unetx_last_message());
    } else if ((file = fopen(target, "wb")) == NULL) {
        complain("the mask cannot be written");
    } else {
        fprintf(file, "P5\n%u %u\n255\n", (unsigned)image.width, (unsigned)image.height);
        failed = fwrite(mask.labels, 1, (size_t)mask.labels_size, file) != mask.labels_size;
        failed |= fclose(file) != 0;
        printf("%s: %.1f ms, of which %.1f in the engine\n", target, timings.total_ms, timings.infer_ms);
    }
    free(mask.labels);
    free((void *)image.pixels);
    return failed;
}

int main(int count, char **arguments)
{
    unetx_segmenter *segmenter;
    uint32_t labels, index;
    char name[401];
    int failed = 0;
    if (count < 5 || count % 2 == 0)
        return complain("usage: segment BUNDLE ONNXRUNTIME IN.pgm OUT.pgm [IN.pgm OUT.pgm ...]"), 2;
    if (unetx_abi_version() != UNETX_ABI_VERSION)
        return complain("the library has another ABI version than its header");
    if (unetx_open(arguments[1], arguments[2], 0, &segmenter) != UNETX_OK)
        return complain(unetx_last_message());
    unetx_labels(segmenter, &labels);
    for (index = 0; index < labels; index++)
        if (unetx_label_name(segmenter, index, name, sizeof name) == UNETX_OK)
            printf("%u %s\n", (unsigned)index, name);
    for (int i = 3; i + 1 < count && !failed; i += 2)
        failed = segment_file(segmenter, arguments[i], arguments[i + 1]);
    unetx_close(segmenter);
    return failed;
}
