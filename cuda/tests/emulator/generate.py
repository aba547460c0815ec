"""Compiles the .cu files here to the .ptx files beside them.

    pip install --no-deps --target DIR nvidia-cuda-nvrtc==13.0.88 'nvidia-cuda-runtime==13.0.*'
    python cuda/tests/emulator/generate.py DIR
"""

import ctypes
import pathlib
import sys

FILES = {"rms_norm": "compute_80", "softmax": "compute_80", "matmul": "compute_80", "misc": "compute_80"}


def compile(nvrtc, include, source, arch):
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None) == 0
    options = [f"--gpu-architecture={arch}", f"--include-path={include}", "--generate-line-info", "--std=c++17"]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if status != 0:
        sys.exit(log.value.decode())
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, text)
    # The debugger's sections are not needed, and name files of the machine that compiled.
    lines, skip = [], False
    for line in text.value.decode().splitlines():
        skip = skip or line.lstrip().startswith(".section")
        if not skip:
            name = line.split('"')
            if line.lstrip().startswith(".file") and "/" in name[1]:
                line = f'{name[0]}"{name[1].rsplit("/", 1)[1]}"' + "".join(name[2:3])
            lines.append(line.rstrip())
        elif line.startswith("}") or line.startswith("\t}"):
            skip = False
    return "\n".join(lines).rstrip() + "\n"


here = pathlib.Path(__file__).parent
root = next(pathlib.Path(sys.argv[1]).glob("nvidia/*"))
library = next(root.glob("lib/libnvrtc.so.*"))
ctypes.CDLL(str(next(root.glob("lib/libnvrtc-builtins.so.*"))))
nvrtc = ctypes.CDLL(str(library))
for name, arch in FILES.items():
    (here / f"{name}.ptx").write_text(compile(nvrtc, root / "include", here / f"{name}.cu", arch))
