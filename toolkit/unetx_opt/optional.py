"""The one door to optional packages: an import that names the extra to install when it fails."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType, ModuleType

from unetx_opt.errors import MissingPackageError

__all__ = ["EXTRAS", "find", "require"]

#: Top-level module -> the extra of this project that installs it.
EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "cuda": "cuda",
        "cryptography": "sign",
        "cyclonedx": "export",
        "highdicom": "dicom",
        "imagecodecs": "dicom",
        "jinja2": "bench",
        "matplotlib": "bench",
        "monai": "train",
        "numba": "crf",
        "onnx": "export",
        "onnxruntime": "cpu",
        "onnxscript": "export",
        "openvino": "cpu",
        "prometheus_client": "node",
        "psutil": "bench",
        "pycuda": "cuda",
        "pydensecrf": "crf-reference",
        "pydicom": "dicom",
        "pynetdicom": "node",
        "pynvml": "bench",
        "ray": "ray",
        "requests": "node",
        "safetensors": "export",
        "tensorboard": "train",
        "tensorrt": "tensorrt",
        "tensorrt_rtx": "rtx",
        "torch": "export",
    }
)


def require(module: str, *, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Parameters
    ----------
    module : str
        Dotted module name; its top-level name is a key of `EXTRAS`.
    purpose : str
        What needs it, as a noun phrase for the message: "building this engine".

    Returns
    -------
    types.ModuleType
        The imported module.

    Raises
    ------
    MissingPackageError
        The package is not installed, or is installed and cannot be loaded (a missing shared library).
    """
    top = module.partition(".")[0]
    extra = EXTRAS[top]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.partition(".")[0]):
            raise MissingPackageError(
                f"{purpose} needs {top}, whose own dependency {error.name} is missing: "
                f"run pip install 'unetx-opt[{extra}]'"
            ) from error
        raise MissingPackageError(
            f"{purpose} needs the package {top}, which is not installed: run pip install 'unetx-opt[{extra}]'"
        ) from error
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingPackageError(
            f"{purpose} needs {top}, which is installed but cannot be loaded ({reason}): "
            f"mend that or reinstall with pip install 'unetx-opt[{extra}]'"
        ) from error


def find(module: str) -> bool:
    """Whether a top-level optional module is installed, without importing it.

    Parameters
    ----------
    module : str
        Top-level module name, a key of `EXTRAS`.
    """
    if module not in EXTRAS:
        raise KeyError(module)
    return importlib.util.find_spec(module) is not None
