/* Runs jobs from standard input with one segmenter: driver BUNDLE ONNXRUNTIME. A job is a line of
 *   height width allocated stored signed photometric row_stride mask_stride row_mm column_mm IN.raw OUT.raw
 * Buffers have exactly the bytes that the library may touch, so that a sanitizer sees any other. Each job prints its
 * status and message. With a third argument every job runs in that many threads at once, which must agree.
 */
#include "unetx.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    unetx_segmenter *segmenter;
    unetx_image image;
    unetx_mask mask;
    unetx_timings timings;
    unetx_status status;
    char message[1024];
} call;

static void *run(void *data)
{
    call *job = data;
    job->status = unetx_segment(job->segmenter, &job->image, &job->mask, &job->timings);
    snprintf(job->message, sizeof job->message, "%s", job->status == UNETX_OK ? "" : unetx_last_message());
    return NULL;
}

static void save(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0)
        exit(3);
}

static int run_threads(const call *first, int threads)
{
    call *calls = calloc((size_t)threads, sizeof *calls);
    pthread_t *handles = calloc((size_t)threads, sizeof *handles);
    int differ = 0;
    for (int i = 0; i < threads; i++) {
        calls[i] = *first;
        calls[i].mask.labels = malloc((size_t)first->mask.labels_size);
        memset(calls[i].mask.labels, 0xAA, (size_t)first->mask.labels_size);
        pthread_create(&handles[i], NULL, run, &calls[i]);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(handles[i], NULL);
        differ |= calls[i].status != first->status ||
                  memcmp(calls[i].mask.labels, first->mask.labels, (size_t)first->mask.labels_size) != 0;
        free(calls[i].mask.labels);
    }
    free(handles);
    free(calls);
    return differ;
}

int main(int count, char **arguments)
{
    char source[500], target[500];
    call job = {.image = {.struct_size = sizeof job.image}, .mask = {.struct_size = sizeof job.mask},
                .timings = {.struct_size = sizeof job.timings}};
    unetx_image *image = &job.image;
    unetx_mask *mask = &job.mask;
    unsigned long long row_stride, mask_stride;
    if (count < 3)
        return 2;
    if (unetx_open(arguments[1], arguments[2], 1, &job.segmenter) != UNETX_OK) {
        printf("open: %s\n", unetx_last_message());
        return 1;
    }
    while (scanf("%u %u %u %u %u %u %llu %llu %lf %lf %499s %499s", &image->height, &image->width,
                 &image->bits_allocated, &image->bits_stored, &image->is_signed, &image->photometric, &row_stride,
                 &mask_stride, &image->row_spacing_mm, &image->column_spacing_mm, source, target) == 12) {
        size_t size = (size_t)row_stride * (image->height - 1) + (size_t)image->width * (image->bits_allocated / 8);
        FILE *file = fopen(source, "rb");
        void *pixels = malloc(size);
        if (file == NULL || fread(pixels, 1, size, file) != size)
            return 3;
        fclose(file);
        image->pixels = pixels;
        image->pixels_size = size;
        image->row_stride = row_stride;
        mask->row_stride = mask_stride;
        mask->labels_size = mask_stride * (image->height - 1) + image->width;
        mask->labels = malloc((size_t)mask->labels_size);
        memset(mask->labels, 0xAA, (size_t)mask->labels_size);
        run(&job);
        printf("%d %s\n", (int)job.status, job.message);
        if (count > 3 && run_threads(&job, atoi(arguments[3])))
            printf("threads disagree\n");
        if (job.status == UNETX_OK && !(job.timings.total_ms >= job.timings.infer_ms && job.timings.infer_ms > 0))
            printf("timings are wrong\n");
        save(target, mask->labels, (size_t)mask->labels_size);
        free(mask->labels);
        free(pixels);
    }
    unetx_close(job.segmenter);
    return 0;
}
