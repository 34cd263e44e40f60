// Segment a raw 8-bit image from C++17, with a handle that closes itself:
//
//   segment BUNDLE /path/to/libonnxruntime.so WIDTH HEIGHT IN.raw OUT.raw
#include "unetx.h"

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Close {
    void operator()(unetx_segmenter *segmenter) const noexcept { unetx_close(segmenter); }
};
using Segmenter = std::unique_ptr<unetx_segmenter, Close>;

void check(unetx_status status)
{
    if (status != UNETX_OK)
        throw std::runtime_error(unetx_last_message());
}

Segmenter open(const std::string &bundle, const std::string &onnxruntime)
{
    unetx_segmenter *segmenter = nullptr;
    check(unetx_open(bundle.c_str(), onnxruntime.c_str(), 0, &segmenter));
    return Segmenter(segmenter);
}

std::vector<std::uint8_t> segment(unetx_segmenter &segmenter, const std::vector<char> &pixels, std::uint32_t width,
                                  std::uint32_t height)
{
    std::vector<std::uint8_t> labels(std::size_t{width} * height);
    unetx_image image{};
    image.struct_size = sizeof image;
    image.width = width;
    image.height = height;
    image.bits_allocated = 8;
    image.photometric = UNETX_MONOCHROME2;
    image.pixels = pixels.data();
    image.pixels_size = pixels.size();
    image.row_stride = width;
    unetx_mask mask{};
    mask.struct_size = sizeof mask;
    mask.labels = labels.data();
    mask.labels_size = labels.size();
    mask.row_stride = width;
    check(unetx_segment(&segmenter, &image, &mask, nullptr));
    return labels;
}

}  // namespace

int main(int count, char **arguments)
try {
    if (count != 7)
        throw std::runtime_error("usage: segment BUNDLE ONNXRUNTIME WIDTH HEIGHT IN.raw OUT.raw");
    const auto segmenter = open(arguments[1], arguments[2]);
    std::ifstream source(arguments[5], std::ios::binary);
    const std::vector<char> pixels{std::istreambuf_iterator<char>(source), {}};
    const auto width = static_cast<std::uint32_t>(std::stoul(arguments[3]));
    const auto height = static_cast<std::uint32_t>(std::stoul(arguments[4]));
    const auto labels = segment(*segmenter, pixels, width, height);
    std::ofstream target(arguments[6], std::ios::binary);
    target.write(reinterpret_cast<const char *>(labels.data()), static_cast<std::streamsize>(labels.size()));
    return target.flush() ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception &error) {
    std::cerr << "segment: " << error.what() << '\n';
    return EXIT_FAILURE;
}
