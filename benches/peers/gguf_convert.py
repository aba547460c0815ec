"""Writes a GGUF file with its weights in another type: f16, bf16 or q8_0.

    python benches/peers/gguf_convert.py IN.gguf OUT.gguf --type f16

Matrices are dequantised and quantised again; vectors (norms) stay f32; metadata is copied. For
llama.cpp to run the very weights that planish dequantises.
"""

import argparse

import gguf
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter

TYPES = {"f16": (Type.F16, 1), "bf16": (Type.BF16, 32), "q8_0": (Type.Q8_0, 7), "f32": (Type.F32, 0)}


def main() -> None:
    """Converts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--type", choices=TYPES, default="f16")
    args = parser.parse_args()
    kind, file_type = TYPES[args.type]

    reader = GGUFReader(args.source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(args.target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        element = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=element)
    writer.add_file_type(file_type)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        target = Type.F32 if values.ndim < 2 else kind
        writer.add_tensor(tensor.name, gguf.quantize(values, target), raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
