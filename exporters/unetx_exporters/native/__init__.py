"""The C interface of the product: a header, one C source over ONNX Runtime, and examples in C, C++ and C#."""
