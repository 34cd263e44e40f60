/* The library behind unetx.h: reads a bundle, loads ONNX Runtime, prepares the image, makes the mask.
 *
 * The arithmetic repeats that of the Python package, operation by operation in the same types: unetx_opt.imaging's
 * grey, preprocess, resize and postprocess define it. Contraction of a * b + c into one rounding would change results,
 * so it is off here and in CMakeLists.txt.
 */
#define UNETX_BUILDING
#if !defined(_WIN32)
#  define _GNU_SOURCE /* strtod_l */
#endif
#include "unetx.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#  include <windows.h>
#  include <locale.h>
#else
#  include <dlfcn.h>
#  include <errno.h>
#  include <fcntl.h>
#  include <locale.h>
#  include <sys/stat.h>
#  include <time.h>
#  include <unistd.h>
#  if defined(__APPLE__)
#    include <xlocale.h>
#  endif
#endif

#if defined(_MSC_VER)
#  pragma fp_contract(off)
#  define THREAD_LOCAL __declspec(thread)
#  define PRINTF_LIKE(text, values)
#else
#  if defined(__clang__)
#    pragma STDC FP_CONTRACT OFF
#  endif
#  define THREAD_LOCAL _Thread_local
#  define PRINTF_LIKE(text, values) __attribute__((__format__(__printf__, text, values)))
#endif

#if defined(__FAST_MATH__)
#  error "unetx.c needs IEEE arithmetic: compile without -ffast-math"
#endif

enum {
    MAX_MANIFEST_BYTES = 8 * 1024 * 1024,
    MAX_VALUES = 100000,
    MAX_DEPTH = 32,
    MAX_NAME = 200,
    MAX_PATH_BYTES = 4096,
    MAX_LABELS = 64,
    MAX_LABEL_BYTES = 400, /* 100 characters */
    MIN_IMAGE_SIDE = 16,
    MAX_IMAGE_SIDE = 16384,
    GREY_LEVELS = 65536
};

static const double MAX_GREY = 1e30;
static const double MAX_PIXEL_ASPECT = 16.0;
/* ONNX files, like all protobuf messages, stay below it. */
static const uint64_t MAX_ENGINE_BYTES = 2147483647u;

/* ---- messages ---------------------------------------------------------------------------------------------------- */

static THREAD_LOCAL char last_message[1024];

PRINTF_LIKE(2, 3)
static unetx_status fail(unetx_status status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(last_message, sizeof last_message, format, values);
    va_end(values);
    return status;
}

static unetx_status no_memory(void)
{
    return fail(UNETX_NO_MEMORY, "memory is exhausted: close other programs, or use a smaller image");
}

UNETX_API const char *UNETX_CALL unetx_last_message(void)
{
    return last_message;
}

UNETX_API uint32_t UNETX_CALL unetx_abi_version(void)
{
    return UNETX_ABI_VERSION;
}

/* ---- SHA-256 (FIPS 180-4) ---------------------------------------------------------------------------------------- */

static const uint32_t SHA_CONSTANTS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate_right(uint32_t word, unsigned count)
{
    return (word >> count) | (word << (32 - count));
}

static void sha_block(uint32_t state[8], const unsigned char *block)
{
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
               block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = rotate_right(w[i - 15], 7) ^ rotate_right(w[i - 15], 18) ^ (w[i - 15] >> 3);
        uint32_t b = rotate_right(w[i - 2], 17) ^ rotate_right(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t sum1 = rotate_right(s[4], 6) ^ rotate_right(s[4], 11) ^ rotate_right(s[4], 25);
        uint32_t t1 = s[7] + sum1 + ((s[4] & s[5]) ^ (~s[4] & s[6])) + SHA_CONSTANTS[i] + w[i];
        uint32_t sum0 = rotate_right(s[0], 2) ^ rotate_right(s[0], 13) ^ rotate_right(s[0], 22);
        uint32_t t2 = sum0 + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

/* Write the digest of `size` bytes as 64 lower-case hexadecimal digits and a zero byte. */
static void sha256_hex(const unsigned char *data, size_t size, char hex[65])
{
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char tail[128] = {0};
    size_t whole = size / 64 * 64, rest = size - whole, padded = rest < 56 ? 64 : 128;
    for (size_t at = 0; at < whole; at += 64)
        sha_block(state, data + at);
    if (rest)
        memcpy(tail, data + whole, rest);
    tail[rest] = 0x80;
    for (int i = 0; i < 8; i++)
        tail[padded - 1 - i] = (unsigned char)((uint64_t)size * 8 >> (8 * i));
    for (size_t at = 0; at < padded; at += 64)
        sha_block(state, tail + at);
    for (int i = 0; i < 64; i++)
        hex[i] = "0123456789abcdef"[state[i / 8] >> (28 - 4 * (i % 8)) & 15];
    hex[64] = '\0';
}

/* ---- files and time ---------------------------------------------------------------------------------------------- */

/* Read an ordinary file of at most `limit` bytes; a zero byte follows the data. The caller frees it. */
static unetx_status read_file(const char *directory, const char *name, uint64_t limit, unsigned char **data,
                              size_t *size);

#if defined(_WIN32)

static int widen(const char *text, wchar_t *wide, int capacity)
{
    return MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, wide, capacity) > 0;
}

static unetx_status read_open_file(HANDLE file, const char *name, uint64_t limit, unsigned char **data, size_t *size)
{
    BY_HANDLE_FILE_INFORMATION facts;
    uint64_t length, done = 0;
    if (!GetFileInformationByHandle(file, &facts) || GetFileType(file) != FILE_TYPE_DISK ||
        (facts.dwFileAttributes & (FILE_ATTRIBUTE_REPARSE_POINT | FILE_ATTRIBUTE_DIRECTORY)))
        return fail(UNETX_BAD_BUNDLE, "%s is not an ordinary file", name);
    length = (uint64_t)facts.nFileSizeHigh << 32 | facts.nFileSizeLow;
    if (length > limit)
        return fail(UNETX_BAD_BUNDLE, "%s has %llu bytes, expected at most %llu", name, (unsigned long long)length,
                    (unsigned long long)limit);
    *data = malloc((size_t)length + 1);
    if (*data == NULL)
        return no_memory();
    while (done < length) {
        DWORD wanted = length - done > 1u << 30 ? 1u << 30 : (DWORD)(length - done), got = 0;
        if (!ReadFile(file, *data + done, wanted, &got, NULL))
            return fail(UNETX_BAD_BUNDLE, "%s cannot be read: error %lu", name, GetLastError());
        if (got == 0)
            return fail(UNETX_BAD_BUNDLE, "%s became shorter while it was read", name);
        done += got;
    }
    (*data)[length] = '\0';
    *size = (size_t)length;
    return UNETX_OK;
}

static unetx_status read_file(const char *directory, const char *name, uint64_t limit, unsigned char **data,
                              size_t *size)
{
    static THREAD_LOCAL wchar_t wide[MAX_PATH_BYTES];
    char path[MAX_PATH_BYTES];
    HANDLE file;
    unetx_status status;
    *data = NULL;
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path || !widen(path, wide, MAX_PATH_BYTES))
        return fail(UNETX_BAD_ARGUMENT, "the path of the bundle is too long, or is not UTF-8");
    file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING,
                       FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_SEQUENTIAL_SCAN, NULL);
    if (file == INVALID_HANDLE_VALUE)
        return fail(UNETX_BAD_BUNDLE, "%s cannot be read: error %lu", path, GetLastError());
    status = read_open_file(file, name, limit, data, size);
    CloseHandle(file);
    if (status != UNETX_OK) {
        free(*data);
        *data = NULL;
    }
    return status;
}

static double clock_ms(void)
{
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (double)now.QuadPart * 1e3 / (double)frequency.QuadPart;
}

/* The decimal point is a point, whatever the host's locale says. */
static int parse_double(const char *text, char **end, double *value)
{
    _locale_t plain = _create_locale(LC_NUMERIC, "C");
    if (plain == NULL)
        return 0;
    *value = _strtod_l(text, end, plain);
    _free_locale(plain);
    return 1;
}

#else

static unetx_status read_descriptor(int file, const char *name, uint64_t limit, unsigned char **data, size_t *size)
{
    struct stat facts;
    size_t length, done = 0;
    if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode))
        return fail(UNETX_BAD_BUNDLE, "%s is not an ordinary file", name);
    if ((uint64_t)facts.st_size > limit)
        return fail(UNETX_BAD_BUNDLE, "%s has %llu bytes, expected at most %llu", name,
                    (unsigned long long)facts.st_size, (unsigned long long)limit);
    length = (size_t)facts.st_size;
    *data = malloc(length + 1);
    if (*data == NULL)
        return no_memory();
    while (done < length) {
        ssize_t got = read(file, *data + done, length - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return fail(UNETX_BAD_BUNDLE, "%s cannot be read to its end", name);
        done += (size_t)got;
    }
    (*data)[length] = '\0';
    *size = length;
    return UNETX_OK;
}

static unetx_status read_file(const char *directory, const char *name, uint64_t limit, unsigned char **data,
                              size_t *size)
{
    char path[MAX_PATH_BYTES];
    int file;
    unetx_status status;
    *data = NULL;
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
        return fail(UNETX_BAD_ARGUMENT, "the path of the bundle is too long");
    /* A pipe in place of a file would otherwise be waited for. */
    file = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0)
        return fail(UNETX_BAD_BUNDLE, "%s cannot be read: %s", path, errno == ELOOP ? "it is a link" : strerror(errno));
    status = read_descriptor(file, name, limit, data, size);
    close(file);
    if (status != UNETX_OK) {
        free(*data);
        *data = NULL;
    }
    return status;
}

static double clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* The decimal point is a point, whatever the host's locale says. */
static int parse_double(const char *text, char **end, double *value)
{
    locale_t plain = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    if (plain == (locale_t)0)
        return 0;
    *value = strtod_l(text, end, plain);
    freelocale(plain);
    return 1;
}

#endif

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_kind;

/* A value; text is decoded in place and ends with a zero byte. */
typedef struct json {
    json_kind kind;
    int is_integer;    /* of a number: written without a fraction and an exponent */
    const char *key;   /* where the parent is an object */
    const char *text;  /* of a string or a number */
    double number;
    uint32_t count;    /* of an array or an object */
    struct json *first, *next;
} json;

typedef struct {
    char *at; /* the data end with a zero byte, which is no part of any value */
    json *nodes;
    size_t used, capacity;
    const char *problem;
} json_reader;

static int json_reject(json_reader *reader, const char *problem)
{
    reader->problem = problem;
    return 0;
}

static void json_skip_space(json_reader *reader)
{
    while (*reader->at == ' ' || *reader->at == '\t' || *reader->at == '\n' || *reader->at == '\r')
        reader->at++;
}

/* Length of the UTF-8 sequence at `s`, 0 where it is malformed. */
static size_t utf8_length(const unsigned char *s)
{
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xc2 && s[0] <= 0xdf)
        return (s[1] & 0xc0) == 0x80 ? 2 : 0;
    if ((s[0] & 0xf0) == 0xe0) {
        if ((s[1] & 0xc0) != 0x80 || (s[2] & 0xc0) != 0x80)
            return 0;
        return (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ? 0 : 3;
    }
    if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        if ((s[1] & 0xc0) != 0x80 || (s[2] & 0xc0) != 0x80 || (s[3] & 0xc0) != 0x80)
            return 0;
        return (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f) ? 0 : 4;
    }
    return 0;
}

static char *utf8_write(char *out, uint32_t code)
{
    if (code < 0x80) {
        *out++ = (char)code;
        return out;
    }
    if (code < 0x800) {
        *out++ = (char)(0xc0 | code >> 6);
    } else if (code < 0x10000) {
        *out++ = (char)(0xe0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
    } else {
        *out++ = (char)(0xf0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 0x3f));
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
    }
    *out++ = (char)(0x80 | (code & 0x3f));
    return out;
}

/* Four hexadecimal digits; -1 where they are not. */
static int32_t json_hex4(const char *s)
{
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        int digit;
        if (s[i] >= '0' && s[i] <= '9')
            digit = s[i] - '0';
        else if (s[i] >= 'a' && s[i] <= 'f')
            digit = s[i] - 'a' + 10;
        else if (s[i] >= 'A' && s[i] <= 'F')
            digit = s[i] - 'A' + 10;
        else
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* One escape behind its backslash; returns its code point, or -1. */
static int32_t json_escape(json_reader *reader)
{
    static const char names[] = "\"\\/bfnrt", codes[] = "\"\\/\b\f\n\r\t";
    const char *found = *reader->at ? strchr(names, *reader->at) : NULL;
    int32_t code, low;
    if (found != NULL) {
        reader->at++;
        return codes[found - names];
    }
    if (*reader->at != 'u' || (code = json_hex4(reader->at + 1)) < 0)
        return -1;
    reader->at += 5;
    if (code < 0xd800 || code > 0xdfff)
        return code;
    if (code > 0xdbff || reader->at[0] != '\\' || reader->at[1] != 'u')
        return -1;
    low = json_hex4(reader->at + 2);
    if (low < 0xdc00 || low > 0xdfff)
        return -1;
    reader->at += 6;
    return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

/* A string; what it decodes to is never longer than what is written, so it takes its place. */
static int json_read_string(json_reader *reader, const char **text)
{
    char *out;
    if (*reader->at != '"')
        return json_reject(reader, "a text was expected");
    out = ++reader->at;
    *text = out;
    while (*reader->at != '"') {
        if ((unsigned char)*reader->at < 0x20)
            return json_reject(reader, "a text has no end, or holds a control character");
        if (*reader->at == '\\') {
            int32_t code;
            reader->at++;
            code = json_escape(reader);
            if (code < 0x20)
                return json_reject(reader, "a text holds an escape that is malformed, or of a control character");
            out = utf8_write(out, (uint32_t)code);
        } else {
            size_t length = utf8_length((const unsigned char *)reader->at);
            if (length == 0)
                return json_reject(reader, "a text is not UTF-8");
            memmove(out, reader->at, length);
            out += length;
            reader->at += length;
        }
    }
    reader->at++;
    *out = '\0';
    return 1;
}

static const char *skip_digits(const char *at)
{
    while (*at >= '0' && *at <= '9')
        at++;
    return at;
}

static int json_read_number(json_reader *reader, json *node)
{
    const char *start = reader->at, *at = start + (*start == '-'), *digits = at;
    char *end;
    at = skip_digits(at);
    if (at == digits || (*digits == '0' && at > digits + 1))
        return json_reject(reader, "a value is malformed");
    node->is_integer = 1;
    if (*at == '.') {
        node->is_integer = 0;
        digits = ++at;
        at = skip_digits(at);
        if (at == digits)
            return json_reject(reader, "a number is malformed");
    }
    if (*at == 'e' || *at == 'E') {
        node->is_integer = 0;
        at++;
        if (*at == '+' || *at == '-')
            at++;
        digits = at;
        at = skip_digits(at);
        if (at == digits)
            return json_reject(reader, "a number is malformed");
    }
    if (at - start > 1000 || !parse_double(start, &end, &node->number) || end != at || !isfinite(node->number))
        return json_reject(reader, "a number is too long, or not finite");
    node->kind = JSON_NUMBER;
    reader->at = end;
    return 1;
}

static int compare_keys(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* Two readers may take different ones of two equal keys: what was checked would not be what is used. */
static int json_keys_differ(json_reader *reader, const json *object)
{
    const char **keys;
    size_t index = 0;
    if (object->count < 2)
        return 1;
    keys = malloc(object->count * sizeof *keys);
    if (keys == NULL)
        return json_reject(reader, "memory is exhausted");
    for (const json *child = object->first; child != NULL; child = child->next)
        keys[index++] = child->key;
    qsort(keys, index, sizeof *keys, compare_keys);
    while (--index > 0)
        if (strcmp(keys[index], keys[index - 1]) == 0)
            break;
    free((void *)keys);
    return index == 0 ? 1 : json_reject(reader, "a key appears twice in one object");
}

static json *json_read_value(json_reader *reader, int depth);

static int json_read_children(json_reader *reader, json *parent, int depth)
{
    char close = parent->kind == JSON_OBJECT ? '}' : ']';
    json **link = &parent->first;
    reader->at++;
    json_skip_space(reader);
    if (*reader->at == close) {
        reader->at++;
        return 1;
    }
    for (;;) {
        const char *key = NULL;
        json *child;
        json_skip_space(reader);
        if (parent->kind == JSON_OBJECT) {
            if (!json_read_string(reader, &key))
                return 0;
            json_skip_space(reader);
            if (*reader->at++ != ':')
                return json_reject(reader, "a colon is missing");
        }
        child = json_read_value(reader, depth + 1);
        if (child == NULL)
            return 0;
        child->key = key;
        *link = child;
        link = &child->next;
        parent->count++;
        json_skip_space(reader);
        if (*reader->at == close)
            break;
        if (*reader->at != ',')
            return json_reject(reader, "a comma or a closing bracket is missing");
        reader->at++;
    }
    reader->at++;
    return parent->kind == JSON_ARRAY || json_keys_differ(reader, parent);
}

static int json_read_word(json_reader *reader, json *node, const char *word, json_kind kind)
{
    size_t length = strlen(word);
    if (strncmp(reader->at, word, length) != 0)
        return json_reject(reader, "a value is malformed");
    reader->at += length;
    node->kind = kind;
    return 1;
}

static json *json_read_value(json_reader *reader, int depth)
{
    json *node;
    int is_good;
    json_skip_space(reader);
    if (depth > MAX_DEPTH || reader->used == reader->capacity) {
        json_reject(reader, "it is nested too deeply, or holds too many values");
        return NULL;
    }
    node = &reader->nodes[reader->used++];
    switch (*reader->at) {
    case '{':
    case '[':
        node->kind = *reader->at == '{' ? JSON_OBJECT : JSON_ARRAY;
        is_good = json_read_children(reader, node, depth);
        break;
    case '"':
        node->kind = JSON_STRING;
        is_good = json_read_string(reader, &node->text);
        break;
    case 'n':
        is_good = json_read_word(reader, node, "null", JSON_NULL);
        break;
    case 't':
        is_good = json_read_word(reader, node, "true", JSON_TRUE);
        break;
    case 'f':
        is_good = json_read_word(reader, node, "false", JSON_FALSE);
        break;
    default:
        is_good = json_read_number(reader, node);
    }
    return is_good ? node : NULL;
}

/* Parse one object. `data` is changed, ends with a zero byte and must outlive the nodes; the caller frees `*nodes`. */
static unetx_status json_parse(char *data, size_t size, json **nodes)
{
    json_reader reader = {data, NULL, 0, 1, NULL};
    json *root;
    for (size_t i = 0; i < size; i++)
        if (data[i] == ',' || data[i] == '[' || data[i] == '{')
            reader.capacity++;
    if (reader.capacity > MAX_VALUES)
        return fail(UNETX_BAD_BUNDLE, "manifest.json holds too many values, expected at most %d", MAX_VALUES);
    *nodes = reader.nodes = calloc(reader.capacity, sizeof *reader.nodes);
    if (reader.nodes == NULL)
        return no_memory();
    root = json_read_value(&reader, 0);
    if (root != NULL) {
        json_skip_space(&reader);
        if (reader.at != data + size || root->kind != JSON_OBJECT)
            json_reject(&reader, "it is not one object");
    }
    if (reader.problem != NULL)
        return fail(UNETX_BAD_BUNDLE, "manifest.json is not JSON as unetx-opt writes it: %s (byte %llu)", reader.problem,
                    (unsigned long long)(reader.at - data));
    return UNETX_OK;
}

/* The member of an object if it is of that kind, else NULL. */
static const json *json_member(const json *object, const char *key, json_kind kind)
{
    if (object == NULL || object->kind != JSON_OBJECT)
        return NULL;
    for (const json *child = object->first; child != NULL; child = child->next)
        if (strcmp(child->key, key) == 0)
            return child->kind == kind ? child : NULL;
    return NULL;
}

static int json_integer(const json *object, const char *key, int64_t low, int64_t high, int64_t *value)
{
    const json *node = json_member(object, key, JSON_NUMBER);
    if (node == NULL || !node->is_integer || node->number < (double)low || node->number > (double)high)
        return 0;
    *value = (int64_t)node->number;
    return 1;
}

static int json_double(const json *object, const char *key, double *value)
{
    const json *node = json_member(object, key, JSON_NUMBER);
    if (node == NULL)
        return 0;
    *value = node->number;
    return 1;
}

static int json_pair(const json *object, const char *key, double pair[2])
{
    const json *array = json_member(object, key, JSON_ARRAY);
    if (array == NULL || array->count != 2 || array->first->kind != JSON_NUMBER ||
        array->first->next->kind != JSON_NUMBER)
        return 0;
    pair[0] = array->first->number;
    pair[1] = array->first->next->number;
    return pair[0] < pair[1];
}

/* ---- manifest ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t height, width, channels;
    int is_window;
    double percentiles[2], window[2], value_range[2], padding_value;
} input_contract;

typedef struct {
    input_contract input;
    uint32_t label_count;
    char labels[MAX_LABELS][MAX_LABEL_BYTES + 1];
    char engine_file[MAX_NAME + 1];
    char engine_sha256[65];
    uint64_t engine_size;
} bundle_facts;

static const char *const MANIFEST_FIELDS[] = {
    "schema_version", "product", "variant",    "spec", "labels",      "input", "postprocess", "precision",
    "operations",     "engines", "skipped",    "files", "checkpoint", "gate",  "calibration", "build",
    "model_card",     "sbom",    "signing_key_sha256", "notes"};
enum { MANIFEST_FIELD_COUNT = sizeof MANIFEST_FIELDS / sizeof *MANIFEST_FIELDS };

static char lower_case(char character)
{
    return character >= 'A' && character <= 'Z' ? (char)(character - 'A' + 'a') : character;
}

/* Whether the part up to its first point is a name that Windows maps to a device. */
static int is_device_name(const char *part, size_t length)
{
    static const char *const names[] = {"con", "prn", "aux", "nul"};
    char stem[5] = {0};
    size_t stem_length = 0;
    while (stem_length < length && part[stem_length] != '.')
        stem_length++;
    if (stem_length != 3 && stem_length != 4)
        return 0;
    for (size_t i = 0; i < stem_length; i++)
        stem[i] = lower_case(part[i]);
    if (stem_length == 3) {
        for (size_t i = 0; i < 4; i++)
            if (strcmp(stem, names[i]) == 0)
                return 1;
        return 0;
    }
    return (memcmp(stem, "com", 3) == 0 || memcmp(stem, "lpt", 3) == 0) && stem[3] >= '0' && stem[3] <= '9';
}

/* The rules of unetx_opt.files.relative_name. */
static int is_relative_name(const char *name)
{
    size_t length = strlen(name);
    if (length == 0 || length > MAX_NAME)
        return 0;
    for (const char *part = name;; part++) {
        size_t size = strcspn(part, "/");
        if (size == 0 || part[size - 1] == '.' || is_device_name(part, size))
            return 0;
        for (size_t i = 0; i < size; i++) {
            char c = lower_case(part[i]);
            if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c != '\0' && strchr("._+-", c) != NULL)))
                return 0;
        }
        part += size;
        if (*part == '\0')
            return 1;
    }
}

static unetx_status bad_field(const char *field)
{
    return fail(UNETX_BAD_BUNDLE, "manifest.json: the field %s is missing, malformed or out of range", field);
}

static unetx_status read_contract(const json *manifest, input_contract *input)
{
    const json *object = json_member(manifest, "input", JSON_OBJECT);
    const json *kind = json_member(object, "normalization", JSON_STRING);
    int64_t channels;
    if (kind == NULL || object->count != 9 || !json_integer(object, "height", 16, 8192, &input->height) ||
        !json_integer(object, "width", 16, 8192, &input->width) ||
        !json_integer(object, "channels", 1, 16, &input->channels) ||
        !json_double(object, "lower_percentile", &input->percentiles[0]) ||
        !json_double(object, "upper_percentile", &input->percentiles[1]) ||
        !json_pair(object, "value_range", input->value_range) ||
        !json_double(object, "padding_value", &input->padding_value))
        return bad_field("input");
    if (!(input->percentiles[0] >= 0.0 && input->percentiles[0] < input->percentiles[1] &&
          input->percentiles[1] <= 100.0))
        return bad_field("input.lower_percentile");
    input->is_window = strcmp(kind->text, "window") == 0;
    if (!input->is_window && strcmp(kind->text, "percentile") != 0)
        return bad_field("input.normalization");
    if (input->is_window ? !json_pair(object, "window", input->window) || !(fabs(input->window[0]) <= MAX_GREY) ||
                               !(fabs(input->window[1]) <= MAX_GREY)
                         : json_member(object, "window", JSON_NULL) == NULL)
        return bad_field("input.window");
    if (!json_integer(json_member(manifest, "spec", JSON_OBJECT), "in_channels", 1, 16, &channels) ||
        channels != input->channels)
        return bad_field("spec.in_channels");
    return UNETX_OK;
}

static unetx_status read_labels(const json *manifest, bundle_facts *facts)
{
    const json *array = json_member(manifest, "labels", JSON_ARRAY);
    int64_t classes, index;
    if (!json_integer(json_member(manifest, "spec", JSON_OBJECT), "num_classes", 1, MAX_LABELS, &classes))
        return bad_field("spec.num_classes");
    if (array == NULL || array->count != (classes < 2 ? 2 : classes))
        return bad_field("labels");
    for (const json *label = array->first; label != NULL; label = label->next) {
        const json *name = json_member(label, "name", JSON_STRING);
        if (name == NULL || name->text[0] == '\0' || strlen(name->text) > MAX_LABEL_BYTES ||
            !json_integer(label, "index", 0, MAX_LABELS - 1, &index) || index != facts->label_count)
            return bad_field("labels");
        for (uint32_t i = 0; i < facts->label_count; i++)
            if (strcmp(facts->labels[i], name->text) == 0)
                return bad_field("labels");
        strcpy(facts->labels[facts->label_count++], name->text);
    }
    return UNETX_OK;
}

/* The first onnxruntime-cpu engine: builders list them in the order of preference. */
static unetx_status find_engine(const json *manifest, bundle_facts *facts)
{
    const json *engines = json_member(manifest, "engines", JSON_ARRAY), *files;
    if (engines == NULL)
        return bad_field("engines");
    for (const json *engine = engines->first; engine != NULL; engine = engine->next) {
        const json *target = json_member(engine, "target", JSON_STRING), *gate;
        if (target == NULL)
            return bad_field("engines");
        if (strcmp(target->text, "onnxruntime-cpu") != 0)
            continue;
        gate = json_member(engine, "gate", JSON_OBJECT);
        if (gate == NULL ? json_member(engine, "gate", JSON_NULL) == NULL
                         : json_member(gate, "passed", JSON_TRUE) == NULL)
            return fail(UNETX_BAD_BUNDLE, "manifest.json: the gate of its onnxruntime-cpu engine was not passed");
        files = json_member(engine, "files", JSON_ARRAY);
        if (files == NULL || files->count != 1 || files->first->kind != JSON_STRING)
            return bad_field("engines.files");
        if (!is_relative_name(files->first->text))
            return fail(UNETX_BAD_BUNDLE, "manifest.json: the engine's file is not a safe relative name");
        strcpy(facts->engine_file, files->first->text);
        return UNETX_OK;
    }
    return fail(UNETX_BAD_BUNDLE, "the bundle has no onnxruntime-cpu engine: build it with --target onnxruntime-cpu");
}

static unetx_status find_record(const json *manifest, bundle_facts *facts)
{
    const json *files = json_member(manifest, "files", JSON_OBJECT);
    const json *record = json_member(files, facts->engine_file, JSON_OBJECT);
    const json *sha256 = json_member(record, "sha256", JSON_STRING);
    int64_t size;
    if (sha256 == NULL || strlen(sha256->text) != 64 || strspn(sha256->text, "0123456789abcdef") != 64 ||
        !json_integer(record, "size", 0, (int64_t)MAX_ENGINE_BYTES, &size))
        return bad_field("files");
    strcpy(facts->engine_sha256, sha256->text);
    facts->engine_size = (uint64_t)size;
    return UNETX_OK;
}

static unetx_status read_facts(const json *manifest, bundle_facts *facts)
{
    const json *postprocess;
    int64_t version;
    unetx_status status;
    if (!json_integer(manifest, "schema_version", 1, 1, &version))
        return fail(UNETX_BAD_BUNDLE, "manifest.json has no schema version, or another one than 1: build the bundle again, "
                                      "or use the library that belongs to it");
    for (const json *field = manifest->first; field != NULL; field = field->next) {
        int known = 0;
        for (size_t i = 0; i < MANIFEST_FIELD_COUNT; i++)
            known |= strcmp(field->key, MANIFEST_FIELDS[i]) == 0;
        if (!known)
            return fail(UNETX_BAD_BUNDLE, "manifest.json has the field %.60s, which this library does not know",
                        field->key);
    }
    if (manifest->count != MANIFEST_FIELD_COUNT)
        return fail(UNETX_BAD_BUNDLE, "manifest.json has %u fields, expected %d", (unsigned)manifest->count,
                    MANIFEST_FIELD_COUNT);
    postprocess = json_member(manifest, "postprocess", JSON_OBJECT);
    if (postprocess != NULL) {
        const json *name = json_member(postprocess, "name", JSON_STRING);
        return fail(UNETX_BAD_BUNDLE, "the bundle's masks need the step %.100s, which this library does not have: use "
                                      "the Python package, or a variant without a step",
                    name == NULL ? "?" : name->text);
    }
    if (json_member(manifest, "postprocess", JSON_NULL) == NULL)
        return bad_field("postprocess");
    if ((status = read_contract(manifest, &facts->input)) != UNETX_OK ||
        (status = read_labels(manifest, facts)) != UNETX_OK || (status = find_engine(manifest, facts)) != UNETX_OK)
        return status;
    return find_record(manifest, facts);
}

static unetx_status check_manifest(const char *directory, const unsigned char *data, size_t size)
{
    char digest[65], expected[128];
    unsigned char *written;
    size_t written_size;
    int equal;
    unetx_status status = read_file(directory, "manifest.sha256", 1024, &written, &written_size);
    if (status != UNETX_OK)
        return status;
    sha256_hex(data, size, digest);
    snprintf(expected, sizeof expected, "%s  manifest.json\n", digest);
    equal = written_size == strlen(expected) && memcmp(written, expected, written_size) == 0;
    free(written);
    if (!equal)
        return fail(UNETX_BAD_BUNDLE, "manifest.json was altered: manifest.sha256 does not hold its hash; get the bundle "
                                      "again");
    return UNETX_OK;
}

static unetx_status read_manifest(const char *directory, bundle_facts *facts)
{
    unsigned char *data;
    size_t size;
    json *nodes = NULL;
    unetx_status status = read_file(directory, "manifest.json", MAX_MANIFEST_BYTES, &data, &size);
    if (status != UNETX_OK)
        return status;
    status = check_manifest(directory, data, size);
    if (status == UNETX_OK)
        status = json_parse((char *)data, size, &nodes);
    if (status == UNETX_OK)
        status = read_facts(nodes, facts);
    free(nodes);
    free(data);
    return status;
}

/* Read the engine and check what was read: these bytes are those that run. */
static unetx_status read_engine(const char *directory, const bundle_facts *facts, unsigned char **data, size_t *size)
{
    char digest[65];
    unetx_status status = read_file(directory, facts->engine_file, facts->engine_size, data, size);
    if (status != UNETX_OK)
        return status;
    sha256_hex(*data, *size, digest);
    if (*size == facts->engine_size && strcmp(digest, facts->engine_sha256) == 0)
        return UNETX_OK;
    free(*data);
    *data = NULL;
    return fail(UNETX_BAD_BUNDLE, "%s was altered: its SHA-256 is not what the manifest says; get the bundle again",
                facts->engine_file);
}

/* ---- ONNX Runtime ------------------------------------------------------------------------------------------------ */

#if defined(_WIN32)
#  define ORT_CALL __stdcall
#else
#  define ORT_CALL
#endif

enum { ORT_API_NUMBER = 21, ORT_LOG_ERROR = 3, ORT_FLOAT = 1, ORT_DEVICE_ALLOCATOR = 0, ORT_DEFAULT_MEMORY = 0 };

typedef struct ort_object ort_object; /* whatever ONNX Runtime hands out, never looked into */
typedef ort_object *ort_status;       /* NULL where all went well */

/* The entries used here: name, position in the table of functions, result, arguments. ONNX Runtime only ever appends
 * to that table. */
#define ORT_ENTRIES(entry)                                                                                              \
    entry(get_error_message, 2, const char *, (const ort_object *))                                                     \
    entry(create_env, 3, ort_status, (int, const char *, ort_object **))                                                \
    entry(create_session_from_array, 8, ort_status,                                                                     \
          (const ort_object *, const void *, size_t, const ort_object *, ort_object **))                                \
    entry(run, 9, ort_status,                                                                                           \
          (ort_object *, const ort_object *, const char *const *, const ort_object *const *, size_t,                    \
           const char *const *, size_t, ort_object **))                                                                 \
    entry(create_session_options, 10, ort_status, (ort_object **))                                                      \
    entry(set_session_log_severity, 22, ort_status, (ort_object *, int))                                                \
    entry(set_intra_op_threads, 24, ort_status, (ort_object *, int))                                                    \
    entry(create_tensor_with_data, 49, ort_status,                                                                      \
          (const ort_object *, void *, size_t, const int64_t *, size_t, int, ort_object **))                            \
    entry(is_tensor, 50, ort_status, (const ort_object *, int *))                                                       \
    entry(get_tensor_data, 51, ort_status, (ort_object *, void **))                                                     \
    entry(get_element_type, 60, ort_status, (const ort_object *, int *))                                                \
    entry(get_dimension_count, 61, ort_status, (const ort_object *, size_t *))                                          \
    entry(get_dimensions, 62, ort_status, (const ort_object *, int64_t *, size_t))                                      \
    entry(get_tensor_type_and_shape, 65, ort_status, (const ort_object *, ort_object **))                               \
    entry(create_cpu_memory_info, 69, ort_status, (int, int, ort_object **))                                            \
    entry(release_env, 92, void, (ort_object *))                                                                        \
    entry(release_status, 93, void, (ort_object *))                                                                     \
    entry(release_memory_info, 94, void, (ort_object *))                                                                \
    entry(release_session, 95, void, (ort_object *))                                                                    \
    entry(release_value, 96, void, (ort_object *))                                                                      \
    entry(release_tensor_type_and_shape, 99, void, (ort_object *))                                                      \
    entry(release_session_options, 100, void, (ort_object *))                                                           \
    entry(add_session_config, 130, ort_status, (ort_object *, const char *, const char *))

typedef struct {
#define ORT_DECLARE(name, position, result, arguments) result(ORT_CALL *name) arguments;
    ORT_ENTRIES(ORT_DECLARE)
#undef ORT_DECLARE
} ort_functions;

typedef struct {
    const void *(ORT_CALL *get_api)(uint32_t number);
    const char *(ORT_CALL *get_version)(void);
} ort_base;

struct unetx_segmenter {
    bundle_facts facts;
    ort_functions ort;
    ort_object *env, *session, *memory;
};

typedef const ort_base *(ORT_CALL *ort_get_base)(void);

/* Load the library for the rest of the process: it keeps threads and state that do not survive unloading. */
static unetx_status load_entry(const char *path, ort_get_base *entry)
{
#if defined(_WIN32)
    static THREAD_LOCAL wchar_t wide[MAX_PATH_BYTES];
    HMODULE module;
    FARPROC found;
    int is_drive = ((path[0] >= 'A' && path[0] <= 'Z') || (path[0] >= 'a' && path[0] <= 'z')) && path[1] == ':' &&
                   (path[2] == '\\' || path[2] == '/');
    if (!is_drive && strncmp(path, "\\\\", 2) != 0)
        return fail(UNETX_BAD_ARGUMENT, "the path of ONNX Runtime is not absolute");
    if (!widen(path, wide, MAX_PATH_BYTES))
        return fail(UNETX_BAD_ARGUMENT, "the path of ONNX Runtime is too long, or is not UTF-8");
    for (wchar_t *at = wide; *at; at++)
        if (*at == L'/')
            *at = L'\\';
    /* Only its own directory and the system's are searched for what it needs, never the current one. */
    module = LoadLibraryExW(wide, NULL, 0x00000100 | 0x00000800);
    if (module == NULL)
        return fail(UNETX_BAD_ENGINE, "ONNX Runtime cannot be loaded: error %lu", GetLastError());
    found = GetProcAddress(module, "OrtGetApiBase");
#else
    void *module, *found;
    if (path[0] != '/')
        return fail(UNETX_BAD_ARGUMENT, "the path of ONNX Runtime is not absolute");
    module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL)
        return fail(UNETX_BAD_ENGINE, "ONNX Runtime cannot be loaded: %s", dlerror());
    found = dlsym(module, "OrtGetApiBase");
#endif
    if (found == NULL)
        return fail(UNETX_BAD_ENGINE, "%s is not ONNX Runtime: it has no OrtGetApiBase", path);
    memcpy(entry, &found, sizeof *entry);
    return UNETX_OK;
}

static unetx_status load_onnxruntime(const char *path, ort_functions *ort)
{
    ort_get_base entry = NULL;
    const ort_base *base;
    const char *table;
    unetx_status status = load_entry(path, &entry);
    if (status != UNETX_OK)
        return status;
    base = entry();
    table = base->get_api(ORT_API_NUMBER);
    if (table == NULL)
        return fail(UNETX_BAD_ENGINE, "ONNX Runtime is %s, expected 1.21 or later", base->get_version());
#define ORT_FETCH(name, position, result, arguments)                                                                    \
    memcpy(&ort->name, table + (position) * sizeof(void *), sizeof ort->name);
    ORT_ENTRIES(ORT_FETCH)
#undef ORT_FETCH
    return UNETX_OK;
}

/* Turn ONNX Runtime's status into ours, with the first line of its message. */
static unetx_status ort_check(const ort_functions *ort, ort_status status, const char *what)
{
    const char *message;
    if (status == NULL)
        return UNETX_OK;
    message = ort->get_error_message(status);
    fail(UNETX_BAD_ENGINE, "ONNX Runtime cannot %s: %.*s", what, (int)strcspn(message, "\r\n"), message);
    ort->release_status(status);
    return UNETX_BAD_ENGINE;
}

/* One image at a time, errors only, threads that sleep: the options of the Python package. */
static unetx_status set_options(const ort_functions *ort, ort_object *options, uint32_t threads)
{
    unetx_status status = ort_check(ort, ort->set_session_log_severity(options, ORT_LOG_ERROR), "set its log level");
    if (status == UNETX_OK && threads > 0)
        status = ort_check(ort, ort->set_intra_op_threads(options, (int)threads), "set its threads");
    if (status == UNETX_OK)
        status = ort_check(ort, ort->add_session_config(options, "session.intra_op.allow_spinning", "0"),
                           "set how its threads wait");
    return status;
}

static unetx_status start_session(unetx_segmenter *segmenter, const void *model, size_t size, uint32_t threads)
{
    const ort_functions *ort = &segmenter->ort;
    ort_object *options = NULL;
    unetx_status status = ort_check(ort, ort->create_env(ORT_LOG_ERROR, "unetx", &segmenter->env), "start");
    if (status == UNETX_OK)
        status = ort_check(ort, ort->create_session_options(&options), "make options");
    if (status == UNETX_OK)
        status = set_options(ort, options, threads);
    if (status == UNETX_OK)
        status = ort_check(ort, ort->create_session_from_array(segmenter->env, model, size, options, &segmenter->session),
                           "load the engine");
    if (status == UNETX_OK)
        status = ort_check(ort, ort->create_cpu_memory_info(ORT_DEVICE_ALLOCATOR, ORT_DEFAULT_MEMORY, &segmenter->memory),
                           "describe memory");
    if (options != NULL)
        ort->release_session_options(options);
    return status;
}

/* Compare what the engine gave with (1, K, height, width) float; K goes to `*planes`. */
static unetx_status check_shape(const unetx_segmenter *segmenter, const ort_object *value, int64_t *planes)
{
    const ort_functions *ort = &segmenter->ort;
    const input_contract *input = &segmenter->facts.input;
    int64_t classes = segmenter->facts.label_count, shape[4] = {0};
    int type = 0;
    size_t rank = 0;
    ort_object *info = NULL;
    unetx_status status = ort_check(ort, ort->get_tensor_type_and_shape(value, &info), "describe the logits");
    if (status != UNETX_OK)
        return status;
    status = ort_check(ort, ort->get_element_type(info, &type), "describe the logits");
    if (status == UNETX_OK)
        status = ort_check(ort, ort->get_dimension_count(info, &rank), "describe the logits");
    if (status == UNETX_OK && rank == 4)
        status = ort_check(ort, ort->get_dimensions(info, shape, rank), "describe the logits");
    ort->release_tensor_type_and_shape(info);
    if (status != UNETX_OK)
        return status;
    if (type != ORT_FLOAT || shape[0] != 1 || (shape[1] != classes && !(classes == 2 && shape[1] == 1)) ||
        shape[2] != input->height || shape[3] != input->width)
        return fail(UNETX_BAD_ENGINE, "the engine's logits do not have the shape that the bundle's labels and input ask for");
    *planes = shape[1];
    return UNETX_OK;
}

/* Run the engine. `*logits` points into `*value`, which the caller releases, also after a failure. */
static unetx_status infer(const unetx_segmenter *segmenter, float *image_chw, ort_object **value, const float **logits,
                          int64_t *planes)
{
    static const char *const inputs[] = {"image"}, *const outputs[] = {"logits"};
    const ort_functions *ort = &segmenter->ort;
    const input_contract *input = &segmenter->facts.input;
    const int64_t shape[4] = {1, input->channels, input->height, input->width};
    size_t size = (size_t)(shape[1] * shape[2] * shape[3]) * sizeof *image_chw;
    ort_object *tensor = NULL;
    void *data = NULL;
    unetx_status status = ort_check(
        ort, ort->create_tensor_with_data(segmenter->memory, image_chw, size, shape, 4, ORT_FLOAT, &tensor), "take the image");
    if (status != UNETX_OK)
        return status;
    status = ort_check(
        ort, ort->run(segmenter->session, NULL, inputs, (const ort_object *const *)&tensor, 1, outputs, 1, value),
        "run the engine");
    ort->release_value(tensor);
    if (status == UNETX_OK)
        status = check_shape(segmenter, *value, planes);
    if (status == UNETX_OK)
        status = ort_check(ort, ort->get_tensor_data(*value, &data), "give the logits");
    if (status != UNETX_OK)
        return status;
    *logits = data;
    for (int64_t i = 0, count = *planes * input->height * input->width; i < count; i++)
        if (!isfinite((*logits)[i]))
            return fail(UNETX_BAD_ENGINE, "the engine gave logits that are NaN or infinite: there is no mask for this image");
    return UNETX_OK;
}

/* ---- resampling: unetx_opt.imaging.resize ------------------------------------------------------------------------ */

/* The taps of one axis: those of target sample i are weights[i * stride + 0 .. counts[i]), from starts[i] on. */
typedef struct {
    size_t stride;
    int32_t *starts, *counts;
    double *weights;
} filter_taps;

static void free_taps(filter_taps *taps)
{
    free(taps->starts);
    free(taps->counts);
    free(taps->weights);
}

static int make_taps(int32_t source, int32_t target, filter_taps *taps)
{
    double scale = (double)source / (double)target, width = scale < 1.0 ? 1.0 : scale, inverse = 1.0 / width;
    taps->stride = (size_t)ceil(width) * 2 + 1;
    taps->starts = malloc((size_t)target * sizeof *taps->starts);
    taps->counts = malloc((size_t)target * sizeof *taps->counts);
    taps->weights = malloc((size_t)target * taps->stride * sizeof *taps->weights);
    if (taps->starts == NULL || taps->counts == NULL || taps->weights == NULL)
        return 0;
    for (int32_t i = 0; i < target; i++) {
        double center = (i + 0.5) * scale, sum = 0.0, *weights = taps->weights + (size_t)i * taps->stride;
        int32_t start = (int32_t)(center - width + 0.5), end = (int32_t)(center + width + 0.5);
        start = start < 0 ? 0 : start;
        end = end > source ? source : end;
        for (int32_t j = start; j < end; j++) {
            double distance = fabs((j - center + 0.5) * inverse);
            weights[j - start] = distance < 1.0 ? 1.0 - distance : 0.0;
            sum += weights[j - start];
        }
        for (int32_t j = 0; j < end - start; j++)
            if (sum != 0.0)
                weights[j] /= sum;
        taps->starts[i] = start;
        taps->counts[i] = end - start;
    }
    return 1;
}

/* A plane of floats: row y begins at values + y * stride. */
typedef struct {
    const float *values;
    int32_t height, width;
    size_t stride;
} float_plane;

static void resize_rows(const float_plane *source, const filter_taps *taps, int32_t width, float *result)
{
    for (int32_t y = 0; y < source->height; y++) {
        const float *row = source->values + (size_t)y * source->stride;
        for (int32_t x = 0; x < width; x++) {
            const double *weights = taps->weights + (size_t)x * taps->stride;
            double sum = 0.0;
            for (int32_t k = 0; k < taps->counts[x]; k++)
                sum += (double)row[taps->starts[x] + k] * weights[k];
            result[(size_t)y * (size_t)width + (size_t)x] = (float)sum;
        }
    }
}

static void resize_columns(const float_plane *source, const filter_taps *taps, int32_t height, float *result)
{
    for (int32_t y = 0; y < height; y++) {
        const double *weights = taps->weights + (size_t)y * taps->stride;
        const float *top = source->values + (size_t)taps->starts[y] * source->stride;
        for (int32_t x = 0; x < source->width; x++) {
            double sum = 0.0;
            for (int32_t k = 0; k < taps->counts[y]; k++)
                sum += (double)top[(size_t)k * source->stride + (size_t)x] * weights[k];
            result[(size_t)y * (size_t)source->width + (size_t)x] = (float)sum;
        }
    }
}

/* Resample one axis into a new buffer, which the caller frees. */
static unetx_status resize_axis(const float_plane *source, int32_t height, int32_t width, float **result)
{
    filter_taps taps = {0, NULL, NULL, NULL};
    int along_rows = width != source->width;
    int is_made = along_rows ? make_taps(source->width, width, &taps) : make_taps(source->height, height, &taps);
    *result = malloc((size_t)height * (size_t)width * sizeof **result);
    if (is_made && *result != NULL) {
        if (along_rows)
            resize_rows(source, &taps, width, *result);
        else
            resize_columns(source, &taps, height, *result);
    }
    free_taps(&taps);
    return is_made && *result != NULL ? UNETX_OK : no_memory();
}

/* Bring a plane to a size: rows first, then columns. `*owned` is what the caller frees (NULL where nothing changed). */
static unetx_status resize_plane(const float_plane *source, int32_t height, int32_t width, float_plane *result, float **owned)
{
    float *rows = NULL;
    unetx_status status = UNETX_OK;
    *owned = NULL;
    *result = *source;
    if (width != source->width) {
        status = resize_axis(source, source->height, width, &rows);
        *result = (float_plane){rows, source->height, width, (size_t)width};
        *owned = rows;
    }
    if (status == UNETX_OK && height != source->height) {
        status = resize_axis(result, height, width, owned);
        *result = (float_plane){*owned, height, width, (size_t)width};
        free(rows);
    }
    return status;
}

/* ---- image to network input: unetx_opt.imaging.grey and .preprocess ---------------------------------------------- */

typedef struct {
    int32_t scaled_height, scaled_width, top, left;
} image_geometry;

/* Levels are counted from the smallest value that the stored bits can hold. */
typedef struct {
    int32_t low, high; /* what the stored bits can hold */
    int is_mirrored;
} stored_range;

static stored_range range_of(const unetx_image *image)
{
    uint32_t bits = image->bits_stored ? image->bits_stored : image->bits_allocated;
    int32_t half = (int32_t)1 << (bits - 1);
    stored_range range = {image->is_signed ? -half : 0, image->is_signed ? half - 1 : 2 * half - 1,
                          image->photometric == UNETX_MONOCHROME1};
    return range;
}

/* The level of a pixel, 0 to high - low. */
static int32_t level_at(const unetx_image *image, const stored_range *range, const unsigned char *row, uint32_t x)
{
    int32_t value;
    if (image->bits_allocated == 8) {
        value = image->is_signed ? (int32_t)(int8_t)row[x] : (int32_t)row[x];
    } else {
        uint16_t word;
        memcpy(&word, row + 2 * (size_t)x, sizeof word);
        value = image->is_signed ? (int32_t)(int16_t)word : (int32_t)word;
    }
    value = value < range->low ? range->low : value > range->high ? range->high : value;
    return range->is_mirrored ? range->high - value : value - range->low;
}

/* The first level that more than `rank` pixels do not exceed, counted from `lowest`. */
static int64_t level_of_rank(const uint32_t *counts, int32_t lowest, double rank)
{
    uint64_t seen = 0;
    for (int32_t level = lowest;; level++) {
        seen += counts[level];
        if ((double)seen > rank)
            return level - lowest;
    }
}

static double percentile(const uint32_t *counts, int32_t lowest, double percent, uint64_t total)
{
    double position = percent / 100.0 * (double)(total - 1), rank = floor(position);
    double next = rank + 1.0 < (double)(total - 1) ? rank + 1.0 : (double)(total - 1);
    int64_t below = level_of_rank(counts, lowest, rank), above = level_of_rank(counts, lowest, next);
    double step = (position - rank) * (double)(above - below);
    return (double)below + step;
}

/* What level becomes which network value: table[level], for the levels that occur. */
static void make_table(const unetx_image *image, const stored_range *range, const input_contract *input,
                       const uint32_t *counts, float *table)
{
    uint64_t total = (uint64_t)image->height * image->width;
    int32_t lowest = 0, highest = range->high - range->low;
    double base, limits[2], low, span;
    while (counts[lowest] == 0)
        lowest++;
    while (counts[highest] == 0)
        highest--;
    base = (double)(range->low + lowest);
    if (input->is_window) {
        limits[0] = input->window[0];
        limits[1] = input->window[1];
    } else {
        limits[0] = percentile(counts, lowest, input->percentiles[0], total);
        limits[1] = percentile(counts, lowest, input->percentiles[1], total);
        if (!(limits[0] < limits[1])) {
            limits[0] = 0.0;
            limits[1] = (double)(highest - lowest);
        }
        limits[0] += base;
        limits[1] += base;
    }
    low = limits[0];
    span = limits[1] - limits[0];
    for (int32_t level = lowest; level <= highest; level++) {
        double mapped;
        if (!(span > 0.0)) {
            table[level] = (float)input->value_range[0];
            continue;
        }
        mapped = ((double)(range->low + level) - low) / span;
        mapped = mapped < 0.0 ? 0.0 : mapped > 1.0 ? 1.0 : mapped;
        if (input->value_range[0] != 0.0 || input->value_range[1] != 1.0) {
            mapped *= input->value_range[1] - input->value_range[0];
            mapped += input->value_range[0];
        }
        table[level] = (float)mapped;
    }
}

static unetx_status normalize_grey(const unetx_image *image, const input_contract *input, float **normalized)
{
    const unsigned char *pixels = image->pixels;
    stored_range range = range_of(image);
    uint32_t *counts = calloc(GREY_LEVELS, sizeof *counts);
    float *table = malloc(GREY_LEVELS * sizeof *table), *out;
    *normalized = out = malloc((size_t)image->height * image->width * sizeof *out);
    if (counts == NULL || table == NULL || out == NULL) {
        free(counts);
        free(table);
        return no_memory();
    }
    for (uint32_t y = 0; y < image->height; y++)
        for (uint32_t x = 0; x < image->width; x++)
            counts[level_at(image, &range, pixels + y * image->row_stride, x)]++;
    make_table(image, &range, input, counts, table);
    for (uint32_t y = 0; y < image->height; y++)
        for (uint32_t x = 0; x < image->width; x++)
            *out++ = table[level_at(image, &range, pixels + y * image->row_stride, x)];
    free(counts);
    free(table);
    return UNETX_OK;
}

static int32_t round_length(double length, int64_t limit)
{
    double rounded = floor(length + 0.5);
    rounded = rounded < 1.0 ? 1.0 : rounded;
    return (int32_t)(rounded > (double)limit ? (double)limit : rounded);
}

static unetx_status letterbox(const unetx_image *image, const input_contract *input, image_geometry *geometry)
{
    double row = image->row_spacing_mm, column = image->column_spacing_mm, aspect = 1.0, tall, wide;
    double height = (double)input->height, width = (double)input->width;
    if (!(row == 0.0 && column == 0.0)) {
        if (!(row > 0.0 && column > 0.0 && isfinite(row) && isfinite(column)))
            return fail(UNETX_BAD_IMAGE, "pixel spacing is %g x %g mm, expected two positive numbers: pass 0 and 0 where "
                                         "it is unknown", row, column);
        aspect = row / column;
        if (!(1.0 / MAX_PIXEL_ASPECT <= aspect && aspect <= MAX_PIXEL_ASPECT))
            return fail(UNETX_BAD_IMAGE, "pixel spacing is %g x %g mm, a ratio beyond %g: pass 0 and 0 where it is unknown",
                        row, column, MAX_PIXEL_ASPECT);
    }
    tall = image->height * aspect;
    wide = (double)image->width;
    if (tall * width >= wide * height) {
        geometry->scaled_height = (int32_t)input->height;
        geometry->scaled_width = round_length(wide * height / tall, input->width);
    } else {
        geometry->scaled_width = (int32_t)input->width;
        geometry->scaled_height = round_length(tall * width / wide, input->height);
    }
    geometry->top = ((int32_t)input->height - geometry->scaled_height) / 2;
    geometry->left = ((int32_t)input->width - geometry->scaled_width) / 2;
    return UNETX_OK;
}

/* Lay the scaled image into the padding, once per channel. The caller frees `*image_chw`. */
static unetx_status place(const float_plane *scaled, const image_geometry *geometry, const input_contract *input,
                          float **image_chw)
{
    size_t plane = (size_t)(input->height * input->width), count = plane * (size_t)input->channels;
    float *out = malloc(count * sizeof *out);
    *image_chw = out;
    if (out == NULL)
        return no_memory();
    for (size_t i = 0; i < count; i++)
        out[i] = (float)input->padding_value;
    for (int64_t channel = 0; channel < input->channels; channel++)
        for (int32_t y = 0; y < scaled->height; y++)
            memcpy(out + (size_t)channel * plane + (size_t)(geometry->top + y) * (size_t)input->width + geometry->left,
                   scaled->values + (size_t)y * scaled->stride, (size_t)scaled->width * sizeof *out);
    return UNETX_OK;
}

static unetx_status prepare_image(const unetx_image *image, const input_contract *input, image_geometry *geometry,
                                  float **image_chw)
{
    float *normalized = NULL, *owned = NULL;
    float_plane scaled;
    unetx_status status = letterbox(image, input, geometry);
    if (status == UNETX_OK)
        status = normalize_grey(image, input, &normalized);
    if (status == UNETX_OK) {
        float_plane source = {normalized, (int32_t)image->height, (int32_t)image->width, image->width};
        status = resize_plane(&source, geometry->scaled_height, geometry->scaled_width, &scaled, &owned);
    }
    if (status == UNETX_OK)
        status = place(&scaled, geometry, input, image_chw);
    free(owned);
    free(normalized);
    return status;
}

/* ---- logits to mask: unetx_opt.imaging.postprocess --------------------------------------------------------------- */

static void label_binary(const float_plane *logits, uint8_t *labels)
{
    for (int32_t y = 0; y < logits->height; y++)
        for (int32_t x = 0; x < logits->width; x++)
            *labels++ = logits->values[(size_t)y * logits->stride + (size_t)x] > 0.0f;
}

/* Give a class the pixels where its logit is above those of all classes before it. */
static void label_class(const float_plane *logits, uint8_t index, float *largest, uint8_t *labels)
{
    for (int32_t y = 0; y < logits->height; y++)
        for (int32_t x = 0; x < logits->width; x++, labels++, largest++) {
            float logit = logits->values[(size_t)y * logits->stride + (size_t)x];
            if (logit > *largest) {
                *largest = logit;
                *labels = index;
            }
        }
}

/* Labels of the image's own grid, without gaps between rows. */
static unetx_status restore_labels(const unetx_image *image, const image_geometry *geometry, const input_contract *input,
                                   const float *logits, int64_t planes, uint8_t *labels)
{
    size_t count = (size_t)image->height * image->width, plane = (size_t)(input->height * input->width);
    size_t corner = (size_t)geometry->top * (size_t)input->width + (size_t)geometry->left;
    float *largest = planes == 1 ? NULL : malloc(count * sizeof *largest);
    unetx_status status = UNETX_OK;
    if (planes > 1) {
        if (largest == NULL)
            return no_memory();
        for (size_t i = 0; i < count; i++)
            largest[i] = -INFINITY;
    }
    for (int64_t index = 0; index < planes && status == UNETX_OK; index++) {
        float_plane inside = {logits + (size_t)index * plane + corner, geometry->scaled_height, geometry->scaled_width,
                              (size_t)input->width};
        float_plane restored;
        float *owned;
        status = resize_plane(&inside, (int32_t)image->height, (int32_t)image->width, &restored, &owned);
        if (status == UNETX_OK && planes == 1)
            label_binary(&restored, labels);
        else if (status == UNETX_OK)
            label_class(&restored, (uint8_t)index, largest, labels);
        free(owned);
    }
    free(largest);
    return status;
}

/* ---- the border -------------------------------------------------------------------------------------------------- */

static unetx_status check_image(const unetx_image *image)
{
    uint64_t row;
    if (image->struct_size != sizeof *image)
        return fail(UNETX_BAD_ARGUMENT, "unetx_image has struct_size %u, expected %u: compile with the library's own header",
                    (unsigned)image->struct_size, (unsigned)sizeof *image);
    if (image->pixels == NULL || image->reserved != 0)
        return fail(UNETX_BAD_ARGUMENT, "unetx_image: pixels is NULL, or reserved is not 0");
    if (image->height < MIN_IMAGE_SIDE || image->width < MIN_IMAGE_SIDE || image->height > MAX_IMAGE_SIDE ||
        image->width > MAX_IMAGE_SIDE)
        return fail(UNETX_BAD_IMAGE, "image is %u x %u pixels (height x width), expected sides of %d to %d",
                    (unsigned)image->height, (unsigned)image->width, MIN_IMAGE_SIDE, MAX_IMAGE_SIDE);
    if ((image->bits_allocated != 8 && image->bits_allocated != 16) || image->bits_stored > image->bits_allocated ||
        image->is_signed > 1)
        return fail(UNETX_BAD_IMAGE, "image has %u of %u bits and is_signed %u, expected 8 or 16 bits, and 0 or 1",
                    (unsigned)image->bits_stored, (unsigned)image->bits_allocated, (unsigned)image->is_signed);
    if (image->photometric != UNETX_MONOCHROME1 && image->photometric != UNETX_MONOCHROME2)
        return fail(UNETX_BAD_IMAGE, "image has photometric %u, expected UNETX_MONOCHROME1 or UNETX_MONOCHROME2",
                    (unsigned)image->photometric);
    row = (uint64_t)image->width * (image->bits_allocated / 8);
    if (image->row_stride < row || image->pixels_size < row ||
        image->row_stride > (image->pixels_size - row) / (image->height - 1))
        return fail(UNETX_BAD_ARGUMENT, "unetx_image: %u rows of %llu bytes, %llu apart, do not fit %llu bytes",
                    (unsigned)image->height, (unsigned long long)row, (unsigned long long)image->row_stride,
                    (unsigned long long)image->pixels_size);
    return UNETX_OK;
}

static unetx_status check_mask(const unetx_image *image, const unetx_mask *mask, const unetx_timings *timings)
{
    if (mask->struct_size != sizeof *mask || (timings != NULL && timings->struct_size != sizeof *timings))
        return fail(UNETX_BAD_ARGUMENT, "unetx_mask or unetx_timings has a wrong struct_size: compile with the library's own "
                                        "header");
    if (mask->labels == NULL || mask->reserved != 0)
        return fail(UNETX_BAD_ARGUMENT, "unetx_mask: labels is NULL, or reserved is not 0");
    if (mask->row_stride < image->width || mask->labels_size < image->width ||
        mask->row_stride > (mask->labels_size - image->width) / (image->height - 1))
        return fail(UNETX_BAD_ARGUMENT, "unetx_mask: %u rows of %u bytes, %llu apart, do not fit %llu bytes",
                    (unsigned)image->height, (unsigned)image->width, (unsigned long long)mask->row_stride,
                    (unsigned long long)mask->labels_size);
    return UNETX_OK;
}

UNETX_API unetx_status UNETX_CALL unetx_open(const char *bundle_directory, const char *onnxruntime_path, uint32_t threads,
                                             unetx_segmenter **segmenter)
{
    unetx_segmenter *made;
    unsigned char *engine = NULL;
    size_t size = 0;
    unetx_status status;
    if (segmenter == NULL)
        return fail(UNETX_BAD_ARGUMENT, "unetx_open: segmenter is NULL");
    *segmenter = NULL;
    if (bundle_directory == NULL || onnxruntime_path == NULL || threads > 1024)
        return fail(UNETX_BAD_ARGUMENT, "unetx_open: a path is NULL, or threads is above 1024");
    made = calloc(1, sizeof *made);
    if (made == NULL)
        return no_memory();
    status = read_manifest(bundle_directory, &made->facts);
    if (status == UNETX_OK)
        status = read_engine(bundle_directory, &made->facts, &engine, &size);
    if (status == UNETX_OK)
        status = load_onnxruntime(onnxruntime_path, &made->ort);
    if (status == UNETX_OK)
        status = start_session(made, engine, size, threads);
    free(engine);
    if (status == UNETX_OK)
        *segmenter = made;
    else
        unetx_close(made);
    return status;
}

UNETX_API unetx_status UNETX_CALL unetx_labels(const unetx_segmenter *segmenter, uint32_t *count)
{
    if (segmenter == NULL || count == NULL)
        return fail(UNETX_BAD_ARGUMENT, "unetx_labels: an argument is NULL");
    *count = segmenter->facts.label_count;
    return UNETX_OK;
}

UNETX_API unetx_status UNETX_CALL unetx_label_name(const unetx_segmenter *segmenter, uint32_t index, char *name,
                                                   uint64_t capacity)
{
    size_t size;
    if (segmenter == NULL || name == NULL || index >= segmenter->facts.label_count)
        return fail(UNETX_BAD_ARGUMENT, "unetx_label_name: an argument is NULL, or there is no such label");
    size = strlen(segmenter->facts.labels[index]) + 1;
    if (capacity < size)
        return fail(UNETX_BAD_ARGUMENT, "unetx_label_name: the name needs %u bytes, capacity is %llu", (unsigned)size,
                    (unsigned long long)capacity);
    memcpy(name, segmenter->facts.labels[index], size);
    return UNETX_OK;
}

UNETX_API unetx_status UNETX_CALL unetx_segment(unetx_segmenter *segmenter, const unetx_image *image,
                                                const unetx_mask *mask, unetx_timings *timings)
{
    double started = clock_ms(), prepared = started, inferred = started, ended;
    image_geometry geometry = {0, 0, 0, 0};
    float *image_chw = NULL;
    const float *logits = NULL;
    ort_object *value = NULL;
    uint8_t *labels = NULL;
    int64_t planes = 0;
    unetx_status status;
    if (segmenter == NULL || image == NULL || mask == NULL)
        return fail(UNETX_BAD_ARGUMENT, "unetx_segment: an argument is NULL");
    if ((status = check_image(image)) != UNETX_OK || (status = check_mask(image, mask, timings)) != UNETX_OK)
        return status;
    status = prepare_image(image, &segmenter->facts.input, &geometry, &image_chw);
    prepared = clock_ms();
    if (status == UNETX_OK)
        status = infer(segmenter, image_chw, &value, &logits, &planes);
    free(image_chw);
    inferred = clock_ms();
    if (status == UNETX_OK && (labels = calloc(image->height, image->width)) == NULL)
        status = no_memory();
    if (status == UNETX_OK)
        status = restore_labels(image, &geometry, &segmenter->facts.input, logits, planes, labels);
    if (value != NULL)
        segmenter->ort.release_value(value);
    for (uint32_t y = 0; status == UNETX_OK && y < image->height; y++)
        memcpy(mask->labels + y * mask->row_stride, labels + (size_t)y * image->width, image->width);
    free(labels);
    ended = clock_ms();
    if (status == UNETX_OK && timings != NULL) {
        timings->prepare_ms = prepared - started;
        timings->infer_ms = inferred - prepared;
        timings->restore_ms = ended - inferred;
        timings->total_ms = ended - started;
    }
    return status;
}

UNETX_API void UNETX_CALL unetx_close(unetx_segmenter *segmenter)
{
    if (segmenter == NULL)
        return;
    if (segmenter->memory != NULL)
        segmenter->ort.release_memory_info(segmenter->memory);
    if (segmenter->session != NULL)
        segmenter->ort.release_session(segmenter->session);
    if (segmenter->env != NULL)
        segmenter->ort.release_env(segmenter->env);
    free(segmenter);
}
