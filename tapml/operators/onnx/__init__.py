"""A body as an ONNX model: `to_onnx.py` writes it, by the tables of the other files; `writer.py` is the text they write."""
